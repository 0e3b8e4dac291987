"""A picture of all limits: each ratio with its spread, what it must be, what we aim at."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .figures import Claim

__all__ = ["PICTURES", "Bar", "advice", "bars", "draw"]

PICTURES = tuple(Path(__file__).with_name(f"results.{kind}") for kind in ("svg", "png"))
COLOURS = {
    "aim": "#1b7837",
    "holds": "#2166ac",
    "fails": "#c51b2c",
    "no peer": "#888888",
}
WORDS = {
    "aim": "aim reached",
    "holds": "holds",
    "fails": "fails",
    "no peer": "no peer: nothing to compare with",
}
ROW = 0.36
"""Inches of height for each row."""


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
    towards = ">" if bar.at_least else "<"
    axes.plot(bar.must, at, "|", color="black", markersize=15, markeredgewidth=2)
    if bar.aim is not None:
        axes.plot(
            bar.aim,
            at,
            towards,
            color="black",
            markersize=7,
            fillstyle="none",
            zorder=3,
        )
    colour = COLOURS[bar.verdict]
    if bar.figures is None:
        axes.text(start, at, f" {bar.label}", va="center", fontsize=8, color=colour)
        return
    least, median, most = bar.figures
    axes.plot([least, most], [at, at], color=colour, linewidth=3, alpha=0.45)
    axes.plot(median, at, "o", color=colour, markersize=7, zorder=4)
    axes.annotate(
        bar.label,
        (1.01, at),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=colour,
    )


def _draw_panel(axes: Any, rows: Sequence[Bar], label: str, log: bool) -> None:
    """Draw one panel, the first row on top."""
    known = [
        x for row in rows for x in (*(row.figures or ()), row.must, row.aim or row.must)
    ]
    if log:
        low, high = min(x for x in known if x > 0) / 1.25, max(known) * 1.25
        axes.set_xscale("log")
    else:
        low, high = min(0.0, *known), max(known) * 1.1
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if log:
        ticks = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20]
        shown = [tick for tick in ticks if low <= tick <= high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [row.text for row in rows], fontsize=8)
    axes.axvline(1, color="#bbbbbb", linewidth=1, zorder=0)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, fontsize=9)
    for at, row in enumerate(rows):
        _draw_bar(axes, at, row, low)


def _draw_legend(figure: Any, lines: Any, verdicts: set[str]) -> None:
    black = {"color": "black", "linestyle": "none"}
    marks = [
        lines.Line2D([], [], marker="|", markersize=12, markeredgewidth=2, **black),
        lines.Line2D([], [], marker="<", markersize=7, fillstyle="none", **black),
    ]
    texts = ["must (the limit)", "aim (points to where it is better)"]
    for verdict, colour in COLOURS.items():
        if verdict in verdicts:
            marks.append(lines.Line2D([], [], marker="o", color=colour, linewidth=3))
            texts.append(WORDS[verdict])
    figure.legend(marks, texts, loc="outside upper center", ncols=3, fontsize=8)


def draw(claims: Sequence[Claim], title: str) -> None:
    """Write ``PICTURES``.

    Raises:
        ImportError: there is no matplotlib; see ``advice``.
    """
    import matplotlib  # type: ignore[import-not-found,unused-ignore]

    matplotlib.use("agg")
    # the same figures give the same file
    matplotlib.rcParams["svg.hashsalt"] = "fcgi_app"
    from matplotlib import (  # type: ignore[import-not-found,unused-ignore]
        lines,
        pyplot,
    )

    panels = [
        (rows, label, log)
        for rows, label, log in zip(
            bars(claims),
            (
                "ratio: median of the rounds, least and greatest (1: as the peer)",
                "as a multiple of the limit",
            ),
            (True, False),
            strict=True,
        )
        if rows
    ]
    heights = [len(rows) + 1.5 for rows, _, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        squeeze=False,
        height_ratios=heights,
        figsize=(13, ROW * sum(heights) + 1.2),
        layout="constrained",
    )
    for (rows, label, log), (panel,) in zip(panels, axes, strict=True):
        _draw_panel(panel, rows, label, log)
    _draw_legend(figure, lines, {claim.verdict for claim in claims})
    figure.suptitle(title, fontsize=9)
    for path in PICTURES:
        kind = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=110, metadata=kind)
    pyplot.close(figure)
