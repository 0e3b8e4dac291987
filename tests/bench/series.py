"""Samples of programs in interleaved rounds, and the tables and claims they make."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from statistics import median
from typing import NamedTuple, TypeAlias

from .cache import Cache, NoPeer
from .figures import Claim, Spread, ratios, table
from .load import LoadError
from .programs import OURS, Program

__all__ = ["CPU", "P99", "RATE", "Limit", "Measurement", "Quantity", "Sample"]
__all__ += ["Series", "conclude", "take_turns"]


class Sample(NamedTuple):
    """One program under one load for one round."""

    cpu_us: float
    """CPU time of the server for a request, in microseconds: of the best slice."""
    rate: float
    """Requests per second."""
    p50_us: float
    p99_us: float
    resident_mib: float


Measurement: TypeAlias = Generator[None, None, Sample]
"""A program under load, step by step: it gives way to the others at each ``yield``."""


class Quantity(NamedTuple):
    """A figure of a ``Sample`` that programs are compared by."""

    field: str
    name: str
    at_least: bool = False
    """More is better."""


CPU = Quantity("cpu_us", "CPU")
RATE = Quantity("rate", "requests/s", at_least=True)
P99 = Quantity("p99_us", "p99")


class Limit(NamedTuple):
    """What a program must be, beside a peer in the same round."""

    peer: Program
    must: float
    aim: float | None = None
    program: Program = OURS
    quantity: Quantity = CPU


class Series:
    """The samples of one program; empty after the first that went wrong."""

    def __init__(self, program: Program, problem: str = "") -> None:
        """Start with no samples; with a ``problem`` there will be none."""
        self.program = program
        self.samples: list[Sample] = []
        self.problem = problem

    def prepare(self, cache: Cache) -> None:
        """Install or build what the program needs, unless it is out already."""
        if self.problem:
            return
        try:
            cache.prepare(self.program)
        except NoPeer as error:
            self.problem = str(error)

    def go_on(self, measurement: Measurement) -> bool:
        """Do the next step of a measurement; whether there are more.

        The sample is added at its end. None is added if anything went wrong.
        """
        try:
            next(measurement)
        except StopIteration as end:
            self.samples.append(end.value)
        except (LoadError, OSError) as error:
            said, *more = error.args if isinstance(error, LoadError) else (error,)
            self.problem = str(said)
            print(f"{self.program.name}: {said}", *more, sep="\n", file=sys.stderr)
            self.samples.clear()
        else:
            return True
        return False

    def values(self, quantity: Quantity) -> list[float]:
        """Give one figure of each round."""
        return [getattr(sample, quantity.field) for sample in self.samples]

    def beside(self, peer: Series, quantity: Quantity) -> Spread | None:
        """Give the ratio of a figure to a peer's; None if either has none."""
        if not self.samples or not peer.samples:
            return None
        return ratios(self.values(quantity), peer.values(quantity))


def take_turns(
    everyone: Sequence[Series], rounds: int, measured: Callable[[Program], Measurement]
) -> None:
    """Measure every program in each round, in every second one the last first.

    They go on step by step and side by side, so that all of them get the same of what
    a machine does for some seconds. Neighbours stay neighbours, and none is always
    the first of them.
    """
    for number in range(rounds):
        there = [series for series in everyone if not series.problem]
        with contextlib.ExitStack() as stack:
            steps = []
            for series in there[:: -1 if number % 2 else 1]:
                measurement = measured(series.program)
                stack.callback(measurement.close)
                steps.append((series, measurement))
            while steps:
                steps = [step for step in steps if step[0].go_on(step[1])]


def _row(series: Series, ours: Series, quantities: Sequence[Quantity]) -> list[str]:
    name = series.program.name
    if not series.samples:
        kind = "no figure" if series is ours else "no peer"
        versus = [f"{kind}: {series.problem}", *[""] * (len(quantities) - 1)]
        return [name, "", "", "", "", "", *versus]
    columns = [median(column) for column in zip(*series.samples, strict=True)]
    digits = (1, 0, 0, 0, 1)
    cells = [f"{x:.{n}f}" for x, n in zip(columns, digits, strict=True)]
    beside = [ours.beside(series, quantity) for quantity in quantities]
    shown = [x.text() if x and series is not ours else "" for x in beside]
    return [name, *cells, *shown]


def _claim(title: str, limit: Limit, by_program: dict[Program, Series]) -> Claim:
    program, peer = by_program[limit.program], by_program[limit.peer]
    return Claim(
        f"{title}: {limit.quantity.name} of {limit.program.name} / {limit.peer.name}",
        program.beside(peer, limit.quantity),
        limit.must,
        our_problem=program.problem,
        peer_problem=peer.problem and f"{peer.program.name}: {peer.problem}",
        aim=limit.aim,
        at_least=limit.quantity.at_least,
    )


def conclude(
    title: str, everyone: Sequence[Series], limits: Sequence[Limit]
) -> tuple[str, list[Claim]]:
    """Give the table of what was measured, and what it says about each limit.

    Args:
        title: what was measured.
        everyone: our program first.
        limits: of programs that are among them.
    """
    by_program = {series.program: series for series in everyone}
    quantities = list(dict.fromkeys(limit.quantity for limit in limits)) or [CPU]
    head = ["program", "CPU µs", "requests/s", "p50 µs", "p99 µs", "RSS MiB"]
    head += [f"our {quantity.name} / its" for quantity in quantities]
    rows = [_row(series, everyone[0], quantities) for series in everyone]
    return table(head, rows), [_claim(title, limit, by_program) for limit in limits]
