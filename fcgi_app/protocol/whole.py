"""The short way of a request in one piece, with a short body or none: nearly all."""

from __future__ import annotations

from struct import Struct

from ..codec.constants import HEADER_LEN, KEEP_CONN, VERSION_1, RecordType, Role

__all__ = ["scan_whole"]

# A begin-request record and the header of a PARAMS record.
_HEAD = Struct("!HHHBxHB5xHHHBx")
# The header of the record that ends PARAMS, and of the one behind it, of STDIN.
_ENDS = Struct("!HHIHHI")
# The header of the record that ends STDIN.
_END = Struct("!HHI")
_HEAD_LEN = _HEAD.size
_ENDS_LEN = _ENDS.size
_BEGIN = VERSION_1 << 8 | RecordType.BEGIN_REQUEST
_PARAMS = VERSION_1 << 8 | RecordType.PARAMS
_STDIN = VERSION_1 << 8 | RecordType.STDIN
_RESPONDER = int(Role.RESPONDER)
_KEEP = int(KEEP_CONN)
_unpack_head = _HEAD.unpack_from
_unpack_ends = _ENDS.unpack_from
_unpack_end = _END.unpack_from


def scan_whole(
    data: bytes, start: int = 0
) -> tuple[int, int, bytes, bytes, int] | None:
    """Find a responder's request, with one record of body or none, at ``start``.

    The form that nginx, Apache and lighttpd send: begin-request, one PARAMS record and
    its end, one STDIN record or none, and its end. Whatever is not exactly that, right
    or wrong, is left to the state machine.

    Returns:
        Request id, FCGI_KEEP_CONN or 0, the content of PARAMS, that of STDIN, and where
        the request ends; None otherwise.
    """
    if len(data) - start < _HEAD_LEN + _ENDS_LEN:
        return None
    begin, request_id, size, pad, role, flags, then, same, length, padding = (
        _unpack_head(data, start)
    )
    first = start + _HEAD_LEN
    stop = first + length
    ends = stop + padding
    if (
        begin != _BEGIN
        or then != _PARAMS
        or size != 8
        or pad
        or role != _RESPONDER
        or same != request_id
        or not request_id
        or not length
        or ends + _ENDS_LEN > len(data)
    ):
        return None
    behind = ends + _ENDS_LEN
    last = _unpack_ends(data, ends)
    if last == (_PARAMS, request_id, 0, _STDIN, request_id, 0):
        return request_id, flags & _KEEP, data[first:stop], b"", behind
    if last[:-1] != (_PARAMS, request_id, 0, _STDIN, request_id):
        return None
    size = last[-1] >> 16
    end = behind + size + (last[-1] >> 8 & 0xFF)
    if (
        not size  # so it is no end, for its padding, or the reserved byte
        or end + HEADER_LEN > len(data)
        or _unpack_end(data, end) != (_STDIN, request_id, 0)
    ):
        return None
    body = data[behind : behind + size]
    return request_id, flags & _KEEP, data[first:stop], body, end + HEADER_LEN
