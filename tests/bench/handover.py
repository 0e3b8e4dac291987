"""Handovers of mod_proxy_fdpass: our receiver beside one of 30 lines of C."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .cache import Cache
from .figures import Claim, ratios, table
from .load import LoadError, build
from .processes import LOAD_CPU, Server, cpu_seconds, resident_kib
from .programs import Program

__all__ = ["handovers"]

RECEIVER = Path(__file__).with_name("fdpass.c")
LOAD = Path(__file__).with_name("fdpass_load.c")
OURS = Program("fcgi_app.fdpass", "fdpass_receiver.py")
WARM_UP = 0.3
SLICES = 4
"""As in `comparisons`: the one that used least CPU time counts."""
MOST_TIMES = 2
"""So many times our deliveries per second the C receiver may do."""


class Sample(NamedTuple):
    """One receiver under load for one round."""

    cpu_us: float
    """CPU time of the receiver for a delivery, in microseconds: of the best slice."""
    rate: float
    """Deliveries per second."""
    resident_mib: float


def _load(program: Path, path: str, seconds: float) -> tuple[int, float]:
    """Hand over for ``seconds``; give the deliveries, and the seconds they took.

    Raises:
        LoadError: the load generator failed, as when an answer did not come.
    """
    command = [str(program), path, f"{seconds:f}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.sched_setaffinity(process.pid, {LOAD_CPU})
        try:
            said, problem = process.communicate(timeout=seconds + 30)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise LoadError("the load generator did not end") from error
    if process.returncode:
        raise LoadError(f"the load generator failed: {problem.strip()}")
    count, took = said.split()
    return int(count), float(took)


def _measure(
    command: Sequence[str], environment: Mapping[str, str], load: Path, seconds: float
) -> Sample:
    with Server(command, environment) as server:
        _load(load, server.path, WARM_UP)
        cpu, rate = [], []
        for _ in range(SLICES):
            before = cpu_seconds(server.pid)
            count, took = _load(load, server.path, seconds / SLICES)
            cpu.append((cpu_seconds(server.pid) - before) * 1e6 / count)
            rate.append(count / took)
        return Sample(min(cpu), median(rate), resident_kib(server.pid) / 1024)


def handovers(cache: Cache, rounds: int, seconds: float) -> tuple[str, list[Claim]]:
    """Measure both receivers in turn; what the client gets is one byte.

    Raises:
        LoadError: there is no C compiler, or a delivery was lost.
    """
    load = build(cache.folder, LOAD)
    environment = cache.process_environment(OURS)
    commands = {
        OURS.name: cache.command(OURS),
        "C receiver": [str(build(cache.folder, RECEIVER))],
    }
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for number in range(rounds):
        names = list(commands)
        for name in names[number % 2 :] + names[: number % 2]:
            found = _measure(commands[name], environment, load, seconds)
            samples[name].append(found)
    rows = []
    for name, taken in samples.items():
        cpu, rate, resident = (median(column) for column in zip(*taken, strict=True))
        rows.append((name, f"{cpu:.1f}", f"{rate:.0f}", f"{resident:.1f}"))
    ours, peer = samples.values()
    claim = Claim(
        "deliveries/s of the C receiver, as a multiple of ours",
        ratios([sample.rate for sample in peer], [sample.rate for sample in ours]),
        MOST_TIMES,
    )
    return table(("receiver", "CPU µs", "deliveries/s", "RSS MiB"), rows), [claim]
