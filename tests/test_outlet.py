"""A socket's way out: what waits there stays what it was when it was sent."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.mark.parametrize(("count", "size"), [(9000, 1), (9000, 300), (200, 65536)])
def test_many_buffers(pair: Pair, count: int, size: int) -> None:
    """However many there are, all go out, in order; only short ones are copied."""
    outlet, peer = pair
    buffers: list[Buffer] = [bytes([n % 251]) * size for n in range(count)]
    own = {id(buffer) for buffer in buffers}
    received = bytearray()

    def wait() -> None:
        for entry in outlet.queue:
            owner: Any = entry.obj if type(entry) is memoryview else entry
            assert id(owner) in own or len(owner) <= 16384
        received.extend(peer.recv(1 << 20))

    outlet.send(buffers, wait)
    received += drain(outlet, peer, count * size - len(received))
    assert received == b"".join(buffers)
    assert not outlet.queue


def test_short_buffers_go_together() -> None:
    """Thousands of them take few system calls."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours, theirs:
        Outlet(ours).push_all([b"nine byte"] * 7000)
        packets: list[int] = []
        while sum(packets) < 63_000:
            packets.append(len(theirs.recv(65536)))
    assert len(packets) <= 4


class Quick:
    """Records that send themselves, as far as is wanted."""

    def __init__(
        self,
        content: bytes,
        most: int,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Let ``most`` bytes be sent; ``then`` comes before the outlet knows."""
        self.content = content
        self.most = most
        self.then = then
        self.asked = 0

    def send_to(self, sock: socket.SocketType) -> int:
        """Send and count."""
        self.asked += 1
        sent = sock.send(self.content[: self.most]) if self.most else 0
        self.then()
        return len(self.content) - sent

    def buffers(self) -> list[Buffer]:
        """In pieces of three bytes."""
        return [self.content[at : at + 3] for at in range(0, len(self.content), 3)]


def never() -> None:
    raise AssertionError("nothing is to wait for")


@pytest.mark.parametrize("most", range(11))
def test_output_that_sends_itself(pair: Pair, most: int) -> None:
    """What it did not send follows, wherever it was cut."""
    outlet, peer = pair
    outlet.send_output(Quick(b"0123456789", most), never)
    outlet.send([b"next"], never)
    assert peer.recv(100) == b"0123456789next"
    assert not outlet.queue


class Late(Outlet):
    """A way out where a signal handler comes as late as it can before sending."""

    __slots__ = ("then",)

    def __init__(
        self, sock: socket.SocketType, then: Callable[[Outlet], object]
    ) -> None:
        """Let the handler do ``then``."""
        super().__init__(sock)
        self.then = then

    def _send_all(self, *arguments: Any) -> None:
        self.then(self)
        super()._send_all(*arguments)


def test_output_with_a_handler_before_it(pair: Pair) -> None:
    """What a signal handler left in the queue goes first, and may be part of a record."""
    outlet, peer = pair
    late = Late(outlet._sock, lambda late: late.queue.append(b"rest of a record"))
    quick = Quick(b"0123456789", 10)
    late.send_output(quick, never)
    assert peer.recv(100) == b"rest of a record0123456789"
    assert not quick.asked


def test_output_behind_what_is_lost(pair: Pair) -> None:
    """Nothing follows a record that a signal handler has left cut off."""
    outlet, peer = pair
    late = Late(outlet._sock, Outlet._lose)
    with pytest.raises(BrokenPipeError):
        late.send_output(Quick(b"0123456789", 10), never)
    with pytest.raises(BlockingIOError):
        peer.recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("most", [0, 4, 10])
def test_output_with_a_handler_behind_it(pair: Pair, most: int) -> None:
    """What a signal handler prints before it is known how much went comes behind."""
    outlet, peer = pair
    quick = Quick(b"0123456789", most, lambda: outlet.send([b"handler"], never))
    outlet.send_output(quick, never)
    assert peer.recv(100) == b"0123456789handler"


def test_output_behind_others(pair: Pair) -> None:
    """Where something waits already it waits as well, and is sent as buffers."""
    outlet, peer = pair
    outlet.push_all([b"a" * BIG])
    assert outlet.queue
    quick = Quick(b"0123456789", 10)
    received = bytearray()
    outlet.send_output(quick, lambda: received.extend(peer.recv(1 << 20)))
    received += drain(outlet, peer, BIG + 10 - len(received))
    assert received == b"a" * BIG + quick.content
    assert not quick.asked


def test_output_that_fails(pair: Pair) -> None:
    """An error, or an exception of a handler, leaves nothing that could be cut off."""
    outlet, peer = pair

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outlet.send_output(Quick(b"0123456789", 4, interrupt), never)
    assert outlet.lost
    with pytest.raises(BrokenPipeError):
        outlet.send_output(Quick(b"0123456789", 10), never)
    assert peer.recv(100) == b"0123"
