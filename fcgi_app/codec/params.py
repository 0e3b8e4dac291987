"""Name-value pairs (§3.4): the content of PARAMS, GET_VALUES and its result."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from struct import Struct
from struct import error as _struct_error

from ..errors import LimitError, RemoteProtocolError

__all__ = [
    "LONG",
    "MAX_LENGTH",
    "build_params",
    "check_params",
    "parse_param_map",
    "parse_params",
    "parse_spans",
]

LONG = Struct("!I")
"""The four bytes of a length beyond 127; the first bit says that there are four."""
_LONG_BIT = 0x80000000
MAX_LENGTH = 0x7FFFFFFF
"""Greatest length of a name or a value that §3.4 can express, in bytes."""


def _build_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    if length > MAX_LENGTH:
        raise ValueError(f"a name or value of {length} bytes does not fit §3.4")
    return LONG.pack(length | _LONG_BIT)


def build_params(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Build a name-value list (§3.4) in the order given; names may repeat."""
    parts: list[bytes] = []
    for name, value in pairs:
        parts += (_build_length(len(name)), _build_length(len(value)), name, value)
    return b"".join(parts)


def parse_params(content: bytes) -> list[tuple[bytes, bytes]]:
    """Parse a complete name-value list (spec §3.4).

    Args:
        content: every byte of the stream, records joined, padding removed.

    Returns:
        ``(name, value)`` pairs in wire order; repeated names are kept.

    Raises:
        RemoteProtocolError: a length or a string runs past the end.
    """
    return [
        (content[start:middle], content[middle:end])
        for _, start, middle, end in parse_spans(content)
    ]


def parse_spans(content: bytes) -> list[tuple[int, int, int, int]]:
    """Find the pairs of a complete name-value list.

    Returns:
        For each: where it, its name and its value begin, and where it ends.

    Raises:
        RemoteProtocolError: a length or a string runs past the end.
    """
    spans: list[tuple[int, int, int, int]] = []
    begin = 0
    while begin < len(content):
        start, middle, end = _bounds(content, begin)
        spans.append((begin, start, middle, end))
        begin = end
    return spans


def parse_param_map(content: bytes) -> dict[bytes, bytes]:
    """Parse a complete name-value list into a mapping; of a repeated name, the last.

    The same as ``dict(parse_params(content))`` in two thirds of the time: every
    request pays for it.

    Raises:
        RemoteProtocolError: a length or a string runs past the end.
    """
    # A stream reads faster than slices are computed (by a sixth to a quarter).
    read = BytesIO(content).read
    params: dict[bytes, bytes] = {}
    name = value = b""
    name_length = value_length = 0
    try:
        while lengths := read(2):
            name_length, value_length = lengths
            if name_length > 127:
                return dict(parse_params(content))
            if value_length > 127:  # a cookie, an accept header: usual enough
                value_length = LONG.unpack(lengths[1:] + read(3))[0] & MAX_LENGTH
            name = read(name_length)
            params[name] = value = read(value_length)
    except (ValueError, _struct_error):  # the lengths themselves are cut short
        name_length = -1
    if len(name) != name_length or len(value) != value_length:
        parse_params(content)  # it runs past the end: this says where
    return params


def _bounds(content: bytes, position: int) -> tuple[int, int, int]:
    """Where the name of the pair at ``position``, its value, and the next pair begin.

    Raises:
        RemoteProtocolError: the pair runs past the end.
    """
    end = len(content)
    at = position
    try:
        name_length = content[at]
        at += 1
        if name_length > 127:
            name_length = LONG.unpack_from(content, at - 1)[0] & MAX_LENGTH
            at += 3
        value_length = content[at]
        at += 1
        if value_length > 127:
            value_length = LONG.unpack_from(content, at - 1)[0] & MAX_LENGTH
            at += 3
    except (IndexError, _struct_error):
        raise RemoteProtocolError(
            f"a name-value length runs past the end at byte {at} of {end}",
            section="3.4",
        ) from None
    middle = at + name_length
    after = middle + value_length
    if after > end:
        raise _runs_past(after, end)
    return at, middle, after


def _runs_past(position: int, end: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"a name-value pair runs to byte {position}, the stream ends at {end}",
        section="3.4",
    )


def check_params(content: bytes, position: int, limit: int) -> int:
    """Look through the pairs of an unfinished list for a length beyond ``limit``.

    Args:
        content: the bytes of the stream that have come.
        position: where a pair begins, as the last call returned it; 0 at first.
        limit: greatest length of the whole list, in bytes.

    Returns:
        Where the first pair that is not wholly there begins.

    Raises:
        LimitError: that pair could only end beyond ``limit``.
    """
    end = len(content)
    while position < end:
        lengths = []
        at = position
        for _ in ("name", "value"):
            if at >= end:
                break
            length = content[at]
            at += 1
            if length > 127:
                if at + 3 > end:
                    break
                length = LONG.unpack_from(content, at - 1)[0] & MAX_LENGTH
                at += 3
            lengths.append(length)
        after = at + sum(lengths)
        if lengths and after > limit:
            raise LimitError(
                f"a name or value of {max(lengths)} bytes announced at byte {position}"
                f" of PARAMS, the limit is {limit}",
                section="3.4",
            )
        if len(lengths) < 2 or after > end:
            break
        position = after
    return position
