"""Threads: what many connections cost, and many ids on one connection."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from fcgi_app.codec.constants import HEADER_LEN, RecordType

from .cache import Cache
from .comparisons import HELLO, WARM_UP, measure_slices
from .figures import Claim, ratios, table
from .load import Load, LoadError, checked
from .processes import LOAD_CPU, SERVER_CPU, Server, cpu_seconds
from .programs import Program
from .wire import build_request

__all__ = ["crowd", "multiplexed"]

PROGRAM = Program("fcgi_app, threads", "side_by_side.py")
THREADS = "16"
FEW, MANY = 16, 1000
LEAST_SHARE = 0.8
"""Of the throughput with few connections, what is left with many."""
IDS = 64


def crowd(
    cache: Cache, load: Path, rounds: int, seconds: float
) -> tuple[str, list[Claim]]:
    """Measure 16 threads with few and with many kept connections, by turns.

    Raises:
        LoadError: an answer was wrong, or a connection had none.
    """
    rates: dict[int, list[float]] = {FEW: [], MANY: []}
    cpu: dict[int, list[float]] = {FEW: [], MANY: []}
    latest: dict[int, list[float]] = {FEW: [], MANY: []}
    for number in range(rounds):
        for count in (FEW, MANY)[:: 1 if number % 2 else -1]:
            command = cache.command(PROGRAM, THREADS)
            with (
                Server(command, cache.process_environment(PROGRAM)) as server,
                Load(
                    load,
                    server.path,
                    request=build_request(keep=True, marked=True),
                    body=HELLO,
                    connections=count,
                ) as client,
            ):
                checked(client.run(max(WARM_UP, 1.0)))
                slices = measure_slices(server.pid, client, max(seconds, 4.0))
            rates[count].append(median(part.rate for part in slices))
            cpu[count].append(min(part.cpu_us for part in slices))
            latest[count].append(median(part.p99_us for part in slices))
    rows = [
        (
            str(count),
            f"{median(cpu[count]):.1f}",
            f"{median(rates[count]):.0f}",
            f"{median(latest[count]):.0f}",
        )
        for count in rates
    ]
    claim = Claim(
        f"requests/s with {FEW} connections, as a multiple of those with {MANY}",
        ratios(rates[FEW], rates[MANY]),
        1 / LEAST_SHARE,
    )
    head = ("kept connections", "CPU µs", "requests/s", "p99 µs")
    return table(head, rows), [claim]


def multiplexed(cache: Cache, rounds: int, seconds: float) -> tuple[str, list[Claim]]:
    """Measure 64 requests at a time: on one connection, and on as many.

    Raises:
        LoadError: an answer was wrong.
    """
    cpu: dict[int, list[float]] = {1: [], IDS: []}
    rates: dict[int, list[float]] = {1: [], IDS: []}
    before = os.sched_getaffinity(0)
    if LOAD_CPU != SERVER_CPU:
        os.sched_setaffinity(0, {LOAD_CPU})
    try:
        for number in range(rounds):
            for count in (1, IDS)[:: 1 if number % 2 else -1]:
                used, rate = _measure(cache, count, seconds)
                cpu[count].append(used)
                rates[count].append(rate)
    finally:
        os.sched_setaffinity(0, before)
    rows = [
        (str(count), f"{median(cpu[count]):.1f}", f"{median(rates[count]):.0f}")
        for count in cpu
    ]
    claim = Claim(
        f"CPU of {IDS} ids on one connection, as a share of {IDS} connections'",
        ratios(cpu[1], cpu[IDS]),
        1.0,
    )
    return table(("connections", "CPU µs", "requests/s"), rows), [claim]


def _measure(cache: Cache, count: int, seconds: float) -> tuple[float, float]:
    """Give CPU time for a request, in µs, and requests per second."""
    each = IDS // count
    whole = b"".join(_with_id(n) for n in range(1, each + 1))
    command = cache.command(PROGRAM, THREADS)
    environment = cache.process_environment(PROGRAM)
    with Server(command, environment) as server, ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(20)
            sock.connect(server.path)
            sockets.append(sock)
        _rounds(sockets, whole, each, WARM_UP)
        best, done, started = float("inf"), 0, time.monotonic()
        for _ in range(4):
            before = cpu_seconds(server.pid)
            answered = _rounds(sockets, whole, each, seconds / 4)
            best = min(best, (cpu_seconds(server.pid) - before) * 1e6 / answered)
            done += answered
        return best, done / (time.monotonic() - started)


def _with_id(request_id: int) -> bytes:
    """One request with another id in each of its records."""
    request = bytearray(build_request(keep=True))
    at = 0
    while at < len(request):
        request[at + 2 : at + 4] = request_id.to_bytes(2, "big")
        size = int.from_bytes(request[at + 4 : at + 6], "big")
        at += HEADER_LEN + size + request[at + 6]
    return bytes(request)


def _rounds(
    sockets: list[socket.socket], whole: bytes, each: int, seconds: float
) -> int:
    """Send ``each`` requests on every socket, wait for the answers, and again."""
    until = time.monotonic() + seconds
    answered = 0
    while time.monotonic() < until:
        for sock in sockets:
            sock.sendall(whole)
        for sock in sockets:
            _take(sock, each)
        answered += each * len(sockets)
    return answered


def _take(sock: socket.socket, count: int) -> None:
    """Take ``count`` answers, each to be the line that is expected."""
    received = b""
    while received.count(HELLO) < count or _ends(received) < count:
        data = sock.recv(1 << 18)
        if not data:
            raise LoadError("the server closed the connection")
        received += data
    if received.count(HELLO) != count:
        raise LoadError("the answers are not as expected")


def _ends(received: bytes) -> int:
    """Count the end-request records."""
    found = at = 0
    while len(received) - at >= HEADER_LEN:
        found += received[at + 1] == RecordType.END_REQUEST
        size = int.from_bytes(received[at + 4 : at + 6], "big")
        at += HEADER_LEN + size + received[at + 6]
    return found if at == len(received) else 0
