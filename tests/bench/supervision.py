"""What the supervisor itself costs, and how fast it acts."""

from __future__ import annotations

import os
import select
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..pools import Pool
from ..servers import wait_until
from ..webserver import Wire, whole_request
from .crowd import connect_to, crowd, hello_pool
from .figures import Claim, ratios, spread
from .operations import WORKERS, Found, Row, read, wait_for_hang
from .wire import fetch

__all__ = ["idle", "start", "wedged"]

REQUEST_TIMEOUT = 1.0
SLACK = 1.0
"""Seconds after the request timeout at which a wedged worker has to be gone."""
WAYS_TO_HANG = ("sleep", "spin", "deaf")
HELLOS = 8
SETTLING = 2.0
"""Seconds after the last request that are not watched."""
WATCH = 10.0
"""Seconds for which an idle supervisor is watched."""
MOST_MIB = 16
MOST_WAKE_UPS = 1
"""A second."""
MOST_CPU = 0.5
"""Milliseconds a second: "no CPU", with room for the wake-ups that are allowed."""
MOST_START = 1.5
"""Times the slowest worker's own start."""


def wedged(program: Path, rounds: int) -> Found:
    """Let workers hang in every way; measure from the request to the worker's end.

    Raises:
        AssertionError: a worker hangs for ever, or the pool did not end well.
    """
    options = ("--workers", str(WORKERS), "--request-timeout", f"{REQUEST_TIMEOUT:g}")
    lives: dict[str, list[float]] = {how: [] for how in WAYS_TO_HANG}
    with crowd(program, *options) as loaded:
        with loaded.steady():
            for number in range(rounds):
                for how, seen in lives.items():
                    held = loaded.pool.folder / f"held-{how}-{number}"
                    seen.append(_life_of_wedged(loaded.pool, f"{how}:{held}", held))
                    loaded.pool.wait_for_workers(WORKERS)
        what = f"{rounds * len(lives)} wedged workers, the others' requests"
        rows = [Row(what, name, *tally) for name, tally in loaded.tallies.items()]
        claims = [
            Claim(f"failed requests: {what}", spread([loaded.failed]), 0, digits=0)
        ]
    limit = REQUEST_TIMEOUT + SLACK
    for how, seen in lives.items():
        longest = spread([max(seen)])._replace(least=min(seen))
        text = f"a worker that hangs ({how}) is gone after, the longest"
        claims.append(Claim(text, longest, limit, "s"))
    return Found(rows, claims)


def _life_of_wedged(pool: Pool, query: str, held: Path) -> float:
    """Make a worker hang; give the seconds from the request to its end."""
    with Wire(connect_to(pool.path)) as wire:
        began = time.monotonic()
        wire.send(whole_request(pairs=[(b"QUERY_STRING", query.encode())]))
        pid = wait_for_hang(held)
        descriptor = os.pidfd_open(pid)
        try:
            ended = select.select([descriptor], [], [], 20)[0]
            took = time.monotonic() - began
        finally:
            os.close(descriptor)
        assert ended, f"worker {pid} hangs for ever"
        assert wire.record() is None, "an answer of a worker that hung"
    return took


def idle() -> Found:
    """Look at the supervisor of hello workers that nobody asks.

    Raises:
        AssertionError: the pool did not start, or did not end well.
    """
    claims = []
    for manager in (("static",), ("dynamic", "--min-spare", str(HELLOS))):
        words = ("--workers", str(HELLOS), "--manager", *manager)
        with hello_pool(*words) as pool:
            pool.wait_for_workers(HELLOS)
            fetch(pool.path)
            time.sleep(SETTLING)
            pid = pool.process.pid
            wakes, cpu = _switches(pid), _cpu_seconds(pid)
            time.sleep(WATCH)
            wakes, cpu = _switches(pid) - wakes, _cpu_seconds(pid) - cpu
            resident = spread([_resident_mib(pid)])
        name = f"supervisor of {HELLOS} hello workers, {manager[0]}, idle"
        awake, used = spread([wakes / WATCH]), spread([cpu * 1000 / WATCH])
        claims += [
            Claim(f"{name}: RSS", resident, MOST_MIB, "MiB", 1),
            Claim(f"{name}: wake-ups", awake, MOST_WAKE_UPS, "/s", 1),
            Claim(f"{name}: CPU", used, MOST_CPU, "ms/s", 3),
        ]
    return Found([], claims)


def _switches(pid: int) -> int:
    """Return how often the process has gone to sleep, or was interrupted."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = [line.split() for line in status.splitlines() if "_ctxt_sw" in line]
    return sum(int(number) for _, number in lines)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of the process alone."""
    return time.clock_gettime((~pid << 3) | 2)  # see `processes.cpu_seconds`


def _resident_mib(pid: int) -> float:
    """Return the resident memory of the process alone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (resident,) = [x for x in rollup.splitlines() if x.startswith("Rss:")]
    return int(resident.split()[1]) / 1024


class Start(NamedTuple):
    """How one start went, in seconds."""

    answer: float
    """From the command to the first answer."""
    serving: float
    """From the start of the first worker to the first answer."""
    own: float
    """From the start of a worker until it waits for requests: of the slowest."""


def start(rounds: int) -> Found:
    """Measure how long the first answer takes, beside the workers' own starts.

    Raises:
        AssertionError: the pool did not start, or did not end well.
    """
    starts = [_measure_start() for _ in range(rounds)]
    answer, serving, own = (list(column) for column in zip(*starts, strict=True))
    times = f"times the slowest worker's own start ({spread(own).median * 1000:.0f} ms)"
    claims = []
    for what, taken in (("first worker", serving), ("command", answer)):
        took = f"({spread(taken).median * 1000:.0f} ms)"
        text = f"start of {HELLOS} workers: {what} to first answer {took}, {times}"
        claims.append(Claim(text, ratios(taken, own), MOST_START))
    return Found([], claims)


def _measure_start() -> Start:
    """Start a pool once."""
    with tempfile.TemporaryDirectory(prefix="fcgi_app-bench-") as folder:
        log = Path(folder, "starts")
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        words = ("--workers", str(HELLOS))
        with hello_pool(*words, ready=False, start_log=str(log)) as pool:
            _fetch_first(pool)
            answered = time.clock_gettime(time.CLOCK_BOOTTIME)
            wait_until(lambda: read(log).count("\n") == HELLOS, "all workers")
            lines = [line.split() for line in read(log).splitlines()]
            born = [float(line[1]) for line in lines]
            own = [float(line[2]) - float(line[1]) for line in lines]
            pool.wait_for_log("listening on")
        return Start(answered - began, answered - min(born), max(own))


def _fetch_first(pool: Pool) -> None:
    """Get the first answer: ask as soon as somebody listens."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            fetch(pool.path)
            return
        time.sleep(0.001)
    raise AssertionError("nobody listens")
