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
from .figures import Claim, differences, spread, table
from .load import Load, checked
from .processes import BareInterpreter, Server, resident_kib
from .programs import BARE, OURS, PURE, Program
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
    cache: Cache, load: Path, marked: bool = False, program: Program = OURS
) -> Iterator[tuple[int, Load]]:
    """Give the process id of our server, after some requests, and a load for it."""
    environment = cache.process_environment(program)
    request = build_request(keep=True, marked=marked)
    with (
        Server(cache.command(program, "hello"), environment) as server,
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


NOTHING = "print(flush=True); open(0).read()"
"""A program that imports nothing and waits."""


def footprint(cache: Cache, load: Path, rounds: int) -> tuple[str, list[Claim]]:
    """Compare our resident memory with that of two bare interpreters.

    One has imported nothing but what every interpreter does at its start, the other
    the same modules of the standard library as we.
    """
    modules = _standard_modules(cache)
    environment = cache.process_environment(BARE)
    commands = ([sys.executable, "-c", NOTHING], cache.command(BARE, *modules))
    ours: list[float] = []
    pure: list[float] = []
    bare: list[float] = []
    same: list[float] = []
    for _ in range(rounds):
        for program, figures in ((OURS, ours), (PURE, pure)):
            with _hello(cache, load, program=program) as (pid, _client):
                figures.append(resident_kib(pid) / 1024)
        for command, figures in zip(commands, (bare, same), strict=True):
            with BareInterpreter(command, environment) as yardstick:
                figures.append(resident_kib(yardstick.pid) / 1024)
    rows = [
        (f"{OURS.name} after {SETTLE} requests", ours),
        (f"{PURE.name}, the same", pure),
        (BARE.name, bare),
        (f"{BARE.name}, {len(modules)} modules", same),
    ]
    text = table(("process", "RSS MiB"), [(x, f"{median(y):.2f}") for x, y in rows])
    return text, [
        Claim(
            "RSS of one worker above a bare interpreter",
            differences(ours, bare),
            4,
            "MiB",
            aim=2,
        ),
        Claim(
            "RSS above a bare interpreter with the same modules",
            differences(ours, same),
            6,
            "MiB",
        ),
    ]


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
