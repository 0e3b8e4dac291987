"""fcgi_app.launcher.policy: histories with a clock that the test turns."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.launcher.policy import (
    EARLY_SECONDS,
    FIRST_DELAY,
    JITTER,
    LARGEST_STEP,
    LONGEST_DELAY,
    OPEN_AFTER,
    Brake,
    Sight,
    Sizing,
    count_to_start,
    count_to_stop,
    draw_lifetime,
    draw_requests,
    next_step,
)
from fcgi_app.launcher.pool import PoolConfig

LONGEST = LONGEST_DELAY * (1 + JITTER)
CHANCE = st.floats(0, 1, exclude_max=True)


@st.composite
def sizings(draw: st.DrawFn) -> Sizing:
    most = draw(st.integers(1, 50))
    manager = draw(st.sampled_from(["static", "dynamic", "ondemand"]))
    if manager == "static":
        return Sizing("static", most, most, most)
    if manager == "ondemand":
        return Sizing("ondemand", most, 0, 0)
    least = draw(st.integers(1, most))
    return Sizing("dynamic", most, least, draw(st.integers(least, most)))


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    running = draw(st.integers(0, 60))
    starting, quiet = st.integers(0, running), st.integers(0, running)
    idle = draw(st.one_of(st.none(), st.integers(0, running)))
    if idle is not None:
        quiet = st.integers(0, idle)  # who has rested for long is idle
    return Sight(running, draw(starting), draw(quiet), draw(st.booleans()), idle)


# ---- how many ---------------------------------------------------------------------


@given(sizings(), sights(), st.integers(1, LARGEST_STEP))
def test_numbers_stay_in_their_limits(sizing: Sizing, sight: Sight, step: int) -> None:
    """Never more than the most, never fewer than the least, never both at once."""
    start, stop = count_to_start(sizing, sight, step), count_to_stop(sizing, sight)
    assert start >= 0
    assert stop >= 0
    assert not (start and stop)
    assert sight.running + start >= sizing.least
    if start:
        assert sight.running + start <= sizing.most
    if stop:
        assert sizing.least <= sight.running - stop <= sizing.most


@given(sizings(), sights())
def test_workers_that_start_take_who_waits(sizing: Sizing, sight: Sight) -> None:
    """As long as one starts, nobody is started because of the queue."""
    busy = Sight(sight.running, max(1, sight.starting), sight.quiet, sight.waiting)
    missing = max(0, sizing.least - busy.running)
    assert count_to_start(sizing, busy, 8) == missing


@given(st.integers(1, 40))
def test_clients_that_wait_are_served(most: int) -> None:
    """As long as somebody waits the number grows, ever faster, up to the most."""
    sizing, running, step, rounds = Sizing("ondemand", most, 0, 0), 0, 1, 0
    while running < most:
        start = count_to_start(sizing, Sight(running, waiting=True), step)
        assert start >= 1
        running, step, rounds = running + start, next_step(step, start), rounds + 1
    assert rounds <= 7
    assert count_to_start(sizing, Sight(running, waiting=True), step) == 0
    assert next_step(step, 0) == 1


@given(sizings())
def test_quiet_workers_go_until_the_spare_ones(sizing: Sizing) -> None:
    """When nothing happens, what may stay is left; the decision is stable."""
    stop = count_to_stop(sizing, Sight(sizing.most, quiet=sizing.most))
    left = sizing.most - stop
    assert left == max(sizing.spare, sizing.least)
    assert count_to_stop(sizing, Sight(left, quiet=left)) == 0
    assert count_to_start(sizing, Sight(left, quiet=left), 1) == 0


def test_sizing_of_a_pool_that_was_made_smaller() -> None:
    """TTOU below the spare workers lowers these, too."""
    pool = PoolConfig(
        bind=("@x",),
        command=("/x",),
        manager="dynamic",
        workers=8,
        min_spare=3,
        max_spare=5,
    )
    assert Sizing.of(pool, 8) == Sizing("dynamic", 8, 3, 5)
    assert Sizing.of(pool, 2) == Sizing("dynamic", 2, 2, 2)


@given(st.floats(0.1, 1e6), st.floats(0, 1), CHANCE)
def test_lifetime_is_shortened_by_chance(most: float, jitter: float, x: float) -> None:
    """It is never longer than asked for, nor shorter than the jitter allows."""
    pool = PoolConfig(bind=("@x",), command=("/x",), max_lifetime=most, jitter=jitter)
    assert most * (1 - jitter) <= draw_lifetime(pool, lambda: x) <= most


def test_lifetime_without_limit() -> None:
    """0 is for ever."""
    pool = PoolConfig(bind=("@x",), command=("/x",))
    assert draw_lifetime(pool, lambda: 0.5) == inf


# ---- the brake --------------------------------------------------------------------


@given(st.lists(CHANCE, min_size=1, max_size=40))
def test_failures_in_a_row_slow_down(chances: list[float]) -> None:
    """Each pause is twice the one before, up to the longest, and it never ends."""
    numbers = iter(chances)
    brake, now = Brake(lambda: next(numbers)), 0.0
    for count in range(1, len(chances) + 1):
        assert brake.allowance(now, 0) >= 1
        assert brake.note_end(now + 0.01, now)
        pause = brake.not_before - (now + 0.01)
        expected = LONGEST_DELAY
        if count < OPEN_AFTER:
            expected = min(FIRST_DELAY * 2 ** (count - 1), LONGEST_DELAY)
        assert expected - 1e-6 <= pause <= expected * (1 + JITTER) + 1e-6
        assert brake.allowance(now + 0.01, 0) == 0
        assert brake.is_open == (count >= OPEN_AFTER)
        now = brake.not_before


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60))
def test_brake_never_stops_for_good(history: list[tuple[float, bool]]) -> None:
    """Whatever has happened, the next start is no further off than the longest pause."""
    brake, now = Brake(lambda: 0.999), 0.0
    for lived, fails in history:
        started = max(now, brake.not_before)
        now = started + lived
        brake.note_end(now, started) if fails else brake.note_life(now, started)
        assert brake.next_start(now, 0) - now <= LONGEST
        assert brake.allowance(now + LONGEST, 0) >= 1


def test_companions_fail_once() -> None:
    """Workers that were started together and die together are one failure."""
    brake = Brake(lambda: 0.0)
    assert brake.note_end(10.2, 10.0)
    assert not any(brake.note_end(10.2, 10.0) for _ in range(7))
    assert brake.failures == 1


def test_one_life_ends_the_failures() -> None:
    """A worker that was started after them and lives lets all others start."""
    brake, now = Brake(lambda: 0.0), 0.0
    while not brake.is_open:
        brake.note_end(now, now)
        now = brake.not_before
    assert brake.allowance(now, 0) == 1
    assert brake.allowance(now, 1) == 0
    assert brake.next_start(now, 1) == inf
    brake.note_life(now, started=0.0)  # of before: proves nothing
    assert brake.is_open
    assert brake.proof_due(now) == now + EARLY_SECONDS
    brake.note_life(now + EARLY_SECONDS, started=now)
    assert brake.allowance(now, 0) == inf
    assert brake.proof_due(now) == inf


def test_end_of_a_worker_that_has_served_is_no_failure() -> None:
    """It is replaced at once."""
    brake = Brake(lambda: 0.0)
    assert not brake.note_end(100.0, 100.0 - EARLY_SECONDS)
    assert brake.allowance(100.0, 0) == inf


def test_start_that_the_system_refuses_is_a_failure() -> None:
    """Without a process there is no time of its start."""
    brake = Brake(lambda: 0.0)
    assert brake.note_failure(5.0)
    assert brake.not_before == 5.0 + FIRST_DELAY


# ---- idle workers -----------------------------------------------------------------


def test_dynamic_starts_when_too_few_are_idle() -> None:
    """As many as php-fpm's min_spare_servers asks for, a step at a time."""
    sizing = Sizing("dynamic", 10, 3, 5)
    assert count_to_start(sizing, Sight(4, idle=3), 8) == 0
    assert count_to_start(sizing, Sight(4, idle=1), 8) == 2
    assert count_to_start(sizing, Sight(4, idle=0), 1) == 1
    assert count_to_start(sizing, Sight(9, idle=0), 8) == 1
    assert count_to_start(sizing, Sight(10, idle=0), 8) == 0
    assert count_to_start(sizing, Sight(4, starting=1, idle=0), 8) == 0
    assert count_to_start(sizing, Sight(4), 8) == 0  # nobody knows


def test_only_dynamic_keeps_idle_workers() -> None:
    """static and ondemand start nobody for a client who has not come."""
    assert count_to_start(Sizing("static", 4, 4, 4), Sight(4, idle=0), 8) == 0
    assert count_to_start(Sizing("ondemand", 4, 0, 0), Sight(2, idle=0), 8) == 0


def test_history_of_a_dynamic_pool_under_rising_load() -> None:
    """Ten clients, one more at each look: there is always one free, up to the limit."""
    sizing, running = Sizing("dynamic", 8, 1, 2), 1
    history = []
    for clients in range(1, 11):
        busy = min(clients, running)
        running += count_to_start(sizing, Sight(running, idle=running - busy), 1)
        history.append(running)
    assert history == [2, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    # They go when they have rested, down to what may stay.
    running -= count_to_stop(sizing, Sight(running, quiet=running, idle=running))
    assert running == 2


@given(st.integers(0, 1000), st.floats(0, 1), CHANCE)
def test_number_of_requests_is_shortened_by_jitter(
    most: int, jitter: float, chance: float
) -> None:
    """Never more than was said, never none, and 0 stays never."""
    pool = PoolConfig(bind=("@x",), command=("/x",), max_requests=most, jitter=jitter)
    number = draw_requests(pool, lambda: chance)
    if most == 0:
        assert number == 0
    else:
        assert max(1, most * (1 - jitter) - 1) <= number <= most
    assert draw_requests(pool, lambda: 0.0) == most
