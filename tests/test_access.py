"""FCGI_WEB_SERVER_ADDRS: what is parsed, who is let in, over real sockets too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.access import WebServerAddrs
from fcgi_app.errors import ConfigError
from fcgi_app.sockets import bound_address, connect, open_socket

from .loopback import needs_ipv6

LOOPBACK_INDEX = socket.if_nametoindex("lo")


def allowed(text: str, family: int, *peer: object) -> bool:
    """Whether the list ``text`` lets ``peer`` in."""
    addrs = WebServerAddrs.parse(text)
    assert addrs is not None
    return addrs.allows(family, peer)


def allowed_ipv4(text: str, host: str) -> bool:
    return allowed(text, socket.AF_INET, host, 40000)


def allowed_ipv6(text: str, host: str, scope_id: int = 0) -> bool:
    return allowed(text, socket.AF_INET6, host, 40000, 0, scope_id)


@pytest.mark.parametrize("text", [None, ""], ids=["unset", "empty"])
def test_parse_nothing(text: str | None) -> None:
    """An unset and an empty variable mean that nothing is checked (§3.2)."""
    assert WebServerAddrs.parse(text) is None


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("10.0.0.1,127.0.0.1", "127.0.0.1", True),
        ("10.0.0.1,127.0.0.1", "10.0.0.1", True),
        ("10.0.0.1, 127.0.0.1", "127.0.0.1", True),
        (" 10.0.0.1 ,\t127.0.0.1\n", "127.0.0.1", True),
        ("127.0.0.1,127.0.0.1", "127.0.0.1", True),
        ("10.0.0.0/8", "10.255.255.255", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("10.1.2.3/32", "10.1.2.3", True),
        ("10.1.2.3/32", "10.1.2.4", False),
        ("0.0.0.0/0", "203.0.113.9", True),
        ("::/0", "127.0.0.1", False),
        ("::1", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::ffff:7f00:1", "127.0.0.1", True),
        ("::ffff:10.0.0.0/104", "10.9.9.9", True),
        ("::ffff:10.0.0.0/104", "11.9.9.9", False),
        ("::ffff:0:0/96", "203.0.113.9", True),
    ],
)
def test_allows_ipv4(text: str, host: str, expected: bool) -> None:
    """An IPv4 peer is matched by IPv4 addresses, networks, and mapped ones."""
    assert allowed_ipv4(text, host) is expected


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        ("::1", "::1", True),
        ("0:0:0:0:0:0:0:1", "::1", True),
        ("::1", "::2", False),
        ("2001:DB8::1", "2001:db8::1", True),
        ("127.0.0.1, ::1", "::1", True),
        ("2001:db8::/32", "2001:db8:ffff::9", True),
        ("2001:db8::/32", "2001:db9::", False),
        ("::/0", "2001:db8::1", True),
        ("0.0.0.0/0", "::1", False),
    ],
)
def test_allows_ipv6(text: str, host: str, expected: bool) -> None:
    """An IPv6 peer is matched by IPv6 addresses and networks."""
    assert allowed_ipv6(text, host) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.0/8", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::1", False),
        ("::/0", False),
        ("::/64", False),
    ],
)
def test_allows_mapped_peer(text: str, expected: bool) -> None:
    """An IPv4-mapped peer is matched as IPv4, and as nothing else."""
    assert allowed_ipv6(text, "::ffff:127.0.0.1") is expected


@pytest.mark.parametrize(
    ("text", "host", "scope_id", "expected"),
    [
        ("fe80::1", "fe80::1", 7, True),
        ("fe80::/10", "fe80::1", 7, True),
        ("fe80::1%lo", "fe80::1", LOOPBACK_INDEX, True),
        ("fe80::1%lo", "fe80::1%lo", 0, True),
        (f"fe80::1%{LOOPBACK_INDEX}", "fe80::1%lo", 0, True),
        ("fe80::1%7", "fe80::1", 7, True),
        ("fe80::1%7", "fe80::1%7", 0, True),
        ("fe80::1%7", "fe80::1%007", 0, True),
        ("fe80::1%7", "fe80::1", 8, False),
        ("fe80::1%7", "fe80::1%8", 7, False),
        ("fe80::1%7", "fe80::1", 0, False),
        ("fe80::1%7", "fe80::1%no-such-interface", 7, False),
        ("fe80::1%7", "fe80::1%99999999999", 7, False),
        ("fe80::1", "fe80::1%no-such-interface", 0, True),
        ("fe80::1%7", "fe80::2", 7, False),
    ],
)
def test_allows_scope(text: str, host: str, scope_id: int, expected: bool) -> None:
    """An entry with a scope wants the peer on that interface, one without on any."""
    assert allowed_ipv6(text, host, scope_id) is expected


@pytest.mark.parametrize(
    ("family", "peer"),
    [
        pytest.param(socket.AF_UNIX, "", id="unix-unnamed"),
        pytest.param(socket.AF_UNIX, "/run/web.sock", id="unix-path"),
        pytest.param(socket.AF_UNIX, b"\0name", id="unix-abstract"),
        pytest.param(socket.AF_UNIX, ("127.0.0.1", 80), id="unix-with-inet-address"),
        pytest.param(socket.AF_UNSPEC, ("127.0.0.1", 80), id="unspecified"),
        pytest.param(socket.AF_INET, None, id="none"),
        pytest.param(socket.AF_INET, "127.0.0.1", id="not-a-tuple"),
        pytest.param(socket.AF_INET, (), id="empty-tuple"),
        pytest.param(socket.AF_INET, (127, 80), id="not-text"),
        pytest.param(socket.AF_INET, ("localhost", 80), id="host-name"),
        pytest.param(socket.AF_INET6, ("", 80, 0, 0), id="empty-host"),
        pytest.param(socket.AF_INET6, ("::zz", 80, 0, 0), id="malformed-host"),
    ],
)
def test_allows_no_other_peer(family: int, peer: object) -> None:
    """What is no TCP/IP peer is refused, even by a list of everything."""
    addrs = WebServerAddrs.parse("0.0.0.0/0, ::/0")
    assert addrs is not None
    assert addrs.allows(family, peer) is False


def test_allows_ipv6_peer_without_scope_id() -> None:
    """A peer's address of two fields is matched as one without a scope."""
    assert allowed("::1", socket.AF_INET6, "::1", 80)
    assert not allowed("::1%7", socket.AF_INET6, "::1", 80)


@pytest.mark.parametrize(
    ("text", "named", "reason"),
    [
        (" ", " ", "entry 1 is empty"),
        (",", ",", "entry 1 is empty"),
        ("127.0.0.1,", "127.0.0.1,", "entry 2 is empty"),
        ("127.0.0.1,,10.0.0.1", "127.0.0.1,,10.0.0.1", "entry 2 is empty"),
        ("127.1", "127.1", "Expected 4 octets"),
        ("0x7f.0.0.1", "0x7f.0.0.1", "Only decimal digits"),
        ("2130706433", "2130706433", "Expected 4 octets"),
        ("0177.0.0.1", "0177.0.0.1", "not an IPv4"),
        ("127.0.0.1 junk", "127.0.0.1 junk", "not an IPv4"),
        ("127.0.0.256", "127.0.0.256", "Octet 256"),
        ("127.0.0.1;10.0.0.1", "127.0.0.1;10.0.0.1", "separated by commas"),
        ("10.0.0.1, localhost", "localhost", "host names are not looked up"),
        ("web.example.org", "web.example.org", "host names are not looked up"),
        ("127.0.0.1:9000", "127.0.0.1:9000", "not an IPv4"),
        ("[::1]", "[::1]", "not an IPv4"),
        ("10.0.0.1/8", "10.0.0.1/8", "has host bits set"),
        ("10.0.0.0/33", "10.0.0.0/33", "not an IPv4"),
        ("10.0.0.0/", "10.0.0.0/", "not a prefix length"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/255.0.0.0", "not a prefix length"),
        ("10.0.0.0/0.255.255.255", "10.0.0.0/0.255.255.255", "not a prefix length"),
        ("::/129", "::/129", "not an IPv4"),
        ("::1::2", "::1::2", "not an IPv4"),
        ("127.0.0.1%lo", "127.0.0.1%lo", "not an IPv4"),
        ("fe80::1%", "fe80::1%", "no network interface ''"),
        ("fe80::1%nope0", "fe80::1%nope0", "no network interface 'nope0'"),
        ("fe80::/10%lo", "fe80::/10%lo", "a network cannot have a scope"),
        ("fe80::%lo/10", "fe80::%lo/10", "a network cannot have a scope"),
    ],
)
def test_parse_malformed(text: str, named: str, reason: str) -> None:
    """A malformed list is an error that names variable, entry and reason."""
    with pytest.raises(ConfigError) as caught:
        WebServerAddrs.parse(text)
    assert caught.value.setting == "FCGI_WEB_SERVER_ADDRS"
    assert caught.value.value == named
    assert reason in caught.value.reason


@given(st.text(alphabet=st.sampled_from("0123456789abcdef.:/%, \n\0xé"), max_size=30))
def test_parse_any_text(text: str) -> None:
    """Whatever the text, parsing ends in a list, in None, or in a ConfigError."""
    try:
        addrs = WebServerAddrs.parse(text)
    except ConfigError:
        return
    assert (addrs is None) is (text == "")


@given(st.lists(st.ip_addresses(), min_size=1, max_size=5), st.ip_addresses())
def test_allows_exactly_the_listed(
    listed: list[IPv4Address | IPv6Address], peer: IPv4Address | IPv6Address
) -> None:
    """Each address of a list is let in, mapped or not, and no other one."""
    addrs = WebServerAddrs.parse(", ".join(map(str, listed)))
    assert addrs is not None
    plain = {unmapped(address) for address in listed}
    for address in (*listed, peer):
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        expected = unmapped(address) in plain
        assert addrs.allows(family, (str(address), 80)) is expected


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address in an IPv4-mapped one, any other as it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@contextmanager
def accepted(address: str, connect_to: str = "") -> Iterator[tuple[int, object]]:
    """Family and remote address of a connection to a listener on ``address``."""
    with open_socket(address) as listener:
        listener.settimeout(10)
        target = connect_to.format(port=bound_address(listener).rpartition(":")[2])
        with connect(target or bound_address(listener), timeout=10):
            connection, peer = listener.accept()
            with connection:
                yield connection.family, peer


@pytest.mark.parametrize(
    ("address", "connect_to", "text", "expected"),
    [
        ("127.0.0.1:0", "", "127.0.0.1", True),
        ("127.0.0.1:0", "", "10.0.0.1, 127.0.0.0/8", True),
        ("127.0.0.1:0", "", "10.0.0.1", False),
        ("127.0.0.1:0", "", "::1", False),
        pytest.param("[::1]:0", "", "::1", True, marks=needs_ipv6),
        pytest.param("[::1]:0", "", "127.0.0.1", False, marks=needs_ipv6),
        pytest.param("[::]:0", "127.0.0.1:{port}", "127.0.0.1", True, marks=needs_ipv6),
        pytest.param("[::]:0", "127.0.0.1:{port}", "10.0.0.1", False, marks=needs_ipv6),
        pytest.param("[::]:0", "127.0.0.1:{port}", "::/0", False, marks=needs_ipv6),
        pytest.param("[::]:0", "[::1]:{port}", "::1", True, marks=needs_ipv6),
    ],
)
def test_allows_real_tcp_peer(
    address: str, connect_to: str, text: str, expected: bool
) -> None:
    """The addresses that accept() gives are matched, on a dual-stack listener too."""
    addrs = WebServerAddrs.parse(text)
    assert addrs is not None
    with accepted(address, connect_to) as (family, peer):
        assert addrs.allows(family, peer) is expected


def test_allows_no_real_unix_peer(tmp_path: Path) -> None:
    """A peer on a Unix socket fails the check, as FCGI_Accept(3) has it."""
    addrs = WebServerAddrs.parse("127.0.0.1, 0.0.0.0/0, ::/0")
    assert addrs is not None
    with accepted(f"unix:{tmp_path}/s") as (family, peer):
        assert addrs.allows(family, peer) is False
