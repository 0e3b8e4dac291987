"""One worker of a pool, from its start to its end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Protocol

from .outside import read_activity, terminate_quietly, waits_for_clients
from .policy import EARLY_SECONDS
from .relay import Relay

__all__ = ["Member", "Started"]

LOOK_SECONDS = 0.01
"""How often a worker is looked at that starts, or that is to be stopped."""

PATIENCE = 1.0
"""Seconds for which a harmless moment for SIGTERM is waited for."""

QUICK_SECONDS = 1.0
"""Seconds between SIGTERM and SIGKILL in a quick stop."""


class Started(Protocol):
    """A child of ours that can be asked whether it has ended."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""


class _Stage(IntEnum):
    """How far a worker's stop has come."""

    SERVING = 0
    LEAVING = 1  # it gets SIGTERM at the next harmless moment
    TERMINATED = 2  # SIGTERM was sent
    KILLED = 3


@dataclass(eq=False)
class Member:
    """A worker and what is known of it; times are of the monotonic clock.

    Attributes:
        process: the worker itself; not reaped by anybody else.
        relay: what it prints.
        started: when it was started.
        expires: when it is old enough to be replaced; infinite for never.
        ready: it is known to wait for clients, or has lived long enough.
        quiet_since: since when its main thread has only slept, as far as is known.
    """

    process: Started
    relay: Relay
    started: float
    expires: float = inf
    ready: bool = False
    quiet_since: float = inf
    _activity: str | None = None
    _stage: _Stage = field(default=_Stage.SERVING)
    _patient_until: float = inf
    _kill_at: float = inf

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def leaves(self) -> bool:
        """Whether it has been asked to stop, or is about to be."""
        return self._stage > _Stage.SERVING

    @property
    def was_killed(self) -> bool:
        """Whether it had to be killed."""
        return self._stage is _Stage.KILLED

    def note_readiness(self, now: float) -> bool:
        """Look whether it waits for clients by now."""
        if not self.ready:
            old_enough = now - self.started >= EARLY_SECONDS
            self.ready = old_enough or waits_for_clients(self.pid) is True
            self.quiet_since = now
        return self.ready

    def note_activity(self, now: float) -> None:
        """Look whether it has done anything since the last look."""
        activity = read_activity(self.pid)
        if activity != self._activity:
            self._activity = activity
            self.quiet_since = now

    def leave(self, now: float, stop_timeout: float, *, quick: bool = False) -> None:
        """Begin its stop, or make it quicker.

        Args:
            now: of the clock.
            stop_timeout: seconds from now until it is killed.
            quick: do not wait for a harmless moment, nor for long.
        """
        patience = 0.0 if quick else PATIENCE
        longest = QUICK_SECONDS if quick else inf
        self._stage = max(self._stage, _Stage.LEAVING)
        self._patient_until = min(self._patient_until, now + patience)
        self._kill_at = min(self._kill_at, now + min(stop_timeout, longest))

    def push(self, now: float) -> None:
        """Do what its stop asks for now."""
        if self._stage is _Stage.LEAVING and self._terminate(now):
            self._stage = _Stage.TERMINATED
        if self._stage in (_Stage.LEAVING, _Stage.TERMINATED) and now >= self._kill_at:
            self._stage = _Stage.KILLED
            self.kill()

    def _terminate(self, now: float) -> bool:
        if now < min(self._patient_until, self._kill_at):
            return terminate_quietly(self.pid)
        self.send(signal.SIGTERM)
        return True

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and what it has started in its process group."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def due(self, now: float) -> float:
        """Return when it has to be looked at next."""
        if self._stage is _Stage.SERVING:
            return self.expires if self.ready else now + LOOK_SECONDS
        if self._stage is _Stage.LEAVING:
            return now + LOOK_SECONDS
        return self._kill_at if self._stage is _Stage.TERMINATED else inf
