"""Looks at the queues for who wants to know of them later: an `Attendant`."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from .attendant import Event, Supervision

__all__ = ["Observer"]

BUSY_SECONDS = 1.0
"""Between looks while requests come."""

IDLE_SECONDS = 8.0
"""Between looks at most, while none comes."""


class Observer:
    """Keeps the queues' numbers in the scoreboards up to date, for a status page.

    While requests come they are a second old at most.
    """

    def __init__(self) -> None:
        self._supervision: Supervision | None = None
        self._look_at = inf
        self._pause = BUSY_SECONDS

    def open(self, supervision: Supervision) -> None:
        """Begin."""
        self._supervision = supervision
        self._look_at = -inf

    def watched(self) -> Mapping[int, int]:
        """Return that there is nothing to wait for."""
        return {}

    def handle(self, descriptor: int, events: int) -> None:
        """Do nothing: no descriptor is ours."""

    def due(self) -> float:
        """Return when to look next."""
        return self._look_at

    def turn(self, now: float) -> None:
        """Look, if it is time to."""
        if self._supervision is not None and now >= self._look_at:
            busy = self._supervision.observe()
            self._pause = BUSY_SECONDS if busy else min(2 * self._pause, IDLE_SECONDS)
            self._look_at = now + self._pause

    def note(self, event: Event, text: str) -> None:
        """Look at once at those who have started."""
        if event in ("ready", "reloaded"):
            self._look_at = -inf
            self._pause = BUSY_SECONDS

    def close(self) -> None:
        """End."""
        self._supervision = None
        self._look_at = inf
