"""The command fcgistarter: real starts, found again and ended by pid."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import fcgi_app
from fcgi_app.cli import fcgistarter as command_module
from fcgi_app.cli.fcgistarter import fcgistarter

PATIENCE = 30.0
"""Seconds that a loaded machine may need for what takes milliseconds."""

HOST = f"127.{1 + os.getpid() % 199}.{os.getpid() // 199 % 256}.1"
"""Loopback, and no other test run takes a port on it."""

MARK = "FCGISTARTER_TEST"
"""The variable in their environment by which instances are found."""

APP = f"""#!{sys.executable}
import json, os, socket, sys
listener = socket.socket(fileno=0)
folder = "/proc/self/fd/"
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
facts = {{
    "argv": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid(), "sid": os.getsid(0),
    "descriptors": {{n: os.readlink(folder + n).partition(":")[0]
                    for n in os.listdir(folder) if os.path.lexists(folder + n)}},
    "address": listener.getsockname(), "fact": os.environ.get("FACT"),
    "reuse": listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR),
    "backlog": int.from_bytes(
        listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:], sys.byteorder
    ),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
}}
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(json.dumps(facts | {{"ppid": os.getppid()}}).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the client decides how long this instance is busy
"""

C_APP = r"""
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    while (FCGI_Accept() >= 0)
        printf("Content-Type: text/plain\r\n\r\n%d %s %s", (int)getpid(),
               argc > 1 ? argv[1] : "-", getenv("QUERY_STRING"));
    return 0;
}
"""

PYTHON_APP = f"""#!{sys.executable}
import os, sys
from fcgi_app import accept
while accept():
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print(os.getpid(), sys.argv[1], os.environ["QUERY_STRING"], end="")
"""


class Starter:
    """Runs fcgistarter; knows every process that came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(Path(fcgi_app.__file__).parents[1]),
            MARK: str(folder),
        }

    def run(
        self, *arguments: str, wrapper: tuple[str, ...] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        # Ends when nobody has the pipes open any more: no instance may hold them.
        return subprocess.run(
            [*wrapper, sys.executable, "-m", "fcgi_app.cli.fcgistarter", *arguments],
            **{"env": self.environ, "cwd": self.folder, **options},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def start(self, *arguments: str, **options: Any) -> None:
        ran = self.run(*arguments, **options)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")

    def pids(self) -> set[int]:
        """Return the processes that have our mark in their environment."""
        mark = os.fsencode(f"{MARK}={self.folder}")
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except (OSError, ValueError):  # ended meanwhile, or not ours to read
                continue
        return found

    def end_all(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to each, and wait until it is gone."""
        for pid in self.pids():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                os.kill(pid, number)
                assert select.select([pidfd], [], [], PATIENCE)[0]
            finally:
                os.close(pidfd)


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    started = Starter(tmp_path)
    try:
        yield started
    finally:
        started.end_all()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return executable(tmp_path / "app.fcgi", APP)


@pytest.fixture
def port() -> str:
    return free_port(HOST)


def free_port(host: str) -> str:
    with socket.create_server((host, 0)) as probe:
        return str(probe.getsockname()[1])


def executable(path: Path, content: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


def facts_of(connection: socket.socket) -> dict[str, Any]:
    """Read what the instance at the other end tells of itself."""
    connection.settimeout(PATIENCE)
    text = b"".join(iter(lambda: connection.recv(65536), b""))
    facts: dict[str, Any] = json.loads(text)
    return facts


def ask(port: str, host: str = HOST) -> dict[str, Any]:
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        return facts_of(connection)


# ---- what an instance finds ------------------------------------------------------


def test_an_instance_is_a_detached_program_with_the_listener_on_0(
    starter: Starter, app: Path, port: str
) -> None:
    """Session, parent, directory, descriptors, signals and environment are right."""
    foreign, other = os.pipe()
    try:
        starter.environ["FACT"] = "kept"
        starter.start(
            *("-c", str(app), "-p", port, "-i", HOST),
            wrapper=("/bin/sh", "-c", 'trap "" CHLD HUP USR1 TERM; exec "$@"', "sh"),
            pass_fds=[foreign],
        )
    finally:
        os.close(foreign)
        os.close(other)
    facts = ask(port)
    # Every Python process ignores these two; all else is back at its default.
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    ours = sum(1 << (number - 1) for number in signal.valid_signals())
    assert facts["ignored"] & ours == python_ignores
    assert facts["blocked"] == 0
    assert facts["descriptors"] == {"0": "socket", "1": "/dev/null", "2": "/dev/null"}
    assert facts["address"] == [HOST, int(port)]
    assert facts["reuse"] == 1
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert facts["backlog"] == min(1024, somaxconn)
    assert (facts["cwd"], facts["argv"], facts["fact"]) == ("/", [], "kept")
    assert starter.pids() == {facts["pid"]}, "the starter itself must be gone"
    assert facts["sid"] not in (os.getsid(0), facts["pid"], facts["ppid"])
    assert facts["ppid"] != os.getpid()


def test_instances_share_the_port(starter: Starter, app: Path, port: str) -> None:
    """With -N 3, three busy connections are served by three processes."""
    starter.start("-c", str(app), "-p", port, "-i", HOST, "-N", "3")
    pids = starter.pids()
    assert len(pids) == 3
    with ExitStack() as connections:
        answers = set()
        for _ in pids:
            connection = socket.create_connection((HOST, int(port)), PATIENCE)
            answers.add(facts_of(connections.enter_context(connection))["pid"])
    assert answers == pids


def test_instances_end_by_sigterm(starter: Starter, app: Path, port: str) -> None:
    """An instance is ended by kill(1), and the port is free for the next start."""
    for _ in range(2):
        starter.start("-c", str(app), "-p", port, "-i", HOST)
        assert len(starter.pids()) == 1
        starter.end_all(signal.SIGTERM)
        assert starter.pids() == set()


def test_closed_standard_descriptors_do_no_harm(
    starter: Starter, app: Path, port: str
) -> None:
    """Started without 0, 1 and 2, as some init systems do, all is as otherwise."""
    starter.start(
        *("-c", str(app), "-p", port, "-i", HOST),
        wrapper=("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"),
    )
    descriptors = ask(port)["descriptors"]
    assert descriptors == {"0": "socket", "1": "/dev/null", "2": "/dev/null"}


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        pytest.param("{}/app.fcgi -x 'a b'", ["-x", "a b"], id="arguments"),
        pytest.param("./app.fcgi", [], id="relative"),
        pytest.param("app.fcgi x", ["x"], id="current-directory"),
        pytest.param("tool.fcgi -v", ["-v"], id="PATH"),
        pytest.param("{}/my app.fcgi", [], id="name-with-blank"),
        pytest.param("{python} ./app.fcgi 1", ["1"], id="interpreter"),
    ],
)
def test_forms_of_the_command(
    starter: Starter, app: Path, port: str, command: str, argv: list[str]
) -> None:
    """Arguments are passed on; relative names are looked up before the chdir."""
    executable(app.with_name("my app.fcgi"), APP)
    executable(app.parent / "bin" / "tool.fcgi", APP)
    starter.environ["PATH"] = f"{app.parent}/bin:{os.environ['PATH']}"
    if "{python}" in command:
        # An argument is the program's own affair: it is not made absolute.
        command = command.replace("./app", f"{app.parent}/app")
    text = command.format(app.parent, python=sys.executable)
    starter.start("-c", text, "-p", port, "-i", HOST)
    assert ask(port)["argv"] == argv


@pytest.mark.parametrize("interface", ["::1", "[::1]"])
def test_interface_may_be_an_ipv6_address(
    starter: Starter, app: Path, interface: str
) -> None:
    """With or without brackets."""
    port = free_port_v6()
    starter.start("-c", str(app), "-p", port, "-i", interface)
    assert ask(port, "::1")["address"][:2] == ["::1", int(port)]


def free_port_v6() -> str:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        return str(probe.getsockname()[1])


def test_interface_may_be_a_host_name(starter: Starter, app: Path) -> None:
    """The name is looked up, IPv4 first."""
    port = free_port("127.0.0.1")
    starter.start("-c", str(app), "-p", port, "-i", "localhost")
    assert ask(port, "127.0.0.1")["address"] == ["127.0.0.1", int(port)]


# ---- failures --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param("./none", "command './none': no such file", id="missing"),
        pytest.param(
            "none",
            "command 'none': no such file, and no such program in PATH",
            id="not-in-PATH",
        ),
        pytest.param("", "command '': empty", id="empty"),
        pytest.param("'x", 'command "\'x": no closing quotation', id="quote"),
        pytest.param(
            "./plain", "cannot start '{}/plain': Permission denied", id="no-permission"
        ),
        pytest.param(
            "./orphan",
            "cannot start '{}/orphan': its interpreter is missing, "
            "first line '#!/nowhere/perl\\n'",
            id="no-interpreter",
        ),
    ],
)
@pytest.mark.parametrize("instances", ["1", "3"])
def test_a_program_that_does_not_start(
    starter: Starter, port: str, command: str, message: str, instances: str
) -> None:
    """Exit 1, a message even after the detach, no process stays, the port is free."""
    (starter.folder / "plain").write_text("text")
    executable(starter.folder / "orphan", "#!/nowhere/perl\n")
    ran = starter.run("-c", command, "-p", port, "-i", HOST, "-N", instances)
    assert ran.stderr == f"fcgistarter: {message.format(starter.folder)}\n"
    assert ran.returncode == 1
    assert starter.pids() == set()
    socket.create_server((HOST, int(port))).close()


def test_an_occupied_port(starter: Starter, app: Path, port: str) -> None:
    """Exit 1 with the address in the message, and nothing is started."""
    with socket.create_server((HOST, int(port))):
        ran = starter.run("-c", str(app), "-p", port, "-i", HOST)
    assert ran.stderr == f"fcgistarter: {HOST}:{port}: Address already in use\n"
    assert ran.returncode == 1
    assert starter.pids() == set()


def no_such_host(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        pytest.param("", "-i: '': is no host name or IP address", id="empty"),
        pytest.param("unix", "-i: 'unix': is no host name", id="a-word-of-ours"),
        pytest.param("fd", "-i: 'fd': is no host name", id="a-descriptor"),
        pytest.param("@abstract", "-i: '@abstract': is no host name", id="abstract"),
        pytest.param("/tmp/x", "-i: '/tmp/x': is no host name", id="path"),
        pytest.param("a b", "malformed host name 'a b'", id="blank"),
        pytest.param("1:2", "'[1:2]:9': has no IPv6 address", id="no-ipv6"),
        pytest.param("192.0.2.1", "192.0.2.1:9: Cannot assign", id="foreign"),
        pytest.param(
            "none.invalid", "none.invalid:9: Name or service", id="unknown-name"
        ),
    ],
)
def test_a_bad_interface(
    monkeypatch: pytest.MonkeyPatch, interface: str, message: str
) -> None:
    """Exit 1 and a message with the value; nothing but TCP is ever opened."""
    if interface == "none.invalid":  # no test asks a name server
        monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    arguments = ["-c", "/bin/true", "-p", "9", "-i", interface]
    ran = CliRunner().invoke(fcgistarter, arguments)
    assert ran.exit_code == 1
    assert ran.output.startswith("fcgistarter: ")
    assert message in ran.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("", "Missing option '-c'", id="nothing"),
        pytest.param("-p 9", "Missing option '-c'", id="no-command"),
        pytest.param("-c x", "Missing option '-p'", id="no-port"),
        pytest.param("-p 9 -c", "'-c' requires an argument", id="no-value"),
        pytest.param("-c x -p 0", "0 is not in the range 1<=x<=65535", id="port-0"),
        pytest.param("-c x -p text", "'text' is not a valid number", id="port-text"),
        pytest.param("-c x -p 9x", "'9x' is not a valid number", id="port-tail"),
        pytest.param("-c x -p -1", "-1 is not in the range", id="port-negative"),
        pytest.param("-c x -p 99999", "99999 is not in the range", id="port-high"),
        pytest.param("-c x -p 9 -N 0", "0 is not in the range x>=1", id="num-0"),
        pytest.param("-c x -p 9 -N text", "'text' is not a valid", id="num-text"),
        pytest.param("-c x -p 9 -N -3", "-3 is not in the range", id="num-negative"),
        pytest.param("-c x -p 9 -z", "No such option '-z'", id="unknown"),
        pytest.param("-h", "No such option '-h'", id="h"),
        pytest.param("-c x -p 9 word", "extra argument (word)", id="word"),
    ],
)
def test_a_usage_error_exits_with_1(arguments: str, message: str) -> None:
    """Usage and the reason, with the value, on standard error; Apache's exit status."""
    ran = CliRunner().invoke(fcgistarter, arguments.split(), prog_name="fcgistarter")
    assert ran.exit_code == 1
    usage = "Usage: fcgistarter -c COMMAND -p PORT [-i INTERFACE] [-N NUM]\n"
    assert ran.output.startswith(usage)
    assert message in ran.output


def test_the_default_interface_is_every_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without -i the address is the port alone, with Apache's backlog."""
    asked = []

    def refuse(address: str, *, backlog: int) -> socket.socket:
        asked.append((address, backlog))
        raise OSError("not today")

    monkeypatch.setattr(command_module, "open_socket", refuse)
    ran = CliRunner().invoke(fcgistarter, ["-c", "/bin/true", "-p", "9"])
    assert asked == [(":9", 1024)]
    assert (ran.exit_code, ran.output) == (1, "fcgistarter: not today\n")


def test_each_option_is_in_the_manual(repo: Path) -> None:
    """fcgistarter(1) has an item for every option that --help shows."""
    page = (repo / "manpages" / "fcgistarter.1").read_text()
    ran = CliRunner().invoke(fcgistarter, ["--help"])
    assert ran.exit_code == 0
    for parameter in fcgistarter.params:
        assert isinstance(parameter, click.Option)
        [flag] = parameter.opts
        assert flag in ran.output
        assert f".It Fl {flag[1:]} Ar {parameter.metavar}\n".lower() in page.lower()
    assert ".It Fl -help\n" in page


# ---- real FastCGI programs -------------------------------------------------------


def fetch(port: str, query: str) -> list[str]:
    """Send a request as a web server does, by cgi-fcgi; return the body's words."""
    ran = subprocess.run(
        ["cgi-fcgi", "-bind", "-connect", f"{HOST}:{port}"],
        env={
            "PATH": os.environ["PATH"],
            "REQUEST_METHOD": "GET",
            "QUERY_STRING": query,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    head, _, body = ran.stdout.partition("\n\n")
    assert head == "Content-Type: text/plain"
    return body.split()


@pytest.mark.slow
def test_a_c_program_is_started(starter: Starter, port: str) -> None:
    """A program on libfcgi answers, each time from one of the two instances."""
    source = starter.folder / "app.c"
    source.write_text(C_APP)
    subprocess.run(
        ["cc", "-o", "app", "app.c", "-lfcgi"], cwd=starter.folder, check=True
    )
    starter.start("-c", "./app argument", "-p", port, "-i", HOST, "-N", "2")
    pids = starter.pids()
    assert len(pids) == 2
    for number in range(4):
        pid, argument, query = fetch(port, f"n={number}")
        assert int(pid) in pids
        assert (argument, query) == ("argument", f"n={number}")


@pytest.mark.slow
def test_a_script_on_this_package_is_started(starter: Starter, port: str) -> None:
    """A script on ``accept()`` answers, and all instances leave on SIGTERM."""
    executable(starter.folder / "app.py", PYTHON_APP)
    starter.start("-c", "./app.py argument", "-p", port, "-i", HOST, "-N", "2")
    pids = starter.pids()
    assert len(pids) == 2
    for number in range(4):
        pid, argument, query = fetch(port, f"n={number}")
        assert int(pid) in pids
        assert (argument, query) == ("argument", f"n={number}")
    starter.end_all(signal.SIGTERM)
    assert starter.pids() == set()
