"""Looks at what the workers of one socket do: requests that take too long, memory."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from math import inf

from .._log import log_info, log_warning
from ..scoreboard import SlotState
from .member import Member
from .outside import read_rss, waits_for_clients
from .pool import PoolConfig
from .seat import count_up
from .timing import GRACE_SECONDS, TRACEBACK_SECONDS, Limits, Verdict

__all__ = ["Oversight"]

_FOR_OURS = (
    *("max_requests", "request_timeout", "slow_log"),
    *("status_path", "ping_path", "access_log"),
)
"""What only a program does that uses fcgi_app."""


class Oversight:
    """Holds the limits of a pool against its workers, when it is time to look.

    It ends requests that take too long, reports slow ones, and marks workers that have
    become too large for replacement. Of a program that does not use fcgi_app, only the
    memory is seen.

    Args:
        pool: its limits.
        label: the pool and the socket, for messages.
        now: of the monotonic clock.
    """

    def __init__(self, pool: PoolConfig, label: str, now: float) -> None:
        self._pool = pool
        self._label = label
        self._limits = Limits.of(pool)
        self._pause = self._limits.pause(0.0, busy=True)
        self._look_at = now + self._pause
        self._told_foreign = not any(getattr(pool, name) for name in _FOR_OURS)

    def due(self) -> float:
        """Return when `turn` looks next."""
        return self._look_at

    def turn(self, now: float, members: Iterable[Member]) -> None:
        """Look, if it is time to.

        Args:
            now: of the clock.
            members: all that have not ended.
        """
        if now < self._look_at:
            return
        busy, due = False, inf
        for member in members:
            self.note_ready(member)
            state = member.told()
            if state is not None:
                due = min(due, self._look_at_request(now, member, state))
            if self._limits.max_rss and not member.leaves:
                busy |= self._look_at_memory(now, member, state)
            elif state is not None:
                busy |= state.active > 0 or member.note_count(state.requests)
        self._pause = self._limits.pause(self._pause, busy)
        self._look_at = min(due, now + self._pause)

    def note_ready(self, member: Member) -> None:
        """Say once, if a worker is not ours, what has no effect on it."""
        if self._told_foreign or member.seat is None:
            return
        if member.told() is not None:
            self._told_foreign = True
        # Before it waits, it may be ours and load its modules.
        elif waits_for_clients(member.pid) is True:
            self._told_foreign = True
            names = [name for name in _FOR_OURS if getattr(self._pool, name)]
            log_warning(
                "%s: worker %d does not use fcgi_app, or not in this process: without"
                " effect on it: %s",
                *(self._label, member.pid, ", ".join(names)),
            )

    # Requests

    def _look_at_request(self, now: float, member: Member, state: SlotState) -> float:
        """Do what is due about the oldest request; return when to look again."""
        started = state.request_started
        # The worker has written it, and may have written anything.
        if state.active == 0 or not 0 < started <= now:
            return inf
        verdict = member.lateness.judge(self._limits, started, now)
        if verdict is Verdict.REPORT:
            self._report(member, state, f"is slow: {now - started:.3f} s")
            if member.seat is not None:
                count_up(member.seat.board, "slow_requests")
        elif verdict is Verdict.END:
            took = now - started
            self._report(member, state, f"takes too long: {took:.3f} s; ending it")
            kill_at = max(
                started + self._limits.request_timeout + GRACE_SECONDS,
                now + TRACEBACK_SECONDS,
            )
            member.expel(now + TRACEBACK_SECONDS, kill_at)
        return member.lateness.due(self._limits, started)

    def _report(self, member: Member, state: SlotState, what: str) -> None:
        """Log a request in one line, and have the worker write where it is."""
        log_warning(
            "%s: worker %d: request %s %s",
            *(self._label, member.pid, what, _describe(state)),
        )
        if state.traceback_signal >= signal.SIGRTMIN:
            member.send(state.traceback_signal)

    # Memory

    def _look_at_memory(
        self, now: float, member: Member, state: SlotState | None
    ) -> bool:
        """Tell whether a worker has done something; if so, look how large it is."""
        before = member.quiet_since
        if state is None:
            member.note_activity(now)
            active = member.quiet_since != before
        else:
            active = member.note_count(state.requests) or state.active > 0
        if active:
            size = read_rss(member.pid)
            if size is not None and size > self._limits.max_rss:
                log_info(
                    "%s: worker %d has %d MiB of memory",
                    *(self._label, member.pid, size >> 20),
                )
                member.wear_out(now, "is too large")
        return active


def _describe(state: SlotState) -> str:
    """Name a request; what the web server has sent is escaped."""
    text = f"{state.method or '-'} {state.uri or state.script or '-'}"
    return text.encode("unicode_escape").decode("ascii")
