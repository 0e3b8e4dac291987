"""fcgi_app.launcher.timing: requests with a clock that the test turns."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.launcher.timing import (
    IDLE_SECONDS,
    LONGEST_SECONDS,
    RSS_SECONDS,
    SHORTEST_SECONDS,
    Lateness,
    Limits,
    Verdict,
)

LIMIT = st.one_of(st.just(0.0), st.floats(0.01, 100))
NONE = Limits(0, 0, 0)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1), LIMIT, LIMIT
)
def test_every_late_request_is_found_in_time(
    history: list[tuple[float, float]], slow_log: float, request_timeout: float
) -> None:
    """However requests come, each that is late is judged when it is, each once."""
    limits = Limits(slow_log, request_timeout, 0)
    if limits.shortest == inf:
        return
    requests, at = [], 0.0
    for rest, takes in history:
        at += rest
        requests.append((at, at + takes))
        at += takes
    lateness, now, before = Lateness(), 0.0, 0
    found: list[tuple[Verdict, float, float]] = []
    for _ in range(100_000):
        running = [(b, e) for b, e in requests if b <= now < e]
        done = sum(e <= now for _, e in requests)
        due = inf
        for begun, _ in running:
            verdict = lateness.judge(limits, begun, now)
            if verdict is not Verdict.WAIT:
                found.append((verdict, begun, now))
            due = lateness.due(limits, begun)
        if now > at or any(verdict is Verdict.END for verdict, _, _ in found):
            break
        busy = bool(running) or done != before
        before = done
        step = max(limits.pause(1.0, busy), 1e-3)
        now = max(min(due, now + step), now + 1e-6)
    _check(limits, requests, found)


def _check(
    limits: Limits,
    requests: list[tuple[float, float]],
    found: list[tuple[Verdict, float, float]],
) -> None:
    ends = [(begun, now) for verdict, begun, now in found if verdict is Verdict.END]
    reports = [begun for verdict, begun, _ in found if verdict is Verdict.REPORT]
    assert len(ends) <= 1
    assert len(reports) == len(set(reports))
    # A look may be later than a limit that is shorter than the pause between looks.
    late = max(0.0, IDLE_SECONDS - limits.shortest) + 0.001
    for begun, now in ends:
        assert -1e-6 <= now - begun - limits.request_timeout <= late
    for verdict, begun, now in found:
        if verdict is Verdict.REPORT:
            assert -1e-6 <= now - begun - limits.slow_log <= late
    last = ends[0][0] if ends else inf
    for begun, end in requests:
        if begun > last:
            break
        if limits.request_timeout and end - begun > limits.request_timeout + late:
            assert ends
        elif limits.slow_log and end - begun > limits.slow_log + late:
            shorter = not limits.request_timeout
            if shorter or limits.slow_log + late < limits.request_timeout:
                assert begun in reports


def test_request_is_ended_once_and_reported_before() -> None:
    """The report comes at its limit, the end at its own, and nothing after that."""
    limits, lateness = Limits(1, 3, 0), Lateness()
    assert lateness.due(limits, 10.0) == 11.0
    assert lateness.judge(limits, 10.0, 10.9) is Verdict.WAIT
    assert lateness.judge(limits, 10.0, 11.0) is Verdict.REPORT
    assert lateness.due(limits, 10.0) == 13.0
    assert lateness.judge(limits, 10.0, 12.0) is Verdict.WAIT
    assert lateness.judge(limits, 10.0, 13.0) is Verdict.END
    assert lateness.due(limits, 10.0) == inf
    assert lateness.judge(limits, 10.0, 99.0) is Verdict.WAIT


def test_next_request_is_another_one() -> None:
    """What was reported of one says nothing of the next."""
    limits, lateness = Limits(1, 0, 0), Lateness()
    assert lateness.judge(limits, 1.0, 2.0) is Verdict.REPORT
    assert lateness.due(limits, 1.0) == inf
    assert lateness.due(limits, 5.0) == 6.0
    assert lateness.judge(limits, 5.0, 6.0) is Verdict.REPORT


def test_without_limits_nobody_looks() -> None:
    """An idle supervisor sleeps, and so does one whose workers are busy."""
    assert NONE.pause(1.0, busy=True) == NONE.pause(1.0, busy=False) == inf


@given(LIMIT, LIMIT, st.sampled_from([0, 1 << 20]), st.floats(0.01, 100))
def test_looks_are_not_more_often_than_need_be(
    slow_log: float, request_timeout: float, max_rss: int, before: float
) -> None:
    """Once a second at most at rest; at work no more often than the limits ask for."""
    limits = Limits(slow_log, request_timeout, max_rss)
    idle, busy = limits.pause(before, busy=False), limits.pause(before, busy=True)
    assert idle >= IDLE_SECONDS
    assert busy >= SHORTEST_SECONDS
    assert busy <= max(limits.shortest, SHORTEST_SECONDS)
    if max_rss:
        assert busy <= RSS_SECONDS
        assert idle <= LONGEST_SECONDS


def test_memory_is_looked_at_less_often_the_longer_nothing_happens() -> None:
    """1, 2, 4 and 8 seconds, and at once every second when something does."""
    limits, pauses, pause = Limits(0, 0, 1), [], RSS_SECONDS
    for _ in range(5):
        pause = limits.pause(pause, busy=False)
        pauses.append(pause)
    assert pauses == [2, 4, 8, 8, 8]
    assert limits.pause(pause, busy=True) == RSS_SECONDS
