"""The arithmetic and the tables of the benchmarks; nothing is measured here."""

from __future__ import annotations

import pytest

from fcgi_app.codec.params import parse_params
from fcgi_app.codec.records import parse_header

from .bench.comparisons import COMPARISONS
from .bench.figures import Claim, Spread, exit_status, ratios, spread, table, tally
from .bench.load import LoadError
from .bench.programs import FLUP, LIBFCGI, OURS, PEERS, PROGRAMS, PURE, Program
from .bench.series import P99, RATE, Limit, Sample, Series, conclude, take_turns
from .bench.wire import MANY_PARAMS, MARK, NGINX_PARAMS, build_request


def test_spread_gives_median_and_extremes() -> None:
    """The middle value counts, whatever the order."""
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_ratios_pair_the_rounds() -> None:
    """Each round's figures are divided by those of the same round."""
    assert ratios([1.0, 6.0], [2.0, 12.0]) == Spread(0.5, 0.5, 0.5)


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


def test_program_says_which_load_it_cannot_serve() -> None:
    """A program with one connection at a time is not asked to keep two."""
    one = Program("C", "c.c", at_a_time=1)
    assert one.why_not(keep=True, connections=1) == ""
    assert one.why_not(keep=False, connections=16) == ""
    assert "1 kept connection" in one.why_not(keep=True, connections=16)
    assert "closes" in Program("D", "d.py", keeps=False).why_not(
        keep=True, connections=1
    )


def test_comparisons_limit_programs_that_can_serve_them() -> None:
    """No limit is set beside a peer that is never measured."""
    for case in COMPARISONS:
        for limit in case.limits:
            assert limit.program in (OURS, PURE)
            assert limit.peer in PEERS
            assert case.why_not(limit.peer) == ""
    assert len({case.name for case in COMPARISONS}) == len(COMPARISONS)


def test_programs_begin_with_ours() -> None:
    """Tables compare with their first row; the pure backend is the same script."""
    assert PROGRAMS[0] == OURS
    assert PURE.script == OURS.script
    assert dict(PURE.environment) == {"FCGI_APP_BACKEND": "pure"}


def series_of(program: Program, *samples: Sample) -> Series:
    """A program with its samples."""
    series = Series(program)
    series.samples += samples
    return series


FAST, SLOW = (
    Sample(10.0, 2000.0, 50.0, 80.0, 4.0),
    Sample(20.0, 1000.0, 90.0, 160.0, 2.0),
)


def test_conclude_compares_with_each_peer() -> None:
    """The table has our ratio to each, and every limit becomes a claim."""
    everyone = [series_of(OURS, FAST, FAST), series_of(LIBFCGI, SLOW, SLOW)]
    text, claims = conclude("hello", everyone, [Limit(LIBFCGI, 0.6, 0.4)])
    assert "0.50 (0.50 to 0.50)" in text.splitlines()[3]
    assert claims == [
        Claim(
            "hello: CPU of fcgi_app / libfcgi stdio",
            Spread(0.5, 0.5, 0.5),
            0.6,
            aim=0.4,
        )
    ]


def test_conclude_takes_other_figures_than_cpu() -> None:
    """More requests are better, a later answer is worse."""
    everyone = [series_of(OURS, FAST), series_of(LIBFCGI, SLOW)]
    limits = [Limit(LIBFCGI, 0.9, quantity=RATE), Limit(LIBFCGI, 1.5, quantity=P99)]
    text, (rate, late) = conclude("nginx", everyone, limits)
    assert text.splitlines()[0].count("our ") == 2
    assert (rate.value, rate.at_least) == (Spread(2.0, 2.0, 2.0), True)
    assert (late.value, late.at_least) == (Spread(0.5, 0.5, 0.5), False)


def test_conclude_shows_the_peer_that_is_not_there() -> None:
    """It has a row that says why, and its limit does not hold."""
    everyone = [series_of(OURS, FAST), Series(FLUP, "no index")]
    text, (claim,) = conclude("hello", everyone, [Limit(FLUP, 0.5)])
    assert "no peer: no index" in text.splitlines()[3]
    assert (claim.verdict, claim.row()[-1]) == ("no peer", "flup: no index")


def test_conclude_without_our_figure_fails() -> None:
    """What our program cannot do is a failure, whoever else can."""
    everyone = [Series(OURS, "2 errors"), series_of(FLUP, FAST)]
    text, (claim,) = conclude("hello", everyone, [Limit(FLUP, 0.5)])
    assert "no figure: 2 errors" in text.splitlines()[2]
    assert claim.verdict == "fails"


def test_take_turns_begins_with_another_program_each_round() -> None:
    """Who is first in one round is last in the next."""
    asked: list[str] = []

    def measured(program: Program) -> Sample:
        asked.append(program.name)
        return FAST

    everyone = [Series(OURS), Series(FLUP), Series(LIBFCGI, "gone")]
    take_turns(everyone, 2, measured)
    assert asked == ["fcgi_app", "flup", "flup", "fcgi_app"]


def test_series_is_empty_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One wrong answer takes all figures of the program away, and no more are made."""
    series = series_of(FLUP, FAST)

    def measured(program: Program) -> Sample:
        raise LoadError("1 error", "the server's stderr: oops")

    series.add(measured)
    series.add(lambda _program: FAST)
    assert (series.samples, series.problem) == ([], "1 error")
    assert "oops" in capsys.readouterr().err
