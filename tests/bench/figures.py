"""Numbers from rounds: medians with their spread, ratios, and whether a limit holds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

__all__ = ["Claim", "Spread", "ratios", "spread", "table"]


class Spread(NamedTuple):
    """The median of several measurements and their extremes."""

    median: float
    least: float
    most: float

    def text(self, digits: int = 2) -> str:
        """Write it as ``0.31 (0.29 to 0.34)``."""
        return (
            f"{self.median:.{digits}f} ({self.least:.{digits}f} to "
            f"{self.most:.{digits}f})"
        )


def spread(values: Sequence[float]) -> Spread:
    """Sum up ``values``, of which there is at least one."""
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Give the ratios of measurements that were made in the same rounds."""
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


class Claim(NamedTuple):
    """A promise about a measured value: its median is at most ``limit``."""

    text: str
    value: Spread | None
    """None: there is nothing to compare."""
    limit: float
    unit: str = ""
    digits: int = 2
    our_problem: str = ""
    """Why there is no value of ours."""
    peer_problem: str = ""
    """Why there is nothing to compare with."""

    @property
    def verdict(self) -> str:
        """``holds``, ``fails``, or ``no peer`` when only the peer has no figure."""
        if self.value is None:
            return "fails" if self.our_problem else "no peer"
        return "holds" if self.value.median <= self.limit else "fails"

    def row(self) -> tuple[str, str, str, str]:
        """Give verdict, text, limit and value for a table."""
        unit = f" {self.unit}" if self.unit else ""
        value = self.our_problem or self.peer_problem
        if self.value:
            value = f"{self.value.text(self.digits)}{unit}"
        return self.verdict, self.text, f"<= {self.limit:g}{unit}", value


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay ``rows`` out as a Markdown table whose source is aligned too.

    Columns after the first are right-aligned when each of their cells starts with a
    digit or is empty.
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    numbers = [
        index > 0 and all(cell[:1].isdigit() or not cell for cell in column[1:])
        for index, column in enumerate(columns)
    ]
    rule = [
        "-" * (width - 1) + (":" if number else "-")
        for width, number in zip(widths, numbers, strict=True)
    ]
    lines = []
    for cells in (head, rule, *rows):
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, numbers, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)
