"""What an operation on a pool costs those whom it serves: they should not notice."""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fcgi_app.launcher.outside import waits_for_clients

from ..pools import Pool
from ..servers import ask, wait_until
from ..webserver import Wire, whole_request
from .crowd import Crowd, connect_to, crowd
from .figures import Claim, spread

__all__ = ["OPERATIONS", "WORKERS", "Found", "Operation", "Row", "operate", "read"]
__all__ += ["wait_for_hang"]

WORKERS = 4
MAX_REQUESTS = 100
PULSE = 0.05
"""Seconds of load between two kills."""
SEED = 5


class Row(NamedTuple):
    """What came of the requests of one client during one kind of operation."""

    what: str
    client: str
    answered: int
    failed: int
    repeated: int
    problem: str


class Found(NamedTuple):
    """What a scenario has found."""

    rows: list[Row]
    claims: list[Claim]


class Operation(NamedTuple):
    """A kind of operation.

    Attributes:
        what: for the table.
        times: how many of them.
        run: does so many, under the load of the crowd.
        options: of the pool.
        foreign: the workers are libfcgi's, in C.
    """

    what: str
    times: int
    run: Callable[[Crowd, int], None]
    options: tuple[str, ...] = ()
    foreign: bool = False


def operate(operation: Operation, program: Path, foreign: Path, share: float) -> Found:
    """Do the operations, or a share of them, and count what the clients got.

    Args:
        operation: what to do.
        program: the load generator.
        foreign: the worker on libfcgi.
        share: from 0 to 1.

    Raises:
        AssertionError: the pool did not do what it was told, or did not end well.
        LoadError: the load generator gave up.
    """
    count = max(3, round(operation.times * share))
    options = ("--workers", str(WORKERS), *operation.options)
    worker = foreign if operation.foreign else None
    with crowd(program, *options, foreign=worker) as loaded:
        operation.run(loaded, count)
        loaded.pulse(0.2)
        loaded.check_served()
        what = operation.what.format(count)
        rows = [Row(what, name, *tally) for name, tally in loaded.tallies.items()]
        claim = Claim(f"failed requests: {what}", spread([loaded.failed]), 0, digits=0)
        return Found(rows, [claim])


def _tell(number: int, said: str, loaded: Crowd, count: int) -> None:
    """Send a signal so many times, each time waiting for the words in the log."""
    with loaded.steady():
        for done in range(1, count + 1):
            loaded.pool.send(number)
            loaded.pool.wait_for_log(said, times=done)
            loaded.wait_for_answers()


def _resize(loaded: Crowd, count: int) -> None:
    """One worker fewer, one more."""
    with loaded.steady():
        for _ in range(count):
            for number, size in (
                (signal.SIGTTOU, WORKERS - 1),
                (signal.SIGTTIN, WORKERS),
            ):
                loaded.pool.send(number)
                loaded.pool.wait_for_workers(size)


def _breathe(least: int, loaded: Crowd, count: int) -> None:
    """Let the pool grow under load, and shrink again when the load has gone."""
    for _ in range(count):
        loaded.pulse(4 * PULSE)
        loaded.pool.wait_for_workers(least)


def _kill_idle(loaded: Crowd, count: int) -> None:
    """Kill a worker while no request is under way, and ask again at once.

    Only a pause makes sure that nobody is served: from outside, a worker that has just
    accepted a connection looks like one that waits.
    """
    choose = random.Random(SEED)
    for _ in range(count):
        loaded.pulse(PULSE)
        kill(choose.choice(_wait_for_ready(loaded.pool)))
        loaded.pulse(PULSE)


def _wait_for_ready(pool: Pool) -> list[int]:
    """Wait until all workers wait for clients; a younger one may not be killed.

    To be killed while it starts is a failed start, after which the supervisor pauses.
    """
    wait_until(
        lambda: (
            sum(waits_for_clients(pid) is True for pid in pool.workers()) == WORKERS
        ),
        f"{WORKERS} workers that wait for clients",
        seconds=20,
    )
    return sorted(pool.workers())


def _recycle(loaded: Crowd, count: int) -> None:
    """Wait until so many workers have been started because of --max-requests."""
    with loaded.steady():
        wait_until(
            lambda: loaded.pool.log().count(" started\n") >= WORKERS + count,
            f"{count} successors",
            seconds=300,
        )


def _kill_busy(loaded: Crowd, count: int) -> None:
    """Kill workers in the middle of a request: who asked, and nobody else, gets an end.

    In turn a client of the pool itself, and one of nginx.
    """
    with loaded.steady():
        for number in range(count):
            held = loaded.pool.folder / f"held-{number}"
            fate = _ask_for_hang(loaded, held, over_nginx=bool(number % 2))
            kill(wait_for_hang(held))
            fate()
            loaded.pool.wait_for_workers(WORKERS)


def _ask_for_hang(loaded: Crowd, held: Path, *, over_nginx: bool) -> Callable[[], None]:
    """Send a request that never ends; return what checks that it has failed."""
    query = f"sleep:{held}"
    if over_nginx:
        threads = ThreadPoolExecutor(1)
        asked = threads.submit(ask, loaded.port, f"/unix?{query}")

        def is_told() -> None:
            with threads:
                status = asked.result(20).status
            assert status == 502, f"status {status} after the worker was killed"

        return is_told
    wire = Wire(connect_to(loaded.pool.path))
    wire.send(whole_request(pairs=[(b"QUERY_STRING", query.encode())]))

    def is_cut() -> None:
        with wire:
            assert wire.record() is None, "an answer of a worker that was killed"

    return is_cut


def wait_for_hang(held: Path) -> int:
    """Wait until a worker hangs in the request that creates this file; its pid."""
    wait_until(lambda: read(held).endswith("\n"), "a worker that hangs", seconds=20)
    return int(read(held))


def read(path: Path) -> str:
    """Return the text of a file; empty if there is none."""
    return path.read_text() if path.exists() else ""


def kill(pid: int) -> None:
    """Kill a process, and wait for its end."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], 20)[0], f"{pid} cannot be killed"
    finally:
        os.close(descriptor)


OPERATIONS = {
    "reloads": Operation(
        "{} reloads (HUP)", 50, partial(_tell, signal.SIGHUP, "reloaded")
    ),
    "kills": Operation("{} SIGKILLs of idle workers", 200, _kill_idle),
    "recycling": Operation(
        f"{{}} workers replaced (--max-requests {MAX_REQUESTS})",
        50,
        _recycle,
        ("--max-requests", str(MAX_REQUESTS)),
    ),
    "execs": Operation(
        "{} supervisor re-execs (USR2)",
        20,
        partial(_tell, signal.SIGUSR2, "executed again"),
    ),
    "sizes": Operation("{} times one worker fewer and one more", 20, _resize),
    "dynamic": Operation(
        "{} times growing and shrinking (dynamic)",
        10,
        partial(_breathe, 1),
        ("--manager", "dynamic", "--idle-timeout", "0.1"),
    ),
    "ondemand": Operation(
        "{} times growing and shrinking (ondemand)",
        10,
        partial(_breathe, 0),
        ("--manager", "ondemand", "--idle-timeout", "0.1"),
    ),
    "busy": Operation(
        "{} SIGKILLs of busy workers, the others' requests", 20, _kill_busy
    ),
    "foreign": Operation(
        "{} reloads of libfcgi's workers",
        50,
        partial(_tell, signal.SIGHUP, "reloaded"),
        foreign=True,
    ),
    "foreign-kills": Operation(
        "{} SIGKILLs of idle workers of libfcgi", 50, _kill_idle, foreign=True
    ),
}
