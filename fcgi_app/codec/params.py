"""Name-value pairs (§3.4): the content of PARAMS, GET_VALUES and its result."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as _struct_error

from ..errors import LimitError, RemoteProtocolError

__all__ = ["build_params", "check_params", "parse_params"]

_LONG = Struct("!I")
_LONG_BIT = 0x80000000
MAX_LENGTH = 0x7FFFFFFF
"""Greatest length of a name or a value that §3.4 can express, in bytes."""


def _build_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    if length > MAX_LENGTH:
        raise ValueError(f"a name or value of {length} bytes does not fit §3.4")
    return _LONG.pack(length | _LONG_BIT)


def build_params(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Build a name-value list (§3.4) in the order given; names may repeat."""
    parts: list[bytes] = []
    for name, value in pairs:
        parts += (_build_length(len(name)), _build_length(len(value)), name, value)
    return b"".join(parts)


def parse_params(content: bytes) -> list[tuple[bytes, bytes]]:
    """Parse a complete name-value list (§3.4).

    Args:
        content: every byte of the stream, records joined, padding removed.

    Returns:
        ``(name, value)`` pairs in wire order; repeated names are kept.

    Raises:
        RemoteProtocolError: a length or a string runs past the end.
    """
    pairs = []
    position = 0
    end = len(content)
    try:
        while position < end:
            name_length = content[position]
            position += 1
            if name_length > 127:
                (name_length,) = _LONG.unpack_from(content, position - 1)
                name_length &= MAX_LENGTH
                position += 3
            value_length = content[position]
            position += 1
            if value_length > 127:
                (value_length,) = _LONG.unpack_from(content, position - 1)
                value_length &= MAX_LENGTH
                position += 3
            middle = position + name_length
            position = middle + value_length
            pairs.append(
                (content[middle - name_length : middle], content[middle:position])
            )
    except (IndexError, _struct_error):
        raise RemoteProtocolError(
            f"a name-value length runs past the end at byte {position} of {end}",
            section="3.4",
        ) from None
    if position > end:
        raise RemoteProtocolError(
            f"a name-value pair runs to byte {position}, the stream ends at {end}",
            section="3.4",
        )
    return pairs


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
                length = _LONG.unpack_from(content, at - 1)[0] & MAX_LENGTH
                at += 3
            lengths.append(length)
        after = at + sum(lengths)
        if after > limit:
            raise LimitError(
                f"a name or value of {max(lengths)} bytes announced at byte {position}"
                f" of PARAMS, the limit is {limit}",
                section="3.4",
            )
        if len(lengths) < 2 or after > end:
            break
        position = after
    return position
