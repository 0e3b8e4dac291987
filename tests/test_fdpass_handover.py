"""What a receiver does with a client: write, end, give away."""

from __future__ import annotations

import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.fdpass import Handover, Peer

from .handovers import TLS_ALERT, read_all, reset, tcp_connection

PEER = Peer(os.getpid(), os.geteuid(), os.getegid())


@contextmanager
def handed_over(**times: float) -> Iterator[tuple[socket.socket, Handover]]:
    """A client, and the handover of its connection; both are closed at the end."""
    with tcp_connection() as (client, server):
        server.setblocking(True)
        own = socket.socket(fileno=server.detach())
        handover = Handover(own, b"\0", PEER, client.getsockname())
        for name, seconds in times.items():
            setattr(handover, name, seconds)
        try:
            yield client, handover
        finally:
            client.close()
            handover.close()


class Reader(threading.Thread):
    """Reads a client to its end in another thread, then closes it."""

    def __init__(self, client: socket.socket) -> None:
        super().__init__()
        self.client = client
        self.body = b""
        self.start()

    def run(self) -> None:
        self.body = read_all(self.client)
        self.client.close()


@given(st.lists(st.binary(max_size=300)))
def test_body_is_what_was_written(parts: list[bytes]) -> None:
    """The client reads every byte, in order, and a clean end."""
    with handed_over() as (client, handover):
        reader = Reader(client)
        for part in parts:
            handover.write(part)
        handover.close()
        reader.join()
    assert reader.body == b"".join(parts)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_write_sends_all_of_much(kind: type) -> None:
    """8 MiB go out in one call though no socket buffer holds so much."""
    body = os.urandom(1 << 20) * 8
    with handed_over() as (client, handover):
        reader = Reader(client)
        handover.write(kind(body))
        handover.close()
        reader.join()
    assert reader.body == body


def test_write_gives_up_a_client_that_takes_nothing() -> None:
    """TimeoutError after write_timeout, with the client's address."""
    with (
        handed_over(write_timeout=0.05) as (_, handover),
        pytest.raises(
            TimeoutError, match=r"client 127\.0\.0\.1 took no byte for 0\.05"
        ),
    ):
        handover.write(bytes(1 << 25))


def test_write_without_a_limit_waits() -> None:
    """write_timeout=0 waits for a client that starts to read later."""
    with handed_over(write_timeout=0) as (client, handover):
        timer = threading.Timer(0.1, lambda: Reader(client).join())
        timer.start()
        handover.write(bytes(1 << 23))
        handover.close()
        timer.join()


def test_write_tells_of_a_client_that_has_gone() -> None:
    """A reset connection is a ConnectionError, and close is silent about it."""
    with handed_over() as (client, handover):
        handover.write(b"once")
        reset(client)
        with pytest.raises(ConnectionError):
            handover.write(bytes(1 << 26))
        handover.close()
        assert handover.closed


def test_write_recognises_tls(caplog: pytest.LogCaptureFixture) -> None:
    """TLS that came after the handover ends the first write, and is logged."""
    with handed_over() as (client, handover):
        client.sendall(TLS_ALERT)
        wait_for_input(handover)
        with pytest.raises(ConnectionAbortedError, match="the client speaks TLS"):
            handover.write(b"plain text")
        client.close()
    assert "client 127.0.0.1: the client speaks TLS" in caplog.text


def test_write_looks_for_tls_only_at_first() -> None:
    """What the client sends in a conversation may look like anything."""
    with handed_over() as (client, handover):
        handover.write(b"hello")
        client.sendall(TLS_ALERT)
        wait_for_input(handover)
        handover.write(b", client")
        assert client.recv(13, socket.MSG_WAITALL) == b"hello, client"
        assert handover.socket.recv(100) == TLS_ALERT


def wait_for_input(handover: Handover) -> None:
    assert handover.socket.recv(1, socket.MSG_PEEK)


# ---- the end ------------------------------------------------------------------


def test_close_keeps_the_body_though_input_is_unread() -> None:
    """The rest of an upload is discarded: no reset destroys the answer."""
    with handed_over() as (client, handover):
        client.sendall(bytes(100_000))
        uploader = threading.Thread(target=client.sendall, args=(bytes(4 << 20),))
        uploader.start()
        handover.write(b"answer " * 1000)
        closer = threading.Thread(target=handover.close)
        closer.start()
        uploader.join()
        assert read_all(client) == b"answer " * 1000
        client.close()
        closer.join()
        assert handover.closed


def test_close_waits_for_an_idle_client_only_so_long() -> None:
    """A client that does not close holds us for linger_idle."""
    with handed_over(linger_idle=0.1) as (client, handover):
        start = time.monotonic()
        handover.close()
        assert 0.09 < time.monotonic() - start < 5
        assert client.recv(1) == b""


def test_close_waits_for_a_busy_client_only_so_long() -> None:
    """A client that goes on sending holds us for linger_timeout."""
    stop = threading.Event()

    def trickle() -> None:
        try:
            while not stop.wait(0.01):
                client.send(b"x")
        except OSError:  # reset: we closed
            return

    with handed_over(linger_idle=5, linger_timeout=0.2) as (client, handover):
        trickler = threading.Thread(target=trickle)
        trickler.start()
        start = time.monotonic()
        handover.close()
        assert 0.19 < time.monotonic() - start < 4
        stop.set()
        trickler.join()


def test_close_without_lingering() -> None:
    """linger_timeout=0 waits for nobody."""
    with handed_over(linger_idle=30, linger_timeout=0) as (client, handover):
        start = time.monotonic()
        handover.close()
        assert time.monotonic() - start < 5
        assert client.recv(1) == b""


def test_close_of_a_reset_connection() -> None:
    """A client that has gone is no error at the end; closing twice neither."""
    with handed_over() as (client, handover):
        reset(client)
        handover.close()
        handover.close()
        assert handover.closed
        assert handover.fileno() == -1


def test_close_ends_a_connection_that_a_child_holds() -> None:
    """The body ends at close even where a forked child has a copy of the socket."""
    with handed_over(linger_idle=0) as (client, handover), handover.socket.dup():
        handover.write(b"body")
        handover.close()
        assert read_all(client) == b"body"


def test_with_closes_after_an_error() -> None:
    """An exception leaves the block with the client's connection ended."""
    with handed_over(linger_idle=0) as (client, handover):
        handover.write(b"half")
        with pytest.raises(ZeroDivisionError), handover:
            raise ZeroDivisionError
        assert read_all(client) == b"half"


def test_write_after_close_is_an_error() -> None:
    """A closed handover has no client any more."""
    with handed_over(linger_idle=0) as (_, handover):
        handover.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            handover.write(b"x")


def test_detach_gives_the_socket_away() -> None:
    """It stays connected and blocking; the handover is closed for good."""
    with handed_over() as (client, handover):
        number = handover.fileno()
        with handover.detach() as own:
            assert own.fileno() == number
            assert own.getblocking()
            assert own.getpeername() == handover.address
            assert handover.closed
            handover.close()
            own.sendall(b"mine now")
            assert client.recv(100) == b"mine now"
            with pytest.raises(OSError, match="the handover is detached"):
                handover.write(b"not mine")
        with pytest.raises(OSError, match="closed or detached already"):
            handover.detach()


def test_repr_names_the_client() -> None:
    """The text names client, sender and state."""
    with handed_over(linger_idle=0) as (client, handover):
        address = client.getsockname()
        number = handover.fileno()
        assert repr(handover) == (
            f"<Handover of {address} by pid {os.getpid()}: descriptor {number}>"
        )
        handover.close()
        assert repr(handover).endswith(": closed>")


def test_thousands_of_clients_take_little_memory() -> None:
    """An idle handover costs less than 400 bytes beside its socket object."""
    sockets = [socket.socket() for _ in range(200)]
    tracemalloc.start()
    try:
        kept = [
            Handover(s, b"\0", Peer(1, 2, 3), ("127.0.0.1", 10_000 + n))
            for n, s in enumerate(sockets)
        ]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(kept) < 400
    for sock in sockets:
        sock.close()
