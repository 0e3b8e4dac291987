"""Addresses of listening sockets as text; nothing is looked up or opened here.

=====================  ========================================================
``unix:/path``         socket file; ``/path`` is the same, ``unix:name`` is
                       relative to the current directory
``@name``              abstract Unix socket (Linux); ``unix:@name`` is the same
``host:port``          TCP on an IPv4 address or a host name
``[v6]:port``          TCP on an IPv6 address, such as ``[::1]:9000``
``:port``, ``*:port``  TCP on any address: IPv4, or IPv6 if the host has no IPv4
``fd:N``               the listening socket on descriptor N
``systemd``            the first listening socket of socket activation;
``systemd:name``       the one with that FileDescriptorName=
=====================  ========================================================

Port 0 means a free one. A host that is called ``unix``, ``fd`` or ``systemd`` needs
its domain or its address written out. See unix(7), ip(7), ipv6(7).
"""

from __future__ import annotations

import os
from enum import Enum
from typing import NoReturn

from .errors import ConfigError
from .frozen import Frozen

__all__ = ["Address", "AddressKind", "parse_address"]

MAX_UNIX_PATH_BYTES = 107
"""sun_path of unix(7) has 108 bytes, one of them the NUL at its end (or start)."""


class AddressKind(Enum):
    """The kinds of address that `parse_address` tells apart."""

    UNIX = "unix"
    ABSTRACT = "abstract"
    TCP = "tcp"
    DESCRIPTOR = "fd"
    SYSTEMD = "systemd"


class Address(Frozen):
    """A parsed address; ``str()`` gives its text back. Equal if they mean the same.

    Attributes:
        text: the address as it was written.
        kind: which of the fields below count.
        name: UNIX: path; ABSTRACT: name without its ``@``; TCP: host, ``""`` for any
            address, an IPv6 address without brackets; SYSTEMD: socket name, ``""``
            for the first.
        number: TCP: port, 0 to 65535; DESCRIPTOR: its number.
    """

    text: str
    kind: AddressKind
    name: str = ""
    number: int = 0

    def __str__(self) -> str:
        return self.text

    def _key(self) -> tuple[object, ...]:
        return self.kind, self.name, self.number


def parse_address(text: str) -> Address:
    """Parse an address (forms: see the module); nothing is looked up or opened.

    Raises:
        ConfigError: the text is malformed; names the text and says why.
    """
    if not text or "\0" in text:
        refuse_address(text, "contains a NUL character" if text else "is empty")
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and colon:
        return _parse_unix(text, rest)
    if text[0] in "/@":
        return _parse_unix(text, text)
    if scheme == "fd" and colon:
        number = _parse_number(text, "descriptor", rest, 0x7FFFFFFF)
        return Address(text, AddressKind.DESCRIPTOR, number=number)
    if scheme == "systemd":
        if colon and not rest:
            refuse_address(text, "has no socket name after 'systemd:'")
        return Address(text, AddressKind.SYSTEMD, rest)
    return _parse_tcp(text)


def _parse_unix(text: str, path: str) -> Address:
    abstract = path.startswith("@")
    name = path[1:] if abstract else path
    what = "name" if abstract else "path"
    if not name:
        refuse_address(text, f"has no socket {what}")
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        refuse_address(text, f"is no file system {what}: {error}")
    if length > MAX_UNIX_PATH_BYTES:
        refuse_address(
            text, f"has a {what} of {length} bytes, {MAX_UNIX_PATH_BYTES} can be"
        )
    return Address(text, AddressKind.ABSTRACT if abstract else AddressKind.UNIX, name)


def _parse_tcp(text: str) -> Address:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket:
            refuse_address(text, "has a '[' without its ']'")
        _check_ipv6(text, host)
        if not port.startswith(":"):
            refuse_address(text, "has no ':port' after ']'")
        port = port[1:]
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            refuse_address(
                text, "has no port: write host:port, :port, unix:path or /path"
            )
        if any(character.isspace() or character in "/[]" for character in host):
            refuse_address(text, f"has a malformed host name {host!r}")
        if ":" in host:
            refuse_address(
                text, "has an IPv6 address without brackets: write [address]:port"
            )
    number = _parse_number(text, "port", port, 65535)
    return Address(text, AddressKind.TCP, "" if host == "*" else host, number)


def _check_ipv6(text: str, host: str) -> None:
    # Few addresses are IPv6, and a supervisor would hold the module for months.
    from ipaddress import IPv6Address

    try:
        IPv6Address(host)
    except ValueError as error:
        refuse_address(text, f"has no IPv6 address between its brackets: {error}")


def _parse_number(text: str, what: str, digits: str, maximum: int) -> int:
    if not (digits.isascii() and digits.isdigit()):
        refuse_address(text, f"has {digits!r} for a {what}, not a number")
    if len(digits) > 10 or int(digits) > maximum:
        refuse_address(text, f"has {what} {digits[:20]}, out of range 0 to {maximum}")
    return int(digits)


def refuse_address(text: str, reason: str) -> NoReturn:
    """Raise the ConfigError of an address; ``reason`` goes on after its text."""
    raise ConfigError("address", text, reason)
