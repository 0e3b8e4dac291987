"""A socket's way out: what waits there stays what it was when it was sent."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from fcgi_app.codec.records import Buffer
from fcgi_app.outlet import Outlet, is_fixed

Pair = tuple[Outlet, socket.socket]
BIG = 1 << 22
"""More than a socket's buffer takes."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A way out, and the other end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Outlet(ours), theirs


def drain(outlet: Outlet, peer: socket.socket, size: int) -> bytes:
    """Everything that is sent and waits: ``size`` bytes."""
    received = bytearray()
    while len(received) < size:
        outlet.push()
        received += peer.recv(1 << 20)
    return bytes(received)


@pytest.mark.parametrize(
    ("buffer", "fixed"),
    [
        (b"x", True),
        (memoryview(b"xyz")[1:2], True),
        (bytearray(b"x"), False),
        (memoryview(bytearray(b"xyz"))[1:2].toreadonly(), False),
    ],
)
def test_is_fixed(buffer: Buffer, fixed: bool) -> None:
    """Only bytes never change; a view that is read-only may look at anything."""
    assert is_fixed(buffer) is fixed


def test_interrupted_wait(pair: Pair) -> None:
    """What a signal handler's exception left in the queue is not the caller's."""
    outlet, peer = pair
    content = bytearray(b"a" * BIG)

    def wait() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outlet.send([content], wait)
    content[:] = b"b" * 10
    assert drain(outlet, peer, BIG) == b"a" * BIG


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_send_within_a_send(pair: Pair, kind: Callable[[bytes], Buffer]) -> None:
    """What a signal handler sends comes behind, as it was when it was sent."""
    outlet, peer = pair
    received = bytearray()
    sent = 0

    def wait() -> None:
        nonlocal sent
        if not sent:
            content = bytearray(b"handler")
            outlet.send([content if kind is bytearray else kind(bytes(content))], wait)
            content[:] = b"changed, and of another size"
            sent += 1
        received.extend(peer.recv(1 << 20))

    outlet.send([b"a" * BIG], wait)
    received += drain(outlet, peer, BIG + 7 - len(received))
    assert received == b"a" * BIG + b"handler"
