"""The benchmarks' programs, loads and limits, and what is said of peers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .bench import cache, report
from .bench.__main__ import _run
from .bench.behind import BEHIND, compare_behind
from .bench.cache import Cache, NoPeer
from .bench.comparisons import COMPARISONS
from .bench.figures import Claim, Spread
from .bench.front import CLIENTS, HEADERS, build_config
from .bench.load import LoadError
from .bench.programs import (
    APPS,
    BARE,
    FLUP,
    LIBFCGI,
    OURS,
    PEERS,
    POOL,
    PROGRAMS,
    PURE,
    Program,
)
from .bench.series import (
    P99,
    RATE,
    Limit,
    Measurement,
    Sample,
    Series,
    conclude,
    take_turns,
)
from .bench.wire import NGINX_PARAMS


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
            assert limit.program in (OURS, POOL, PURE)
            assert limit.peer in PEERS or (limit.program, limit.peer) == (POOL, OURS)
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
    """Who is first in one round is last in the next; nobody runs ahead."""
    asked: list[str] = []

    def measured(program: Program) -> Measurement:
        for step in ("warm", "measured"):
            asked.append(f"{program.name} {step}")
            yield
        return FAST

    everyone = [Series(OURS), Series(FLUP), Series(LIBFCGI, "gone")]
    take_turns(everyone, 2, measured)
    assert asked == [
        *("fcgi_app warm", "flup warm", "fcgi_app measured", "flup measured"),
        *("flup warm", "fcgi_app warm", "flup measured", "fcgi_app measured"),
    ]
    assert [series.samples for series in everyone] == [[FAST, FAST], [FAST, FAST], []]


def test_take_turns_ends_what_was_begun() -> None:
    """An error that is nobody's fault leaves no server behind."""
    ended: list[str] = []
    begun: list[Measurement] = []  # so that none of them ends for want of an owner

    def steps(program: Program) -> Measurement:
        try:
            yield
            if program is FLUP:
                raise KeyboardInterrupt
            yield
        finally:
            ended.append(program.name)
        return FAST

    def measured(program: Program) -> Measurement:
        begun.append(steps(program))
        return begun[-1]

    with pytest.raises(KeyboardInterrupt):
        take_turns([Series(OURS), Series(FLUP)], 2, measured)
    assert len(begun) == 2
    assert sorted(ended) == ["fcgi_app", "flup"]


def test_series_is_empty_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One wrong answer takes all figures of the program away, and no more are made."""
    asked: list[str] = []

    def measured(program: Program) -> Measurement:
        asked.append(program.name)
        yield
        if program is FLUP and len(asked) > 2:
            raise LoadError("1 error", "the server's stderr: oops")
        return FAST

    series, ours = Series(FLUP), Series(OURS)
    take_turns([series, ours], 3, measured)
    assert asked == ["flup", "fcgi_app", "fcgi_app", "flup", "fcgi_app"]
    assert (series.samples, series.problem) == ([], "1 error")
    assert ours.samples == [FAST, FAST, FAST]
    assert "oops" in capsys.readouterr().err


def test_ways_through_nginx_limit_programs_that_can_serve_them() -> None:
    """No limit is set beside a peer that is never measured."""
    for way in BEHIND:
        for limit in way.limits:
            assert limit.program == OURS
            assert limit.peer.why_not(keep=way.keep, connections=CLIENTS) == ""


def test_nginx_sends_the_params_of_the_other_loads() -> None:
    """21 from its configuration, in their order, and the client's header fields."""
    config = build_config("/folder", 8080, "/socket", keep=True)
    lines = [line.split() for line in config.splitlines()]
    sent = [words[1] for words in lines if words[:1] == ["fastcgi_param"]]
    names = [name for name, _ in NGINX_PARAMS]
    assert sent == names[:21]
    fields = [f"HTTP_{name.upper().replace('-', '_')}" for name in HEADERS]
    assert fields == [name for name in names[21:] if name != "HTTP_HOST"]


@pytest.mark.parametrize("keep", [True, False])
def test_nginx_keeps_connections_if_told_so(keep: bool) -> None:
    """Both the room for kept connections and the flag of the request."""
    config = build_config("/folder", 8080, "/socket", keep=keep)
    assert ("keepalive 32;" in config) is keep
    assert ("fastcgi_keep_conn on;" in config) is keep


def test_without_nginx_each_limit_has_no_peer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reason names the Debian package, and nothing passes."""
    monkeypatch.setattr("shutil.which", lambda _name, path: None)
    text, claims = compare_behind(Cache(tmp_path), BEHIND[0], 1, 0.1)
    assert text == "no peer: nginx is not installed (Debian package nginx-light)"
    assert [claim.verdict for claim in claims] == ["no peer", "no peer"]
    assert "nginx-light" in claims[0].row()[-1]


def test_cache_without_libfcgi_has_no_peer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reason names the Debian package, each time it is asked for."""
    monkeypatch.setattr(cache, "_has", lambda what: what != "libfcgi")
    found = Cache(tmp_path)
    for _ in range(2):
        series = Series(LIBFCGI)
        series.prepare(found)
        assert series.problem == "needs the Debian package libfcgi-dev"
    assert cache.missing_packages() == ["libfcgi-dev"]
    assert "apt-get install libfcgi-dev" in report.hint()[0]


def test_cache_says_why_pip_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last error is the reason, and it is not tried again."""
    ended = subprocess.CompletedProcess([], 1, "", "note\nERROR: no index\nnote")
    calls: list[object] = []

    def run(command: object, **_options: object) -> object:
        calls.append(command)
        return ended

    monkeypatch.setattr(subprocess, "run", run)
    found = Cache(tmp_path)
    for _ in range(2):
        with pytest.raises(
            NoPeer, match=r"cannot install flup==1\.0\.3: ERROR: no index"
        ):
            found.prepare(FLUP)
    assert len(calls) == 1


def test_command_ends_with_the_programs_own_arguments(tmp_path: Path) -> None:
    """The handler comes first, and the script runs on the bench's interpreter."""
    program = BARE._replace(arguments=("16",))
    words = Cache(tmp_path).command(program, "hello")
    assert [*words[-3:]] == [str(APPS / "bare.py"), "hello", "16"]


def test_environment_of_a_program_overrides_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Our settings pass through; a program that has its own is measured with that."""
    monkeypatch.setenv("FCGI_APP_BACKEND", "auto")
    monkeypatch.setenv("SECRET", "1")
    found = Cache(tmp_path)
    assert found.process_environment(OURS)["FCGI_APP_BACKEND"] == "auto"
    assert found.process_environment(PURE)["FCGI_APP_BACKEND"] == "pure"
    assert "SECRET" not in found.process_environment(OURS)


def test_scenario_that_cannot_be_measured_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It gives a claim that fails, and the run goes on."""

    def scenario() -> tuple[str, list[Claim]]:
        raise LoadError("3 connections starved", "the server's stderr: oops")

    text, (claim,) = _run("memory", scenario)
    assert text == "could not be measured: 3 connections starved"
    assert (claim.verdict, claim.row()[-1]) == ("fails", text)
    assert "oops" in capsys.readouterr().err
