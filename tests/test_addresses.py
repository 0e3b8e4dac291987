"""The text forms of an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.addresses import Address, AddressKind, parse_address
from fcgi_app.errors import ConfigError

LONGEST = "x" * 107


@pytest.mark.parametrize(
    ("text", "kind", "name", "number"),
    [
        ("unix:/run/app.sock", AddressKind.UNIX, "/run/app.sock", 0),
        ("/run/app.sock", AddressKind.UNIX, "/run/app.sock", 0),
        ("/run/a:9", AddressKind.UNIX, "/run/a:9", 0),
        ("unix:app.sock", AddressKind.UNIX, "app.sock", 0),
        ("unix:./a b", AddressKind.UNIX, "./a b", 0),
        ("unix:host:9", AddressKind.UNIX, "host:9", 0),
        ("unix:/caf\udce9", AddressKind.UNIX, "/caf\udce9", 0),
        (f"unix:{LONGEST}", AddressKind.UNIX, LONGEST, 0),
        ("@app", AddressKind.ABSTRACT, "app", 0),
        ("unix:@app", AddressKind.ABSTRACT, "app", 0),
        ("@a:9", AddressKind.ABSTRACT, "a:9", 0),
        ("@@", AddressKind.ABSTRACT, "@", 0),
        (f"@{LONGEST}", AddressKind.ABSTRACT, LONGEST, 0),
        ("127.0.0.1:9000", AddressKind.TCP, "127.0.0.1", 9000),
        ("localhost:0", AddressKind.TCP, "localhost", 0),
        ("host:65535", AddressKind.TCP, "host", 65535),
        ("host:0080", AddressKind.TCP, "host", 80),
        (":9000", AddressKind.TCP, "", 9000),
        ("*:9000", AddressKind.TCP, "", 9000),
        ("[::1]:9000", AddressKind.TCP, "::1", 9000),
        ("[::]:0", AddressKind.TCP, "::", 0),
        ("[fe80::1%eth0]:9000", AddressKind.TCP, "fe80::1%eth0", 9000),
        ("unix.example.org:1", AddressKind.TCP, "unix.example.org", 1),
        ("fd:0", AddressKind.DESCRIPTOR, "", 0),
        ("fd:17", AddressKind.DESCRIPTOR, "", 17),
        ("systemd", AddressKind.SYSTEMD, "", 0),
        ("systemd:web", AddressKind.SYSTEMD, "web", 0),
    ],
)
def test_parse_address(text: str, kind: AddressKind, name: str, number: int) -> None:
    """Each form gives its kind and parts, and str() gives the text back."""
    address = parse_address(text)
    assert address == Address("", kind, name, number)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("a\0b:1", "contains a NUL character"),
        ("unix:/a\0b", "contains a NUL character"),
        ("unix:", "has no socket path"),
        ("@", "has no socket name"),
        ("unix:@", "has no socket name"),
        (f"unix:{LONGEST}x", "has a path of 108 bytes, 107 can be"),
        ("/" + "é" * 54, "has a path of 109 bytes, 107 can be"),
        (f"@{LONGEST}x", "has a name of 108 bytes, 107 can be"),
        ("unix:\ud800", "is no file system path"),
        ("app.sock", "has no port: write host:port, :port, unix:path or /path"),
        ("9000", "has no port"),
        (" ", "has no port"),
        (":", "has '' for a port, not a number"),
        ("host:", "has '' for a port, not a number"),
        ("host:http", "has 'http' for a port, not a number"),
        ("host:-1", "has '-1' for a port, not a number"),
        ("host:+80", "has '+80' for a port, not a number"),
        ("host: 80", "has ' 80' for a port, not a number"),
        ("host:8_0", "has '8_0' for a port, not a number"),
        ("host:٨٠", "has '٨٠' for a port, not a number"),
        ("host:65536", "has port 65536, out of range 0 to 65535"),
        ("host:70000000", "out of range"),
        ("host:" + "9" * 5000, "has port 99999999999999999999, out of range"),
        ("run/app.sock:1", "has a malformed host name 'run/app.sock'"),
        ("tcp://host:1", "has a malformed host name 'tcp://host'"),
        ("my host:1", "has a malformed host name 'my host'"),
        ("host]:1", "has a malformed host name 'host]'"),
        ("::1", "has an IPv6 address without brackets: write [address]:port"),
        ("::1:9000", "has an IPv6 address without brackets"),
        ("[::1", "has a '[' without its ']'"),
        ("[::1:9000", "has a '[' without its ']'"),
        ("[]:9000", "has no IPv6 address between its brackets"),
        ("[127.0.0.1]:9000", "has no IPv6 address between its brackets"),
        ("[host]:9000", "has no IPv6 address between its brackets"),
        ("[::1]", "has no ':port' after ']'"),
        ("[::1]9000", "has no ':port' after ']'"),
        ("[::1]:", "has '' for a port, not a number"),
        ("[::1]:70000", "has port 70000, out of range"),
        ("fd:", "has '' for a descriptor, not a number"),
        ("fd:-1", "has '-1' for a descriptor, not a number"),
        ("fd:x", "has 'x' for a descriptor, not a number"),
        ("fd:4294967296", "has descriptor 4294967296, out of range"),
        ("fd", "has no port"),
        ("unix", "has no port"),
        ("systemd:", "has no socket name after 'systemd:'"),
    ],
)
def test_parse_address_malformed(text: str, reason: str) -> None:
    """A malformed address is an error that names the text and says why."""
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert caught.value.value == text
    assert reason in caught.value.reason


def test_address_equality() -> None:
    """Two spellings of an address are equal and hash alike."""
    assert parse_address("/run/s") == parse_address("unix:/run/s")
    assert len({parse_address(":9"), parse_address("*:9")}) == 1
    assert parse_address("unix:s") != parse_address("@s")


def test_address_is_frozen() -> None:
    """A parsed address cannot be changed."""
    with pytest.raises(AttributeError):
        parse_address(":9").number = 10  # type: ignore[misc]


@given(
    st.text(max_size=20)
    | st.text(alphabet=st.sampled_from("unixfdsystem:[]@/*%.0123456789 \0é"))
)
def test_parse_address_any_text(text: str) -> None:
    """Whatever the text, it is an address that gives it back, or a ConfigError."""
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert str(address) == text
    assert address == parse_address(text)
