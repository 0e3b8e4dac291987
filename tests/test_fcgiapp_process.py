"""fcgiapp: what a process is, CGI or not; its sockets; its children."""

from __future__ import annotations

import re
import socket
import textwrap
from pathlib import Path

import pytest

from fcgi_app import ConfigError, client, fcgiapp

from .fcgx import PATIENCE, PROGRAM, THREADED, own_process, run, run_as_cgi
from .webserver import (
    App,
)

# FCGX_Accept, and CGI


def test_accept_without_r(tmp_path: Path) -> None:
    """FCGX_Accept gives result, streams and params; FCGX_Finish ends the request."""
    source = """
        from fcgi_app.fcgiapp import *
        while (accepted := FCGX_Accept()).result >= 0:
            result, in_, out, err, envp = accepted
            FCGX_PutS("A: b\\r\\n\\r\\n", out)
            FCGX_PutS(FCGX_GetParam("REMOTE_ADDR", envp), out)
            FCGX_PutS(FCGX_GetStr(9, in_), err)
            FCGX_Finish()
            FCGX_Finish()
        print(accepted)
    """
    with App(tmp_path, source) as app:
        for body in (b"first", b"second"):
            answer = app.ask(body=body)
            assert (answer.body, answer.stderr) == (b"192.0.2.1", body)
        assert app.stop() == 0
        assert "FCGX_Accepted(result=-9999, in_=None" in app.log


@pytest.mark.parametrize("accept", ["FCGX_Accept().result", "FCGX_Accept_r(r)"])
def test_cgi_serves_one_request(tmp_path: Path, accept: str) -> None:
    """A CGI program gets its request from both, and -9999 then."""
    text = f"""
        from fcgi_app import fcgiapp
        r = fcgiapp._the_request
        cgi = FCGX_IsCGI()
        while (result := {accept}) >= 0:
            FCGX_PutS("A: b\\r\\n\\r\\n", r.out)
            FCGX_FPrintF(r.out, "%d %s %s %s", cgi, FCGX_GetParam("X", r.envp),
                         FCGX_GetParam("FCGI_ROLE", r.envp), FCGX_GetStr(99, r.in_))
            FCGX_PutS("to the log\\n", r.err)
        FCGX_Finish()
        assert FCGX_Accept_r(r) == result == -9999
    """
    env = {"X": "x", "CONTENT_LENGTH": "4"}
    done = run_as_cgi(tmp_path, text, b"body and more", **env)
    assert done.stdout == b"A: b\r\n\r\n1 x RESPONDER body"
    assert (done.stderr, done.returncode) == (b"to the log\n", 0)


@pytest.mark.parametrize(
    ("ending", "status"),
    [("FCGX_Finish()", 7), ("", 7), ("import sys; sys.exit(2)", 7), ("1/0", 1)],
)
def test_cgi_exit_status(tmp_path: Path, ending: str, status: int) -> None:
    """FCGX_SetExitStatus sets the exit status of a CGI program that does not fail."""
    text = f"""
        r = FCGX_Accept()
        FCGX_PutS("A: b\\r\\n\\r\\nanswer", r.out)
        FCGX_FFlush(r.out)
        FCGX_SetExitStatus(7, r.out)
        {ending}
    """
    done = run_as_cgi(tmp_path, text)
    assert (done.stdout, done.returncode) == (b"A: b\r\n\r\nanswer", status)


def test_cgi_leaves_the_environment_alone(tmp_path: Path) -> None:
    """FCGI_ROLE is among the params, and not in os.environ."""
    text = """
        import os
        before = dict(os.environ)
        r = FCGX_Accept()
        assert dict(os.environ) == before and "FCGI_ROLE" not in before
        FCGX_PutS("A: b\\r\\n\\r\\nsame", r.out)
    """
    assert run_as_cgi(tmp_path, text).stdout == b"A: b\r\n\r\nsame"


def test_malformed_setting_is_told_at_the_start(tmp_path: Path) -> None:
    """FCGX_Init raises for an address list that cannot be read, and names the entry."""
    done = run_as_cgi(tmp_path, "FCGX_Init()", FCGI_WEB_SERVER_ADDRS="127.1")
    assert done.returncode == 1
    assert b"ConfigError: FCGI_WEB_SERVER_ADDRS: '127.1'" in done.stderr


# Sockets


SERVE = """
    import sys, threading
    def serve(sock):
        r = FCGX_Request()
        assert FCGX_InitRequest(r, sock, 0) == 0
        while (result := FCGX_Accept_r(r)) >= 0:
            FCGX_PutS("A: b\\r\\n\\r\\n%s" % sock, r.out)
        print("over", result, flush=True)
    FCGX_Init()
    sockets = [FCGX_OpenSocket(address, 5) for address in sys.argv[1:]]
    print(*sockets, FCGX_IsCGI(), flush=True)
    threads = [threading.Thread(target=serve, args=[sock]) for sock in sockets]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_own_sockets(tmp_path: Path) -> None:
    """FCGX_OpenSocket opens what it is told; the files go when the process ends."""
    names = ["one.sock", f"{tmp_path}/two.sock", f"unix:{tmp_path}/three.sock"]
    with own_process(tmp_path, SERVE, *names) as process:
        assert process.stdout is not None
        *sockets, is_cgi = process.stdout.readline().split()
        assert (len({*sockets}), is_cgi) == (3, "False")
        for name, number in zip(("one", "two", "three"), sockets, strict=True):
            answer = client.request(f"unix:{tmp_path}/{name}.sock", {}, timeout=20)
            assert answer.body == number.encode()
        process.terminate()
        assert process.stdout.read() == "over -9999\n" * 3
        assert process.wait(PATIENCE) == 0
    assert list(tmp_path.glob("*.sock")) == []


def test_open_socket_that_is_in_use(tmp_path: Path) -> None:
    """FCGX_OpenSocket gives -1 for what cannot be had, and the log says why."""
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "taken"))
        taken.listen()
        text = "print(FCGX_OpenSocket('taken', 5), FCGX_IsCGI())"
        with own_process(tmp_path, text) as process:
            out, err = process.communicate(timeout=PATIENCE)
    assert out == "-1 True\n"
    assert "FCGX_OpenSocket" in err
    assert "another process listens on the socket" in err


@pytest.mark.parametrize("address", ["", "host:port", "unix:", ":70000"])
def test_open_socket_with_a_malformed_address(address: str) -> None:
    """A malformed address is a mistake that is told, where libfcgi exits."""
    with pytest.raises(ConfigError, match=re.escape(repr(address))):
        fcgiapp.FCGX_OpenSocket(address, 5)


def test_forced_cgi_opens_nothing(tmp_path: Path) -> None:
    """With FCGI_FORCE_CGI the socket is 0, which means the CGI request."""
    text = """
        r = FCGX_Request()
        FCGX_Init()
        sock = FCGX_OpenSocket("app.sock", 5)
        FCGX_InitRequest(r, sock, 0)
        while FCGX_Accept_r(r) >= 0:
            FCGX_FPrintF(r.out, "A: b\\r\\n\\r\\n%d %d", sock, FCGX_IsCGI())
    """
    done = run_as_cgi(tmp_path, text, FCGI_FORCE_CGI="1")
    assert done.stdout == b"A: b\r\n\r\n0 1"
    assert not (tmp_path / "app.sock").exists()


def test_socket_of_the_program_stays_its_own(tmp_path: Path) -> None:
    """A socket object, or its number, will do; it is not closed."""
    text = """
        import socket, sys
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("app.sock")
        listener.listen()
        FCGX_Init()
        r = FCGX_Request()
        for sock in (listener, listener.fileno()):
            FCGX_InitRequest(r, sock, 0)
            print("ready", flush=True)
            assert FCGX_Accept_r(r) == 0
            FCGX_PutS("A: b\\r\\n\\r\\nanswer", r.out)
            FCGX_Finish_r(r)
        FCGX_ShutdownPending()
        assert FCGX_Accept_r(r) == -9999
        print(listener.getsockname(), flush=True)
        listener.close()
    """
    with own_process(tmp_path, text) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline() == "ready\n"
            answer = client.request(f"unix:{tmp_path}/app.sock", {}, timeout=20)
            assert answer.body == b"answer"
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, err, process.returncode) == ("app.sock\n", "", 0)


def test_number_of_a_socket_may_be_used_again(tmp_path: Path) -> None:
    """A descriptor that has become another socket's means that one from then on."""
    text = """
        import socket
        def listening(name):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen()
            return listener
        FCGX_Init()
        r = FCGX_Request()
        numbers = []
        for name in ("one", "two"):
            with listening(name) as listener:
                numbers.append(listener.fileno())
                FCGX_InitRequest(r, listener.fileno(), 0)
                print("ready", flush=True)
                assert FCGX_Accept_r(r) == 0
                FCGX_PutS("A: b\\r\\n\\r\\n" + name, r.out)
                FCGX_Finish_r(r)
        assert numbers[0] == numbers[1], numbers
    """
    with own_process(tmp_path, text) as process:
        assert process.stdout is not None
        for name in ("one", "two"):
            assert process.stdout.readline() == "ready\n"
            answer = client.request(f"unix:{tmp_path}/{name}", {}, timeout=20)
            assert answer.body == name.encode()
        _, err = process.communicate(timeout=PATIENCE)
    assert (err, process.returncode) == ("", 0)


def test_process_without_descriptors_can_go_on(tmp_path: Path) -> None:
    """FCGX_Accept_r gives -EMFILE when there are none, leaks none, and works later."""
    text = """
        import errno, os, resource
        FCGX_Init()
        r = FCGX_Request()
        FCGX_InitRequest(r, FCGX_OpenSocket("app.sock", 5), 0)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = os.listdir("/proc/self/fd")
        taken = os.dup(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, most))
        results = [FCGX_Accept_r(r) for _ in range(3)]
        os.close(taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert results == [-errno.EMFILE] * 3, results
        assert os.listdir("/proc/self/fd") == before
        print("ready", flush=True)
        assert FCGX_Accept_r(r) == 0
        FCGX_PutS("A: b\\r\\n\\r\\nanswer", r.out)
    """
    with own_process(tmp_path, text) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        answer = client.request(f"unix:{tmp_path}/app.sock", {}, timeout=20)
        assert answer.body == b"answer"
        assert process.wait(PATIENCE) == 0


def test_listen_is_served_on_socket_zero(tmp_path: Path) -> None:
    """What fcgi_app.listen has opened is what socket 0 means."""
    text = """
        import fcgi_app
        fcgi_app.listen("unix:one.sock")
        fcgi_app.listen("unix:two.sock")
        assert not FCGX_IsCGI()
        print("ready", flush=True)
        for _ in range(2):
            FCGX_PutS("A: b\\r\\n\\r\\nanswer", FCGX_Accept().out)
    """
    with own_process(tmp_path, text) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in ("one", "two"):
            answer = client.request(f"unix:{tmp_path}/{name}.sock", {}, timeout=20)
            assert answer.body == b"answer"
        assert process.wait(PATIENCE) == 0
    assert list(tmp_path.glob("*.sock")) == []


def test_descriptor_zero_of_the_loop_is_refused(tmp_path: Path) -> None:
    """Where accept() has descriptor 0, FCGX_Accept_r on it is an error that says so."""
    source = """
        from fcgi_app import accept, CallSequenceError
        from fcgi_app.fcgiapp import *
        while accept():
            print("A: b\\n")
            try:
                FCGX_Accept()
            except CallSequenceError as error:
                print(error, FCGX_IsCGI())
    """
    with App(tmp_path, source) as app:
        expected = b"FCGX_Accept_r: descriptor 0 is that of accept() False\n"
        assert app.ask().body == expected


# Forks


def test_fork_before_the_first_accept(tmp_path: Path) -> None:
    """Children that were forked after FCGX_Init serve; SIGTERM ends each politely."""
    source = textwrap.dedent(PROGRAM).replace(
        "FCGX_Init()\n",
        "FCGX_Init()\n"
        "child = os.fork()\n"
        "if child:\n"
        "    import signal\n"
        "    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    os._exit(os.waitstatus_to_exitcode(status))\n",
    )
    with App(tmp_path, source) as app:
        assert run(app, "say(os.getppid() != 1)").body == b"True\n"
        assert int(run(app, "say(os.getppid())").body) == app.process.pid
        assert app.stop() == 0
        assert app.log.startswith("over -9999")


def test_child_of_a_request_cannot_end_it(tmp_path: Path) -> None:
    """A child that exits in a request sends nothing, and gets no other request."""
    text = """
        FCGX_PutS("one ", r.out)
        child = os.fork()
        if not child:
            FCGX_PutS("never ", r.out)
            FCGX_Finish_r(r)
            os._exit(FCGX_Accept_r(r) != -9999)
        say(os.waitpid(child, 0)[1])
    """
    with App(tmp_path, THREADED) as app:
        assert run(app, text).body == b"one 0\n"
        assert run(app, text.replace("os._exit(", "sys.exit(")).body == b"one 0\n"
        assert app.stop() == 0


def test_detached_request_is_answered_by_a_child(tmp_path: Path) -> None:
    """FCGX_Detach leaves the answer to a child, which attaches and finishes."""
    text = """
        FCGX_PutS("parent ", r.out)
        say(FCGX_Detach(r))
        child = os.fork()
        if not child:
            FCGX_Attach(r)
            say("child")
            FCGX_Finish_r(r)
            os._exit(0)
        FCGX_Finish_r(r)
        os.waitpid(child, 0)
    """
    with App(tmp_path, PROGRAM) as app:
        answer = run(app, text)
        assert (answer.body, answer.app_status) == (b"parent 0\n'child'\n", 0)
        assert (
            run(app, "say(FCGX_Attach(r), FCGX_Detach(FCGX_Request()))").body
            == b"0 -1\n"
        )
        assert app.stop() == 0


@pytest.mark.parametrize("flags", ["0", "FCGI_FAIL_ACCEPT_ON_INTR"])
def test_signal_that_does_not_end_the_wait(tmp_path: Path, flags: str) -> None:
    """The main thread gets to its handlers, though the signal is sent to another."""
    source = f"""
        import os, signal, threading, time
        from fcgi_app.fcgiapp import *
        waiting = threading.Event()
        def tell():
            waiting.wait()
            time.sleep(0.1)  # in which the main thread begins to wait
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        FCGX_Init()
        r = FCGX_Request()
        FCGX_InitRequest(r, 0, {flags})
        threading.Thread(target=tell).start()
        for turn in range(2):
            result = FCGX_Accept_r(r)
            if turn:
                break
            FCGX_PutS("A: b\\r\\n\\r\\n", r.out)
            FCGX_Finish_r(r)
            waiting.set()
        print("over", result < 0)
    """
    with App(tmp_path, source) as app:
        assert app.ask().stdout == b"A: b\r\n\r\n"
        assert app.wait() == 0
        assert app.log == "over True\n"
