"""Opening listening sockets from an address, and connecting to them.

The forms of an address are listed in `fcgi_app.addresses`. Facts from FastCGI 1.0 §2.2
and §3.2, unix(7), ip(7), ipv6(7). Every socket made here is close-on-exec. An
OSError of the operating system carries the address as its ``filename``. No accept
loop lives here.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from .access import WebServerAddrs
from .addresses import Address, AddressKind, parse_address, refuse_address
from .errors import ConfigError
from .frozen import Frozen
from .inherited import (
    adopt_activated,
    adopt_descriptor,
    closed_on_error,
    inherited_listener,
    plug_standard_descriptors,
)

__all__ = [
    "Address",
    "AddressKind",
    "WebServerAddrs",
    "bound_address",
    "connect",
    "held_socket_file",
    "inherited_listener",
    "open_socket",
    "parse_address",
    "plug_standard_descriptors",
    "remove_socket_file",
]

_BUSY_RETRY_SECONDS = 0.01
_HAS_PATH_DESCRIPTORS = hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd")

_Where = str | tuple[Any, ...]
"""A socket address as ``bind()`` and ``connect()`` take it."""


# ---- opening ------------------------------------------------------------------


def open_socket(
    address: str, *, backlog: int = 1024, mode: int | None = None
) -> socket.socket:
    """Open a listening stream socket on ``address``.

    The socket is the caller's, blocking and close-on-exec.

    - A host name is looked up; the first of its addresses that this host has is
      taken, IPv4 before IPv6. SO_REUSEADDR is set.
    - An IPv6 socket takes IPv4 too where the system can do it, so that ``[::]:9000``
      listens on everything, whatever net.ipv6.bindv6only says.
    - A socket file that nobody listens on is replaced. To find out, one connection
      is made to it. Nothing else that has the path is ever removed, and the file
      stays when the socket is closed: `remove_socket_file` removes it.
    - ``fd:N`` takes descriptor N over: it moves to a high number, N is closed (0, 1
      and 2 become /dev/null). It keeps its backlog and its O_NONBLOCK.
    - ``systemd`` takes a duplicate, so that a second call finds the same sockets;
      the descriptors that were passed become close-on-exec and stay open.

    Args:
        address: where to listen.
        backlog: connections that wait for an accept; the kernel cuts it to
            net.core.somaxconn. Not for ``fd:N`` and ``systemd``.
        mode: permission bits that the socket file gets, exactly, before the first
            connection is possible. None: 0o777 without the umask. Only for a socket
            file. A client needs write permission, see unix(7).

    Raises:
        ConfigError: an argument is invalid, or the descriptor or the socket that was
            passed is not a listening stream socket.
        OSError: the system refuses. A socket that is listened on has errno
            EADDRINUSE, another file at the path EEXIST; a host name that is not
            known is a ``socket.gaierror``.
    """
    where = parse_address(address)
    if not 0 <= backlog < 2**31:
        raise ConfigError("backlog", backlog, "out of range 0 to 2147483647")
    if mode is not None:
        _check_mode(where, mode)
    with _naming(where):
        match where.kind:
            case AddressKind.UNIX:
                return _listen_on_file(where.name, backlog, mode)
            case AddressKind.ABSTRACT:
                return _listen(socket.AF_UNIX, "\0" + where.name, backlog)
            case AddressKind.TCP:
                return _listen_on_host(where, backlog)
            case AddressKind.DESCRIPTOR:
                return adopt_descriptor(address, where.number)
            case AddressKind.SYSTEMD:
                return adopt_activated(address, where.name, os.environ)


def _check_mode(address: Address, mode: int) -> None:
    if not 0 <= mode <= 0o777:
        raise ConfigError("mode", oct(mode), "out of range 0 to 0o777")
    if address.kind is not AddressKind.UNIX:
        raise ConfigError("mode", oct(mode), f"{address} has no file to set it on")


def _listen(family: int, where: _Where, backlog: int) -> socket.socket:
    with closed_on_error(socket.socket(family, socket.SOCK_STREAM)) as listener:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(where)
        listener.listen(backlog)
        return listener


def _listen_on_host(address: Address, backlog: int) -> socket.socket:
    targets = _tcp_targets(address, ("0.0.0.0", "::"))
    # libfcgi knows IPv4 alone, and web servers that say "localhost" mostly mean it.
    targets.sort(key=lambda target: target[0] != socket.AF_INET)
    for family, where in targets[:-1]:
        try:
            return _listen(family, where, backlog)
        except OSError as error:
            # This host has no such address; any other failure must not end in
            # listening somewhere else than the web server connects to.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return _listen(*targets[-1], backlog)


def _tcp_targets(
    address: Address, any_hosts: tuple[str, str]
) -> list[tuple[int, _Where]]:
    """Resolve to at least one pair of family and socket address."""
    if not address.name:
        ipv4, ipv6 = any_hosts
        return [
            (socket.AF_INET, (ipv4, address.number)),
            (socket.AF_INET6, (ipv6, address.number)),
        ]
    try:
        found = socket.getaddrinfo(
            address.name, address.number, type=socket.SOCK_STREAM
        )
    except UnicodeError as error:
        refuse_address(str(address), f"has a malformed host name: {error}")
    return [(family, where) for family, _, _, _, where in found]


def bound_address(listener: socket.socket) -> str:
    """Return where a socket listens, in a form that `connect` takes.

    The port is the true one if 0 was asked for, any address is ``:port`` or
    ``[::]:port``.
    """
    where = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        if isinstance(where, bytes):
            return "@" + os.fsdecode(where[1:])
        return f"unix:{where}"
    if listener.family == socket.AF_INET6:
        scope = f"%{where[3]}" if where[3] else ""
        return f"[{where[0]}{scope}]:{where[1]}"
    host, port = where
    return f":{port}" if host == "0.0.0.0" else f"{host}:{port}"


# ---- socket files -------------------------------------------------------------


class _SocketFile(Frozen):
    """The file that a socket of ours was bound to; absolute, as a chdir may follow."""

    path: str
    device: int
    inode: int


_files: WeakKeyDictionary[socket.socket, _SocketFile] = WeakKeyDictionary()


def _listen_on_file(path: str, backlog: int, mode: int | None) -> socket.socket:
    _clear_path(path)
    with closed_on_error(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        status = os.lstat(path)
        made = _SocketFile(os.path.abspath(path), status.st_dev, status.st_ino)
        _files[listener] = made
        try:
            # Nobody can connect between bind() and listen(), so the mode is set in
            # time, and without the umask, which belongs to all threads.
            if mode is not None:
                with held_socket_file(made.path, made.device, made.inode) as held:
                    os.chmod(held, mode)
            listener.listen(backlog)
        except OSError:
            remove_socket_file(listener)
            raise
        return listener


def _clear_path(path: str) -> None:
    """Remove the socket file that a process left behind; refuse anything else."""
    try:
        found = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise FileExistsError(
            errno.EEXIST, "a file that is not a socket is in the way", path
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
    if result == errno.ECONNREFUSED:
        # Or another process is between bind() and listen() on it: that instant is
        # the one in which two starts at once can both seem to succeed.
        with suppress(FileNotFoundError):
            os.unlink(path)
    elif result in (errno.EACCES, errno.EPERM):
        raise PermissionError(
            result, "cannot tell whether the socket is in use, not removed", path
        )
    elif result != errno.ENOENT:
        # 0, EAGAIN (its backlog is full) or EPROTOTYPE (not a stream socket).
        raise OSError(errno.EADDRINUSE, "another process listens on the socket", path)


@contextmanager
def held_socket_file(path: str, device: int, inode: int) -> Iterator[str]:
    """Give a path that means this socket file and nothing else, for as long.

    For chmod and chown by root: whoever may write to the directory could put a link in
    the place of the file at the wrong moment. Only Linux can tell (open(2), O_PATH).

    Raises:
        FileNotFoundError: another file is there, or none.
    """
    if not _HAS_PATH_DESCRIPTORS:
        yield path
        return
    held = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(held)
        same = (status.st_dev, status.st_ino) == (device, inode)
        if not (same and stat.S_ISSOCK(status.st_mode)):
            raise FileNotFoundError(errno.ENOENT, "the socket file was replaced", path)
        name = f"/proc/self/fd/{held}"
        try:
            yield name
        except OSError as error:
            if error.filename == name:  # which says nothing to anybody
                raise OSError(error.errno, error.strerror, path) from None
            raise
    finally:
        os.close(held)


def remove_socket_file(listener: socket.socket) -> bool:
    """Remove the socket file that `open_socket` made for ``listener``.

    Call it before the socket is closed, in the one process that owns the file: a
    forked worker must leave it to its parent. The file is left alone if it was
    replaced in the meantime. As long as the socket is open, no other file can have
    got its inode number; therefore nothing is done once it is closed.

    Returns:
        Whether the file was removed; False also for a socket without such a file.

    Raises:
        OSError: the file is still ours and cannot be removed.
    """
    made = _files.get(listener)
    if made is None or listener.fileno() < 0:
        return False
    try:
        status = os.lstat(made.path)
    except FileNotFoundError:
        return False
    if (status.st_dev, status.st_ino) != (made.device, made.inode):
        return False
    os.unlink(made.path)
    del _files[listener]
    return True


# ---- the web server's side ------------------------------------------------------


def connect(address: str, *, timeout: float | None = None) -> socket.socket:
    """Connect to an application that listens on ``address``, as a web server does.

    Args:
        address: any form but ``fd:N`` and ``systemd``. Any address (``:port``) means
            this host: 127.0.0.1, then ::1. Every address of a host name is tried.
        timeout: seconds for each address tried, greater than 0, None: the system's.
            The socket keeps it as its own timeout.

    Raises:
        ConfigError: an argument is invalid.
        OSError: why the first address failed, if every one did; TimeoutError, a
            subclass, after ``timeout`` seconds.
    """
    where = parse_address(address)
    if where.kind in (AddressKind.DESCRIPTOR, AddressKind.SYSTEMD):
        refuse_address(address, "is only for listening")
    if where.kind is AddressKind.TCP and not where.number:
        refuse_address(address, "has port 0, which is only for listening")
    if timeout is not None and not timeout > 0:
        raise ConfigError("timeout", timeout, "must be greater than 0 seconds")
    with _naming(where):
        if where.kind is AddressKind.TCP:
            return _connect_to_host(where, timeout)
        abstract = where.kind is AddressKind.ABSTRACT
        return _connect_unix("\0" * abstract + where.name, timeout)


def _connect_to_host(address: Address, timeout: float | None) -> socket.socket:
    errors: list[OSError] = []
    for family, where in _tcp_targets(address, ("127.0.0.1", "::1")):
        try:
            return _connect_tcp(family, where, timeout)
        except OSError as error:
            errors.append(error)
    try:
        raise errors[0]
    finally:
        errors.clear()  # which refer to this frame


def _connect_tcp(family: int, where: _Where, timeout: float | None) -> socket.socket:
    with closed_on_error(socket.socket(family, socket.SOCK_STREAM)) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(where)
        except TimeoutError as error:
            raise _timed_out(timeout) from error
        return connection


def _connect_unix(path: str, timeout: float | None) -> socket.socket:
    deadline = None if timeout is None else time.monotonic() + timeout
    with closed_on_error(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(timeout)
        while True:
            try:
                connection.connect(path)
            except BlockingIOError:
                # The backlog is full. Without a timeout connect() waits by itself,
                # with one it gives up at once, and no poll tells of a free place.
                if deadline is not None and time.monotonic() > deadline:
                    raise _timed_out(timeout) from None
                time.sleep(_BUSY_RETRY_SECONDS)
            else:
                return connection


def _timed_out(timeout: float | None) -> OSError:
    return OSError(errno.ETIMEDOUT, f"not connected within {timeout} seconds")


@contextmanager
def _naming(address: object) -> Iterator[None]:
    """Put the address into an OSError that passes and does not name a file yet."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        kind = socket.gaierror if isinstance(error, socket.gaierror) else OSError
        raise kind(error.errno, error.strerror, str(address)) from error
