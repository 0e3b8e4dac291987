"""Sockets that the process was started with: descriptor 0, ``fd:N``, activation.

Facts from FastCGI 1.0 §2.2, sd_listen_fds(3), fcntl(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Mapping

from .errors import ConfigError

__all__ = [
    "adopt_activated",
    "adopt_descriptor",
    "forces_cgi",
    "inherited_listener",
    "is_started_by_web_server",
    "keep_activated",
    "plug_standard_descriptors",
]

LISTENSOCK_FILENO = 0
"""Where a web server or launcher leaves the listening socket (§2.2, §8)."""

_HIGH_DESCRIPTOR = 64
"""Sockets move up here: a script and its children may count on low numbers."""

_SD_LISTEN_FDS_START = 3
"""First descriptor of socket activation, sd_listen_fds(3)."""


def inherited_listener(
    environ: Mapping[str, str] = os.environ,
) -> socket.socket | None:
    """Take the listening socket from descriptor 0 (§2.2): FastCGI, or CGI without.

    Call it once, at start-up, after `plug_standard_descriptors`: the socket moves to
    a high close-on-exec descriptor, and descriptor 0 becomes /dev/null, so that a
    second call finds no socket any more. If it was non-blocking, it still is.

    Args:
        environ: where FCGI_FORCE_CGI is looked for: ``1``, ``true``, ``yes`` or
            ``on``, and their opposites.

    Returns:
        The socket, the caller's. None means CGI: descriptor 0, left as it is, is a
        pipe, a file, a terminal, a *connected* socket or closed, or CGI is forced.

    Raises:
        ConfigError: descriptor 0 is a socket that neither listens nor is connected,
            or listens but is no stream; or FCGI_FORCE_CGI has another value.
    """
    if forces_cgi(environ) or not _is_socket(LISTENSOCK_FILENO):
        return None
    with closed_on_error(_duplicate(LISTENSOCK_FILENO)) as candidate:
        if _is_listening(candidate):
            _require_stream("file descriptor", LISTENSOCK_FILENO, candidate)
            _vacate(LISTENSOCK_FILENO)
            return candidate
        if not _is_connected(candidate):
            raise ConfigError(
                "file descriptor",
                LISTENSOCK_FILENO,
                f"{_describe(candidate)} that is neither listening, as for FastCGI"
                " (call listen() on it before the start), nor connected, as for CGI",
            )
    candidate.close()
    return None


def plug_standard_descriptors() -> None:
    """Open /dev/null on each of the descriptors 0, 1 and 2 that is closed.

    A FastCGI application may be started with 0 alone (§2.2); the first files that it
    opened would then become its standard output and error.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        if not _is_open(descriptor):
            _open_null(descriptor, flags)


def forces_cgi(environ: Mapping[str, str]) -> bool:
    """Tell whether FCGI_FORCE_CGI asks for CGI, whatever descriptor 0 is.

    Raises:
        ConfigError: its value is neither a yes nor a no.
    """
    text = environ.get("FCGI_FORCE_CGI", "")
    value = text.strip().lower()
    if value in ("1", "true", "yes", "y", "on"):
        return True
    if value in ("", "0", "false", "no", "n", "off"):
        return False
    raise ConfigError("FCGI_FORCE_CGI", text, "must be 1 or 0 (true, yes, on, …)")


def is_started_by_web_server() -> bool:
    """Tell whether this looks like the start of a CGI or FastCGI process."""
    return "GATEWAY_INTERFACE" in os.environ or _is_socket(LISTENSOCK_FILENO)


def adopt_descriptor(address: str, descriptor: int) -> socket.socket:
    """Take over a listening socket that the process already has.

    It moves to a high close-on-exec descriptor; ``descriptor`` is closed, or becomes
    /dev/null if it is 0, 1 or 2. On an error it is left as it is.

    Raises:
        ConfigError: it is not a listening stream socket; names ``address``.
    """
    if not _is_socket(descriptor):
        state = "not a socket" if _is_open(descriptor) else "not open"
        reason = f"descriptor {descriptor} is {state}"
        raise ConfigError("address", address, reason)
    with closed_on_error(_duplicate(descriptor)) as listener:
        if not _is_listening(listener):
            reason = f"{_describe(listener)} that is not listening"
            raise ConfigError("address", address, reason)
        _require_stream("address", address, listener)
        _vacate(descriptor)
        return listener


def adopt_activated(
    address: str, name: str, environ: Mapping[str, str]
) -> socket.socket:
    """Duplicate a listening socket of socket activation, sd_listen_fds_with_names(3).

    The descriptors that were passed become close-on-exec and stay open, since their
    numbers are what a second call goes by. ``environ`` is read, not changed.

    Args:
        address: what errors name.
        name: FileDescriptorName= of the socket; ``""`` for the first that listens.
        environ: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.

    Raises:
        ConfigError: nothing was passed to this process, nothing that fits, or not
            what the variables say.
    """
    passed = _activated_descriptors(address, environ)
    for descriptor, passed_name in passed:
        if name in ("", passed_name) and _is_socket(descriptor):
            listener = _duplicate(descriptor)
            if _is_listening(listener) and listener.type == socket.SOCK_STREAM:
                return listener
            listener.close()
    names = ", ".join(passed_name for _, passed_name in passed) or "nothing"
    reason = f"no such listening stream socket was passed; what was: {names}"
    raise ConfigError("address", address, reason)


def keep_activated(environ: Mapping[str, str] = os.environ) -> list[int]:
    """Return the descriptors of socket activation, for a process that executes itself.

    They become close-on-exec. Nothing was passed, or not what the variables say: none.
    """
    try:
        return [descriptor for descriptor, _ in _activated_descriptors("", environ)]
    except ConfigError:
        return []


def _activated_descriptors(
    address: str, environ: Mapping[str, str]
) -> list[tuple[int, str]]:
    """Return descriptor and name of what was passed, all of them close-on-exec now."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        pid = environ.get("LISTEN_PID", "not set")
        reason = f"no socket was passed to this process: LISTEN_PID is {pid}"
        raise ConfigError("address", address, reason)
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and 0 < len(count) < 10):
        raise ConfigError("LISTEN_FDS", count, "not a number of descriptors")
    passed = range(_SD_LISTEN_FDS_START, _SD_LISTEN_FDS_START + int(count))
    for descriptor in passed:
        if not _is_open(descriptor):
            reason = f"descriptor {descriptor} is not open"
            raise ConfigError("LISTEN_FDS", count, reason)
        os.set_inheritable(descriptor, False)
    if not passed or "LISTEN_FDNAMES" not in environ:
        return [(descriptor, "unknown") for descriptor in passed]
    names = environ["LISTEN_FDNAMES"].split(":")
    if len(names) != len(passed):
        reason = f"{len(names)} names for {len(passed)} descriptors"
        raise ConfigError("LISTEN_FDNAMES", environ["LISTEN_FDNAMES"], reason)
    return list(zip(passed, names, strict=True))


# ---- descriptors ----------------------------------------------------------------


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        return error.errno != errno.EBADF
    return True


def _is_socket(descriptor: int) -> bool:
    return _is_open(descriptor) and stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket object on a high close-on-exec duplicate."""
    try:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR)
    except OSError:
        # A small RLIMIT_NOFILE (EINVAL), or all those numbers are taken (EMFILE).
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    return socket.socket(fileno=high)


def _vacate(descriptor: int) -> None:
    """Close a descriptor, but keep 0, 1 and 2 taken."""
    if descriptor > 2:
        os.close(descriptor)
    else:
        _open_null(descriptor, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)


def _open_null(descriptor: int, flags: int) -> None:
    null = os.open(os.devnull, flags)
    if null == descriptor:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, descriptor)  # inheritable
        os.close(null)


def _require_stream(setting: str, value: object, listener: socket.socket) -> None:
    if listener.type != socket.SOCK_STREAM:
        reason = f"{_describe(listener)} that listens; FastCGI needs a stream socket"
        raise ConfigError(setting, value, reason)


def _is_listening(candidate: socket.socket) -> bool:
    return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_connected(candidate: socket.socket) -> bool:
    """Tell whether a socket that does not listen is connected, or was."""
    try:
        candidate.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN or _was_connected(candidate)
    return True


def _was_connected(candidate: socket.socket) -> bool:
    """Tell a TCP connection that its peer has reset from one that never was."""
    if candidate.type != socket.SOCK_STREAM:
        return False
    try:
        candidate.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError as error:
        # tcp(7) gives ENOTCONN, unix(7) EINVAL for a socket that never was.
        return error.errno not in (errno.ENOTCONN, errno.EINVAL)
    return True


def _describe(candidate: socket.socket) -> str:
    family: object = getattr(candidate.family, "name", candidate.family)
    kind: object = getattr(candidate.type, "name", candidate.type)
    return f"an {family} {kind} socket"


class closed_on_error:  # a function but for contextlib, which takes time to load
    """Close a new socket if the body, which makes it ready, raises."""

    def __init__(self, opened: socket.socket) -> None:
        self._opened = opened

    def __enter__(self) -> socket.socket:
        return self._opened

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            self._opened.close()
