"""A ``Server`` inside the test's own process, and what the tests of threads share."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcgi_app import Request, Server
from fcgi_app.codec.constants import HEADER_LEN
from fcgi_app.codec.records import parse_header

from .webserver import Answer, Pairs, Record, Wire, whole_request

HEAD = b"Content-Type: text/plain\r\n\r\n"
PATIENCE = 20.0
"""Seconds after which what does not happen counts as never."""

Handler = Callable[[Request], object]


class Served:
    """A running server and ways to ask it."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connect(self) -> Wire:
        """A new connection."""
        sock = socket.socket(self.server.socket.family)
        sock.connect(self.server.socket.getsockname())
        return Wire(sock)

    def ask(self, pairs: Pairs = (), body: bytes = b"") -> Answer:
        """One request on a connection of its own."""
        with self.connect() as wire:
            wire.send(whole_request(1, pairs, body))
            return wire.answer()


@contextmanager
def serve(
    directory: Path, handler: Handler, threads: int = 4, **settings: Any
) -> Iterator[Served]:
    """Serve ``handler`` on a Unix socket; all threads are gone afterwards."""
    before = set(threading.enumerate())
    address = f"unix:{directory}/server.sock"
    with Server(address, handler, threads=threads, **settings) as server:
        yield Served(server)
    left = set(threading.enumerate()) - before
    eventually(
        lambda: not [t for t in left if t.is_alive() and t.name != "fcgi_app log"],
        f"threads go: {left}",
    )


def records_of(wire: Wire) -> Iterator[Record]:
    """The records to come, without a second look at what has come; up to the end.

    What has not been asked for may be lost to ``wire``: use only one of both.
    """
    received = bytearray(wire.received)
    while data := wire.sock.recv(1 << 18):
        received += data
        at = 0
        while len(received) - at >= HEADER_LEN:
            header = parse_header(received, at)
            start = at + HEADER_LEN
            stop = start + header.content_length
            if len(received) < stop + header.padding_length:
                break
            at = stop + header.padding_length
            content = bytes(received[start:stop])
            yield Record(header.record_type, header.request_id, content)
        del received[:at]


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for something that gives no event."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


def plain(request: Request, text: str = "ok") -> None:
    """Answer with a short page."""
    request.stdout.write(HEAD + text.encode())


def param(request: Request, name: str) -> str:
    """A param of the request, empty where there is none."""
    return request.params.get(name, "")


def resident() -> int:
    """Bytes of this process's memory that are resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
