"""Everything at once, for a while: each answer is right, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import pytest

from fcgi_app import Request
from fcgi_app.codec.constants import RecordType

from .threads import HEAD, Served, eventually, param, serve
from .webserver import (
    Wire,
    abort_request,
    begin_request,
    collect,
    params,
    stdin,
    whole_request,
)

CONNECTIONS = 64
REQUESTS = int(os.environ.get("STRESS_REQUESTS", "40"))
"""Of each connection; 2,000 take some minutes."""

pytestmark = pytest.mark.slow


def handler(request: Request) -> None:
    """Answer with the checksum of the body and so many bytes as are asked for."""
    body = request.stdin.read()
    request.stdout.write(HEAD + b"%d " % crc32(body))
    size = int(param(request, "SIZE"))
    if param(request, "LOOK"):
        request.on_abort(lambda: None)
        request.wait_aborted(0.001)
    for start in range(0, size, 10_000):
        request.stdout.write(
            param(request, "MARK").encode() * min(10_000, size - start)
        )


class Client:
    """One connection after the other, with requests by the dice of ``seed``."""

    def __init__(self, served: Served, seed: int) -> None:
        self.served = served
        self.dice = random.Random(seed)
        self.wire: Wire | None = None

    def run(self) -> int:
        """Ask for all; returns how many answers were checked."""
        done = 0
        while done < REQUESTS:
            wire = self.wire = self.wire or self.served.connect()
            way = self.dice.random()
            if way < 0.05:
                self.leave(wire)
                continue
            done += self.abort(wire) if way < 0.15 else self.ask(wire)
        if self.wire is not None:
            self.wire.close()
        return done

    def pairs(self, size: int) -> list[tuple[bytes, bytes]]:
        look = [(b"LOOK", b"1")] if self.dice.random() < 0.1 else []
        return [(b"SIZE", b"%d" % size), (b"MARK", b"m"), *look]

    def size(self) -> int:
        return int(10 ** self.dice.uniform(0, 5.3))

    def ask(self, wire: Wire) -> int:
        """Up to four ids at the same time, each with a body and a size of its own."""
        count = self.dice.randint(1, 4)
        keep = self.dice.random() < 0.8 or count > 1
        asked = {n: (bytes(self.size()), self.size()) for n in range(1, count + 1)}
        sender = threading.Thread(target=self.send, args=(wire, asked, keep))
        sender.start()
        records = wire.records(count)
        sender.join()
        for n, (body, size) in asked.items():
            answer = collect(records, n)
            start = b"%d " % crc32(body)
            assert answer.body == start + b"m" * size
            assert answer[1:] == (b"", 0, 0)
        if not keep:
            wire.close()
            self.wire = None
        return count

    def send(self, wire: Wire, asked: dict[int, tuple[bytes, int]], keep: bool) -> None:
        for n, (body, size) in asked.items():
            wire.send(whole_request(n, self.pairs(size), body, keep=keep))

    def abort(self, wire: Wire) -> int:
        """A request that is given up half-way; the connection goes on."""
        wire.send(begin_request(9, keep=True), params(9, self.pairs(100)))
        wire.send(stdin(9, bytes(self.size()), end=False), abort_request(9))
        assert wire.records()[-1].type == RecordType.END_REQUEST
        return 1

    def leave(self, wire: Wire) -> None:
        """Close in the middle of a request."""
        whole = whole_request(1, self.pairs(self.size()), bytes(1000))
        wire.send(whole[: self.dice.randint(1, len(whole))])
        wire.close()
        self.wire = None


def test_everything_at_once(tmp_path: Path) -> None:
    """64 connections with bodies, sizes, ids, aborts and ends of all kinds."""
    requests: weakref.WeakSet[Request] = weakref.WeakSet()

    def counted(request: Request) -> None:
        requests.add(request)
        handler(request)

    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    with serve(tmp_path, counted, threads=16) as served:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            clients = [Client(served, seed) for seed in range(CONNECTIONS)]
            done = list(pool.map(Client.run, clients))
        assert min(done) >= REQUESTS
        acceptor = served.server._acceptor
        eventually(lambda: not acceptor._connections, "all connections end")
        assert not acceptor._ready
        assert not acceptor._watches
        gc.collect()
        eventually(lambda: not requests, "all requests go")
    assert len(os.listdir("/proc/self/fd")) == descriptors
