"""Descriptors in ancillary data: the cmsghdr structures of recvmsg(2) and sendmsg(2).

Facts from unix(7), cmsg(3) and RFC 3542 §20. What is done about a fault is decided
elsewhere; here descriptors are only found, and made close-on-exec as they come.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

__all__ = [
    "DATA_MAX_BYTES",
    "Message",
    "build_rights",
    "close_descriptors",
    "parse_message",
    "receive_message",
]

DATA_MAX_BYTES = 16384
"""Most payload bytes of one handover. What is sent in one call with so little comes
in one piece, as the kernel puts up to 32 KiB into one buffer, unless the sender has
made its SO_SNDBUF small."""

_ROOM = 16
"""Descriptors that there is room for. One is what should come; surplus ones are taken
so that they can be counted and closed, and beyond the room the kernel closes them.
Where credentials come first, the room is less by half."""

_INT_BYTES = array("i").itemsize
_CONTROL_BYTES = socket.CMSG_SPACE(_ROOM * _INT_BYTES)
_DATA_ROOM = DATA_MAX_BYTES + 1  # one more tells that it was too much
# Plain numbers: to join members of an enumeration takes longer than the call.
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_MSG_CTRUNC = int(socket.MSG_CTRUNC)
_SOL_SOCKET = int(socket.SOL_SOCKET)
_SCM_RIGHTS = int(socket.SCM_RIGHTS)


class Message(NamedTuple):
    """What one recvmsg gave; the descriptors are the caller's.

    Attributes:
        data: payload; empty at the end of the stream.
        descriptors: every descriptor that arrived, close-on-exec.
        truncated: MSG_CTRUNC: the kernel has closed descriptors that did not fit, or
            for which the process had no free number.
        others: level and type of every cmsghdr that is not SCM_RIGHTS.
    """

    data: bytes
    descriptors: tuple[int, ...]
    truncated: bool
    others: tuple[tuple[int, int], ...]


def receive_message(connection: socket.socket) -> Message:
    """Receive one message, without waiting.

    Raises:
        BlockingIOError: nothing is there yet.
        OSError: of the connection.
    """
    data, control, flags, _ = connection.recvmsg(_DATA_ROOM, _CONTROL_BYTES, _FLAGS)
    return parse_message(data, control, flags)


def parse_message(
    data: bytes, control: Iterable[tuple[int, int, bytes]], flags: int
) -> Message:
    """Sort what ``recvmsg`` returned.

    Args:
        data: the payload.
        control: level, type and content of each cmsghdr. A content that was cut off
            in the middle of a descriptor holds the whole ones before it.
        flags: MSG_CTRUNC counts.
    """
    descriptors: tuple[int, ...] = ()
    others: tuple[tuple[int, int], ...] = ()
    for level, kind, content in control:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            whole = len(content) - len(content) % _INT_BYTES
            descriptors += tuple(array("i", content[:whole]))
        else:
            others += ((level, kind),)
    return Message(data, descriptors, bool(flags & _MSG_CTRUNC), others)


def build_rights(descriptors: Iterable[int]) -> list[tuple[int, int, bytes]]:
    """Build the ancillary data of ``sendmsg`` that carries ``descriptors``."""
    content = array("i", descriptors).tobytes()
    return [(_SOL_SOCKET, _SCM_RIGHTS, content)] if content else []


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close each of them, whatever closing one says (a file on NFS may complain)."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
