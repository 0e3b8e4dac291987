"""Name-value lists (§3.4), decoded with the help of C."""

from __future__ import annotations

from ._backend import ffi, lib
from .codec.params import parse_param_map

__all__ = ["parse_list"]

_LONGEST = 65536
"""Lists up to this length, in bytes, are decoded in C's share."""
_room = ffi.new("uint8_t[]", _LONGEST)
_text = ffi.buffer(_room)
_join = lib.fcgi_join_params


def parse_list(content: bytes) -> dict[bytes, bytes]:
    """Parse a complete list, as ``parse_param_map`` does.

    Raises:
        RemoteProtocolError: a length or a string runs past the end.
    """
    size = _join(content, len(content), _room, _LONGEST)
    if size < 0:
        return parse_param_map(content)  # long, with a NUL, or malformed
    parts = _text[:size].split(b"\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))
