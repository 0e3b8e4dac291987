"""Numbers from rounds: medians with their spread, ratios, and whether a limit holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

__all__ = ["VERDICTS", "Claim", "Spread", "differences", "exit_status", "ratios"]
__all__ += ["spread", "table", "tally"]


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


def differences(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Give by how much ours are greater, in the same rounds."""
    return spread([mine - other for mine, other in zip(ours, theirs, strict=True)])


class Claim(NamedTuple):
    """A promise about a measured value: what its median must be, and what we aim at."""

    text: str
    value: Spread | None
    """None: there is nothing to compare."""
    must: float
    """At most this, or at least, as ``at_least`` says. NaN if nothing was measured that
    could be told the limit of."""
    unit: str = ""
    """Empty for a ratio."""
    digits: int = 2
    our_problem: str = ""
    """Why there is no value of ours."""
    peer_problem: str = ""
    """Why there is nothing to compare with."""
    aim: float | None = None
    """Better than ``must``."""
    at_least: bool = False
    """More is better."""

    @property
    def verdict(self) -> str:
        """Sum it up in a word or two.

        ``aim`` when that is reached, else ``holds`` or ``fails``; ``no peer`` when only
        the peer has no figure, which is neither.
        """
        if self.value is None:
            return "fails" if self.our_problem else "no peer"
        if self.aim is not None and self._within(self.aim):
            return "aim"
        return "holds" if self._within(self.must) else "fails"

    def row(self) -> tuple[str, str, str, str, str]:
        """Give the cells for the columns of ``VERDICTS``."""
        unit = f" {self.unit}" if self.unit else ""
        value = self.our_problem or self.peer_problem
        if self.value:
            value = f"{self.value.text(self.digits)}{unit}"
        sign = ">=" if self.at_least else "<="
        must = "" if math.isnan(self.must) else f"{sign} {self.must:g}{unit}"
        aim = "" if self.aim is None else f"{sign} {self.aim:g}{unit}"
        return self.verdict, self.text, must, aim, value

    def _within(self, bound: float) -> bool:
        """Say whether the median, which there is, is as good as ``bound``."""
        assert self.value is not None
        if self.at_least:
            return self.value.median >= bound
        return self.value.median <= bound


VERDICTS = ("verdict", "what", "must", "aim", "measured")


def tally(claims: Iterable[Claim]) -> str:
    """Count the verdicts: ``12 rows: 3 aim, 8 holds, 1 no peer``."""
    verdicts = [claim.verdict for claim in claims]
    kinds = ("aim", "holds", "fails", "no peer")
    counts = [f"{verdicts.count(kind)} {kind}" for kind in kinds if kind in verdicts]
    return f"{len(verdicts)} rows: {', '.join(counts)}"


def exit_status(claims: Iterable[Claim]) -> int:
    """Give 0 when every limit holds, 1 when one fails, 3 when a peer was missing.

    3 only if none fails: what could not be compared has not passed.
    """
    verdicts = {claim.verdict for claim in claims}
    if "fails" in verdicts:
        return 1
    return 3 if "no peer" in verdicts else 0


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
