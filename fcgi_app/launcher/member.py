"""One worker of a pool, from its start to its end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Protocol

from .._log import log_warning
from ..scoreboard import SlotState
from .outside import read_activity, terminate_quietly, waits_for_clients
from .policy import EARLY_SECONDS
from .relay import Relay
from .seat import Seat
from .timing import Lateness

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
        quiet_since: since when it has had nothing to do, as far as is known.
        seat: its slot in the scoreboard, owned; None: it has none.
        worn_out: why it is replaced when it has expired.
        lateness: of its requests.
        kill_at: when it is killed if it still runs then.
        out_of_reach: it was to be killed, and is another user's by now.
    """

    process: Started
    relay: Relay
    started: float
    expires: float = inf
    ready: bool = False
    quiet_since: float = inf
    seat: Seat | None = None
    worn_out: str = "is old"
    lateness: Lateness = field(default_factory=Lateness)
    kill_at: float = inf
    out_of_reach: bool = False
    _count: int = 0
    _activity: str | None = None
    _stage: _Stage = field(default=_Stage.SERVING)
    _not_before: float = -inf
    _patient_until: float = inf

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

    def told(self) -> SlotState | None:
        """Return what the worker itself tells; None: nothing, or not yet."""
        return None if self.seat is None else self.seat.look(self.pid)

    @property
    def was_terminated(self) -> bool:
        """Whether SIGTERM has been sent to it."""
        return self._stage >= _Stage.TERMINATED

    def go_on_leaving(self, now: float, kill_at: float, *, terminated: bool) -> None:
        """Go on with a stop that was begun before an exec.

        Args:
            now: of the clock.
            kill_at: when it is killed.
            terminated: it has got SIGTERM.
        """
        self.leave(now, kill_at - now)
        if terminated:
            self._stage = _Stage.TERMINATED

    def note_readiness(self, now: float) -> bool:
        """Look whether it waits for clients by now."""
        if not self.ready:
            told = self.told()
            self.ready = (
                (told is not None and told.state != "starting")
                or now - self.started >= EARLY_SECONDS
                or waits_for_clients(self.pid) is True
            )
            self.quiet_since = now
        return self.ready

    def note_activity(self, now: float) -> None:
        """Look whether it has done anything since the last look."""
        told = self.told()
        if told is not None:
            idle = told.state == "idle" and 0 <= told.since <= now
            self.quiet_since = max(told.since, self.started) if idle else now
            return
        activity = read_activity(self.pid)
        if activity != self._activity:
            self._activity = activity
            self.quiet_since = now

    def note_count(self, requests: int) -> bool:
        """Note how many requests it has answered; tell whether the number is new."""
        before, self._count = self._count, requests
        return requests != before

    def wear_out(self, now: float, why: str) -> None:
        """Have it replaced: its successor first, then it is asked to stop."""
        if self.expires > now:
            self.expires, self.worn_out = now, why

    def expel(self, not_before: float, kill_at: float) -> None:
        """Begin a stop that does not wait for the end of its request.

        Args:
            not_before: when SIGTERM may be sent: its traceback comes first.
            kill_at: when it is killed, if it still runs then.
        """
        self._stage = max(self._stage, _Stage.LEAVING)
        self._not_before = not_before
        self._patient_until = min(self._patient_until, not_before)
        self.kill_at = min(self.kill_at, kill_at)

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
        self.kill_at = min(self.kill_at, now + min(stop_timeout, longest))

    def push(self, now: float) -> None:
        """Do what its stop asks for now."""
        if self._stage is _Stage.LEAVING and self._terminate(now):
            self._stage = _Stage.TERMINATED
        if self._stage in (_Stage.LEAVING, _Stage.TERMINATED) and now >= self.kill_at:
            self._stage = _Stage.KILLED
            self.kill()

    def _terminate(self, now: float) -> bool:
        if now < self._not_before:
            return False
        if now < min(self._patient_until, self.kill_at):
            try:
                return terminate_quietly(self.pid)
            except PermissionError as error:
                self._complain(signal.SIGTERM, error)
                return True
        self.send(signal.SIGTERM)
        return True

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended; the log says if that is forbidden."""
        if self.process.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                self._complain(number, error)

    def kill(self) -> None:
        """Kill it and what it has started in its process group."""
        if self.process.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                self.out_of_reach = True
                self._complain(signal.SIGKILL, error)

    def end_group(self) -> None:
        """Ask what it has left in its process group to stop: it has ended itself."""
        with suppress(ProcessLookupError, PermissionError):  # nothing, or not ours
            os.killpg(self.pid, signal.SIGTERM)

    def _complain(self, number: int, error: PermissionError) -> None:
        """Log that it does not get a signal: it runs a set-user-ID program."""
        name = signal.Signals(number).name if number < signal.SIGRTMIN else number
        log_warning(
            "worker %d cannot be sent signal %s: %s", self.pid, name, error.strerror
        )

    def due(self, now: float) -> float:
        """Return when it has to be looked at next."""
        if self._stage is _Stage.SERVING:
            return self.expires if self.ready else now + LOOK_SECONDS
        if self._stage is _Stage.LEAVING:
            return now + LOOK_SECONDS
        return self.kill_at if self._stage is _Stage.TERMINATED else inf
