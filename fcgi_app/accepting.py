"""Accepting a connection, without what ``sockets`` needs to open a listener."""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["accept_plain", "kind_of"]


def accept_plain(
    listener: socket.socket, kind: tuple[int, int, int]
) -> tuple[socket.SocketType, Any]:
    """Accept a connection, as ``listener.accept()`` does, in half of the time.

    The socket is of the class below ``socket.socket``, which has no ``makefile``.

    Args:
        listener: where to accept.
        kind: what ``kind_of`` gave for it.

    Raises:
        OSError: as ``accept(2)``.
    """
    if _HAS_ACCEPT and type(listener) is socket.socket:
        fd, peer = listener._accept()  # type: ignore[attr-defined]
        return socket.SocketType(*kind, fd), peer
    return listener.accept()


def kind_of(sock: socket.socket) -> tuple[int, int, int]:
    """Return family, type and protocol of a socket, as plain numbers."""
    return int(sock.family), int(sock.type), sock.proto


_HAS_ACCEPT = hasattr(socket.socket, "_accept")  # what accept() itself calls
