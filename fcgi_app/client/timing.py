"""How long requests took, and the table that says so; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Times", "format_times"]


@dataclass(frozen=True)
class Times:
    """How long a request took, in seconds from its beginning.

    Attributes:
        connect: until the connection stood; None: a kept one was used.
        first_byte: until the first byte of the answer.
        total: until END_REQUEST.
    """

    connect: float | None
    first_byte: float
    total: float


def format_times(times: Sequence[Times]) -> str:
    """Give a table in milliseconds, its lines ended; empty without any times.

    One request has a line; several have their least, median and greatest, where
    ``connect`` counts those alone that have connected.
    """
    if not times:
        return ""
    connects = [each.connect for each in times if each.connect is not None]
    columns = [
        connects,
        [each.first_byte for each in times],
        [each.total for each in times],
    ]
    lines = [_line("ms", ["connect", "first byte", "total"])]
    if len(times) == 1:
        lines.append(_line("", [_shown(column, max) for column in columns]))
    else:
        for name, choose in (("min", min), ("median", _median), ("max", max)):
            lines.append(_line(name, [_shown(column, choose) for column in columns]))
        plural = "" if len(connects) == 1 else "s"
        lines.append(f"{len(times)} requests on {len(connects)} connection{plural}\n")
    return "".join(lines)


def _median(column: list[float]) -> float:
    ordered = sorted(column)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def _shown(column: list[float], choose: Callable[[list[float]], float]) -> str:
    return f"{choose(column) * 1000:.3f}" if column else "-"


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<6} {cells[0]:>12} {cells[1]:>12} {cells[2]:>12}\n"
