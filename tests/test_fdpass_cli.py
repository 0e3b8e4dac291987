"""``fcgi-app fdpass``: real processes, real signals, clients over loopback."""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import click
import pytest

from fcgi_app.cli.fdpass import fdpass
from fcgi_app.errors import AppLoadError, ConfigError
from fcgi_app.fdpass import Receiver, Sender
from fcgi_app.launcher.fdpass import find_users
from fcgi_app.launcher.inetd import InetdOptions, find_program

from .fdpass_service import Service, run_command
from .handovers import TIMEOUT, TLS_ALERT, read_all, tcp_connection
from .loopback import needs_ipv6
from .servers import wait_until

pytestmark = pytest.mark.slow  # nearly all of them start an interpreter

MANPAGES = Path(__file__).parent.parent / "manpages"

TELL = """
import json, os, signal, socket, sys
folder = "/proc/self/fd/"
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "argv": sys.argv[1:],
    "descriptors": {n: os.readlink(folder + n).partition(":")[0]
                    for n in os.listdir(folder) if os.path.lexists(folder + n)},
    "same": os.path.sameopenfile(0, 1),
    "blocking": os.get_blocking(0),
    "leader": os.getsid(0) == os.getpid(),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "environ": {n: os.environ.get(n) for n in
                ("REMOTE_ADDR", "REMOTE_PORT", "FDPASS_PEER_PID", "OTHER")},
}))
print("to the log", file=sys.stderr)
"""

ASK = 'echo asked; read -r word; echo "got $word"'
"""Runs until the client says a line."""


# ---- what a command finds -----------------------------------------------------------


def test_command_has_the_client_and_nothing_else() -> None:
    """Descriptors, signals, session, arguments and environment are right."""
    command = [sys.executable, "-c", TELL, "-x", "--", "a b"]
    with Service(command=command, REMOTE_ADDR="stale", OTHER="kept") as service:
        with service.client() as client:
            facts = json.loads(client.rest())
        service.wait_for_log("to the log")
    assert facts["argv"] == ["-x", "--", "a b"]
    assert facts["descriptors"].keys() == {"0", "1", "2"}
    assert facts["descriptors"]["0"] == facts["descriptors"]["1"] == "socket"
    assert facts["descriptors"]["2"].endswith("/log")
    assert facts["same"]
    assert facts["blocking"]
    assert facts["leader"]
    # Every Python process ignores these two; all else is back at its default.
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    ours = sum(1 << (number - 1) for number in signal.valid_signals())
    assert facts["ignored"] & ours == python_ignores
    assert facts["blocked"] == 0
    assert facts["environ"] == {
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": str(client.port),
        "FDPASS_PEER_PID": str(os.getpid()),
        "OTHER": "kept",
    }


def test_client_without_an_address() -> None:
    """Of a Unix socket there is no address, and none is inherited either."""
    command = 'echo "${REMOTE_ADDR-unset} ${REMOTE_PORT-unset}"'
    with Service(command=command, REMOTE_ADDR="stale", REMOTE_PORT="1") as service:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            Sender(service.path).send(theirs)
            theirs.close()
            ours.settimeout(TIMEOUT)
            assert read_all(ours) == b"unset unset\n"


@needs_ipv6
def test_addresses_of_ipv6() -> None:
    """An IPv4 client of an IPv6 socket has its IPv4 address, an IPv6 one its own."""
    with (
        Service(command='echo "$REMOTE_ADDR"') as service,
        socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True
        ) as listener,
    ):
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), TIMEOUT) as client:
                with listener.accept()[0] as server:
                    Sender(service.path).send(server)
                assert read_all(client).decode() == f"{address}\n"


def test_standard_output_of_the_service_is_not_the_client() -> None:
    """Two clients at a time do not see each other's answers."""
    with Service(command=ASK) as service:
        with service.client() as one, service.client() as two:
            assert (one.line(), two.line()) == ("asked", "asked")
            two.say("second\n")
            assert two.rest() == "got second\n"
            one.say("first\n")
            assert one.rest() == "got first\n"
        assert service.log().count("\n") == 1  # the harness has looked once


# ---- how a connection ends ----------------------------------------------------------


def test_unread_input_does_not_destroy_the_answer() -> None:
    """A program that reads nothing: a megabyte of input, and the answer arrives."""
    with Service(command="echo answer") as service:
        for _ in range(10):
            with service.client() as client:
                client.say("x" * 1_000_000)
                client.socket.shutdown(socket.SHUT_WR)
                assert client.rest() == "answer\n"


def test_connection_ends_with_the_command() -> None:
    """A process that the program has left behind does not hold the connection."""
    with Service(command="sleep 1000 & echo $!") as service, service.client() as client:
        try:
            pid = int(client.line())
            assert client.rest() == ""
        finally:
            os.kill(pid, signal.SIGKILL)


def test_nothing_stays_open() -> None:
    """After 100 clients the service has as many descriptors as before."""
    with Service(command="true") as service:
        folder = f"/proc/{service.process.pid}/fd"
        before = len(os.listdir(folder))
        for _ in range(100):
            with service.client() as client:
                client.rest()
        wait_until(lambda: len(os.listdir(folder)) == before, "closed descriptors")


def test_client_that_stays_is_closed_in_the_end() -> None:
    """A client that does not close its side holds a descriptor for two seconds."""
    with Service(command="true") as service:
        folder = f"/proc/{service.process.pid}/fd"
        before = len(os.listdir(folder))
        with service.client() as client:
            assert client.rest() == ""
            began = time.monotonic()
            assert len(os.listdir(folder)) == before + 1
            wait_until(lambda: len(os.listdir(folder)) == before, "closed descriptors")
            assert time.monotonic() - began > 1


def test_tls_is_not_served() -> None:
    """Bytes of TLS: closed, with the cause in the log, and the next one is served."""
    with Service(command="echo served") as service:
        with tcp_connection() as (client, server):
            client.sendall(TLS_ALERT)
            wait_until(lambda: peek(server), "the alert")
            Sender(service.path).send(server)
            server.close()
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        service.wait_for_log("the client speaks TLS")
        with service.client() as next_client:
            assert next_client.rest() == "served\n"


def peek(client: socket.socket) -> bool:
    """Tell whether something waits in a socket."""
    return bool(select.select([client], [], [], 0)[0])


# ---- how many -----------------------------------------------------------------------


def test_max_children() -> None:
    """Further clients wait, and are served in their order."""
    with (
        Service("--max-children", "2", command=ASK) as service,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(service.client()) for _ in range(5)]
        for number, client in enumerate(clients):
            assert client.line() == "asked"
            for later in clients[number + 2 :]:
                assert not peek(later.socket)
            client.say(f"{number}\n")
            assert client.rest() == f"got {number}\n"


def test_more_clients_than_descriptors() -> None:
    """They wait where they are, and every one is served."""
    few = ("sh", "-c", 'ulimit -n 80; exec "$@"', "sh")
    with (
        Service("--max-children", "2", command=ASK, launcher=few) as service,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(service.client()) for _ in range(150)]
        for number, client in enumerate(clients):
            client.say(f"{number}\n")
        for number, client in enumerate(clients):
            assert client.rest() == f"asked\ngot {number}\n"
            client.socket.close()
        assert "cannot start" not in service.log()


# ---- when a command fails -----------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo x; exit 7", "exit status 7"), ("kill -SEGV $$", "signal 11")],
)
def test_failure_is_logged(script: str, words: str) -> None:
    """The line in the log names the program, its pid and how it ended."""
    with Service(command=script) as service, service.client() as client:
        client.rest()
        service.wait_for_log(f"ended with {words}")
        assert re.search(r"fdpass: /bin/sh -c .* \(pid \d+\) ended", service.log())


def test_client_that_leaves_is_no_failure() -> None:
    """To die of SIGPIPE is what becomes of a program whose client leaves early."""
    with Service(command="kill -PIPE $$") as service:
        with service.client() as client:
            assert client.rest() == ""
        assert service.stop() == 0
        assert "ended with" not in service.log().replace("connection ended with", "")


def test_program_that_goes_away(tmp_path: Path) -> None:
    """It is reported each time, the client is closed, and a new one is used."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho here\n")
    program.chmod(0o755)
    with Service(command=[str(program)]) as service:
        program.rename(tmp_path / "away")
        with service.client() as client:
            assert client.rest() == ""
        service.wait_for_log(f"fdpass: cannot start '{program}': No such file")
        (tmp_path / "away").rename(program)
        with service.client() as client:
            assert client.rest() == "here\n"


# ---- the stop -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_stop_while_idle(name: str) -> None:
    """Any of these ends it with 0, and the socket file is gone."""
    with Service(command="true") as service:
        assert service.stop(signal.Signals[name]) == 0
        assert not os.path.exists(service.path)


def test_ignored_signal_stays_ignored() -> None:
    """Under nohup SIGHUP means nothing."""
    with Service(command="echo x", launcher=("nohup",)) as service:
        service.send(signal.SIGHUP)
        with service.client() as client:
            assert client.rest() == "x\n"


def test_stop_waits_for_commands() -> None:
    """A program may finish; nobody new is taken; the client sees all of it."""
    with Service(command=ASK) as service, service.client() as client:
        assert client.line() == "asked"
        service.send()
        wait_until(lambda: not os.path.exists(service.path), "no socket file")
        client.say("late\n")
        assert client.rest() == "got late\n"
        client.socket.close()
        assert service.wait() == 0


def test_stop_serves_who_waits() -> None:
    """Clients that have been handed over before the signal get their turn."""
    with Service("--max-children", "1", command=ASK) as service:
        clients = [service.client() for _ in range(4)]
        assert clients[0].line() == "asked"
        service.send()
        for client in clients:
            with client:
                client.say("word\n")
                assert client.rest().endswith("got word\n")
        assert service.wait() == 0


def test_stop_timeout() -> None:
    """When the time is over, programs get SIGTERM, and who waits is closed."""
    options = ("--max-children", "1", "--stop-timeout", "0.2")
    with Service(*options, command=ASK) as service:
        with service.client() as client, service.client() as waiting:
            assert client.line() == "asked"
            assert service.stop() == 128 + signal.SIGTERM
            assert client.rest() == ""
            assert waiting.rest() == ""
        assert "1 clients closed that were still waiting" in service.log()


def test_further_signals_go_on_at_once() -> None:
    """The second one terminates, the third one kills; whole process groups."""
    script = "trap 'echo no' TERM; echo $$; while :; do sleep 100; done"
    with Service(command=script) as service, service.client() as client:
        pid = int(client.line())
        wait_until(lambda: "sleep 100" in service.processes().values(), "a sleep")
        service.send()
        service.send(signal.SIGINT)
        assert client.line() == "no"  # and the sleep that it waited for is gone
        assert service.process.poll() is None
        service.send()
        assert service.wait() == 128 + signal.SIGTERM
        assert client.rest() == ""
        assert not os.path.exists(f"/proc/{pid}")


# ---- the socket ---------------------------------------------------------------------


def test_mode_is_exact() -> None:
    """The umask takes nothing away from --mode, and the default is for the owner."""
    umask = ("sh", "-c", 'umask 077; exec "$@"', "sh")
    for options, mode in ((("--mode", "0660"), 0o660), ((), 0o600)):
        with Service(*options, command="true", launcher=umask) as service:
            assert os.stat(service.path).st_mode & 0o777 == mode


def test_allowed_users() -> None:
    """By name or number; who is not on the list is refused and logged."""
    me = pwd.getpwuid(os.geteuid())
    for user in (me.pw_name, str(me.pw_uid)):
        with (
            Service("--allow-user", user, command="echo x") as service,
            service.client() as client,
        ):
            assert client.rest() == "x\n"
    other = str(me.pw_uid + 1)
    with Service("--allow-user", other, command="echo x") as service:
        # It is refused before anything is read, so the sender may be told.
        with suppress(BrokenPipeError), service.client() as client:
            assert client.rest() == ""
        service.wait_for_log(f"of user {me.pw_uid}: this user may not hand over")


def test_unknown_user() -> None:
    """A name that nobody has is an error; a number need not have a name."""
    assert find_users(["root", "0", "4000000000"]) == {0, 4000000000}
    with pytest.raises(
        ConfigError, match="--allow-user: 'no-one-here': there is no such user"
    ):
        find_users(["no-one-here"])


# ---- wrong words --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--", "true"], 2, "Missing option '--bind'"),
        (["--bind", "unix:/x"], 2, "Missing argument 'COMMAND...'"),
        (["--bind", "127.0.0.1:9000", "--", "true"], 2, "must be a Unix socket"),
        (["--bind", "unix:/x", "--mode", "0888", "true"], 2, "not an octal number"),
        (["--bind", "unix:/x", "--mode", "1777", "true"], 2, "not an octal number"),
        (["--bind", "unix:/x", "--workers", "0", "true"], 2, "--workers"),
        (["--bind", "unix:/x", "--max-children", "0", "true"], 2, "--max-children"),
        (["--bind", "unix:/x", "--stop-timeout", "-1", "true"], 2, "--stop-timeout"),
        (
            ["--bind", "unix:/x", "--allow-user", "?", "true"],
            2,
            "'?': there is no such user",
        ),
        (["--bind", "unix:/x", "--", "no-such"], 1, "no such program in PATH"),
        (["--bind", "unix:/x", "--", "/etc/passwd"], 1, "not executable"),
        (["--bind", "unix:/no/dir/x", "--", "true"], 1, "No such file or directory"),
        (["--bind", "unix:/etc/passwd", "true"], 1, "/etc/passwd: a file that is not"),
    ],
)
def test_wrong_words(words: list[str], status: int, message: str) -> None:
    """One message says which value is wrong; nothing is started."""
    done = run_command(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_socket_of_a_live_receiver(tmp_path: Path, workers: str) -> None:
    """It is refused, and the other receiver keeps its file."""
    path = str(tmp_path / "socket")
    with Receiver(path):
        done = run_command("--bind", f"unix:{path}", "--workers", workers, "true")
        assert done.returncode == 1
        assert done.stderr == (
            f"fcgi-app: error: {path}: another process listens on the socket\n"
        )
        assert os.path.exists(path)


def test_options_of_a_library_call() -> None:
    """The same limits without click."""
    for wrong in ({"max_children": 0}, {"stop_timeout": -1.0}, {"command": ()}):
        with pytest.raises(ConfigError):
            InetdOptions(**{"command": ("true",), **wrong})  # type: ignore[arg-type]


def test_program_is_found_as_a_shell_would(tmp_path: Path) -> None:
    """A name with blanks is one program, and arguments stay as they are."""
    program = tmp_path / "a b"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(AppLoadError, match="not executable"):
        find_program([str(program)])
    program.chmod(0o755)
    assert find_program([str(program), "c d"]) == [str(program), "c d"]
    assert find_program(["sh"])[0].endswith("/sh")


def test_options_in_man_page() -> None:
    """Each option has its entry in fcgi-app-fdpass(1)."""
    page = (MANPAGES / "fcgi-app-fdpass.1").read_text()
    entries = re.findall(r"(?m)^\.It Fl -([\w-]+)", page)
    options = [
        name.removeprefix("--")
        for parameter in fdpass.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if name.startswith("--")
    ]
    assert sorted(entries) == sorted(options)
