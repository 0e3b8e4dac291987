"""Where a receiver listens, as both sides take it."""

from __future__ import annotations

import os

from ..addresses import Address, AddressKind, parse_address
from ..errors import ConfigError

__all__ = ["parse_unix_address"]

_PATHS = (AddressKind.UNIX, AddressKind.ABSTRACT)


def parse_unix_address(
    path: str | os.PathLike[str], *, listening: bool = False
) -> Address:
    """Parse a path, or a form of `fcgi_app.addresses` that can be a Unix socket.

    A text without a colon that starts neither with ``/`` nor with ``@`` is a relative
    path, except ``systemd``.

    Args:
        path: what to parse.
        listening: ``fd:N`` and ``systemd`` do, too.

    Raises:
        ConfigError: it is malformed, or something else; names it.
    """
    text = os.fspath(path)
    if text and ":" not in text and text[0] not in "/@" and text != "systemd":
        text = f"unix:{text}"
    where = parse_address(text)
    if where.kind is AddressKind.TCP or not (listening or where.kind in _PATHS):
        raise ConfigError("address", text, "must be a Unix socket: unix:PATH or @name")
    return where
