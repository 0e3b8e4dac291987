"""The workers that share one listening socket."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from time import monotonic

from .._log import log_info, log_warning
from ..errors import WorkerError, describe_error
from ..scoreboard import SlotState
from .chance import draw_chance
from .handover import AdoptedWorker, WorkerRecord
from .listeners import Listener
from .member import Member
from .oversight import Oversight
from .policy import (
    LONGEST_DELAY,
    Brake,
    Sight,
    Sizing,
    count_to_start,
    count_to_stop,
    next_step,
)
from .pool import PoolConfig
from .relay import Outlet, Relay
from .seat import Seat, count_up
from .starter import Equipment, Starter, is_short_of_something

__all__ = ["Ended", "Roster"]

SETTLE_SECONDS = 0.05
"""A client that has waited so long waits because no worker is free."""

LOOK_SECONDS = 1.0
"""Seconds between looks at workers that may be too many; fewer where ``idle_timeout``
is short."""

DRAIN_SECONDS = 0.02
"""Between looks at the queue of a socket that is to be closed."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Ended:
    """A worker that has ended.

    Attributes:
        member: the worker.
        status: its exit status, negative for a signal.
        told: what it had told last; None: nothing.
    """

    member: Member
    status: int
    told: SlotState | None = None

    @property
    def is_planned(self) -> bool:
        """Whether it has ended as it was to, after its last request."""
        told = self.told
        return (
            self.status == 0
            and told is not None
            and 0 < told.max_requests <= told.requests
        )

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
        outlet: where goes what they print; borrowed.
        most: how many workers at most; None: what the pool says.
        equipment: what workers get besides what the pool says.

    Attributes:
        members: all workers that have not been reaped.
        most: how many there may be.

    Raises:
        ConfigError: there is no such user or group.
    """

    def __init__(
        self,
        pool: PoolConfig,
        listener: Listener,
        outlet: Outlet,
        *,
        most: int | None = None,
        equipment: Equipment | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.pool = pool
        self.listener = listener
        self.members: list[Member] = []
        self.most = pool.workers if most is None else most
        self._outlet = outlet
        self._clock = clock
        equipment = equipment or Equipment()
        self.board = equipment.board
        self._starter = Starter(pool, listener, outlet, self.label, equipment)
        self._oversight = Oversight(pool, self.label, clock())
        self._brake = Brake(draw_chance)
        self._step = 1
        self._look_at = inf
        self._settles_at = inf
        self._drains_until = -inf
        self._kill_by = inf
        self._has_been_full = False
        self._closing = False
        self._last = False

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

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be done, or can be, after `leave`."""
        return self._closing and all(m.out_of_reach for m in self.members)

    @property
    def is_emptying(self) -> bool:
        """Whether the queue of a socket is served that is to be closed."""
        return self._kill_by < inf and not self._closing

    def is_ready(self) -> bool:
        """Tell whether all workers wait for clients, or have proven that they live."""
        return not self._count_starting(self._clock())

    def due(self) -> float:
        """Return when `turn` has something to do, without anything happening before."""
        now = self._clock()
        found = [member.due(now) for member in self.members]
        if self.members:
            found.append(self._oversight.due())
        if not self._closing:
            if self._kill_by < inf:
                found.append(now + DRAIN_SECONDS)
            found += [self._brake.proof_due(member.started) for member in self.serving]
            found += [self._look_at, self._settles_at]
            if self._wants_more():
                starting = sum(not member.ready for member in self.serving)
                found.append(self._brake.next_start(now, starting))
        return min(found, default=inf)

    def start_due(self) -> float:
        """Return when `is_ready` has to be asked again."""
        now = self._clock()
        found = (m.due(now) for m in self.serving if not m.ready)
        return min(found, default=inf)

    # What others tell

    def start_first(self) -> None:
        """Start the workers that run from the beginning.

        Where the first has started, and the system has nothing to give for another, the
        rest is started later, as one that has ended.

        Raises:
            WorkerError: one cannot be started. Those before it run.
            OSError: there are no descriptors.
        """
        for number in range(self._sizing().least):
            try:
                self._start()
            except (WorkerError, OSError) as error:
                if number == 0 or not is_short_of_something(error):
                    raise
                self._report_no_start(error)
                return

    def adopt(self, record: WorkerRecord) -> None:
        """Take over a worker that this process has started before an exec."""
        relay = Relay(self._outlet, record.pipe, record.rest.encode("latin-1"))
        process = AdoptedWorker(record.pid)
        member = Member(process, relay, record.started, record.expires, ready=True)
        member.quiet_since = self._clock()
        board, slot = self.board, record.slot
        if board is not None and slot is not None and slot < board.capacity:
            member.seat = Seat(board, slot)
        self.members.append(member)
        if record.leaving:
            now = self._clock()
            kill_at = min(record.kill_at, now + self.pool.stop_timeout)
            member.go_on_leaving(now, kill_at, terminated=record.terminated)

    def change_most(self, number: int) -> None:
        """Run so many workers at most (scale, TTIN, TTOU), from 1 on."""
        self.most = max(1, number)
        log_info("%s: at most %d workers", self.label, self.most)

    def leave(self, *, quick: bool = False, last: bool = False) -> None:
        """Stop all workers.

        Args:
            quick: at once. May come later than a leave that is not.
            last: nobody else serves the socket. Unless ``quick``, it is served until
                nobody waits in its queue, for half of the ``stop_timeout`` at most,
                and then closed.
        """
        now = self._clock()
        self._last |= last
        if last and not self._closing:
            self.listener.remove_file()
            if not quick and self._kill_by == inf:
                self._kill_by = now + self.pool.stop_timeout
                self._drains_until = now + self.pool.stop_timeout / 2
        if quick or not self._is_draining():
            self._let_go(now, quick)

    def _is_draining(self) -> bool:
        """Tell whether workers still serve who waits in the queue."""
        now = self._clock()
        if self._closing or now >= self._drains_until:
            return False
        hopeless = not self.serving and now < self._brake.not_before
        return not hopeless and self.listener.has_client()

    def _let_go(self, now: float, quick: bool) -> None:
        """Ask all workers to stop; nobody else is started."""
        self._closing = True
        timeout = max(0.0, min(self.pool.stop_timeout, self._kill_by - now))
        for member in self.members:
            member.leave(now, timeout, quick=quick)
            member.push(now)
        if self._last:
            self.listener.close()

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
                if member.leaves and status < 0:
                    # A shell that has not exec'ed the program has died alone, and the
                    # program holds our socket. Ours exit, and may leave an answer to
                    # a child.
                    member.end_group()
                member.relay.drain()
                ended.append(Ended(member, status, member.told()))
                if member.seat is not None:
                    member.seat.release()
        gone = {id(each.member) for each in ended}
        self.members = [m for m in self.members if id(m) not in gone]
        return ended

    def note_ends(self, ended: Iterable[Ended]) -> None:
        """Report the ends that nobody asked for, and slow down if there are many."""
        now = self._clock()
        for each in ended:
            if each.member.leaves or self._closing:
                continue
            if each.is_planned:
                assert each.told is not None
                log_info(
                    "%s: worker %d has answered %d requests",
                    *(self.label, each.member.pid, each.told.requests),
                )
                continue
            if self.board is not None:
                count_up(self.board, "restarts")
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
        if self._kill_by < inf and not (self._closing or self._is_draining()):
            self._let_go(now, quick=False)
        self._oversight.turn(now, self.members)
        for member in self.members:
            if member.leaves:
                member.push(now)
        if self._closing:
            return
        starting = self._count_starting(now)
        for member in self.serving:
            self._brake.note_life(now, member.started)
        waiting = now >= self._settles_at and self.listener.has_client()
        self._resize(now, starting, waiting)
        self._replace_old(now)

    def _count_starting(self, now: float) -> int:
        """Count who is not known to wait for clients yet."""
        starting = [member for member in self.serving if not member.ready]
        for member in starting:
            if member.note_readiness(now):
                self._oversight.note_ready(member)
        return sum(not member.ready for member in starting)

    def _resize(self, now: float, starting: int, waiting: bool) -> None:
        """Start and stop as many as the policy says."""
        sizing = self._sizing()
        idle = self._count_idle(now)
        quiet = self._count_quiet(now)
        sight = Sight(len(self.serving), starting, quiet, waiting, idle)
        wanted = count_to_start(sizing, sight, self._step)
        allowed = self._brake.allowance(now, starting)
        started = 0
        while started < min(wanted, allowed) and self._start_or_report():
            started += 1
        if idle is not None or now >= self._settles_at:
            self._step = next_step(self._step, started)
        if now >= self._settles_at:
            # Who waits now may wait for the workers that have been started.
            self._settles_at = now + SETTLE_SECONDS if waiting else inf
            if not self._may_grow():
                self._settles_at = inf
        surplus = count_to_stop(sizing, sight)
        by_rest = sorted(self.serving, key=lambda member: member.quiet_since)
        for member in by_rest[:surplus]:
            log_info("%s: worker %d is not needed", self.label, member.pid)
            member.leave(now, self.pool.stop_timeout)

    def _count_idle(self, now: float) -> int | None:
        """Count who tells that he serves nobody; None: not all tell, or it is not time.

        Time is when a client has come, and once a second while any worker serves.
        """
        if self.pool.manager == "static" or now < min(self._settles_at, self._look_at):
            return None
        ready = [member for member in self.serving if member.ready]
        told = [state for member in ready if (state := member.told()) is not None]
        if not told or len(told) < len(ready):
            return None
        idle = sum(state.state == "idle" for state in told)
        full = idle == 0 and len(self.serving) >= self.most
        if full and not self._has_been_full and self.board is not None:
            count_up(self.board, "most_reached")
        self._has_been_full = full
        return idle

    def _count_quiet(self, now: float) -> int:
        """Count who has rested for the idle timeout; 0 if it is not time to look."""
        serving, sizing = self.serving, self._sizing()
        few = len(serving) <= max(sizing.least, sizing.spare)
        late = now >= min(self._settles_at, self._look_at)
        if not late and (few or self._look_at < inf):
            return 0
        states = [member.told() for member in serving]
        # Whoever serves may leave too few for those who come next.
        dynamic = sizing.manager == "dynamic"
        busy = dynamic and any(told and told.state != "idle" for told in states)
        self._look_at = now + LOOK_SECONDS if busy else inf
        if few:
            return 0
        timeout = self.pool.idle_timeout
        for member in serving:
            member.note_activity(now)
        ends = [member.quiet_since + timeout for member in serving]
        if None in states:  # it may have been at work between two looks
            ends.append(now + min(LOOK_SECONDS, timeout / 2))
        later = min((end for end in ends if end > now), default=now + timeout)
        self._look_at = min(self._look_at, later)
        return sum(end <= now for end in ends)

    def _replace_old(self, now: float) -> None:
        """Start successors of the workers that are too old, and let these go."""
        for member in self.serving:
            if now < member.expires:
                continue
            if now < self._brake.not_before or not self._start_or_report():
                member.expires = max(now, self._brake.not_before)
            else:
                log_info("%s: worker %d %s", self.label, member.pid, member.worn_out)
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

    # Starting

    def _start_or_report(self) -> bool:
        try:
            self._start()
        except (WorkerError, OSError) as error:
            self._report_no_start(error)
            return False
        return True

    def _start(self) -> None:
        self.members.append(self._starter.start(self._clock()))

    def _report_no_start(self, error: Exception) -> None:
        log_warning("%s: %s", self.label, describe_error(error))
        if self._brake.note_failure(self._clock()):
            self._report_failure()

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
            while member.process.poll() is None and not member.out_of_reach:
                os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)
            member.relay.drain()
            member.relay.close()
            if member.seat is not None:
                member.seat.release()
        self.members.clear()
