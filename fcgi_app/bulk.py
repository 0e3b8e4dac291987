"""A long body, taken out of its records by C."""

from __future__ import annotations

from ._backend import ffi, lib
from .protocol import Connection, Event, State, StdinReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BulkConnection", "gather_body"]

_LEAST = 4096
"""Bytes from which on it is worth the visit."""
_MOST = 1 << 18
"""Bytes of the largest piece that room is kept for."""
_rooms: list[tuple[Any, Any, Any]] = []
"""Room that nobody uses: for the content, the same as a buffer, and for the numbers."""


def gather_body(
    data: bytes, request_id: int, left: int, skip: int
) -> tuple[bytes, int, int, int]:
    """Take the content of the STDIN records of a request from the begin of ``data``.

    Args:
        data: what has come.
        request_id: of the request.
        left: bytes of a record's content that were still to come.
        skip: bytes of its padding.

    Returns:
        The content; how many bytes of ``data`` that was; ``left`` and ``skip`` now.
    """
    size = len(data)
    try:
        room = _rooms.pop() if size <= _MOST else _make_room(size)
    except IndexError:
        room = _make_room(_MOST)
    space, content, body = room
    body.left = left
    body.skip = skip
    lib.fcgi_gather_body(data, size, request_id, space, body)
    found = content[: body.size], body.consumed, body.left, body.skip
    if size <= _MOST and not _rooms:
        _rooms.append(room)
    return found


def _make_room(size: int) -> tuple[Any, Any, Any]:
    space = ffi.new("uint8_t[]", size)
    return space, ffi.buffer(space), ffi.new("struct fcgi_body *")


class BulkConnection(Connection):
    """A ``Connection`` with the same results, for which C reads long bodies."""

    __slots__ = ()

    def _continue(self, data: bytes, events: list[Event]) -> int:
        """Go on with a record, and with those of the same body behind it."""
        request = self._stream
        if request is None or request.state != State.STDIN or len(data) < _LEAST:
            return super()._continue(data, events)
        content, position, self._left, self._skip = gather_body(
            data, request.request_id, self._left, self._skip
        )
        if content:
            events.append(StdinReceived(request, content))
        if not self._left:
            self._stream = None
        return position
