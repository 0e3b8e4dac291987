"""How many connections wait in the queue of a listening socket; Linux only.

For TCP, TCP_INFO of a listening socket has both numbers in fields that mean something
else otherwise: ``tcpi_unacked`` and ``tcpi_sacked`` (net/ipv4/tcp.c). Connections whose
handshake goes on, or that the system has dropped since the queue was full, are not
counted. For a Unix socket sock_diag(7) has them: UNIX_DIAG_RQLEN, as ``ss -xl`` shows
it. Clients that wait inside connect(2) since the queue is full are not counted, nor are
those who were told EAGAIN.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from struct import Struct
from typing import NamedTuple

__all__ = ["ListenQueue", "read_listen_queue", "sum_listen_queues"]


class ListenQueue(NamedTuple):
    """The queue of a listening socket, or of several.

    Attributes:
        waiting: connections that nobody has accepted yet.
        limit: how many may wait, as listen(2) was told and the system has cut it. Linux
            lets one more wait.
    """

    waiting: int
    limit: int


_TCP_INFO = getattr(socket, "TCP_INFO", None)
_TCP_QUEUE = Struct("=24xII")  # tcpi_unacked, tcpi_sacked

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/unix_diag.h>
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY_COOKIE = 0xFFFFFFFF
_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = Struct("=BBHIIIII")  # family, protocol, -, states, inode, show, cookie
_MESSAGE = Struct("=BBBBIII")  # family, type, state, -, inode, cookie
_ATTRIBUTE = Struct("=HH")  # length, type
_QUEUE = Struct("=II")
_ANSWER_BYTES = 4096


def sum_listen_queues(listeners: Iterable[socket.socket]) -> ListenQueue | None:
    """Add up the queues of sockets; None: none of them can be seen."""
    found = [queue for each in listeners if (queue := read_listen_queue(each))]
    if not found:
        return None
    return ListenQueue(sum(q.waiting for q in found), sum(q.limit for q in found))


def read_listen_queue(listener: socket.socket) -> ListenQueue | None:
    """Return the queue of a listening socket; None: this system does not show it."""
    with suppress(OSError, AttributeError):  # of another system, or not permitted
        if listener.family == socket.AF_UNIX:
            return _ask_for_unix(os.fstat(listener.fileno()).st_ino)
        if _TCP_INFO is not None and listener.family in (
            socket.AF_INET,
            socket.AF_INET6,
        ):
            size = _TCP_QUEUE.size
            found = listener.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, size)
            return ListenQueue(*_TCP_QUEUE.unpack(found))
    return None


def _ask_for_unix(inode: int) -> ListenQueue | None:
    """Ask the system for the queue of the Unix socket with this inode."""
    request = _REQUEST.pack(
        *(socket.AF_UNIX, 0, 0, 0, inode & 0xFFFFFFFF),
        *(_UDIAG_SHOW_RQLEN, _ANY_COOKIE, _ANY_COOKIE),
    )
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as system:
        system.sendto(header + request, (0, 0))
        # The answer is there when sendto returns.
        return _parse_answer(system.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT))


def _parse_answer(answer: bytes) -> ListenQueue | None:
    if len(answer) < _HEADER.size + _MESSAGE.size:
        return None
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:  # NLMSG_ERROR
        return None
    at = _HEADER.size + _MESSAGE.size
    while at + _ATTRIBUTE.size <= min(length, len(answer)):
        size, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _UNIX_DIAG_RQLEN and size >= _ATTRIBUTE.size + _QUEUE.size:
            return ListenQueue(*_QUEUE.unpack_from(answer, at + _ATTRIBUTE.size))
        at += max(_ATTRIBUTE.size, -(-size // 4) * 4)  # aligned to 4
    return None
