"""Files: what ``send_file`` saves, beside reads and writes, and writes from memory."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .cache import Cache
from .comparisons import BLOCK, WARM_UP, measure_slices
from .figures import Claim, ratios, table
from .load import Load, checked
from .processes import Server
from .programs import OURS
from .wire import build_request

__all__ = ["files"]

MIB = 64
WAYS = {
    "sendfile": "send_file",
    "reads": "reads and writes of 64 KiB",
    "download": "writes of 64 KiB from memory",
}
LIMITS = {"reads": 0.75, "download": 1.0}


def files(
    cache: Cache, load: Path, rounds: int, seconds: float
) -> tuple[str, list[Claim]]:
    """Measure a response of 64 MiB on a kept connection, made in three ways by turns.

    Raises:
        LoadError: an answer was wrong.
    """
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            cpu[way].append(_measure(cache, load, way, seconds))
    rows = [(what, f"{median(cpu[way]):.0f}") for way, what in WAYS.items()]
    claims = [
        Claim(
            f"CPU of send_file, 64 MiB, as a share of {WAYS[way]}",
            ratios(cpu["sendfile"], cpu[way]),
            limit,
        )
        for way, limit in LIMITS.items()
    ]
    return table(("how", "CPU µs per MiB"), rows), claims


def _measure(cache: Cache, load: Path, way: str, seconds: float) -> float:
    """Give the CPU time for a mebibyte, in µs."""
    with (
        Server(cache.command(OURS, way), cache.process_environment(OURS)) as server,
        Load(
            load,
            server.path,
            request=build_request(keep=True, marked=True),
            body=BLOCK,
            total=MIB << 20,
        ) as client,
    ):
        checked(client.run(WARM_UP))
        slices = measure_slices(server.pid, client, seconds)
        return min(part.cpu_us for part in slices) / MIB
