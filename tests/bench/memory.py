"""Memory: beside a bare interpreter, for idle connections, and over many requests."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from .cache import Cache
from .comparisons import HELLO, measure_slices
from .figures import Claim, spread, table
from .load import Load, checked
from .processes import BareInterpreter, Server, resident_kib
from .programs import BARE, OURS
from .wire import build_request, fetch

__all__ = ["cookies", "footprint", "idle"]

IDLE = 5000
COOKIES = 200_000
SETTLE = 2000
"""Requests before the first look at the memory."""
NOISE = 0.05
"""Least share by which CPU figures of equal rounds differ."""


@contextmanager
def _hello(
    cache: Cache, load: Path, marked: bool = False
) -> Iterator[tuple[int, Load]]:
    """Give the process id of our server, after some requests, and a load for it."""
    environment = cache.process_environment(OURS)
    request = build_request(keep=True, marked=marked)
    with (
        Server(cache.command(OURS, "hello"), environment) as server,
        Load(load, server.path, request=request, body=HELLO) as client,
    ):
        checked(client.run(20, SETTLE))
        yield server.pid, client


def _standard_modules(cache: Cache) -> list[str]:
    """Name the standard modules that our loop has imported, in their order."""
    environment = cache.process_environment(OURS)
    with Server(cache.command(OURS, "modules"), environment) as server:
        fetch(server.path)
        names = fetch(server.path).decode().split()
    return [
        name
        for name in names
        if name.partition(".")[0] in sys.stdlib_module_names and name != "__main__"
    ]


def footprint(cache: Cache, load: Path, rounds: int) -> tuple[str, list[Claim]]:
    """Compare our resident memory with that of a bare interpreter."""
    modules = _standard_modules(cache)
    command = cache.command(BARE, *modules)
    ours, bare = [], []
    for _ in range(rounds):
        with _hello(cache, load) as (pid, _client):
            ours.append(resident_kib(pid) / 1024)
        with BareInterpreter(command, cache.process_environment(BARE)) as yardstick:
            bare.append(resident_kib(yardstick.pid) / 1024)
    above = spread([mine - its for mine, its in zip(ours, bare, strict=True)])
    rows = [
        (f"fcgi_app after {SETTLE} requests", f"{median(ours):.2f}"),
        (f"bare interpreter, {len(modules)} modules", f"{median(bare):.2f}"),
    ]
    claim = Claim("RSS above a bare interpreter with the same modules", above, 6, "MiB")
    return table(("process", "RSS MiB"), rows), [claim]


def _cpu_us(pid: int, client: Load, seconds: float) -> float:
    return min(part.cpu_us for part in measure_slices(pid, client, seconds))


def _allow_descriptors(count: int) -> None:
    """Raise the limit of open files for the processes started from now on.

    Raises:
        OSError: the hard limit is below ``count``.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < count:
        raise OSError(f"the hard limit of open files is {hard}, {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def idle(
    cache: Cache, load: Path, rounds: int, seconds: float
) -> tuple[str, list[Claim]]:
    """Measure what idle kept connections cost: memory, and others' CPU time.

    Each round measures the CPU time twice without and twice with idle connections;
    what equal measurements differ by is the noise.
    """
    _allow_descriptors(IDLE + 200)
    alone, beside, cost, noise = [], [], [], [NOISE]
    for _ in range(rounds):
        with _hello(cache, load) as (pid, client):
            first, second = (_cpu_us(pid, client, seconds) for _ in range(2))
            before = resident_kib(pid)
            checked(client.open_idle(IDLE))
            cost.append((resident_kib(pid) - before) / IDLE)
            third, fourth = (_cpu_us(pid, client, seconds) for _ in range(2))
            if checked(client.again()).opened:
                raise OSError(f"the server closed some of {IDLE} idle connections")
        alone.append((first + second) / 2)
        beside.append((third + fourth) / 2)
        noise += [abs(first / second - 1), abs(third / fourth - 1)]
    rows = [
        ("without", f"{median(alone):.1f}"),
        (f"with {IDLE}", f"{median(beside):.1f}"),
    ]
    slower = spread([more / less for more, less in zip(beside, alone, strict=True)])
    return table(("idle kept connections", "hello, CPU µs"), rows), [
        Claim(f"memory of each of {IDLE} idle connections", spread(cost), 4, "KiB"),
        Claim(
            f"hello beside {IDLE} idle connections: CPU, as a share of without",
            slower,
            round(1 + max(noise), 2),
        ),
    ]


def cookies(cache: Cache, load: Path) -> tuple[str, list[Claim]]:
    """Measure how memory grows over many requests that differ in a cookie."""
    looks = []
    with _hello(cache, load, marked=True) as (pid, client):
        for _ in range(5):
            looks.append(resident_kib(pid))
            if len(looks) < 5:
                checked(client.run(120, COOKIES // 4))
    rows = [
        (str(SETTLE + index * COOKIES // 4), f"{kib / 1024:.2f}")
        for index, kib in enumerate(looks)
    ]
    growth = spread([(looks[-1] - looks[0]) / 1024])
    claim = Claim(
        f"RSS growth in {COOKIES} requests, each its cookie", growth, 1, "MiB"
    )
    return table(("requests", "RSS MiB"), rows), [claim]
