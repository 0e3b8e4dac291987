"""Which web servers may connect: FCGI_WEB_SERVER_ADDRS (FastCGI 1.0 §3.2).

The list is checked against the peer of every connection that was accepted. An
entry is an IPv4 or IPv6 address or, as extensions of FCGI_Accept(3), a network in
CIDR notation or an IPv6 address with a scope (``fe80::1%eth0``). Host names are
never looked up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .frozen import Frozen

if TYPE_CHECKING:  # else loaded where an address is read: few programs have a list
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["WEB_SERVER_ADDRS", "WebServerAddrs", "admission"]

WEB_SERVER_ADDRS = "FCGI_WEB_SERVER_ADDRS"
"""Name of the environment variable; errors name it."""

_MAPPED_BITS = 96
"""Length of the prefix ``::ffff:0:0`` in front of an IPv4-mapped address."""


class _Entry(Frozen):
    """One entry: a network (of one address, mostly) and an interface, None for any."""

    network: IPv4Network | IPv6Network
    scope: int | None = None


class WebServerAddrs(Frozen):
    """The addresses that may connect; made by `parse`, immutable."""

    entries: tuple[_Entry, ...]

    @classmethod
    def parse(cls, text: str | None) -> WebServerAddrs | None:
        """Parse the value of FCGI_WEB_SERVER_ADDRS.

        Args:
            text: comma-separated entries, white space around each is ignored.

        Returns:
            The list, or None if ``text`` is None or empty: then nothing is to be
            checked (§3.2). White space alone is not empty but a malformed entry,
            since a list that went wrong must not open the door.

        Raises:
            ConfigError: an entry is malformed or empty; names the entry. Addresses
                are read strictly: no ``127.1``, no hexadecimal or octal numbers.
        """
        if not text:
            return None
        entries = [entry.strip() for entry in text.split(",")]
        if "" in entries:
            number = entries.index("") + 1
            raise ConfigError(WEB_SERVER_ADDRS, text, f"entry {number} is empty")
        return cls(tuple(_parse_entry(entry) for entry in entries))

    def allows(self, family: int, peer: object) -> bool:
        """Tell whether a connection from ``peer`` is to be served.

        Args:
            family: address family of the connection, such as ``socket.AF_INET``.
            peer: its remote address as ``accept()`` or ``getpeername()`` gives it.

        Returns:
            False for every family other than AF_INET and AF_INET6: FCGI_Accept(3)
            lets a connection that is not TCP/IP fail the check. An IPv4-mapped peer
            (``::ffff:127.0.0.1``, seen on a dual-stack listener) is matched as IPv4,
            and only as IPv4: ``::/0`` does not admit it.
        """
        if family not in (socket.AF_INET, socket.AF_INET6):
            return False
        if not isinstance(peer, tuple) or not peer or not isinstance(peer[0], str):
            return False
        host, _, zone = peer[0].partition("%")
        try:
            address = _parse_address(host)
        except ValueError:
            return False
        scope = _peer_scope(peer, zone)
        return any(
            address in entry.network and entry.scope in (None, scope)
            for entry in self.entries
        )


def _parse_entry(text: str) -> _Entry:
    from ipaddress import IPv6Network

    host, percent, zone = text.partition("%")
    try:
        if not percent:
            return _Entry(_parse_network(host))
        network = IPv6Network(host)  # never with a prefix length: see below
    except ValueError as error:
        raise ConfigError(
            WEB_SERVER_ADDRS,
            text,
            f"not an IPv4 or IPv6 address or a CIDR network ({error}); host names are"
            " not looked up, entries are separated by commas",
        ) from None
    if "/" in text:
        raise ConfigError(WEB_SERVER_ADDRS, text, "a network cannot have a scope")
    return _Entry(network, _parse_scope(text, zone))


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    _, slash, length = text.partition("/")
    if slash and not (length.isascii() and length.isdigit()):
        # ipaddress would take a netmask here, and a host mask as its inverse.
        raise ValueError(f"{length!r} is not a prefix length in bits")
    from ipaddress import IPv4Network, IPv6Network

    if ":" not in text:
        return IPv4Network(text)
    network = IPv6Network(text)
    mapped = network.network_address.ipv4_mapped
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def _parse_address(host: str) -> IPv4Address | IPv6Address:
    from ipaddress import IPv4Address, IPv6Address

    if ":" not in host:
        return IPv4Address(host)
    address = IPv6Address(host)
    return address.ipv4_mapped or address


def _parse_scope(text: str, zone: str) -> int:
    scope = _scope_index(zone)
    if scope is None:
        raise ConfigError(WEB_SERVER_ADDRS, text, f"no network interface {zone!r}")
    return scope


def _peer_scope(peer: tuple[object, ...], zone: str) -> int | None:
    """Return the interface index of an IPv6 peer, from ``%zone`` or ``scope_id``."""
    if zone:
        return _scope_index(zone)
    scope = peer[3] if len(peer) > 3 else None
    return scope if isinstance(scope, int) else None


def _scope_index(zone: str) -> int | None:
    """Return the index of an interface given by number or name; None: there is none."""
    if zone.isascii() and zone.isdigit():
        return int(zone) if len(zone) <= 10 else None
    try:
        return socket.if_nametoindex(zone)
    except (OSError, ValueError):
        return None


def admission(environ: Mapping[str, str]) -> Callable[[int, Any], bool] | None:
    """Return who may connect by FCGI_WEB_SERVER_ADDRS; None: everybody.

    Raises:
        ConfigError: an address of the list is malformed.
    """
    if not environ.get("FCGI_WEB_SERVER_ADDRS"):
        return None
    addresses = WebServerAddrs.parse(environ["FCGI_WEB_SERVER_ADDRS"])
    return addresses.allows if addresses is not None else None
