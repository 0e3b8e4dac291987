"""What swapping the process's globals means: the 28 questions, each with its answer.

Each program below runs as a FastCGI process; request by request it does what
QUERY_STRING says, and prints what it sees.
"""

from __future__ import annotations

import gc
import io
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.textio import TextOut

from .webserver import PACKAGE_PARENT, Answer, App, begin_request, params, stdin

PROGRAM = """
    import io, os, signal, subprocess, sys, threading
    from fcgi_app import *
    from os import environ, environb
    from sys import stdin, stdout, stderr
    kept = {}
    while accept():
        print("Content-Type: text/plain", end="\\r\\n\\r\\n")
        exec(os.environ["QUERY_STRING"])
    print("loop is over", os.environ.get("QUERY_STRING"), file=sys.stderr)
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App(tmp_path, PROGRAM, env={"OWN": "process", "HOME": "/home/x"}) as running:
        yield running


def do(app: App, text: str, *pairs: tuple[str, str], body: bytes = b"") -> Answer:
    return app.ask(("QUERY_STRING", textwrap.dedent(text)), *pairs, body=body)


def said(app: App, text: str, *pairs: tuple[str, str], body: bytes = b"") -> str:
    """What the program printed behind its head."""
    return do(app, text, *pairs, body=body).body.decode()


class TestEnvironment:
    def test_q1_early_name(self, app: App) -> None:
        """1: ``from os import environ`` made early follows every request."""
        text = "print(environ is os.environ, environ['COOKIE'])"
        for cookie in ("first", "second"):
            assert said(app, text, ("COOKIE", cookie)) == f"True {cookie}\n"

    def test_q2_environb_and_getenv(self, app: App) -> None:
        """2: os.environb and os.getenv see the same."""
        text = "print(environb[b'COOKIE'], os.getenv('COOKIE'), os.getenvb(b'COOKIE'))"
        assert said(app, text, ("COOKIE", "x")) == "b'x' x b'x'\n"

    def test_q3_children(self, app: App) -> None:
        """3: subprocess and os.system see the request's environment."""
        text = """
        print(subprocess.run(["sh", "-c", "echo $COOKIE"], stdout=-1).stdout)
        print(os.system('test "$COOKIE" = crumb'))
        """
        assert said(app, text, ("COOKIE", "crumb")) == "b'crumb\\n'\n0\n"

    def test_q3_c_getenv(self, app: App) -> None:
        """3: C code sees it through getenv, and no longer after finish."""
        text = """
        import ctypes
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        inside = getenv(b"COOKIE")
        finish()
        print(inside, getenv(b"COOKIE"), getenv(b"OWN"), file=sys.stderr, flush=True)
        """
        do(app, text, ("COOKIE", "crumb"))
        assert app.stop() == 0
        assert "b'crumb' None b'process'" in app.log

    def test_q5_which_variables(self, app: App) -> None:
        """5: the request overlays the process; steering names do not get through."""
        text = "print([os.environ.get(n) for n in os.environ['NAMES'].split()])"
        names = "OWN HOME HTTP_PROXY LD_PRELOAD PYTHONPATH FCGI_ROLE FCGI_APP_X HTTP_X"
        answer = said(
            app,
            text,
            ("NAMES", names),
            ("HTTP_PROXY", "http://evil"),
            ("LD_PRELOAD", "evil.so"),
            ("PYTHONPATH", "/evil"),
            ("FCGI_ROLE", "FILTER"),
            ("FCGI_APP_X", "1"),
            ("HTTP_X", "fine"),
        )
        expected = ["process", "/home/x", None, None, PACKAGE_PARENT, "RESPONDER"]
        assert answer == f"{[*expected, None, 'fine']}\n"

    def test_q5_replace(self, tmp_path: Path) -> None:
        """5: in replace mode there is the request alone, as with libfcgi."""
        env = {"FCGI_APP_REPLACE_ENVIRON": "1", "OWN": "process"}
        with App(tmp_path, PROGRAM, env=env) as app:
            text = "print(sorted(os.environ))"
            names = sorted(
                ["FCGI_ROLE", "QUERY_STRING", "REMOTE_ADDR", "REQUEST_METHOD"]
            )
            assert said(app, text) == f"{names}\n"

    def test_q6_bad_names_and_values(self, app: App) -> None:
        """6: what cannot be in an environment is in params, and harms nobody."""
        text = """
        params = current_request().params
        print(params["A=B"], repr(params["NUL"]), params[""])
        print("A" in os.environ, "NUL" in os.environ, "" in os.environ)
        """
        bad = [("A=B", "c"), ("NUL", "a\0b"), ("", "empty")]
        assert said(app, text, *bad) == "c 'a\\x00b' empty\nFalse False False\n"

    def test_q7_text_of_values(self, app: App) -> None:
        """7: any bytes come through, as surrogates, and go out again as they came."""
        text = (
            "print(ascii(os.environ['PATH_INFO']), environb[b'PATH_INFO'],"
            " os.environ['PATH_INFO'])"
        )
        with app.connect() as wire:
            pairs = [(b"QUERY_STRING", text.encode()), (b"PATH_INFO", b"/caf\xe9")]
            wire.send(begin_request(), params(pairs=pairs), stdin())
            body = wire.answer().body
        assert body == b"'/caf\\udce9' b'/caf\\xe9' /caf\xe9\n"

    def test_nothing_remains(self, app: App) -> None:
        """What an application does to its environment is gone with the request."""
        do(app, "os.environ['LEFT'] = '1'; os.environ.pop('HOME')", ("COOKIE", "a"))
        do(app, "os.environ.clear(); os.putenv('LEFT', '2')")
        text = """
        print([os.environ.get(n) for n in ("LEFT", "HOME", "COOKIE")])
        print(os.system('test -z "$LEFT$COOKIE" -a "$HOME" = /home/x'))
        """
        assert said(app, text) == "[None, '/home/x', None]\n0\n"

    def test_outside_of_a_request(self, app: App) -> None:
        """Between requests the environment is the process's own."""
        text = "finish(); print(os.environ.get('COOKIE'), os.environ['OWN'])"
        do(app, text, ("COOKIE", "x"))
        app.stop()
        assert "None process\n" in app.log


class TestStreams:
    @pytest.mark.parametrize(
        "locale",
        [
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            {"PYTHONIOENCODING": "latin-1:strict"},
            {"LC_ALL": "C.UTF-8"},
        ],
        ids=["C", "ioencoding", "utf8"],
    )
    def test_q8_locale(self, tmp_path: Path, locale: dict[str, str]) -> None:
        """8: text is UTF-8 with surrogateescape, both ways, whatever the locale."""
        with App(tmp_path, PROGRAM, env=locale) as app:
            text = "print(sys.stdout.encoding, sys.stdin.read(), '\\u20ac')"
            answer = do(app, text, body=b"caf\xc3\xa9 \xe9")
        assert answer.body == "utf-8 café ".encode() + b"\xe9 \xe2\x82\xac\n"

    def test_q9_early_streams(self, app: App) -> None:
        """9: ``from sys import stdout`` made early follows; requests stay apart."""
        for body in (b"one", b"two"):
            assert said(app, "stdout.write(stdin.read())", body=body) == body.decode()
        assert do(app, "print('log', file=stderr)").stderr == b"log\n"

    @pytest.mark.parametrize(
        "harm",
        [
            "sys.stdout.reconfigure(encoding='utf-16', newline='\\r\\n')",
            "sys.stdin.reconfigure(encoding='latin-1')",
            "sys.stdout.close()",
            "sys.stdin.close(); sys.stderr.close()",
            "sys.stdout.detach(); sys.stdin.detach()",
            "sys.stdout = sys.stdin = sys.stderr = None",
            "sys.stdout.buffer.close()",
            "kept['w'] = io.TextIOWrapper(sys.stdout.buffer)",
            "sys.stdin.readline()",
        ],
    )
    def test_q10_state_of_the_last_request(self, app: App, harm: str) -> None:
        """10: whatever was done to the streams, the next request finds them as new."""
        do(app, harm, body=b"left\nover\n")
        text = """
        kept.clear()
        print(sys.stdin.read(), '\\u20ac')
        print("log", file=sys.stderr)
        """
        answer = do(app, text, body=b"\xc3\xa9")
        assert answer.body == "é €\n".encode()
        assert answer.stderr == b"log\n"

    def test_q10_reconfigure(self, app: App) -> None:
        """10: reconfigure works within its request."""
        text = """
        sys.stdout.reconfigure(encoding="latin-1", newline="\\r\\n")
        print("\\xe9")
        """
        assert do(app, text).body == b"\xe9\r\n"

    def test_q10_errors_of_a_closed_stream(self, app: App) -> None:
        """10: writing to a closed stream raises; reading a detached one too."""
        text = """
        out = sys.stdout.buffer
        raised = []
        sys.stdout.close()
        for f in (lambda: print(1), lambda: out.write(b"x")):
            try: f()
            except ValueError as e: raised.append(str(e))
        print(raised, file=sys.stderr)
        """
        assert do(app, text).stderr.count(b"closed file") == 2

    def test_q11_order(self, app: App) -> None:
        """11: print and sys.stdout.buffer.write keep their order."""
        text = "print(1); sys.stdout.buffer.write(b'2\\n'); print(3)"
        assert said(app, text) == "1\n2\n3\n"

    def test_q12_stdin(self, app: App) -> None:
        """12: the body is bytes in stdin.buffer, lines in stdin; input() has its prompt."""
        text = """
        print(repr(input("name? ")), sys.stdin.buffer.read(2), next(sys.stdin))
        print(repr(sys.stdin.read()), [*sys.stdin])
        """
        # input() and next() are text; bytes behind the decoder's read-ahead are gone.
        answer = said(app, text, body=b"me\n")
        assert answer.startswith("name? ")

    def test_q12_newlines_are_kept(self, app: App) -> None:
        """12: no newline is translated, in or out."""
        text = "print(repr(sys.stdin.read()), end='\\r\\n')"
        assert said(app, text, body=b"a\r\nb\rc\n") == "'a\\r\\nb\\rc\\n'\r\n"

    @pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
    def test_q13_fileno(self, app: App, name: str) -> None:
        """13: a request's stream has no descriptor, and is no terminal."""
        text = f"""
        for stream in (sys.{name}, sys.{name}.buffer):
            try: stream.fileno()
            except io.UnsupportedOperation as e: print("none", stream.isatty())
        """
        assert said(app, text) == "none False\nnone False\n"

    def test_q14_originals(self, app: App) -> None:
        """14: sys.__stdout__ and __stderr__ stay the process's own."""
        do(app, "print('original', file=sys.__stderr__, flush=True)")
        assert "original\n" in app.log

    def test_q15_closed_descriptors(self, tmp_path: Path) -> None:
        """15: with 1 and 2 closed at the start, no file ever lands there."""
        source = "import os, sys; os.close(1); os.close(2)\n" + textwrap.dedent(PROGRAM)
        with App(tmp_path, source) as app:
            text = "print(os.open('/dev/null', 0) > 2, os.fstat(1).st_rdev)"
            null = str(Path("/dev/null").stat().st_rdev)
            assert said(app, text) == f"True {null}\n"

    def test_q15_no_standard_streams(self, tmp_path: Path) -> None:
        """15: a process started with 1 and 2 closed serves, and may print anywhere."""
        with App(
            tmp_path, PROGRAM, preexec_fn=lambda: __import__("os").closerange(1, 3)
        ) as app:
            text = "print(1); finish(); print(2); print(3, file=sys.stderr)"
            assert said(app, text) == "1\n"
            assert said(app, "print(2)") == "2\n"

    def test_q16_descriptor_0(self, app: App) -> None:
        """16: /dev/null takes descriptor 0; the listener is not inherited."""
        text = """
        print(os.readlink("/proc/self/fd/0"))
        command = "ls -l /proc/self/fd | grep -c socket:"
        print(subprocess.run(command, shell=True, stdout=-1).stdout)
        """
        assert said(app, text) == "/dev/null\nb'0\\n'\n"

    def test_q17_logging(self, tmp_path: Path) -> None:
        """17: a handler made early writes to the request's log, later to the own one."""
        source = """
            import logging, os, sys
            from fcgi_app import accept, finish
            logging.basicConfig(format="%(message)s")
            while accept():
                print("Content-Type: text/plain\\n")
                logging.warning("in %s", os.environ["COOKIE"])
                finish()
                logging.warning("outside")
        """
        with App(tmp_path, source) as app:
            assert app.ask(("COOKIE", "one")).stderr == b"in one\n"
            assert app.ask(("COOKIE", "two")).stderr == b"in two\n"
            app.stop()
            assert app.log == "outside\noutside\n"

    def test_q18_threads(self, app: App) -> None:
        """18: a thread that prints after its request's end does not reach the next."""
        text = """
        go = kept["go"] = threading.Event()
        out = sys.stdout.buffer
        def late():
            go.wait(10)
            try: out.write(b"late")
            except ValueError: kept["refused"] = True
        thread = kept["thread"] = threading.Thread(target=late)
        thread.start()
        """
        do(app, text)
        text = "kept['go'].set(); kept['thread'].join(); print(kept['refused'])"
        assert said(app, text) == "True\n"


class TestProcess:
    def test_q19_contexts(self, tmp_path: Path) -> None:
        """19: run gives each call a fresh context; a bare loop cannot."""
        source = """
            import contextvars
            from fcgi_app import run
            seen = contextvars.ContextVar("seen", default=0)
            def handler(request):
                print("Content-Type: text/plain\\n")
                print(seen.get())
                seen.set(1)
            run(handler)
        """
        with App(tmp_path, source) as app:
            assert [app.ask().stdout[-2:] for _ in range(2)] == [b"0\n", b"0\n"]

    def test_q20_own_handler_is_left_alone(self, tmp_path: Path) -> None:
        """20: an application's own SIGTERM handler stays; last_call() is safe in it."""
        source = """
            import signal, sys
            from fcgi_app import accept, last_call
            def stop(*_):
                print("own handler", file=sys.__stderr__, flush=True)
                last_call()
            signal.signal(signal.SIGTERM, stop)
            while accept():
                print("Content-Type: text/plain\\n")
            print(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, flush=True)
        """
        with App(tmp_path, source) as app:
            app.ask()
            assert app.stop(signal.SIGTERM) == 0
            assert app.log == "own handler\nTrue\n"

    @pytest.mark.parametrize("flushed", [False, True], ids=["before", "after"])
    def test_q21_uncaught(self, app: App, flushed: bool) -> None:
        """21: traceback to FCGI_STDERR, 500 unless a head is out, app_status 1, exit 1."""
        text = "sys.stdout.flush()\n" * flushed + "raise ValueError('secret')"
        answer = do(app, text)
        assert b"ValueError: secret" in answer.stderr
        assert b"Traceback" in answer.stderr
        assert b"secret" not in answer.stdout
        assert answer.stdout.startswith(b"Status: 500 ") is not flushed
        assert answer.app_status == 1
        assert app.wait() == 1

    @pytest.mark.parametrize(
        ("leave", "status"),
        [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('why')", 1)],
    )
    def test_q22_exit(self, app: App, leave: str, status: int) -> None:
        """22: sys.exit ends the request with its status, and then the process."""
        answer = do(app, f"print('page'); {leave}")
        assert (answer.body, answer.app_status) == (b"page\n", status)
        assert app.wait() == status

    def test_q22_exit_in_run(self, tmp_path: Path) -> None:
        """22: under run, sys.exit ends the request only; an exception too."""
        source = """
            import os, sys
            from fcgi_app import run
            def handler(request):
                print("Content-Type: text/plain\\n")
                print("page")
                exec(request.params["QUERY_STRING"])
            run(handler)
            print("over")
        """
        with App(tmp_path, source) as app:
            answer = app.ask(("QUERY_STRING", "sys.exit(5)"))
            assert (answer.stdout[-5:], answer.app_status) == (b"page\n", 5)
            answer = app.ask(("QUERY_STRING", "1/0"))
            assert answer.stdout.startswith(b"Status: 500")
            assert b"ZeroDivisionError" in answer.stderr
            assert app.ask(("QUERY_STRING", "pass")).app_status == 0
            assert app.stop() == 0
            assert app.log == "over\n"

    def test_q23_atexit(self, app: App) -> None:
        """23: the application's atexit functions run while its request is still open."""
        text = "import atexit; atexit.register(print, 'at exit'); sys.exit()"
        assert do(app, text).body == b"at exit\n"

    def test_q23_callbacks(self, app: App) -> None:
        """23: per-request clean-up runs at each request's end."""
        text = """
        request = current_request()
        request.callback(lambda: print("released", file=sys.__stderr__, flush=True))
        """
        do(app, text)
        do(app, "pass")
        assert app.log == "released\n"

    def test_q24_fork(self, app: App) -> None:
        """24: a child's pending text is dropped, its prints go to the log."""
        text = """
        print("page")
        pid = os.fork()
        if not pid:
            print("child", current_request(), file=sys.stderr, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        """
        answer = do(app, text)
        assert (answer.body, answer.stderr) == (b"page\n", b"")
        assert app.log == "child None\n"

    def test_q24_multiprocessing(self, app: App) -> None:
        """24: a multiprocessing child can be terminated, and its parent goes on."""
        text = """
        import multiprocessing, time
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start(); child.terminate(); child.join(20)
        print(child.exitcode)
        """
        assert said(app, text) == "-15\n"
        assert said(app, "print('next')") == "next\n"

    def test_q24_detach(self, app: App) -> None:
        """24: a detached request is answered by the child, and by it alone."""
        text = """
        request = current_request()
        print("parent")
        request.detach()
        if not os.fork():
            request.attach()
            print("child")
            finish()
            os._exit(0)
        """
        assert said(app, text) == "parent\nchild\n"
        assert said(app, "print('next')") == "next\n"

    def test_q25_client_gone(self, app: App) -> None:
        """25: output for a client that has gone is dropped; close() tells."""
        text = """
        import socket
        sys.stdin.read()
        request = current_request()
        for _ in range(100): print("x" * 65536)
        try: sys.stdout.close()
        except OSError as e: print(request.aborted, e, file=sys.__stderr__, flush=True)
        """
        with app.connect() as wire:
            pairs = [(b"QUERY_STRING", textwrap.dedent(text).encode())]
            wire.send(begin_request(), params(pairs=pairs), stdin())
        assert said(app, "print('next')") == "next\n"
        assert app.log.startswith("True ")

    def test_q25_aborted_in_run(self, tmp_path: Path) -> None:
        """25: under run, the handler is told by RequestAborted."""
        source = """
            import sys
            from fcgi_app import run, RequestAborted
            def handler(request):
                request.stdout.write(b"Content-Type: text/plain\\n\\n")
                try:
                    for _ in range(request.content_length or 0):
                        request.stdout.write(bytes(99999))
                except RequestAborted as error:
                    print(isinstance(error, ConnectionError), file=sys.__stderr__, flush=True)
                    raise
            run(handler)
        """
        with App(tmp_path, source) as app:
            with app.connect() as wire:
                pairs = [(b"CONTENT_LENGTH", b"200")]
                wire.send(begin_request(), params(pairs=pairs), stdin(data=bytes(200)))
            app.ask()
            assert app.stop() == 0
            assert app.log == "True\n"

    def test_q26_not_reset(self, app: App) -> None:
        """26: module globals and the working directory persist, as ever."""
        do(app, "kept['x'] = 1; os.chdir('/')")
        assert said(app, "print(kept['x'], os.getcwd())") == "1 /\n"

    def test_q27_after_finish(self, app: App) -> None:
        """27: output after finish goes to the process's own streams; stdin is at EOF."""
        text = (
            "print('page'); finish(); print('own', repr(sys.stdin.read()), flush=True)"
        )
        assert said(app, text, body=b"unread") == "page\n"
        assert said(app, "print('next')") == "next\n"
        assert app.log == "own ''\n"

    def test_q28_unraisable(self, app: App) -> None:
        """28: what the interpreter itself reports goes to the request's log."""
        text = """
        class Bad:
            def __del__(self): raise ValueError("unraisable")
        Bad()
        threading.Thread(target=lambda: 1/0, daemon=True).start()
        [t.join() for t in threading.enumerate() if t is not threading.main_thread()]
        """
        log = do(app, text).stderr
        assert b"unraisable" in log
        assert b"ZeroDivisionError" in log


DESCRIPTORS = PROGRAM.replace("accept()", "accept(descriptors=True)")


class TestDescriptors:
    @pytest.fixture
    def owned(self, tmp_path: Path) -> Iterator[App]:
        with App(tmp_path, DESCRIPTORS) as running:
            yield running

    def test_children_in_order(self, owned: App) -> None:
        """The output of a child arrives between two prints, without any flush."""
        text = "print('before'); os.system('echo date'); print('after')"
        assert said(owned, text) == "before\ndate\nafter\n"
        text = "print(1); subprocess.run(['echo', '2']); sys.stdout.buffer.write(b'3')"
        assert said(owned, text) == "1\n2\n3"

    def test_head_from_a_child(self, tmp_path: Path) -> None:
        """The head may be a child's; it is mended like any other."""
        source = """
            import os
            from fcgi_app import accept
            while accept(descriptors=True):
                os.system("printf 'Location: /x\\n\\npage'")
        """
        with App(tmp_path, source) as app:
            answer = app.ask()
        assert answer.stdout == b"Location: /x\r\nStatus: 302 Found\r\n\r\npage"

    def test_more_than_a_pipe_holds(self, owned: App) -> None:
        """A child may write more than a pipe holds while we wait for it."""
        text = "os.system('head -c 3000000 /dev/zero')"
        assert do(owned, text).body == bytes(3_000_000)

    def test_stderr_and_stdin(self, owned: App) -> None:
        """Children's stderr is the request's log, their stdin its body."""
        text = "os.system('cat; echo log >&2')"
        answer = do(owned, text, body=b"z" * 200_000)
        assert (answer.body, answer.stderr) == (b"z" * 200_000, b"log\n")

    def test_c_code(self, owned: App) -> None:
        """C code that writes to descriptor 1 reaches the client; stdio is flushed."""
        text = """
        import ctypes
        libc = ctypes.CDLL(None)
        print("python")
        libc.puts(b"buffered by C")
        """
        assert said(owned, text) == "python\nbuffered by C\n"

    def test_background_child(self, owned: App) -> None:
        """A child left in the background holds nobody up, and reaches nobody."""
        text = """
        child = kept["p"] = subprocess.Popen(["sh", "-c", "echo now; read x; echo late"], stdin=-1)
        print("page")
        """
        first = said(owned, text)
        assert "page" in first  # and the child prints meanwhile
        text = """
        kept["p"].communicate(b"go\\n")
        print("second", end="")
        """
        assert said(owned, text) == "second"

    def test_descriptors_are_given_back(self, owned: App) -> None:
        """Between requests 0, 1 and 2 are the process's own; none is leaked."""
        text = "print(len(os.listdir('/proc/self/fd')))"
        counts = {said(owned, text) for _ in range(5)}
        assert len(counts) == 1
        do(owned, "finish(); os.system('echo own; cat')")
        owned.stop()
        assert "own\n" in owned.log

    def test_aborted(self, owned: App) -> None:
        """A client that has gone is no reason for the child's writes to block."""
        with owned.connect() as wire:
            pairs = [(b"QUERY_STRING", b"os.system('head -c 9000000 /dev/zero')")]
            wire.send(begin_request(), params(pairs=pairs), stdin())
        assert said(owned, "print('next')") == "next\n"


CGI = {"GATEWAY_INTERFACE": "CGI/1.1", "REQUEST_METHOD": "GET", "HTTP_PROXY": "evil"}


class TestCgi:
    def run(
        self, tmp_path: Path, text: str, body: bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(PROGRAM))
        return subprocess.run(
            [sys.executable, str(script)],
            input=body,
            capture_output=True,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": PACKAGE_PARENT,
                "QUERY_STRING": textwrap.dedent(text),
                **CGI,
                **env,
            },
            timeout=30,
            check=False,
        )

    def test_one_request(self, tmp_path: Path) -> None:
        """The same script answers one request and ends; the second accept says no."""
        done = self.run(tmp_path, "print(is_cgi(), os.environ['FCGI_ROLE'])")
        assert done.stdout == b"Content-Type: text/plain\r\n\r\nTrue RESPONDER\n"
        assert done.returncode == 0
        assert b"loop is over" in done.stderr

    def test_httpoxy(self, tmp_path: Path) -> None:
        """HTTP_PROXY is not in the environment of a CGI request either."""
        done = self.run(tmp_path, "print(os.environ.get('HTTP_PROXY'))")
        assert done.stdout.endswith(b"\r\n\r\nNone\n")

    @pytest.mark.parametrize("length", ["5", "", "-1"])
    def test_body(self, tmp_path: Path, length: str) -> None:
        """The body is CONTENT_LENGTH bytes; without one, to the end of descriptor 0."""
        text = "print(sys.stdin.read())"
        done = self.run(tmp_path, text, b"hello rest", CONTENT_LENGTH=length)
        wanted = b"hello\n" if length == "5" else b"hello rest\n"
        assert done.stdout.endswith(b"\r\n\r\n" + wanted)

    def test_short_body(self, tmp_path: Path) -> None:
        """A body shorter than CONTENT_LENGTH is told, as behind FastCGI."""
        text = "print(sys.stdin.read(), current_request().incomplete)"
        done = self.run(tmp_path, text, b"hello", CONTENT_LENGTH="9")
        assert done.stdout.endswith(b"hello True\n")
        assert b"shorter than CONTENT_LENGTH 9" in done.stderr

    def test_exit_status(self, tmp_path: Path) -> None:
        """set_exit_status is the exit status of the process; sys.exit wins over it."""
        assert self.run(tmp_path, "set_exit_status(7)").returncode == 7
        done = self.run(tmp_path, "set_exit_status(7); sys.exit(9)")
        assert (done.returncode, done.stdout[-4:]) == (9, b"\r\n\r\n")

    def test_exception(self, tmp_path: Path) -> None:
        """An exception before the head is out: a 500 page, the traceback on stderr."""
        done = self.run(tmp_path, "1/0")
        assert done.stdout.startswith(b"Status: 500 ")
        assert b"ZeroDivisionError" in done.stderr
        assert done.returncode == 1

    def test_location(self, tmp_path: Path) -> None:
        """Location without Status becomes a 302 as everywhere."""
        script = "from fcgi_app import accept\nwhile accept(): print('Location: /x\\n')"
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PYTHONPATH": PACKAGE_PARENT},
            timeout=30,
            check=True,
        )
        assert done.stdout == b"Location: /x\r\nStatus: 302 Found\r\n\r\n"

    def test_children_and_fileno(self, tmp_path: Path) -> None:
        """A CGI stream has its descriptor, and a child's output keeps its place."""
        text = """
        print(sys.stdout.fileno(), sys.stdin.fileno())
        sys.stdout.flush()
        os.system("echo child")
        print("after")
        """
        done = self.run(tmp_path, text)
        assert done.stdout.endswith(b"\r\n\r\n1 0\nchild\nafter\n")

    def test_page_of_a_child(self, tmp_path: Path) -> None:
        """A script whose child prints the whole page gets no 500 behind it."""
        script = (
            "import os\nfrom fcgi_app import accept\nwhile accept():\n"
            "    os.system(\"printf 'Content-Type: text/plain\\n\\nchild'\")\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PYTHONPATH": PACKAGE_PARENT, "PATH": "/bin:/usr/bin"},
            timeout=30,
            check=True,
        )
        assert done.stdout == b"Content-Type: text/plain\n\nchild"

    def test_descriptors(self, tmp_path: Path) -> None:
        """With descriptors, children need no flush in CGI either."""
        text = "print('before'); os.system('echo child; cat'); print('after')"
        done = self.run(tmp_path, text, b"body\n", FCGI_APP_DESCRIPTORS="1")
        assert done.stdout.endswith(b"\r\n\r\nbefore\nchild\nbody\nafter\n")

    def test_force_cgi(self, tmp_path: Path) -> None:
        """FCGI_FORCE_CGI=1 makes it CGI, whatever descriptor 0 is."""
        env = {"FCGI_FORCE_CGI": "1", "QUERY_STRING": "print(is_cgi())", **CGI}
        with App(tmp_path, PROGRAM, env=env) as app:
            assert app.wait() == 0
            assert "True\nloop is over" in app.log


def test_streams_collected_after_the_process_stream() -> None:
    """Python 3.13 tells of every error of a stream that the garbage collector closes.

    Ours follow the process's own, which may be closed by then; pytest fails for it.
    """
    raw = io.BytesIO()
    own = io.TextIOWrapper(raw)
    text = TextOut("stdout", own)
    buffer = text.buffer
    buffer.write(b"x")
    assert raw.getvalue() == b"x"
    own.close()
    del text, buffer
    gc.collect()
