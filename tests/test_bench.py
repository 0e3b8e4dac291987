"""The arithmetic and the tables of the benchmarks; nothing is measured here."""

from __future__ import annotations

import math

import pytest

from fcgi_app.codec.params import parse_params
from fcgi_app.codec.records import parse_header

from .bench.figures import (
    Claim,
    Spread,
    differences,
    exit_status,
    ratios,
    spread,
    table,
    tally,
)
from .bench.plot import advice, bars
from .bench.wire import MANY_PARAMS, MARK, NGINX_PARAMS, build_request


def test_spread_gives_median_and_extremes() -> None:
    """The middle value counts, whatever the order."""
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_ratios_pair_the_rounds() -> None:
    """Each round's figures are divided by those of the same round."""
    assert ratios([1.0, 6.0], [2.0, 12.0]) == Spread(0.5, 0.5, 0.5)


def test_differences_pair_the_rounds() -> None:
    """Each round's figure is set against that of the same round."""
    assert differences([5.0, 9.0, 4.0], [1.0, 2.0, 3.0]) == Spread(4.0, 1.0, 7.0)


def test_claim_holds_at_its_limit() -> None:
    """A median that equals the limit is within it."""
    claim = Claim("CPU", Spread(0.5, 0.4, 0.6), 0.5)
    assert claim.row() == ("holds", "CPU", "<= 0.5", "", "0.50 (0.40 to 0.60)")


def test_claim_fails_above_its_limit() -> None:
    """The median decides, not the least value."""
    claim = Claim("memory", Spread(4.1, 3.0, 5.0), 4, "KiB", digits=1)
    assert claim.row() == ("fails", "memory", "<= 4 KiB", "", "4.1 (3.0 to 5.0) KiB")


def test_claim_without_our_figure_fails() -> None:
    """What we could not do is never a success."""
    claim = Claim("CPU", None, 0.5, our_problem="starved", peer_problem="flup: gone")
    assert claim.verdict == "fails"
    assert claim.row()[-1] == "starved"


def test_claim_without_the_peers_figure_is_no_failure() -> None:
    """A peer that cannot do the job decides nothing."""
    claim = Claim("CPU", None, 0.5, peer_problem="flup: starved")
    assert claim.verdict == "no peer"


def test_claim_reaches_its_aim() -> None:
    """What is better than it must be is said to be so."""
    claim = Claim("CPU", Spread(0.7, 0.6, 1.2), 1.4, aim=0.7)
    assert claim.row() == ("aim", "CPU", "<= 1.4", "<= 0.7", "0.70 (0.60 to 1.20)")
    assert claim._replace(aim=0.6).verdict == "holds"


@pytest.mark.parametrize(
    ("median", "verdict"), [(1.06, "aim"), (0.9, "holds"), (0.89, "fails")]
)
def test_claim_of_a_least_value(median: float, verdict: str) -> None:
    """Where more is better, the limits are least values."""
    value = Spread(median, 0.1, 9.0)
    claim = Claim("requests/s", value, 0.9, aim=1.05, at_least=True)
    assert claim.row()[:4] == (verdict, "requests/s", ">= 0.9", ">= 1.05")


def test_claim_about_what_was_never_measured_fails() -> None:
    """There is no limit to show then, and it is not an empty success."""
    claim = Claim("memory", None, math.nan, our_problem="could not be measured")
    assert claim.row() == ("fails", "memory", "", "", "could not be measured")


def test_exit_status_tells_missing_peers_from_success() -> None:
    """What could not be compared has not passed, and a failure weighs more."""
    held, failed = Claim("a", Spread(1, 1, 1), 1), Claim("b", Spread(2, 2, 2), 1)
    missing = Claim("c", None, 1, peer_problem="flup: gone")
    assert exit_status([held]) == 0
    assert exit_status([held, missing]) == 3
    assert exit_status([held, missing, failed]) == 1


def test_tally_counts_each_verdict() -> None:
    """Missing peers are counted by themselves."""
    held = Claim("a", Spread(1, 1, 1), 1)
    missing = Claim("b", None, 1, peer_problem="flup: gone")
    assert tally([held, missing, held]) == "3 rows: 2 holds, 1 no peer"


def test_table_aligns_numbers_to_the_right() -> None:
    """Columns of numbers are right-aligned, also in the source."""
    assert table(("program", "µs"), [("a", "1.5"), ("bcd", "10.0")]).splitlines() == [
        "| program |   µs |",
        "| ------- | ---: |",
        "| a       |  1.5 |",
        "| bcd     | 10.0 |",
    ]


def test_request_carries_nginx_params() -> None:
    """The one PARAMS record holds 30 pairs, 1.1 KB."""
    request = build_request(keep=True)
    header = parse_header(request, 16)
    content = request[24 : 24 + header.content_length]
    expected = [(name.encode(), value.encode()) for name, value in NGINX_PARAMS]
    assert parse_params(content) == expected
    assert len(expected) == 30
    assert 1050 < len(content) < 1150


def test_marked_request_has_one_mark() -> None:
    """The load generator finds one place where requests differ."""
    assert build_request(keep=True, marked=True).count(MARK.encode()) == 1


def test_many_params_fill_30_kilobytes() -> None:
    """120 pairs with nginx's own in front, in one record that is marked once."""
    request = build_request(keep=False, marked=True, pairs=MANY_PARAMS)
    header = parse_header(request, 16)
    pairs = parse_params(request[24 : 24 + header.content_length])
    assert len(pairs) == 120
    assert [name.decode() for name, _ in pairs][:30] == [x for x, _ in NGINX_PARAMS]
    assert 30_000 < header.content_length < 31_000
    assert request.count(MARK.encode()) == 1


def test_bars_part_ratios_from_other_values() -> None:
    """What has a unit is drawn as a multiple of its limit."""
    ratio = Claim("CPU", Spread(0.5, 0.4, 0.6), 1.4, aim=1.0)
    memory = Claim("RSS", Spread(6.0, 5.0, 8.0), 4, "MiB", aim=2)
    (first,), (second,) = bars([ratio, memory])
    assert (first.figures, first.must, first.aim) == ((0.4, 0.5, 0.6), 1.4, 1.0)
    assert (second.figures, second.must, second.aim) == ((1.25, 1.5, 2.0), 1.0, 0.5)
    assert (first.label, second.label) == ("0.50", "6.00 MiB")


def test_bars_show_the_peer_that_is_not_there() -> None:
    """A row without figures says why."""
    claim = Claim("requests/s", None, 0.9, peer_problem="flup: gone", at_least=True)
    (bar,) = bars([claim])[0]
    assert (bar.figures, bar.label) == (None, "no peer: flup: gone")


def test_advice_says_how_to_have_the_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib there is one line that says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "matplotlib: pip install" in advice()
