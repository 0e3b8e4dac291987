"""What is a client's socket, and what a receiver can do nothing with.

Each cause is a sentence for the log. The ways of httpd are those of 2.4 with
mod_proxy_fdpass.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any, NamedTuple

__all__ = ["TLS_CAUSE", "Examined", "adopt_client", "examine_client", "speaks_tls"]

TLS_CAUSE = (
    "the client speaks TLS, whose keys stay in httpd; "
    "mod_proxy_fdpass works without TLS only"
)
_HTTP2_CAUSE = (
    "a socket that is not connected, as httpd hands over for HTTP/2; "
    "allow HTTP/1.1 alone there (Protocols http/1.1)"
)
_GONE_CAUSE = "the client has gone"

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_SOCK_STREAM = int(socket.SOCK_STREAM)
_SOL_SOCKET = int(socket.SOL_SOCKET)
_SO_TYPE = int(socket.SO_TYPE)

_TLS_TYPES = range(20, 24)
"""change_cipher_spec, alert, handshake, application_data (RFC 8446 §5.1)."""
_TLS_HEADER_BYTES = 5
_TLS_LONGEST = 16384 + 2048
"""Bytes of a record's content (RFC 5246 §6.2.3)."""


def adopt_client(descriptor: int) -> socket.socket | str:
    """Make a socket object of a descriptor that has arrived.

    Returns:
        The socket, which owns the descriptor, blocking; or the cause why it is none.
        Then the descriptor is closed.
    """
    try:
        client = socket.socket(fileno=descriptor)
    except OSError as error:
        cause = _name_other(descriptor, error)
        os.close(descriptor)
        return cause
    client.setblocking(True)  # httpd's is not; and socket.setdefaulttimeout
    return client


def _name_other(descriptor: int, error: OSError) -> str:
    """Say what a descriptor is that is no socket."""
    mode = os.fstat(descriptor).st_mode
    for test, name in (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    ):
        if test(mode):
            return f"{name}, not a socket"
    return f"not a usable socket: {error.strerror}"


class Examined(NamedTuple):
    """What `examine_client` found.

    Attributes:
        cause: why it is no client's socket; empty if it is one.
        address: the client's; None if it has none, as a Unix socket.
        silent: the client has closed its side: it has gone, or only reads on.
    """

    cause: str
    address: tuple[Any, ...] | None = None
    silent: bool = False


def examine_client(client: socket.socket) -> Examined:
    """Find out whether a socket is a client's, without waiting."""
    # Not client.type, which makes a member of an enumeration each time.
    if client.getsockopt(_SOL_SOCKET, _SO_TYPE) != _SOCK_STREAM:
        kind: object = getattr(client.type, "name", client.type)
        return Examined(f"a {kind} socket, not a stream")
    try:
        address = client.getpeername()
    except OSError as error:
        return Examined(_why_unconnected(client, error))
    where = address if type(address) is tuple else None
    try:
        head = client.recv(_TLS_HEADER_BYTES, _PEEK)
    except BlockingIOError:
        return Examined("", where)  # the usual case: httpd has read all that came
    except OSError:
        return Examined(_GONE_CAUSE)
    if _is_tls(head):
        return Examined(TLS_CAUSE)
    return Examined("", where, not head)


def _why_unconnected(client: socket.socket, error: OSError) -> str:
    if client.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "a listening socket"
    if error.errno != errno.ENOTCONN:
        return f"a socket without a peer: {error.strerror}"
    try:
        client.recv(1, _PEEK)
    except OSError as problem:
        # tcp(7) gives ENOTCONN, unix(7) EINVAL for a socket that never was connected.
        if problem.errno in (errno.ENOTCONN, errno.EINVAL):
            return _HTTP2_CAUSE
    return _GONE_CAUSE


def speaks_tls(client: socket.socket) -> bool:
    """Tell whether the bytes that wait in a socket begin a TLS record."""
    try:
        return _is_tls(client.recv(_TLS_HEADER_BYTES, _PEEK))
    except OSError:  # nothing waits, or it fails; then what comes next says so
        return False


def _is_tls(head: bytes) -> bool:
    """Tell a TLS record's header from other bytes: one in ten million is taken for it.

    A client that was handed over has finished its handshake with httpd. What it sends
    next is the alert that answers httpd's, or data.
    """
    return (
        len(head) == _TLS_HEADER_BYTES
        and head[0] in _TLS_TYPES
        and head[1] == 3
        and head[2] <= 4
        and 0 < int.from_bytes(head[3:], "big") <= _TLS_LONGEST
    )
