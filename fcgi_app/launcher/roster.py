"""The workers that share one listening socket."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from random import random
from time import monotonic

from .._log import log_info, log_warning
from ..errors import WorkerError
from .childsetup import prepare_child
from .handover import AdoptedWorker, WorkerRecord
from .identity import worker_environment
from .listeners import Listener
from .member import Member
from .policy import (
    LONGEST_DELAY,
    Brake,
    Sight,
    Sizing,
    count_to_start,
    count_to_stop,
    draw_lifetime,
    next_step,
)
from .pool import PoolConfig
from .relay import Outlet, Relay
from .workers import spawn

__all__ = ["Ended", "Roster"]

SETTLE_SECONDS = 0.05
"""A client that has waited so long waits because no worker is free."""

LOOK_SECONDS = 1.0
"""Seconds between looks at workers that may be too many; fewer where ``idle_timeout``
is short."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Ended:
    """A worker that has ended.

    Attributes:
        member: the worker.
        status: its exit status, negative for a signal.
    """

    member: Member
    status: int

    def describe(self) -> str:
        """Say how, for a message."""
        if self.status < 0:
            return f"signal {-self.status}"
        return f"exit status {self.status}"


class Roster:
    """Starts, watches, replaces and stops the workers of one socket of a pool.

    It never waits. Its owner polls `watched`, and calls `turn` when `due` has come, or
    anything else.

    Args:
        pool: what to run.
        listener: borrowed.
        most: how many workers at most; None: what the pool says.

    Attributes:
        members: all workers that have not been reaped.
    """

    def __init__(
        self,
        pool: PoolConfig,
        listener: Listener,
        outlet: Outlet,
        *,
        most: int | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.pool = pool
        self.listener = listener
        self.members: list[Member] = []
        self.most = pool.workers if most is None else most
        self._outlet = outlet
        self._clock = clock
        self._environment = worker_environment(pool, os.environ)
        self._prepare = prepare_child(pool)
        self._brake = Brake(random)
        self._step = 1
        self._look_at = inf
        self._settles_at = inf
        self._closing = False

    # What others ask

    @property
    def label(self) -> str:
        """The pool and the socket, for messages."""
        return f"pool {self.pool.name} on {self.listener.place[0]}"

    @property
    def serving(self) -> list[Member]:
        """The workers that have not been asked to stop."""
        return [member for member in self.members if not member.leaves]

    @property
    def watched(self) -> int:
        """The socket, if it matters now that it becomes readable; else -1."""
        if self._closing or self._settles_at < inf or not self._may_grow():
            return -1
        return self.listener.socket.fileno()

    def is_ready(self) -> bool:
        """Tell whether all workers wait for clients, or have proven that they live."""
        now = self._clock()
        starting = [m for m in self.serving if not m.note_readiness(now)]
        return not starting

    def due(self) -> float:
        """Return when `turn` has something to do, without anything happening before."""
        now = self._clock()
        found = [member.due(now) for member in self.members]
        if not self._closing:
            found += [self._brake.proof_due(member.started) for member in self.serving]
            found += [self._look_at, self._settles_at]
            if self._wants_more():
                starting = sum(not member.ready for member in self.serving)
                found.append(self._brake.next_start(now, starting))
        return min(found, default=inf)

    # What others tell

    def start_first(self) -> None:
        """Start the workers that run from the beginning.

        Raises:
            WorkerError: one cannot be started. Those before it run.
        """
        for _ in range(self._sizing().least):
            self._start()

    def adopt(self, record: WorkerRecord) -> None:
        """Take over a worker that this process has started before an exec."""
        relay = Relay(self._outlet, record.pipe)
        process = AdoptedWorker(record.pid)
        member = Member(process, relay, record.started, record.expires, ready=True)
        member.quiet_since = self._clock()
        self.members.append(member)
        if record.leaving:
            member.leave(self._clock(), self.pool.stop_timeout)

    def change_most(self, difference: int) -> None:
        """Run one worker more or fewer (TTIN, TTOU); at least one."""
        self.most = max(1, self.most + difference)
        log_info("%s: at most %d workers", self.label, self.most)

    def leave(self, *, quick: bool = False) -> None:
        """Stop all workers; no other is started any more."""
        self._closing = True
        now = self._clock()
        for member in self.members:
            member.leave(now, self.pool.stop_timeout, quick=quick)
            member.push(now)

    def note_client(self) -> None:
        """Take note that the socket is readable: a client waits, maybe not for long."""
        first = not self.members and self._may_grow()
        self._settles_at = self._clock() + (0 if first else SETTLE_SECONDS)

    def reap(self) -> list[Ended]:
        """Return the workers that have ended, and forget them."""
        ended = []
        for member in self.members:
            status = member.process.poll()
            if status is not None:
                member.relay.drain()
                ended.append(Ended(member, status))
        gone = {id(each.member) for each in ended}
        self.members = [m for m in self.members if id(m) not in gone]
        return ended

    def note_ends(self, ended: Iterable[Ended]) -> None:
        """Report the ends that nobody asked for, and slow down if there are many."""
        now = self._clock()
        for each in ended:
            if each.member.leaves or self._closing:
                continue
            what = f"{self.label}: worker {each.member.pid} ended with"
            log_warning("%s %s", what, each.describe())
            if each.member.ready and each.status == -signal.SIGKILL:
                continue  # it had started well; somebody has done it
            if self._brake.note_end(now, each.member.started):
                self._report_failure()

    # One turn

    def turn(self) -> None:
        """Do everything that is to do now."""
        now = self._clock()
        for member in self.members:
            if member.leaves:
                member.push(now)
        if self._closing:
            return
        starting = sum(not member.note_readiness(now) for member in self.serving)
        for member in self.serving:
            self._brake.note_life(now, member.started)
        waiting = now >= self._settles_at and self._has_client()
        self._resize(now, starting, waiting)
        self._replace_old(now)

    def _resize(self, now: float, starting: int, waiting: bool) -> None:
        """Start and stop as many as the policy says."""
        sizing = self._sizing()
        sight = Sight(len(self.serving), starting, self._count_quiet(now), waiting)
        wanted = count_to_start(sizing, sight, self._step)
        allowed = self._brake.allowance(now, starting)
        started = 0
        while started < min(wanted, allowed) and self._start_or_report():
            started += 1
        if now >= self._settles_at:
            self._step = next_step(self._step, started if waiting else 0)
            # Who waits now may wait for the workers that have been started.
            self._settles_at = now + SETTLE_SECONDS if waiting else inf
            if not self._may_grow():
                self._settles_at = inf
        surplus = count_to_stop(sizing, sight)
        by_rest = sorted(self.serving, key=lambda member: member.quiet_since)
        for member in by_rest[:surplus]:
            log_info("%s: worker %d is not needed", self.label, member.pid)
            member.leave(now, self.pool.stop_timeout)

    def _count_quiet(self, now: float) -> int:
        """Count who has slept for the idle timeout; 0 if it is not time to look."""
        serving, sizing = self.serving, self._sizing()
        if len(serving) <= max(sizing.least, sizing.spare):
            self._look_at = inf
            return 0
        if now < self._look_at < inf:
            return 0
        for member in serving:
            member.note_activity(now)
        timeout = self.pool.idle_timeout
        self._look_at = now + min(LOOK_SECONDS, timeout / 2)
        return sum(now - member.quiet_since >= timeout for member in serving)

    def _replace_old(self, now: float) -> None:
        """Start successors of the workers that are too old, and let these go."""
        for member in self.serving:
            if now < member.expires:
                continue
            if now < self._brake.not_before or not self._start_or_report():
                member.expires = max(now, self._brake.not_before)
            else:
                log_info("%s: worker %d is old", self.label, member.pid)
                member.leave(now, self.pool.stop_timeout)

    def _sizing(self) -> Sizing:
        return Sizing.of(self.pool, self.most)

    def _wants_more(self) -> bool:
        """Tell whether workers are missing, or may not be started yet for clients."""
        serving = len(self.serving)
        pausing = self._clock() < self._brake.not_before
        return serving < self._sizing().least or (pausing and serving < self.most)

    def _may_grow(self) -> bool:
        """Tell whether a client that waits would be a reason to start a worker now."""
        if len(self.serving) >= self.most or self.pool.manager == "static":
            return False
        return self._clock() >= self._brake.not_before

    def _has_client(self) -> bool:
        poller = select.poll()
        poller.register(self.listener.socket, select.POLLIN)
        return bool(poller.poll(0))

    # Starting

    def _start_or_report(self) -> bool:
        try:
            self._start()
        except (WorkerError, OSError) as error:
            log_warning("%s: %s", self.label, error)
            if self._brake.note_failure(self._clock()):
                self._report_failure()
            return False
        return True

    def _start(self) -> None:
        relay = Relay(self._outlet)
        try:
            worker = spawn(
                self.pool.command,
                self.listener.socket,
                env=self._environment,
                stdout=relay.writer,
                stderr=relay.writer,
                new_session=True,
                die_with_parent=True,
                prepare=self._prepare,
            )
        except BaseException as error:
            relay.close_writer()
            relay.drain()
            relay.close()
            if isinstance(error, WorkerError) and relay.lines:
                raise WorkerError("\n".join([str(error), *relay.lines])) from error
            raise
        relay.close_writer()
        now = self._clock()
        lifetime = draw_lifetime(self.pool, random)
        self.members.append(Member(worker, relay, now, now + lifetime))
        log_info("%s: worker %d started", self.label, worker.pid)

    def _report_failure(self) -> None:
        brake = self._brake
        if brake.is_open:
            log_warning(
                "%s: starting has failed %d times in a row; trying one worker every"
                " %d seconds",
                *(self.label, brake.failures, LONGEST_DELAY),
            )
        else:
            pause = max(0.0, brake.not_before - self._clock())
            log_warning("%s: next start in %.1f seconds", self.label, pause)

    # The end

    def kill_all(self) -> None:
        """Kill and reap every worker, at once."""
        for member in self.members:
            member.kill()
        for member in self.members:
            while member.process.poll() is None:
                os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)
            member.relay.drain()
            member.relay.close()
        self.members.clear()
