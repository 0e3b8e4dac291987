"""A picture of all limits: each ratio with its spread, what it must be, what we aim at."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .figures import Claim

__all__ = ["PICTURES", "Bar", "advice", "bars", "draw"]

PICTURES = tuple(Path(__file__).with_name(f"results.{kind}") for kind in ("svg", "png"))


class Look(NamedTuple):
    """How a verdict is drawn: not by its colour alone."""

    colour: str
    marker: str
    words: str


LOOKS = {
    "aim": Look("#1b7837", "D", "aim reached"),
    "holds": Look("#2166ac", "o", "holds"),
    "fails": Look("#c51b2c", "X", "fails"),
    "no peer": Look("#777777", "", "no peer: nothing to compare with"),
}
ROW = 0.36
"""Inches of height for each row."""
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)


def advice() -> str:
    """Say what to install for the picture; empty if it is there."""
    if importlib.util.find_spec("matplotlib"):
        return ""
    return "the plot needs matplotlib: pip install -e '.[bench]', or matplotlib alone"


class Bar(NamedTuple):
    """One row of the picture."""

    text: str
    verdict: str
    figures: tuple[float, float, float] | None
    """Least, median, most."""
    must: float
    aim: float | None
    at_least: bool
    label: str
    """What is written beside it."""


def bars(claims: Sequence[Claim]) -> tuple[list[Bar], list[Bar]]:
    """Part the claims into ratios, and others as multiples of what they must be."""
    ratios: list[Bar] = []
    others: list[Bar] = []
    for claim in claims:
        scale = claim.must if claim.unit and claim.must else 1.0
        value = claim.value
        bar = Bar(
            claim.text,
            claim.verdict,
            value and (value.least / scale, value.median / scale, value.most / scale),
            claim.must / scale,
            None if claim.aim is None else claim.aim / scale,
            claim.at_least,
            _label(claim),
        )
        (others if claim.unit else ratios).append(bar)
    return ratios, others


def _label(claim: Claim) -> str:
    if claim.value is None:
        why = claim.our_problem or claim.peer_problem
        return f"{claim.verdict}: {why if len(why) < 60 else why[:57] + '...'}"
    unit = f" {claim.unit}" if claim.unit else ""
    return f"{claim.value.median:.{claim.digits}f}{unit}"


def _draw_bar(axes: Any, at: int, bar: Bar, start: float) -> None:
    """Draw one row at height ``at``; ``start`` is the left edge of the axes."""
    black = {"color": "black", "linestyle": "none"}
    axes.plot(bar.must, at, marker="|", markersize=15, markeredgewidth=2, **black)
    if bar.aim is not None:
        towards = ">" if bar.at_least else "<"
        axes.plot(bar.aim, at, marker=towards, fillstyle="none", **black)
    look = LOOKS[bar.verdict]
    small: dict[str, Any] = {"va": "center", "fontsize": 8, "color": look.colour}
    if bar.figures is None:
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        place = {"xytext": (6, 0), "textcoords": "offset points"}
        axes.annotate(bar.label, (start, at), bbox=paper, **place, **small)
        return
    least, median, most = bar.figures
    axes.plot([least, most], [at, at], color=look.colour, linewidth=4, alpha=0.4)
    axes.plot(median, at, look.marker, color=look.colour, markersize=7, zorder=4)
    beside = ("axes fraction", "data")
    axes.annotate(bar.label, (1.01, at), xycoords=beside, **small)


def _draw_panel(axes: Any, rows: Sequence[Bar], label: str, log: bool) -> None:
    """Draw one panel, the first row on top."""
    known = [1.0]
    for row in rows:
        known += [
            *(row.figures or ()),
            row.must,
            row.must if row.aim is None else row.aim,
        ]
    known = [x for x in known if not math.isnan(x)]
    low, high = min(0.0, *known), max(known) * 1.1
    if log:
        low, high = min(x for x in known if x > 0) / 1.25, max(known) * 1.25
        axes.set_xscale("log")
        shown = [tick for tick in TICKS if low <= tick <= high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row.text for row in rows], fontsize=8)
    axes.axvline(1, color="#aaaaaa", linewidth=1, zorder=0)
    axes.grid(color="#e8e8e8", zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, fontsize=9)
    for at, row in enumerate(rows):
        _draw_bar(axes, at, row, low)


def _draw_legend(figure: Any, line: Any, verdicts: set[str]) -> None:
    """Explain the marks; ``line`` is the class of what is drawn."""
    black = {"color": "black", "linestyle": "none"}
    marks = [
        line([], [], marker="|", markersize=12, markeredgewidth=2, **black),
        line([], [], marker="<", fillstyle="none", **black),
    ]
    texts = ["must: the limit", "aim, pointing to where it is better"]
    for verdict, look in LOOKS.items():
        if verdict in verdicts:
            marks.append(line([], [], marker=look.marker, color=look.colour))
            texts.append(look.words)
    figure.legend(marks, texts, loc="outside lower center", ncols=6, fontsize=8)


def draw(claims: Sequence[Claim], title: str, paths: Sequence[Path] = PICTURES) -> None:
    """Write the picture to ``paths``, in the format that the suffix says.

    Raises:
        ImportError: there is no matplotlib; see ``advice``.
    """
    import matplotlib  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.figure import (  # type: ignore[import-not-found,unused-ignore]
        Figure,
    )
    from matplotlib.lines import (  # type: ignore[import-not-found,unused-ignore]
        Line2D,
    )

    ratios, others = bars(claims)
    panels = [
        panel
        for panel in (
            (ratios, "ratio: median of the rounds, from least to greatest", True),
            (others, "as a multiple of the limit", False),
        )
        if panel[0]
    ]
    heights = [len(rows) + 1.5 for rows, _, _ in panels]
    size = (14, ROW * sum(heights) + 1.2)
    figure: Any = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for (rows, label, log), (panel,) in zip(panels, axes, strict=True):
        _draw_panel(panel, rows, label, log)
    _draw_legend(figure, Line2D, {claim.verdict for claim in claims})
    figure.suptitle(title, fontsize=9)
    # the same figures give the same file, in which text is text
    with matplotlib.rc_context({"svg.hashsalt": "fcgi_app", "svg.fonttype": "none"}):
        for path in paths:
            dated = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=100, metadata=dated)
