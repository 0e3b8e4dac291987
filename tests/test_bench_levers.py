"""Every lever of the benchmarks runs, and leaves the process as it was."""

from __future__ import annotations

import math

import pytest

from .bench import levers, ways
from .bench.levers import LEVERS, Lever, measure
from .bench.ways import Way


@pytest.mark.parametrize("lever", LEVERS, ids=lambda lever: lever.name)
def test_each_way_runs(lever: Lever) -> None:
    """A way takes some time, or says why it cannot be had."""
    with lever.setting() as found:
        best = measure(found, min(lever.most, 2), rounds=2, seconds=0)
    assert len(found) > 1
    assert found[0].run is not None, "the plain way can be had everywhere"
    for way, seconds in zip(found, best, strict=True):
        assert way.problem if way.run is None else seconds > 0, way.name


def test_ways_take_turns() -> None:
    """What comes first in one turn comes last in the next, after its preparation."""
    told: list[str] = []
    found = [
        Way(
            name,
            lambda name=name: told.append(name),  # type: ignore[misc]
            prepare=lambda runs, name=name: told.append(f"{name}{runs}"),  # type: ignore[misc]
        )
        for name in "ab"
    ]
    measure(found, 2, rounds=2, seconds=0)
    assert " ".join(told) == "b2 b b a2 a a a2 a a b2 b b"


def test_native_way_without_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no figure, and says why; nothing native is made."""
    monkeypatch.setattr(ways, "lib", None)
    monkeypatch.setattr(ways, "REASON", "not built")
    missing = []
    for lever in LEVERS:
        with lever.setting() as found:
            missing += [way for way in found if way.problem.endswith("not built")]
    assert {way.name.split()[0].partition(".")[0] for way in missing} == {
        "parse_list:",
        "two",
        "fcgi_environ_show,",
        "LazyEnvironSwap",
        "fcgi_gather_body",
        "fcgi_send_stdout",
    }
    assert all(way.run is None for way in missing)


def test_rows_tell_figures_and_shares() -> None:
    """Times are those of all runs that make one figure; small shares keep two digits."""
    lever = Lever("body", ways.text, 1, runs=8)
    found = [Way("plain", bool), Way("none", None, "no C"), Way("good", bool)]
    rows = list(levers._rows(lever, found, [1e-6, math.nan, 15e-9]))
    assert rows == [
        ("body", "plain", "8.00", ""),
        ("body", "none", "", "no C"),
        ("body", "good", "0.12", "0.015"),
    ]
