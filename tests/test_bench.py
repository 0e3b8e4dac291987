"""The arithmetic and the tables of the benchmarks; nothing is measured here."""

from __future__ import annotations

from fcgi_app.codec.params import parse_params
from fcgi_app.codec.records import parse_header

from .bench.figures import Claim, Spread, ratios, spread, table
from .bench.wire import MARK, NGINX_PARAMS, build_request


def test_spread_gives_median_and_extremes() -> None:
    """The middle value counts, whatever the order."""
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_ratios_pair_the_rounds() -> None:
    """Each round's figures are divided by those of the same round."""
    assert ratios([1.0, 6.0], [2.0, 12.0]) == Spread(0.5, 0.5, 0.5)


def test_claim_holds_at_its_limit() -> None:
    """A median that equals the limit is within it."""
    claim = Claim("CPU", Spread(0.5, 0.4, 0.6), 0.5)
    assert claim.row() == ("holds", "CPU", "<= 0.5", "0.50 (0.40 to 0.60)")


def test_claim_fails_above_its_limit() -> None:
    """The median decides, not the least value."""
    claim = Claim("memory", Spread(4.1, 3.0, 5.0), 4, "KiB", digits=1)
    assert claim.row() == ("fails", "memory", "<= 4 KiB", "4.1 (3.0 to 5.0) KiB")


def test_claim_without_our_figure_fails() -> None:
    """What we could not do is never a success."""
    claim = Claim("CPU", None, 0.5, our_problem="starved", peer_problem="flup: gone")
    assert claim.verdict == "fails"
    assert claim.row()[3] == "starved"


def test_claim_without_the_peers_figure_is_no_failure() -> None:
    """A peer that cannot do the job decides nothing."""
    claim = Claim("CPU", None, 0.5, peer_problem="flup: starved")
    assert claim.verdict == "no peer"


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
