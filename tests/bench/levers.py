"""Levers: what each way to save time is worth by itself, in this process.

A figure is the best of many short series of runs, and holds the call of a Python function,
some 0.04 µs. Shares differ less from machine to machine than times. What a lever is worth
within a request only the other scenarios tell: here caches are warm, and nothing comes
between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from timeit import Timer
from typing import NamedTuple

from . import byteways, ways
from .figures import Claim, table
from .processes import SERVER_CPU, pinned
from .ways import Way
from .wire import MANY_PARAMS, NGINX_PARAMS

__all__ = ["LEVERS", "Lever", "levers", "measure"]

Row = tuple[str, str, str, str]
STEPS = (1 << 20) // byteways.STEP
"""What is measured in steps is told for a mebibyte."""


class Lever(NamedTuple):
    """What can be done in several ways."""

    name: str
    setting: Callable[[], AbstractContextManager[list[Way]]]
    """Makes what is needed, and gives the ways, the plain one first."""
    most: int
    """Greatest number of runs in a row: what is prepared for them has to fit somewhere."""
    runs: int = 1
    """How many of them make the figure that is told."""


LEVERS = (
    Lever("30 params to a dict", partial(ways.params, NGINX_PARAMS), 500),
    Lever("120 params to a dict", partial(ways.params, MANY_PARAMS), 100),
    Lever("accept a connection and close it", byteways.descriptors, 100),
    Lever("print a line, flush", ways.text, 500),
    Lever("C's environ to 30 params and back", ways.c_environ, 500),
    Lever("os.environ to 30 params and back", ways.os_environ, 20),
    Lever("read from a kept connection", byteways.reading, 50),
    Lever("write a response", byteways.writing, 40),
    Lever("1 MiB as records, in pieces of 128 KiB", byteways.records, 1, STEPS),
    Lever("receive a request of 1.2 KB", byteways.receiving_request, 50),
    Lever("receive 1 MiB that is there, by 128 KiB", byteways.receiving_body, 1, STEPS),
    Lever("1 MiB from STDIN records of 8 KiB", partial(byteways.body, 8192), 5),
    Lever("1 MiB from STDIN records of 32 KiB", partial(byteways.body, 32768), 5),
)


def measure(
    found: Sequence[Way], runs: int, rounds: int, seconds: float
) -> list[float]:
    """Give the best time of each way, in seconds; NaN for one that cannot be had.

    The ways take turns, in one order and then in the other.

    Args:
        found: the ways.
        runs: how many in a row are timed, as one.
        rounds: least number of turns.
        seconds: go on for so long.
    """
    timers = [
        (index, Timer(way.run, partial(way.prepare, runs)))
        for index, way in enumerate(found)
        if way.run is not None
    ]
    best = [math.nan] * len(found)
    until = perf_counter() + seconds
    turn = 0
    while turn < rounds or perf_counter() < until:
        for index, timer in timers[:: 1 if turn % 2 else -1]:
            taken = timer.timeit(runs) / runs
            # "not": nothing is less than NaN
            if not best[index] <= taken:
                best[index] = taken
        turn += 1
    return best


def _rows(lever: Lever, found: Sequence[Way], best: Sequence[float]) -> Iterator[Row]:
    for way, value in zip(found, best, strict=True):
        if way.run is None:
            yield lever.name, way.name, "", way.problem
            continue
        share = value / best[0]
        digits = 2 if share >= 0.1 else 3
        told = "" if way is found[0] else f"{share:.{digits}f}"
        yield lever.name, way.name, f"{value * lever.runs * 1e6:.2f}", told


def levers(rounds: int, seconds: float) -> tuple[str, list[Claim]]:
    """Measure all of them; there are no limits."""
    rows: list[Row] = []
    with pinned(SERVER_CPU):
        for lever in LEVERS:
            with lever.setting() as found:
                best = measure(found, lever.most, rounds, seconds)
            rows += _rows(lever, found, best)
    return table(("lever", "way", "µs", "of the first"), rows), []
