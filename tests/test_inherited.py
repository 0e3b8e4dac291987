"""Sockets that a process was started with, mostly in real processes."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from fcgi_app import inherited
from fcgi_app.errors import ConfigError
from fcgi_app.inherited import adopt_activated, adopt_descriptor, inherited_listener
from fcgi_app.sockets import bound_address, connect, open_socket

from .loopback import needs_ipv6

PACKAGE_PARENT = Path(inherited.__file__).parents[1]
TIMEOUT = 30

REPORT = """
import json, os, resource, select, subprocess, sys
from fcgi_app.errors import ConfigError
from fcgi_app.sockets import inherited_listener, open_socket
from fcgi_app.sockets import plug_standard_descriptors

def target(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return None

def child_targets():
    command = ["sh", "-c", "readlink /proc/self/fd/0 /proc/self/fd/*"]
    done = subprocess.run(command, close_fds=False, text=True, stdout=subprocess.PIPE)
    return done.stdout.split()

def serve_one(listener):
    assert select.select([listener], [], [], 30)[0]
    connection, _ = listener.accept()
    connection.setblocking(True)
    connection.sendall(b"served")
    connection.close()
    listener.close()

def save(**report):
    with open(sys.argv[1], "w") as file:
        json.dump(report, file)
"""

DECIDE = """
before = target(0)
try:
    listener = inherited_listener()
except ConfigError as error:
    save(mode=str(error), before=before, after=target(0))
    sys.exit()
report = dict(mode="CGI", before=before, after=target(0))
if listener is not None:
    report.update(
        mode="FastCGI",
        number=listener.fileno(),
        blocking=os.get_blocking(listener.fileno()),
        child=child_targets(),
        again=inherited_listener(),
    )
    serve_one(listener)
save(**report)
"""

Stdin = int | IO[Any] | None


def run_child(
    code: str,
    report: Path,
    stdin: Stdin = subprocess.DEVNULL,
    *,
    env: Mapping[str, str] | None = None,
    closed: str = "",
    meanwhile: socket.socket | None = None,
) -> dict[str, Any]:
    """Run ``code`` in a Python of its own and return what it saved.

    ``closed`` names the standard descriptors that the shell closes before.
    ``meanwhile`` is a listener that the child has got, and answers.
    """
    redirections = "".join(f" {number}>&-" for number in closed)
    command = ["sh", "-c", f'exec "$@"{redirections}', "sh"]
    environ = {key: os.environ[key] for key in os.environ if key != "FCGI_FORCE_CGI"}
    environ |= {"PYTHONPATH": str(PACKAGE_PARENT), **(env or {})}
    with subprocess.Popen(
        [*command, sys.executable, "-c", REPORT + code, str(report)],
        stdin=stdin,
        env=environ,
    ) as child:
        try:
            if meanwhile is not None:
                with connect(bound_address(meanwhile), timeout=TIMEOUT) as connection:
                    assert connection.recv(6) == b"served"
            assert child.wait(TIMEOUT) == 0
        except BaseException:
            child.kill()
            raise
    saved = json.loads(report.read_text())
    assert isinstance(saved, dict)
    return saved


def decide(tmp_path: Path, stdin: Stdin, **options: Any) -> dict[str, Any]:
    """What a process with ``stdin`` on descriptor 0 takes itself for."""
    return run_child(DECIDE, tmp_path / "report", stdin, **options)


# ---- descriptor 0 -------------------------------------------------------------


@contextmanager
def given_stdin(situation: str, tmp_path: Path) -> Iterator[Stdin]:
    """Something on descriptor 0 with which a program is a CGI program."""
    with ExitStack() as stack:
        match situation:
            case "pipe":
                yield subprocess.PIPE
            case "null":
                yield subprocess.DEVNULL
            case "file":
                (tmp_path / "body").write_text("body")
                yield stack.enter_context((tmp_path / "body").open())
            case "terminal":
                for descriptor in (ends := pty.openpty()):
                    stack.callback(os.close, descriptor)
                yield ends[1]
            case "pair" | "pair-with-closed-end":
                ours, theirs = map(stack.enter_context, socket.socketpair())
                if situation != "pair":
                    theirs.close()
                yield ours.fileno()
            case "tcp" | "tcp-with-closed-end" | "tcp-reset" | "tcp-reset-seen":
                server = stack.enter_context(open_socket("127.0.0.1:0"))
                client = stack.enter_context(connect(bound_address(server), timeout=9))
                accepted = stack.enter_context(server.accept()[0])
                if situation == "tcp-with-closed-end":
                    client.close()
                elif situation != "tcp":
                    reset(client, accepted)
                if situation == "tcp-reset-seen":
                    with pytest.raises(ConnectionResetError):
                        accepted.recv(1)
                yield accepted.fileno()
            case "udp":
                peer = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                peer.bind(("127.0.0.1", 0))
                ours = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                ours.connect(peer.getsockname())
                yield ours.fileno()
            case _:
                raise ValueError(situation)


def reset(client: socket.socket, accepted: socket.socket) -> None:
    """Have ``client`` send a RST, and wait until it has come."""
    option = struct.pack("ii", 1, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    client.close()
    poll = select.poll()
    poll.register(accepted, 0)
    assert poll.poll(TIMEOUT * 1000)
    with pytest.raises(OSError, match="not connected"):
        accepted.getpeername()


@pytest.mark.parametrize(
    "situation",
    [
        "pipe",
        "null",
        "file",
        "terminal",
        "pair",
        "pair-with-closed-end",
        "tcp",
        "tcp-with-closed-end",
        "tcp-reset",
        "tcp-reset-seen",
        "udp",
    ],
)
def test_inherited_listener_cgi(situation: str, tmp_path: Path) -> None:
    """Whatever is no listening socket but can be read means CGI, and stays on 0."""
    with given_stdin(situation, tmp_path) as stdin:
        report = decide(tmp_path, stdin)
    assert report["mode"] == "CGI"
    assert report["after"] == report["before"] is not None


def test_inherited_listener_closed(tmp_path: Path) -> None:
    """A closed descriptor 0 means CGI, and stays closed."""
    report = decide(tmp_path, None, closed="0")
    assert report == {"mode": "CGI", "before": None, "after": None}


@contextmanager
def given_listener(situation: str, tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket to leave on descriptor 0."""
    address = {
        "unix": f"unix:{tmp_path}/s",
        "abstract": f"@fcgi-app-test-{os.getpid()}",
        "ipv6": "[::1]:0",
    }
    with open_socket(address.get(situation, "127.0.0.1:0")) as listener:
        if situation == "non-blocking":
            listener.setblocking(False)
        yield listener


@pytest.mark.parametrize(
    "situation",
    [
        "unix",
        "abstract",
        "ipv4",
        pytest.param("ipv6", marks=needs_ipv6),
        "non-blocking",
    ],
)
def test_inherited_listener_fastcgi(situation: str, tmp_path: Path) -> None:
    """A listening socket means FastCGI: it moves away, and children do not see it."""
    with given_listener(situation, tmp_path) as listener:
        report = decide(tmp_path, listener.fileno(), meanwhile=listener)
    assert report["mode"] == "FastCGI"
    assert report["before"].startswith("socket:")
    assert report["after"] == "/dev/null"
    assert report["number"] >= 64
    assert report["blocking"] is (situation != "non-blocking")
    assert report["child"][0] == "/dev/null"
    assert not any(target.startswith("socket:") for target in report["child"])


def test_inherited_listener_again(tmp_path: Path) -> None:
    """A second call finds /dev/null, that is CGI."""
    with given_listener("ipv4", tmp_path) as listener:
        report = decide(tmp_path, listener.fileno(), meanwhile=listener)
    assert report["again"] is None


@pytest.mark.parametrize("closed", ["1", "2", "12"])
def test_inherited_listener_alone(closed: str, tmp_path: Path) -> None:
    """Of a process that has got nothing but descriptor 0 (§2.2) it is taken as well."""
    with given_listener("unix", tmp_path) as listener:
        report = decide(tmp_path, listener.fileno(), closed=closed, meanwhile=listener)
    assert report["mode"] == "FastCGI"
    assert report["after"] == "/dev/null"


@pytest.mark.parametrize("limit", [16, 65])
def test_inherited_listener_few_descriptors(limit: int, tmp_path: Path) -> None:
    """With a small RLIMIT_NOFILE the socket moves as high as it can."""
    set_limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
    with given_listener("unix", tmp_path) as listener:
        report = run_child(
            set_limit + DECIDE,
            tmp_path / "report",
            listener.fileno(),
            meanwhile=listener,
        )
    assert report["mode"] == "FastCGI"
    assert 3 <= report["number"] < limit


@pytest.mark.parametrize(
    ("family", "kind", "described"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "an AF_INET SOCK_STREAM socket"),
        pytest.param(
            *(socket.AF_INET6, socket.SOCK_STREAM, "an AF_INET6 SOCK_STREAM socket"),
            marks=needs_ipv6,
        ),
        (socket.AF_UNIX, socket.SOCK_STREAM, "an AF_UNIX SOCK_STREAM socket"),
        (socket.AF_INET, socket.SOCK_DGRAM, "an AF_INET SOCK_DGRAM socket"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "an AF_UNIX SOCK_DGRAM socket"),
    ],
)
@pytest.mark.parametrize("bound", [False, True], ids=["fresh", "bound"])
def test_inherited_listener_useless_socket(
    family: int, kind: int, described: str, bound: bool, tmp_path: Path
) -> None:
    """A socket that neither listens nor is connected is an error that says so."""
    anywhere: dict[int, tuple[str, int]] = {
        socket.AF_INET: ("127.0.0.1", 0),
        socket.AF_INET6: ("::1", 0),
    }
    with socket.socket(family, kind) as useless:
        if bound:
            useless.bind(anywhere.get(family, str(tmp_path / "s")))
        report = decide(tmp_path, useless.fileno())
    assert report["mode"].startswith(
        f"file descriptor: 0: {described} that is neither listening"
    )
    assert "nor connected" in report["mode"]
    assert report["after"] == report["before"]


def test_inherited_listener_not_a_stream(tmp_path: Path) -> None:
    """A listening socket that is no stream is an error that says so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        report = decide(tmp_path, listener.fileno())
    assert report["mode"] == (
        "file descriptor: 0: an AF_UNIX SOCK_SEQPACKET socket that listens; FastCGI"
        " needs a stream socket"
    )
    assert report["after"] == report["before"]


@pytest.mark.parametrize("value", ["1", "true", "YES", " on ", "Y"])
def test_inherited_listener_forced_cgi(value: str, tmp_path: Path) -> None:
    """FCGI_FORCE_CGI makes it CGI with a listening socket, which stays on 0."""
    with given_listener("unix", tmp_path) as listener:
        report = decide(tmp_path, listener.fileno(), env={"FCGI_FORCE_CGI": value})
    assert report["mode"] == "CGI"
    assert report["after"] == report["before"]
    assert report["after"].startswith("socket:")


@pytest.mark.parametrize("value", ["0", "false", "no", "off", ""])
def test_inherited_listener_not_forced(value: str, tmp_path: Path) -> None:
    """FCGI_FORCE_CGI switched off is as if it were not set."""
    with given_listener("unix", tmp_path) as listener:
        env = {"FCGI_FORCE_CGI": value}
        report = decide(tmp_path, listener.fileno(), env=env, meanwhile=listener)
    assert report["mode"] == "FastCGI"


def test_inherited_listener_force_malformed() -> None:
    """Another value of FCGI_FORCE_CGI is an error that names it."""
    with pytest.raises(ConfigError, match="FCGI_FORCE_CGI: 'maybe': must be 1 or 0"):
        inherited_listener({"FCGI_FORCE_CGI": "maybe"})


# ---- descriptors 0, 1 and 2 -----------------------------------------------------

PLUG = """
before = [target(descriptor) for descriptor in range(3)]
plug_standard_descriptors()
with open(os.devnull) as file:
    number = file.fileno()
save(
    before=before,
    after=[target(descriptor) for descriptor in range(3)],
    next=number,
    inheritable=[os.get_inheritable(descriptor) for descriptor in range(3)],
    access=[fcntl.fcntl(n, fcntl.F_GETFL) & os.O_ACCMODE for n in range(3)],
)
"""


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
def test_plug_standard_descriptors(closed: str, tmp_path: Path) -> None:
    """Each closed one becomes /dev/null, for children too; no file lands on it."""
    report = run_child("import fcntl\n" + PLUG, tmp_path / "report", closed=closed)
    for number in map(int, closed):
        assert report["before"][number] is None
        assert report["after"][number] == "/dev/null"
        assert report["access"][number] == (os.O_WRONLY if number else os.O_RDONLY)
    assert report["next"] == 3
    assert report["inheritable"] == [True, True, True]


def test_plug_standard_descriptors_open(tmp_path: Path) -> None:
    """What is open is left as it is."""
    report = run_child("import fcntl\n" + PLUG, tmp_path / "report", subprocess.PIPE)
    assert report["after"] == report["before"]
    assert report["before"][0].startswith("pipe:")


# ---- fd:N -----------------------------------------------------------------------


def test_adopt_descriptor(tmp_path: Path) -> None:
    """fd:N moves the socket, closes N, and keeps O_NONBLOCK."""
    with given_listener("non-blocking", tmp_path) as ours:
        os.set_inheritable(ours.fileno(), True)
        number = ours.detach()
    with open_socket(f"fd:{number}") as listener:
        assert listener.fileno() >= 64
        assert not listener.get_inheritable()
        assert not os.get_blocking(listener.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        with connect(bound_address(listener), timeout=TIMEOUT):
            assert select.select([listener], [], [], TIMEOUT)[0]
            listener.accept()[0].close()


def test_adopt_descriptor_zero(tmp_path: Path) -> None:
    """fd:0 leaves /dev/null behind."""
    code = "listener = open_socket('fd:0')\nsave(after=target(0))\nserve_one(listener)"
    with given_listener("unix", tmp_path) as listener:
        report = run_child(
            code, tmp_path / "report", listener.fileno(), meanwhile=listener
        )
    assert report == {"after": "/dev/null"}


def test_adopt_descriptor_closed() -> None:
    """fd:N with a closed N is an error that says so."""
    with pytest.raises(ConfigError, match="'fd:9999': descriptor 9999 is not open"):
        adopt_descriptor("fd:9999", 9999)


def test_adopt_descriptor_no_socket() -> None:
    """fd:N with a file is an error that says so."""
    with (
        open(os.devnull) as file,
        pytest.raises(ConfigError, match=r"descriptor \d+ is not a socket"),
    ):
        adopt_descriptor("fd:N", file.fileno())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (socket.SOCK_STREAM, "an AF_UNIX SOCK_STREAM socket that is not listening"),
        (socket.SOCK_SEQPACKET, "SOCK_SEQPACKET socket that listens; FastCGI needs"),
    ],
)
def test_adopt_descriptor_useless(kind: int, reason: str, tmp_path: Path) -> None:
    """fd:N with another socket is an error that says so, and leaves N as it is."""
    with socket.socket(socket.AF_UNIX, kind) as useless:
        useless.bind(str(tmp_path / "s"))
        if kind != socket.SOCK_STREAM:
            useless.listen()
        with pytest.raises(ConfigError, match=reason) as caught:
            open_socket(f"fd:{useless.fileno()}")
        assert caught.value.value == f"fd:{useless.fileno()}"
        os.fstat(useless.fileno())


# ---- socket activation ----------------------------------------------------------


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The number that the passed descriptors start at, 3 being in use in here."""
    start = 200
    monkeypatch.setattr(inherited, "_SD_LISTEN_FDS_START", start)
    yield start
    os.closerange(start, start + 5)


def passed(number: int, *sockets: socket.socket) -> None:
    """Put duplicates of ``sockets`` on the descriptors from ``number`` on."""
    for index, one in enumerate(sockets):
        os.dup2(one.fileno(), number + index)


def activation(names: str | None, count: int | str) -> dict[str, str]:
    """The variables that go with the descriptors."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count)}
    return environ if names is None else {**environ, "LISTEN_FDNAMES": names}


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("", None, 0),
        ("", "a:b", 0),
        ("a", "a:b", 0),
        ("b", "a:b", 1),
        ("b", "b:b", 0),
        ("", ":", 0),
        ("unknown", None, 0),
    ],
)
def test_adopt_activated(
    name: str, names: str | None, expected: int, first: int
) -> None:
    """The first listening socket is taken, or the first of that name."""
    with open_socket("127.0.0.1:0") as one, open_socket("127.0.0.1:0") as two:
        passed(first, one, two)
        with adopt_activated("systemd", name, activation(names, 2)) as listener:
            assert listener.getsockname() == (one, two)[expected].getsockname()
            assert listener.fileno() not in (first, first + 1)
            assert not listener.get_inheritable()


def test_adopt_activated_twice(first: int) -> None:
    """The descriptors stay where they are, close-on-exec, for a second call."""
    with open_socket("127.0.0.1:0") as one, open_socket("127.0.0.1:0") as two:
        passed(first, one, two)
        for name, expected in (("a", one), ("b", two), ("a", one)):
            with adopt_activated("systemd", name, activation("a:b", 2)) as listener:
                assert listener.getsockname() == expected.getsockname()
        assert not os.get_inheritable(first)
        assert not os.get_inheritable(first + 1)


def test_adopt_activated_skips(first: int, tmp_path: Path) -> None:
    """Datagram sockets, packet listeners and other files are passed over."""
    with (
        open(os.devnull) as file,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets,
        open_socket("127.0.0.1:0") as stream,
    ):
        packets.bind(str(tmp_path / "s"))
        packets.listen()
        os.dup2(file.fileno(), first)
        passed(first + 1, datagram, packets, stream)
        with adopt_activated("systemd", "", activation(None, 4)) as listener:
            assert listener.getsockname() == stream.getsockname()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("", {"LISTEN_PID": "1"}, "'systemd': no socket was passed .* LISTEN_PID is 1"),
        ("c", {}, "no such listening stream socket was passed; what was: a, b"),
        ("", {"LISTEN_FDS": "0"}, "what was: nothing"),
        ("", {"LISTEN_FDS": ""}, "LISTEN_FDS: '': not a number"),
        ("", {"LISTEN_FDS": "-1"}, "LISTEN_FDS: '-1': not a number"),
        ("", {"LISTEN_FDS": "9" * 20}, "LISTEN_FDS: '9*': not a number"),
        ("", {"LISTEN_FDS": "999999999"}, "LISTEN_FDS: '9*': descriptor 202 is not"),
        ("", {"LISTEN_FDNAMES": "a"}, "LISTEN_FDNAMES: 'a': 1 names for 2 descriptors"),
    ],
)
def test_adopt_activated_malformed(
    name: str, changes: dict[str, str], message: str, first: int
) -> None:
    """What does not fit is an error that names variable or address, and says why."""
    with (
        open_socket("127.0.0.1:0") as one,
        open_socket("127.0.0.1:0") as two,
    ):
        passed(first, one, two)
        with pytest.raises(ConfigError, match=message):
            adopt_activated("systemd", name, activation("a:b", 2) | changes)


def test_adopt_activated_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without socket activation the address systemd is an error that says so."""
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(ConfigError, match=r"'systemd': .* LISTEN_PID is not set"):
        open_socket("systemd")


ACTIVATED = """
os.dup2(0, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
listener = open_socket("systemd:web")
save(inheritable=os.get_inheritable(3), here=target(3) == target(listener.fileno()))
serve_one(listener)
"""


def test_adopt_activated_process(tmp_path: Path) -> None:
    """A process with the socket on descriptor 3 serves on the address systemd:name."""
    with given_listener("unix", tmp_path) as listener:
        report = run_child(
            ACTIVATED, tmp_path / "report", listener.fileno(), meanwhile=listener
        )
    assert report == {"inheritable": False, "here": True}


# ---- when the system refuses ------------------------------------------------------


def test_open_socket_no_descriptor(tmp_path: Path) -> None:
    """Without a free descriptor the error is the system's, and N stays as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_socket(f"unix:{tmp_path}/s") as listener:
        with open(os.devnull) as file:
            first_free = file.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            with pytest.raises(OSError, match="Too many open files") as caught:
                open_socket(f"fd:{listener.fileno()}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.filename == f"fd:{listener.fileno()}"
        os.fstat(listener.fileno())
