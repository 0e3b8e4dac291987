"""Speed: our program and the peers under the same load, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .cache import Cache
from .figures import Claim
from .load import Load, checked
from .processes import Server, cpu_seconds, resident_kib
from .programs import (
    FLIPFLOP,
    FLUP,
    LIBFCGI,
    LIBFCGI_16,
    OURS,
    POOL,
    PROGRAMS,
    PURE,
    Program,
)
from .series import Limit, Measurement, Sample, Series, conclude, take_turns
from .wire import MANY_PARAMS, NGINX_PARAMS, build_request

__all__ = ["COMPARISONS", "HELLO", "WARM_UP", "Comparison", "compare"]
__all__ += ["measure_slices"]

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
    """A load, and what we must be under it beside some of the peers."""

    name: str
    title: str
    limits: tuple[Limit, ...]
    handler: str = "hello"
    keep: bool = True
    connections: int = 1
    pairs: Sequence[tuple[str, str]] = NGINX_PARAMS
    body: bytes = b""
    answer: bytes = HELLO
    total: int = len(HELLO)

    def why_not(self, program: Program) -> str:
        """Say why ``program`` cannot serve it; empty if it can."""
        return program.why_not(keep=self.keep, connections=self.connections)


PURE_BESIDE_FLUP = Limit(FLUP, 0.5, program=PURE)
PURE_BESIDE_BOTH = (PURE_BESIDE_FLUP, Limit(FLIPFLOP, 0.5, program=PURE))
COMPARISONS = (
    Comparison(
        "hello-kept",
        "hello, 1 kept connection",
        (
            Limit(LIBFCGI, 1.4, 1.0),
            Limit(FLIPFLOP, 0.2, 0.12),
            Limit(FLIPFLOP, 0.5, 0.35, program=PURE),
            PURE_BESIDE_FLUP,
        ),
    ),
    Comparison(
        "hello-new",
        "hello, a new connection each",
        (Limit(LIBFCGI, 1.2, 0.9), Limit(FLIPFLOP, 0.2, 0.12), *PURE_BESIDE_BOTH),
        keep=False,
    ),
    Comparison(
        "hello-kept-4", "hello, 4 kept connections", PURE_BESIDE_BOTH, connections=4
    ),
    Comparison(
        "hello-kept-16",
        "hello, 16 kept connections",
        (Limit(LIBFCGI_16, 0.9, 0.6), Limit(OURS, 1.1, program=POOL)),
        connections=16,
    ),
    Comparison(
        "hello-new-16",
        "hello, a new connection each, 16 at a time",
        (Limit(LIBFCGI, 1.0, 0.75), *PURE_BESIDE_BOTH),
        keep=False,
        connections=16,
    ),
    Comparison(
        "params-new-16",
        "120 params of 30 KB, a new connection each, 16 at a time",
        (Limit(LIBFCGI, 1.1, 0.8),),
        keep=False,
        connections=16,
        pairs=MANY_PARAMS,
    ),
    Comparison(
        "echo",
        "echo of 1 MiB, kept connection",
        (Limit(LIBFCGI, 0.8, 0.55), PURE_BESIDE_FLUP),
        handler="echo",
        body=BODY,
        answer=BODY,
        total=len(BODY),
    ),
    Comparison(
        "download",
        "download of 64 MiB in writes of 64 KiB, kept connection",
        (Limit(LIBFCGI, 0.6, 0.4), PURE_BESIDE_FLUP),
        handler="download",
        answer=BLOCK,
        total=64 << 20,
    ),
)


def measure(
    cache: Cache, load: Path, case: Comparison, seconds: float, program: Program
) -> Measurement:
    """Start ``program``, load it for ``seconds``, stop it; the others' turn at times.

    Raises:
        LoadError: not every answer was right.
    """
    # Each differs: to remember the last request is no way to be fast.
    request = build_request(
        keep=case.keep, body=case.body, marked=not case.body, pairs=case.pairs
    )
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
        slices = []
        for _ in range(SLICES):
            yield
            slices.append(_measure_slice(server.pid, client, seconds / SLICES))
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
    return [_measure_slice(pid, client, seconds / SLICES) for _ in range(SLICES)]


def _measure_slice(pid: int, client: Load, seconds: float) -> Slice:
    before = cpu_seconds(pid)
    figures = checked(client.run(seconds))
    used = cpu_seconds(pid) - before
    return Slice(
        used * 1e6 / figures.requests,
        figures.requests / figures.seconds,
        figures.p50_us,
        figures.p99_us,
    )


def compare(
    cache: Cache, load: Path, case: Comparison, rounds: int, seconds: float
) -> tuple[str, list[Claim]]:
    """Measure a comparison; give its table and what it says about each limit."""
    everyone = [Series(program, case.why_not(program)) for program in PROGRAMS]
    for series in everyone:
        series.prepare(cache)
    take_turns(everyone, rounds, partial(measure, cache, load, case, seconds))
    return conclude(case.title, everyone, case.limits)
