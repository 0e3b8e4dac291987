"""Our program and the peers behind a real nginx, which wrk asks."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

from .cache import Cache, NoPeer, find_tool
from .figures import Claim
from .front import CLIENTS, Front, ask_with_wrk
from .processes import Server, cpu_seconds, resident_kib
from .programs import LIBFCGI, LIBFCGI_16, PROGRAMS, Program
from .series import P99, RATE, Limit, Measurement, Sample, Series, conclude, take_turns

__all__ = ["BEHIND", "Behind", "compare_behind"]

WARM_UP = 1
"""wrk counts in whole seconds."""
LEAST = 2
"""Seconds: more than nginx waits for an answer, so that one which does not come is an
error, and not merely a connection less."""


class Behind(NamedTuple):
    """A way through nginx, and what we must be on it beside some of the peers."""

    name: str
    title: str
    keep: bool
    limits: tuple[Limit, ...]


BEHIND = (
    Behind(
        "nginx-kept",
        "hello behind nginx, kept upstream connections, 16 clients",
        True,
        (
            Limit(LIBFCGI_16, 0.9, 1.05, quantity=RATE),
            Limit(LIBFCGI_16, 1.5, 1.0, quantity=P99),
        ),
    ),
    Behind(
        "nginx-new",
        "hello behind nginx, a new connection each, 16 clients",
        False,
        (Limit(LIBFCGI, 0.95, 1.05, quantity=RATE),),
    ),
)


def _measure(
    cache: Cache, case: Behind, seconds: float, program: Program
) -> Measurement:
    """Start ``program`` and nginx before it, ask for ``seconds``, stop both.

    Raises:
        LoadError: not every answer was right.
    """
    command = cache.command(program, "hello")
    with (
        Server(command, cache.process_environment(program)) as server,
        Front(server.path, keep=case.keep) as front,
    ):
        ask_with_wrk(front.port, WARM_UP)
        yield
        before = cpu_seconds(server.pid)
        asked = ask_with_wrk(front.port, max(LEAST, math.ceil(seconds)))
        used = cpu_seconds(server.pid) - before
        return Sample(
            used * 1e6 / asked.requests,
            asked.requests / asked.seconds,
            asked.p50_us,
            asked.p99_us,
            resident_kib(server.pid) / 1024,
        )


def compare_behind(
    cache: Cache, case: Behind, rounds: int, seconds: float
) -> tuple[str, list[Claim]]:
    """Measure behind nginx; give the table and what it says about each limit.

    Without nginx or wrk there is nothing to compare, and each limit says so.
    """
    everyone = [
        Series(program, program.why_not(keep=case.keep, connections=CLIENTS))
        for program in PROGRAMS
    ]
    try:
        find_tool("nginx"), find_tool("wrk")
    except NoPeer as error:
        claims = conclude(case.title, everyone, case.limits)[1]
        return f"no peer: {error}", [
            claim._replace(our_problem="", peer_problem=str(error)) for claim in claims
        ]
    for series in everyone:
        series.prepare(cache)
    take_turns(everyone, rounds, partial(_measure, cache, case, seconds))
    return conclude(case.title, everyone, case.limits)
