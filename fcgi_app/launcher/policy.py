"""When workers start and stop: arithmetic only, the clock and chance are passed in.

What is known of a pool comes from outside, for the programs are foreign: how many
workers run, whether a client waits in the socket's queue, and which workers have slept
all the time. Source of the words: php-fpm's ``pm``, see fcgi-app-start(1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from .pool import Manager, PoolConfig

__all__ = ["EARLY_SECONDS", "Brake", "Sight", "Sizing", "count_to_start"]
__all__ += ["count_to_stop", "draw_lifetime", "draw_requests", "next_step"]

EARLY_SECONDS = 1.0
"""A worker that ends sooner has not served: it counts as a failed start."""

FIRST_DELAY = 0.1
"""Seconds of pause after the first failed start; each further one doubles it."""

LONGEST_DELAY = 30.0
"""Seconds of pause at most, and while the breaker is open; jitter comes on top."""

OPEN_AFTER = 8
"""Failed starts in a row that open the breaker: some 25 seconds of trying."""

JITTER = 0.25
"""A pause is longer by up to this fraction, so that pools do not start in step."""

LARGEST_STEP = 32
"""Workers that are started at once when clients wait (php-fpm: 32 a second)."""


@dataclass(frozen=True)
class Sizing:
    """How many workers there may be.

    Attributes:
        manager: as in `PoolConfig`.
        most: never more than these run, but for those being replaced.
        least: as many always run.
        spare: so many may stay that nobody needs, ``least`` to ``most``.
    """

    manager: Manager
    most: int
    least: int
    spare: int

    @classmethod
    def of(cls, pool: PoolConfig, most: int) -> Sizing:
        """Take the numbers of a pool, with ``most`` in place of its ``workers``."""
        if pool.manager == "static":
            return cls("static", most, most, most)
        if pool.manager == "ondemand":
            return cls("ondemand", most, 0, 0)
        least, spare = min(pool.min_spare, most), min(pool.max_spare, most)
        return cls("dynamic", most, least, spare)


@dataclass(frozen=True)
class Sight:
    """What is known of the workers of one socket at one moment.

    Attributes:
        running: workers that have not been asked to stop.
        starting: those of them that are not known to wait for clients yet.
        quiet: those of them that have slept for the whole ``idle_timeout``.
        waiting: a client is in the queue that nobody has taken.
        idle: those that have told that they serve nobody; None: not all tell, or
            nobody has looked.
    """

    running: int
    starting: int = 0
    quiet: int = 0
    waiting: bool = False
    idle: int | None = None


def count_to_start(sizing: Sizing, sight: Sight, step: int) -> int:
    """Return how many workers to start now, at least 0.

    Args:
        sizing: the limits.
        sight: the present.
        step: how many to start for a client that waits, see `next_step`.
    """
    missing = max(0, sizing.least - sight.running)
    if sight.starting:
        return missing  # those who start will take who waits
    room = sizing.most - sight.running
    short = 0
    if sight.idle is not None and sizing.manager == "dynamic":
        # As php-fpm has it: so many shall be free for those who come next.
        short = min(sizing.least - sight.idle, step, room)
    if sight.waiting:
        short = max(short, min(step, room))
    return max(missing, short)


def count_to_stop(sizing: Sizing, sight: Sight) -> int:
    """Return how many workers to stop now, at least 0."""
    over = max(0, sight.running - sizing.most)
    if sight.waiting or count_to_start(sizing, sight, 1):
        return over
    spare = min(sight.quiet - sizing.spare, sight.running - sizing.least)
    return max(over, spare)


def next_step(step: int, started: int) -> int:
    """Return the next `step`: doubled while clients go on waiting, else 1."""
    return min(2 * step, LARGEST_STEP) if started else 1


def draw_lifetime(pool: PoolConfig, random: Callable[[], float]) -> float:
    """Return the seconds after which a worker is replaced; infinite for never.

    Args:
        pool: its ``max_lifetime`` and ``jitter``.
        random: gives numbers from 0 to below 1.
    """
    if not pool.max_lifetime:
        return inf
    return pool.max_lifetime * (1 - pool.jitter * random())


def draw_requests(pool: PoolConfig, random: Callable[[], float]) -> int:
    """Return the number of requests after which a worker is replaced; 0 for never.

    Args:
        pool: its ``max_requests`` and ``jitter``.
        random: gives numbers from 0 to below 1.
    """
    if not pool.max_requests:
        return 0
    return max(1, round(pool.max_requests * (1 - pool.jitter * random())))


class Brake:
    """Keeps workers that die at once from being started in a circle.

    Failed starts are counted in rounds: workers that were started together and die
    together have failed once. Each round doubles the pause; after `OPEN_AFTER` rounds
    the breaker is open, and a single worker is tried after each longest pause. One
    worker that lives for `EARLY_SECONDS` ends it.

    Times are seconds of one monotonic clock.

    Args:
        random: gives numbers from 0 to below 1.

    Attributes:
        failures: rounds that have failed in a row.
        not_before: when the next worker may be started.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.failures = 0
        self.not_before = -inf

    @property
    def is_open(self) -> bool:
        """Whether starting has failed so often that it is tried only slowly."""
        return self.failures >= OPEN_AFTER

    def note_failure(self, now: float, started: float = inf) -> bool:
        """Take note of a failed start; tell whether a new round has failed with it.

        Args:
            now: of the clock.
            started: when the worker was started; infinite if not even that worked.
        """
        if started < self.not_before:
            return False  # a companion of one that has been counted
        self.failures += 1
        doubled: float = FIRST_DELAY * 2 ** min(self.failures - 1, OPEN_AFTER)
        pause = LONGEST_DELAY if self.is_open else min(doubled, LONGEST_DELAY)
        self.not_before = now + pause * (1 + JITTER * self._random())
        return True

    def note_life(self, now: float, started: float) -> None:
        """Take note that a worker lives that was started at ``started``."""
        if self.failures and self._proves(started, now):
            self.failures = 0
            self.not_before = -inf

    def note_end(self, now: float, started: float) -> bool:
        """Take note of an end that nobody asked for; True for a new failed round."""
        if now - started < EARLY_SECONDS:
            return self.note_failure(now, started)
        self.note_life(now, started)
        return False

    def allowance(self, now: float, starting: int) -> float:
        """Return how many workers may be started now; infinite for any number.

        Args:
            now: of the clock.
            starting: workers that are young, and have not proven anything yet.
        """
        if now < self.not_before:
            return 0
        if self.is_open:
            return max(0, 1 - starting)
        return inf

    def next_start(self, now: float, starting: int) -> float:
        """Return when a worker may be started, if nothing happens before."""
        if self.is_open and starting:
            return inf
        return max(now, self.not_before)

    def proof_due(self, started: float) -> float:
        """Return when this worker will have proven that starting works again."""
        waits = self.failures and started >= self.not_before
        return started + EARLY_SECONDS if waits else inf

    def _proves(self, started: float, now: float) -> bool:
        return started >= self.not_before and now - started >= EARLY_SECONDS
