"""Opening listening sockets, connecting to them, and their files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.sockets import bound_address, connect, open_socket, remove_socket_file

from .loopback import needs_ipv6

TIMEOUT = 30


def exchange(listener: socket.socket, address: str) -> None:
    """Send a byte through a connection to ``address`` that ``listener`` accepts."""
    listener.settimeout(TIMEOUT)
    with connect(address, timeout=TIMEOUT) as client:
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"


def port_of(listener: socket.socket) -> int:
    port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


# ---- TCP ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("localhost:0", socket.AF_INET, "127.0.0.1"),
        (":0", socket.AF_INET, "0.0.0.0"),
        ("*:0", socket.AF_INET, "0.0.0.0"),
        ("0.0.0.0:0", socket.AF_INET, "0.0.0.0"),
        pytest.param("[::1]:0", socket.AF_INET6, "::1", marks=needs_ipv6),
        pytest.param("[::]:0", socket.AF_INET6, "::", marks=needs_ipv6),
    ],
)
def test_open_socket_tcp(address: str, family: int, host: str) -> None:
    """Each TCP form listens on its address, on a free port for 0, and is reachable."""
    with open_socket(address) as listener:
        assert listener.family == family
        assert listener.getsockname()[0] == host
        assert port_of(listener) > 0
        assert listener.type == socket.SOCK_STREAM
        assert listener.getblocking()
        assert not listener.get_inheritable()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        exchange(listener, bound_address(listener))
        exchange(listener, address[:-1] + str(port_of(listener)))


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "", "[::]", "localhost"])
def test_open_socket_dual_stack(host: str) -> None:
    """A listener on [::] takes IPv4 connections as well."""
    with open_socket("[::]:0") as listener:
        assert not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        exchange(listener, f"{host}:{port_of(listener)}")


class NoIPv4(socket.socket):
    """The sockets of a host whose kernel has no IPv4."""

    def __init__(self, family: int = -1, *args: Any, **keywords: Any) -> None:
        if family == socket.AF_INET:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *args, **keywords)


@needs_ipv6
def test_open_socket_any_without_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host without IPv4 any address is that of IPv6, for both sides."""
    monkeypatch.setattr(socket, "socket", NoIPv4)
    with open_socket(":0") as listener:
        assert listener.family == socket.AF_INET6
        exchange(listener, f":{port_of(listener)}")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Have every host name stand for ``hosts``, in this order."""

    def getaddrinfo(_: str, port: int, **keywords: int) -> list[tuple[Any, ...]]:
        return [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                keywords["type"],
                socket.IPPROTO_TCP,
                "",
                (host, port, 0, 0) if ":" in host else (host, port),
            )
            for host in hosts
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("hosts", "taken"),
    [
        (("::1", "127.0.0.1"), "127.0.0.1"),
        (("192.0.2.1", "127.0.0.1"), "127.0.0.1"),
        pytest.param(("::1", "192.0.2.1"), "::1", marks=needs_ipv6),
        (("127.0.0.2", "127.0.0.1"), "127.0.0.2"),
    ],
)
def test_open_socket_host_name(
    hosts: tuple[str, ...], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a name's addresses the first is taken that is ours, IPv4 before IPv6."""
    resolve_to(monkeypatch, *hosts)
    with open_socket("app.example.org:0") as listener:
        assert listener.getsockname()[0] == taken


def test_open_socket_host_name_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is in use ends the search, the next one is not tried."""
    with open_socket("127.0.0.1:0") as other:
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(OSError, match="Address already in use") as caught:
            open_socket(f"app.example.org:{port_of(other)}")
    assert caught.value.errno == errno.EADDRINUSE


def test_open_socket_port_in_use() -> None:
    """An occupied port is an error that names the address."""
    with open_socket("127.0.0.1:0") as other:
        address = bound_address(other)
        with pytest.raises(OSError, match="Address already in use") as caught:
            open_socket(address)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.filename == address


def test_open_socket_address_not_ours() -> None:
    """An address that this host does not have is an error that names it."""
    with pytest.raises(OSError, match=r"'192\.0\.2\.1:0'") as caught:
        open_socket("192.0.2.1:0")
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("function", [open_socket, connect])
def test_unknown_host(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name that is not known is an error that names the address."""

    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(socket.gaierror, match=r"not known: 'nowhere\.example:1'"):
        function("nowhere.example:1")


@pytest.mark.parametrize("function", [open_socket, connect])
@pytest.mark.parametrize("host", ["a..b", "x" * 64, ".é"])
def test_malformed_host(function: Any, host: str) -> None:
    """A host name that cannot be one is an error that names the address."""
    with pytest.raises(ConfigError, match="has a malformed host name") as caught:
        function(f"{host}:1")
    assert caught.value.value == f"{host}:1"


@pytest.mark.parametrize("function", [open_socket, connect])
def test_malformed_address(function: Any) -> None:
    """A malformed address is refused before anything is opened."""
    with pytest.raises(ConfigError, match="out of range 0 to 65535"):
        function("127.0.0.1:65536")


@pytest.mark.parametrize("backlog", [-1, 2**31])
def test_open_socket_malformed_backlog(backlog: int) -> None:
    """A backlog that listen(2) cannot take is an error that names it."""
    with pytest.raises(ConfigError, match=f"backlog: {backlog}: out of range"):
        open_socket("127.0.0.1:0", backlog=backlog)


# ---- Unix sockets -------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "unix:{}"])
def test_open_socket_unix(form: str, tmp_path: Path) -> None:
    """A path makes a socket file and listens on it."""
    path = tmp_path / "s"
    with open_socket(form.format(path)) as listener:
        assert listener.family == socket.AF_UNIX
        assert not listener.get_inheritable()
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert bound_address(listener) == f"unix:{path}"
        exchange(listener, form.format(path))


def test_open_socket_unix_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is taken from the current directory, and removed from there."""
    monkeypatch.chdir(tmp_path)
    with open_socket("unix:s") as listener:
        exchange(listener, "unix:s")
        monkeypatch.chdir("/")
        assert remove_socket_file(listener)
    assert list(tmp_path.iterdir()) == []


def test_open_socket_unix_any_bytes(tmp_path: Path) -> None:
    """A path that is not UTF-8 is taken byte by byte."""
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    with open_socket(f"unix:{os.fsdecode(path)}") as listener:
        assert stat.S_ISSOCK(os.lstat(path).st_mode)
        exchange(listener, bound_address(listener))


def test_open_socket_unix_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of 107 bytes works, as parse_address() says."""
    monkeypatch.chdir(tmp_path)
    with open_socket("unix:" + "x" * 107) as listener:
        exchange(listener, "unix:" + "x" * 107)


@pytest.mark.parametrize("form", ["@{}", "unix:@{}"])
def test_open_socket_abstract(form: str) -> None:
    """An abstract name is listened on without a file; it goes with the socket."""
    name = f"fcgi-app-test-{os.getpid()}"
    for _ in range(2):
        with open_socket(form.format(name)) as listener:
            assert listener.getsockname() == b"\0" + name.encode()
            assert bound_address(listener) == f"@{name}"
            exchange(listener, form.format(name))
            assert not remove_socket_file(listener)


def test_open_socket_abstract_longest() -> None:
    """An abstract name of 107 bytes works, as parse_address() says."""
    name = f"@{os.getpid():x>107}"
    with open_socket(name) as listener:
        exchange(listener, name)


def test_open_socket_abstract_in_use() -> None:
    """An abstract name that is in use is an error that names it."""
    address = f"@fcgi-app-test-{os.getpid()}"
    with open_socket(address), pytest.raises(OSError, match=address) as caught:
        open_socket(address)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask, which is still the same afterwards."""
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
def test_open_socket_mode(umask: int, mode: int, tmp_path: Path) -> None:
    """The file gets exactly the mode, whatever the umask."""
    with open_socket(f"unix:{tmp_path}/s", mode=mode):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode


def test_open_socket_no_mode(umask: int, tmp_path: Path) -> None:
    """Without a mode it is the umask that decides."""
    with open_socket(f"unix:{tmp_path}/s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o777 & ~umask


def test_open_socket_mode_before_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file gets its mode nobody can have connected yet."""
    seen: list[int] = []
    chmod = os.chmod

    def observed_chmod(path: str, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as early:
            seen.append(early.connect_ex(path))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", observed_chmod)
    with open_socket(f"unix:{tmp_path}/s", mode=0o600):
        assert seen == [errno.ECONNREFUSED]


@pytest.mark.parametrize(
    ("address", "mode", "reason"),
    [
        ("/nowhere/s", 0o1000, "'0o1000': out of range 0 to 0o777"),
        ("/nowhere/s", -1, "'-0o1': out of range"),
        ("127.0.0.1:0", 0o600, "127.0.0.1:0 has no file to set it on"),
        ("@fcgi-app-test", 0o600, "@fcgi-app-test has no file to set it on"),
        ("fd:3", 0o600, "fd:3 has no file"),
        ("systemd", 0o600, "systemd has no file"),
    ],
)
def test_open_socket_malformed_mode(address: str, mode: int, reason: str) -> None:
    """A mode that cannot be, or that would protect nothing, is an error."""
    with pytest.raises(ConfigError, match=reason) as caught:
        open_socket(address, mode=mode)
    assert caught.value.setting == "mode"


# ---- what is at the path already -------------------------------------------------


def test_open_socket_stale(tmp_path: Path) -> None:
    """A socket file that nobody listens on is replaced."""
    open_socket(f"unix:{tmp_path}/s", mode=0o600).close()
    assert (tmp_path / "s").exists()
    with open_socket(f"unix:{tmp_path}/s", mode=0o660) as listener:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
        exchange(listener, f"unix:{tmp_path}/s")


def test_open_socket_live(tmp_path: Path) -> None:
    """A socket that is listened on is an error that names it; it goes on working."""
    with open_socket(f"unix:{tmp_path}/s") as other:
        with pytest.raises(OSError, match="another process listens") as caught:
            open_socket(f"unix:{tmp_path}/s")
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == f"{tmp_path}/s"
        other.settimeout(TIMEOUT)
        other.accept()[0].close()  # that of the probe
        exchange(other, f"unix:{tmp_path}/s")


def fill_backlog(path: Path) -> list[socket.socket]:
    """Connect until the backlog of the listener is full."""
    filled: list[socket.socket] = []
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        if client.connect_ex(str(path)):
            client.close()
            return filled
        filled.append(client)


def close_all(opened: list[socket.socket]) -> None:
    for one in opened:
        one.close()


def test_open_socket_live_but_busy(tmp_path: Path) -> None:
    """A socket whose backlog is full is in use, not stale."""
    with open_socket(f"unix:{tmp_path}/s", backlog=0):
        waiting = fill_backlog(tmp_path / "s")
        with pytest.raises(OSError, match="another process listens") as caught:
            open_socket(f"unix:{tmp_path}/s")
        close_all(waiting)
    assert caught.value.errno == errno.EADDRINUSE


def test_open_socket_live_of_another_kind(tmp_path: Path) -> None:
    """A datagram socket in use is not stale either."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="another process listens") as caught:
            open_socket(f"unix:{tmp_path}/s")
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling-link", "fifo"])
def test_open_socket_other_file(kind: str, tmp_path: Path) -> None:
    """What is no socket is never removed; the error names it."""
    path = tmp_path / "s"
    open_socket(f"unix:{tmp_path}/stale").close()
    make: dict[str, Callable[[], None]] = {
        "file": path.touch,
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path / "stale"),
        "dangling-link": lambda: path.symlink_to(tmp_path / "nothing"),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(FileExistsError, match="not a socket is in the way") as caught:
        open_socket(f"unix:{path}")
    assert caught.value.filename == str(path)
    assert path.lstat() == before


def test_open_socket_no_directory(tmp_path: Path) -> None:
    """A directory that is not there is an error that names the address."""
    with pytest.raises(FileNotFoundError) as caught:
        open_socket(f"unix:{tmp_path}/nowhere/s")
    assert caught.value.filename == f"unix:{tmp_path}/nowhere/s"


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory for everybody, to be used with permissions that count."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        privileged = os.geteuid() == 0
        if privileged:
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            if privileged:
                os.seteuid(0)


def test_open_socket_unreadable(unprivileged: Path) -> None:
    """A socket that we may not connect to could be in use: it is left alone."""
    path = unprivileged / "s"
    open_socket(f"unix:{path}", mode=0).close()
    with pytest.raises(PermissionError, match="cannot tell whether") as caught:
        open_socket(f"unix:{path}")
    assert caught.value.filename == str(path)
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_open_socket_forbidden_directory(unprivileged: Path) -> None:
    """A directory that we may not write into is an error that names the address."""
    (unprivileged / "d").mkdir(mode=0o500)
    with pytest.raises(PermissionError) as caught:
        open_socket(f"unix:{unprivileged}/d/s")
    assert caught.value.filename == f"unix:{unprivileged}/d/s"


def test_connect_forbidden(unprivileged: Path) -> None:
    """A socket that we may not connect to is an error that names the address."""
    with open_socket(f"unix:{unprivileged}/s", mode=0):
        with pytest.raises(PermissionError) as caught:
            connect(f"unix:{unprivileged}/s")
        assert caught.value.filename == f"unix:{unprivileged}/s"


@pytest.mark.parametrize("vanishes", ["before-connect", "before-unlink"])
def test_open_socket_stale_vanishes(
    vanishes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale file that another process removes in the meantime does no harm."""
    path = tmp_path / "s"
    open_socket(f"unix:{path}").close()

    class Racing(socket.socket):
        def connect_ex(self, address: Any, /) -> int:
            if vanishes == "before-connect":
                path.unlink()
            result = super().connect_ex(address)
            if vanishes == "before-unlink":
                path.unlink()
            return result

    monkeypatch.setattr(socket, "socket", Racing)
    with open_socket(f"unix:{path}") as listener:
        exchange(listener, f"unix:{path}")


def test_open_socket_failed_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the mode cannot be set no file is left behind."""

    def chmod(path: str, mode: int) -> None:
        raise PermissionError(errno.EPERM, "not permitted", path)

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(PermissionError):
        open_socket(f"unix:{tmp_path}/s", mode=0o600)
    assert list(tmp_path.iterdir()) == []


# ---- removing the file ----------------------------------------------------------


def test_remove_socket_file(tmp_path: Path) -> None:
    """The file that was made is removed, once."""
    with open_socket(f"unix:{tmp_path}/s") as listener:
        assert remove_socket_file(listener) is True
        assert list(tmp_path.iterdir()) == []
        assert remove_socket_file(listener) is False


def test_remove_socket_file_gone(tmp_path: Path) -> None:
    """A file that is no longer there is no error."""
    with open_socket(f"unix:{tmp_path}/s") as listener:
        (tmp_path / "s").unlink()
        assert remove_socket_file(listener) is False


def test_remove_socket_file_replaced(tmp_path: Path) -> None:
    """A file that another process put there is left alone."""
    with open_socket(f"unix:{tmp_path}/s") as listener:
        (tmp_path / "s").unlink()
        with open_socket(f"unix:{tmp_path}/s") as other:
            assert remove_socket_file(listener) is False
            exchange(other, f"unix:{tmp_path}/s")


def test_remove_socket_file_closed(tmp_path: Path) -> None:
    """Nothing is done for a socket that is closed already."""
    listener = open_socket(f"unix:{tmp_path}/s")
    listener.close()
    assert remove_socket_file(listener) is False
    assert (tmp_path / "s").exists()


def test_remove_socket_file_not_made(tmp_path: Path) -> None:
    """A file that open_socket() did not make is left alone."""
    with socket.socket(socket.AF_UNIX) as listener, open_socket(":0") as tcp:
        listener.bind(str(tmp_path / "s"))
        assert remove_socket_file(listener) is False
        assert remove_socket_file(tcp) is False
        assert (tmp_path / "s").exists()


def test_remove_socket_file_refused(unprivileged: Path) -> None:
    """A file of ours that cannot be removed is the system's error."""
    (unprivileged / "d").mkdir()
    with open_socket(f"unix:{unprivileged}/d/s") as listener:
        (unprivileged / "d").chmod(0o500)
        with pytest.raises(PermissionError):
            remove_socket_file(listener)
        (unprivileged / "d").chmod(0o700)
        assert remove_socket_file(listener) is True


# ---- the web server's side ------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:{}/s"])
def test_connect_timeout_kept(
    address: str, timeout: float | None, tmp_path: Path
) -> None:
    """The socket keeps the timeout, and is close-on-exec."""
    with (
        open_socket(address.format(tmp_path)) as listener,
        connect(bound_address(listener), timeout=timeout) as client,
    ):
        assert client.gettimeout() == timeout
        assert not client.get_inheritable()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", ":{}", "localhost:{}"])
def test_connect_refused_tcp(address: str) -> None:
    """Where nobody listens the error names the address; the first counts."""
    with open_socket("127.0.0.1:0") as listener:
        text = address.format(port_of(listener))
    with pytest.raises(ConnectionRefusedError) as caught:
        connect(text)
    assert caught.value.filename == text


def test_connect_refused_unix(tmp_path: Path) -> None:
    """A stale socket file refuses, and the error names the address."""
    open_socket(f"unix:{tmp_path}/s").close()
    with pytest.raises(ConnectionRefusedError) as caught:
        connect(f"unix:{tmp_path}/s")
    assert caught.value.filename == f"unix:{tmp_path}/s"


def test_connect_no_file(tmp_path: Path) -> None:
    """A path where nothing is is an error that names the address."""
    with pytest.raises(FileNotFoundError) as caught:
        connect(f"unix:{tmp_path}/s", timeout=1)
    assert caught.value.filename == f"unix:{tmp_path}/s"


def test_connect_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address of a host name is tried until one answers."""
    with open_socket("127.0.0.1:0") as listener:
        resolve_to(monkeypatch, "::1", "127.0.0.3", "127.0.0.1")
        exchange(listener, f"app.example.org:{port_of(listener)}")


def test_connect_busy_unix(tmp_path: Path) -> None:
    """A full backlog is waited for, and the timeout is an error with the address."""
    with open_socket(f"unix:{tmp_path}/s", backlog=0):
        waiting = fill_backlog(tmp_path / "s")
        with pytest.raises(TimeoutError, match=r"within 0\.05 seconds") as caught:
            connect(f"unix:{tmp_path}/s", timeout=0.05)
        close_all(waiting)
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.filename == f"unix:{tmp_path}/s"


def test_connect_busy_unix_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a place in the backlog comes free in time the connection is made."""
    with open_socket(f"unix:{tmp_path}/s", backlog=0) as listener:
        waiting = fill_backlog(tmp_path / "s")
        # The first wait is where the application takes what waits.
        monkeypatch.setattr(time, "sleep", lambda _: listener.accept()[0].close())
        connect(f"unix:{tmp_path}/s", timeout=TIMEOUT).close()
        close_all(waiting)


def test_connect_busy_unix_without_timeout(tmp_path: Path) -> None:
    """Without a timeout connect() waits until there is a place."""
    with open_socket(f"unix:{tmp_path}/s", backlog=0) as listener:
        listener.settimeout(TIMEOUT)
        waiting = fill_backlog(tmp_path / "s")
        made: list[socket.socket] = []
        client = threading.Thread(
            target=lambda: made.append(connect(f"unix:{tmp_path}/s"))
        )
        client.start()
        accepted = [listener.accept()[0] for _ in range(len(waiting) + 1)]
        client.join(TIMEOUT)
        close_all(waiting + accepted)
        assert [one.gettimeout() for one in made] == [None]
        close_all(made)


class NeverConnected(socket.socket):
    """A socket whose peer does not answer at all."""

    def connect(self, address: Any, /) -> None:
        raise TimeoutError("timed out")


def test_connect_timeout_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not answer is a TimeoutError that names time and address."""
    monkeypatch.setattr(socket, "socket", NeverConnected)
    with pytest.raises(TimeoutError, match="not connected within 2 seconds") as caught:
        connect("127.0.0.1:1", timeout=2)
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.filename == "127.0.0.1:1"


@pytest.mark.parametrize("address", ["fd:3", "systemd", "systemd:web", ":0", "[::1]:0"])
def test_connect_only_for_listening(address: str) -> None:
    """What can only be listened on is an error that says so."""
    with pytest.raises(ConfigError, match="only for listening") as caught:
        connect(address)
    assert caught.value.value == address


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_connect_malformed_timeout(timeout: float) -> None:
    """A timeout that is not greater than 0 is an error that names it."""
    with pytest.raises(ConfigError, match=r"timeout: .*: must be greater than 0"):
        connect("127.0.0.1:1", timeout=timeout)


# ---- where a socket listens -------------------------------------------------------


@needs_ipv6
def test_bound_address_any() -> None:
    """Any address is shown as it is written in an address."""
    with open_socket(":0") as ipv4, open_socket("[::]:0") as ipv6:
        assert bound_address(ipv4) == f":{port_of(ipv4)}"
        assert bound_address(ipv6) == f"[::]:{port_of(ipv6)}"


class LinkLocal(socket.socket):
    """A listener on an address that needs its interface named."""

    def getsockname(self) -> Any:
        return ("fe80::1", 9000, 0, 2)


@needs_ipv6
def test_bound_address_scope() -> None:
    """An IPv6 address that needs an interface is shown with its number."""
    with LinkLocal(socket.AF_INET6) as listener:
        assert bound_address(listener) == "[fe80::1%2]:9000"
