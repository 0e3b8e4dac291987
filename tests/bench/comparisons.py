"""Speed: our program and the peers under the same load, in interleaved rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .figures import Claim, ratios, table
from .load import Load, LoadError, checked
from .processes import Server, cpu_seconds, resident_kib
from .programs import FLIPFLOP, FLUP, OURS, Cache, Program
from .wire import build_request

__all__ = ["COMPARISONS", "HELLO", "Comparison", "compare", "measure_slices"]

HELLO = b"Hello, world\n"
BODY = bytes(range(256)) * 4096
"""1 MiB."""
BLOCK = b"x" * 65536
WARM_UP = 0.3
"""Seconds of load that are not counted."""
SLICES = 4
"""Parts of a sample. The part that used least CPU time counts: what other processes
do to the caches and the scheduler only ever adds to it."""


class Comparison(NamedTuple):
    """A load and the share of each peer's CPU time that we may use."""

    name: str
    title: str
    handler: str
    limits: dict[Program, float]
    keep: bool = True
    connections: int = 1
    body: bytes = b""
    answer: bytes = HELLO
    total: int = len(HELLO)


HALF = {FLUP: 0.5, FLIPFLOP: 0.5}
COMPARISONS = (
    Comparison("hello-kept", "hello, 1 kept connection", "hello", HALF),
    Comparison("hello-new", "hello, a new connection each", "hello", HALF, keep=False),
    Comparison(
        "hello-kept-4", "hello, 4 kept connections", "hello", HALF, connections=4
    ),
    Comparison(
        "hello-kept-16", "hello, 16 kept connections", "hello", HALF, connections=16
    ),
    Comparison(
        "hello-new-16",
        "hello, a new connection each, 16 at a time",
        "hello",
        HALF,
        keep=False,
        connections=16,
    ),
    Comparison(
        "echo",
        "echo of 1 MiB, kept connection",
        "echo",
        {FLUP: 0.5},
        body=BODY,
        answer=BODY,
        total=len(BODY),
    ),
    Comparison(
        "download",
        "download of 64 MiB in writes of 64 KiB, kept connection",
        "download",
        {FLUP: 0.5},
        answer=BLOCK,
        total=64 << 20,
    ),
)


class Sample(NamedTuple):
    """One program under one load for one round."""

    cpu_us: float
    """CPU time of the server for a request, in microseconds: of the best slice."""
    rate: float
    """Requests per second."""
    p50_us: float
    p99_us: float
    resident_mib: float


def measure(
    cache: Cache, load: Path, case: Comparison, program: Program, seconds: float
) -> Sample:
    """Start ``program``, load it for ``seconds``, stop it.

    Raises:
        LoadError: not every answer was right.
    """
    # Each differs: to remember the last request is no way to be fast.
    request = build_request(keep=case.keep, body=case.body, marked=not case.body)
    command = cache.command(program, case.handler)
    with (
        Server(command, cache.process_environment(program)) as server,
        Load(
            load,
            server.path,
            request=request,
            body=case.answer,
            total=case.total,
            connections=case.connections,
            keep=case.keep,
        ) as client,
    ):
        checked(client.run(WARM_UP))
        slices = measure_slices(server.pid, client, seconds)
        cpu, rate, p50, p99 = ([*column] for column in zip(*slices, strict=True))
        return Sample(
            min(cpu),
            median(rate),
            median(p50),
            median(p99),
            resident_kib(server.pid) / 1024,
        )


class Slice(NamedTuple):
    """The first four figures of a ``Sample``, of a part of its time."""

    cpu_us: float
    rate: float
    p50_us: float
    p99_us: float


def measure_slices(pid: int, client: Load, seconds: float) -> list[Slice]:
    """Load the server ``pid`` for ``seconds``, in ``SLICES`` parts.

    Raises:
        LoadError: not every answer was right.
    """
    slices = []
    for _ in range(SLICES):
        before = cpu_seconds(pid)
        figures = checked(client.run(seconds / SLICES))
        used = cpu_seconds(pid) - before
        slices.append(
            Slice(
                used * 1e6 / figures.requests,
                figures.requests / figures.seconds,
                figures.p50_us,
                figures.p99_us,
            )
        )
    return slices


class Series:
    """The samples of one program; empty after the first that went wrong."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.samples: list[Sample] = []
        self.problem = ""

    def add(self, measured: Callable[[], Sample]) -> None:
        """Measure once more, unless something went wrong before."""
        if self.problem:
            return
        try:
            self.samples.append(measured())
        except LoadError as error:
            self.problem = str(error.args[0])
            print(*error.args[1:], sep="\n", file=sys.stderr)
            self.samples.clear()

    @property
    def cpu_us(self) -> list[float]:
        """CPU time for a request in each round, in microseconds."""
        return [sample.cpu_us for sample in self.samples]


def _row(series: Series, ours: Series) -> tuple[str, ...]:
    name = series.program.name
    if series.problem:
        return (name, "", "", "", "", "", series.problem)
    columns = [median(column) for column in zip(*series.samples, strict=True)]
    versus = ""
    if ours.samples and series is not ours:
        versus = ratios(ours.cpu_us, series.cpu_us).text()
    cpu, rate, p50, p99, resident = columns
    return (
        name,
        f"{cpu:.1f}",
        f"{rate:.0f}",
        f"{p50:.0f}",
        f"{p99:.0f}",
        f"{resident:.1f}",
        versus,
    )


def _claim(case: Comparison, ours: Series, peer: Series, limit: float) -> Claim:
    text = f"{case.title}: CPU, as a share of {peer.program.name}'s"
    value = None
    if ours.samples and peer.samples:
        value = ratios(ours.cpu_us, peer.cpu_us)
    return Claim(
        text,
        value,
        limit,
        our_problem=ours.problem,
        peer_problem=peer.problem and f"{peer.program.name}: {peer.problem}",
    )


def compare(
    cache: Cache, load: Path, case: Comparison, rounds: int, seconds: float
) -> tuple[str, list[Claim]]:
    """Measure a comparison; give its table and what it says about each limit.

    The order of the programs turns from round to round.
    """
    everyone = [Series(program) for program in (OURS, *case.limits)]
    for series in everyone:
        cache.prepare(series.program)
    for number in range(rounds):
        turn = number % len(everyone)
        for series in everyone[turn:] + everyone[:turn]:
            series.add(partial(measure, cache, load, case, series.program, seconds))
    ours, *peers = everyone
    head = (
        "program",
        "CPU µs",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "RSS MiB",
        "our CPU / its CPU",
    )
    text = table(head, [_row(series, ours) for series in everyone])
    return text, [_claim(case, ours, p, case.limits[p.program]) for p in peers]
