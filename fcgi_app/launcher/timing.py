"""When a worker's request is late, and when to look: arithmetic only, as `policy`.

A supervisor is not told when a request begins, it has to look. A look that comes no
later than the shortest limit after the one before finds every request before its limit,
so that the moment of the limit itself is met exactly, however seldom the looks are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf

from .pool import PoolConfig

__all__ = ["GRACE_SECONDS", "TRACEBACK_SECONDS", "Lateness", "Limits", "Verdict"]

IDLE_SECONDS = 1.0
"""Between looks while nothing happens, at least."""

SHORTEST_SECONDS = 0.1
"""Between looks while something happens, at least."""

RSS_SECONDS = 1.0
"""Between looks at the memory of workers that do something."""

LONGEST_SECONDS = 8.0
"""Between looks at the memory of workers that do nothing."""

GRACE_SECONDS = 0.8
"""From a request's timeout to SIGKILL; the promise is a second."""

TRACEBACK_SECONDS = 0.1
"""From the signal for a traceback to SIGTERM."""


class Verdict(Enum):
    """What is to be done about a request."""

    WAIT = "wait"
    REPORT = "report"
    END = "end"


@dataclass(frozen=True)
class Limits:
    """The limits of a pool; 0 is none.

    Attributes:
        slow_log: seconds after which a request is reported.
        request_timeout: seconds after which a request is ended.
        max_rss: bytes of memory that a worker may have.
    """

    slow_log: float
    request_timeout: float
    max_rss: int

    @classmethod
    def of(cls, pool: PoolConfig) -> Limits:
        """Take those of a pool."""
        return cls(pool.slow_log, pool.request_timeout, pool.max_rss)

    @property
    def shortest(self) -> float:
        """The shortest time that a request may take; infinite if there is none."""
        return min(self.slow_log or inf, self.request_timeout or inf)

    def pause(self, before: float, busy: bool) -> float:
        """Return how many seconds may pass until the next look.

        Args:
            before: how many it were before this look.
            busy: something has happened since the last one, or goes on.
        """
        longest = inf
        if self.max_rss:
            longest = RSS_SECONDS
            if not busy:
                longest = min(max(2 * before, RSS_SECONDS), LONGEST_SECONDS)
        least = SHORTEST_SECONDS if busy else IDLE_SECONDS
        return min(longest, max(self.shortest, least))


class Lateness:
    """What has been done about the oldest request of one worker.

    Times are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._reported = -inf
        self._ended = False

    def judge(self, limits: Limits, started: float, now: float) -> Verdict:
        """Tell what to do now about a request, each once.

        A request that is ended is not reported.

        Args:
            limits: of the pool.
            started: when the request began, which tells it from others.
            now: of the clock.
        """
        if self._ended:
            return Verdict.WAIT
        if now >= started + (limits.request_timeout or inf):
            self._ended = True
            return Verdict.END
        if started > self._reported and now >= started + (limits.slow_log or inf):
            self._reported = started
            return Verdict.REPORT
        return Verdict.WAIT

    def due(self, limits: Limits, started: float) -> float:
        """Return when to `judge` this request again."""
        if self._ended:
            return inf
        slow = inf if started <= self._reported else limits.slow_log or inf
        return started + min(slow, limits.request_timeout or inf)
