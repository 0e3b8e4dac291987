"""How long a program takes from its start to its first answer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from .cache import Cache
from .comparisons import HELLO
from .figures import Claim, differences, table
from .load import LoadError
from .processes import SERVER_CPU, Server, pinned, read_line
from .programs import BARE, OURS, PURE, Program
from .wire import fetch

__all__ = ["starts"]

STARTS = 20
"""Of each program, in each round."""
NOTHING = "print(flush=True)"
"""A program that imports nothing and tells that it runs."""


def _first_answer_ms(cache: Cache, program: Program) -> float:
    """Start ``program``, and ask it at once; its socket is there before it.

    Raises:
        LoadError: the answer is not as expected.
    """
    command = cache.command(program, "hello")
    environment = cache.process_environment(program)
    with Server(command, environment) as server:
        answer = fetch(server.path)
        took = time.perf_counter() - server.started
        if answer != HELLO:
            raise LoadError(f"{program.name} answers {answer[:80]!r}")
    return took * 1000


def _first_byte_ms(cache: Cache) -> float:
    """Start a bare interpreter, and wait for what it prints."""
    with pinned(SERVER_CPU):
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", NOTHING],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=cache.process_environment(BARE),
        )
    with process:
        assert process.stdout is not None
        read_line(process.stdout, 20, BARE.name)
        return (time.perf_counter() - began) * 1000


def starts(cache: Cache, rounds: int) -> tuple[str, list[Claim]]:
    """Measure starts beside those of a bare interpreter, by turns.

    Raises:
        LoadError: an answer was not as expected.
    """
    ways: dict[str, Callable[[], float]] = {
        OURS.name: partial(_first_answer_ms, cache, OURS),
        PURE.name: partial(_first_answer_ms, cache, PURE),
        BARE.name: partial(_first_byte_ms, cache),
    }
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(STARTS):
            for name, way in ways.items():
                taken[name].append(way())
        for name, times in taken.items():
            figures[name].append(median(times))
    rows = [
        (name, f"{median(times):.1f}", f"{min(times):.1f}", f"{max(times):.1f}")
        for name, times in figures.items()
    ]
    above = differences(figures[OURS.name], figures[BARE.name])
    claim = Claim(
        "start to first answer, above a bare interpreter's start",
        above,
        40,
        "ms",
        aim=20,
    )
    return table(("program", "first answer, ms", "least", "most"), rows), [claim]
