"""From one generation of workers to the next: start, reload, stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import inf

from .._log import log_info, log_warning
from ..addresses import AddressKind, parse_address
from ..errors import FcgiAppError, WorkerError, describe_error
from ..scoreboard import Scoreboard
from .attendant import Event
from .equipping import Equipper
from .generation import Generation
from .handover import Handover
from .listeners import Listener, open_listener, places_of
from .logfiles import LogFiles
from .member import Member
from .pool import ServiceConfig
from .relay import Outlet, Relay
from .roster import Ended

__all__ = ["Succession"]

Load = Callable[[], ServiceConfig]

_MADE = (AddressKind.UNIX, AddressKind.ABSTRACT, AddressKind.TCP)
"""Sockets that we make, and were not passed to us."""


class Succession:
    """All workers of a supervisor: those that serve, that come, and that leave.

    It never waits. Its owner calls `reap` and `work` after every event.

    Args:
        outlet: where goes what the workers print; borrowed.
        note: told what happens, in the words of `Event`.

    Attributes:
        current: who serves; None before the first start has succeeded, and when all
            have been asked to stop.
        coming: who is being started.
        leaving: who has been asked to stop.
        equipper: what the workers share with us.
        strays: what ended workers have left to be read.
        has_killed: a worker had to be killed since `stop`.
    """

    def __init__(self, outlet: Outlet, note: Callable[[Event, str], object]) -> None:
        self._outlet = outlet
        self._note = note
        self.current: Generation | None = None
        self.coming: Generation | None = None
        self.leaving: list[Generation] = []
        self.equipper = Equipper()
        self.strays: list[Relay] = []
        self.has_killed = False
        self._again: Load | None = None
        self._stopping = False
        self._killed_before: set[Member] = set()
        self._requests = 0

    # What there is

    def __iter__(self) -> Iterator[Generation]:
        """Give all generations."""
        return iter([g for g in (self.coming, self.current, *self.leaving) if g])

    @property
    def is_over(self) -> bool:
        """Whether there is none left."""
        return not any(True for _ in self)

    @property
    def is_steady(self) -> bool:
        """Whether one serves and none comes."""
        return self.current is not None and self.coming is None

    @property
    def can_hand_over(self) -> bool:
        """Whether an exec loses nothing: `is_steady`, and no socket is emptied."""
        rosters = [roster for each in self.leaving for roster in each.rosters]
        return self.is_steady and not any(each.is_emptying for each in rosters)

    @property
    def latest(self) -> Generation | None:
        """Who serves; else who comes, or who is the last to leave."""
        if self.current is not None:
            return self.current
        return next(iter(self), None)

    def relays(self) -> dict[int, Relay]:
        """Return the open pipes of the workers, by descriptor."""
        self.strays = [relay for relay in self.strays if relay.descriptor >= 0]
        relays = list(self.strays)
        for generation in self:
            relays += [member.relay for member in generation.members]
        return {relay.descriptor: relay for relay in relays if relay.descriptor >= 0}

    def due(self) -> float:
        """Return when `work` has something to do."""
        return min((generation.due() for generation in self), default=inf)

    # The start

    def start(self, service: ServiceConfig) -> None:
        """Start the first workers.

        Raises:
            ConfigError, OSError: what it takes cannot be had.
            WorkerError: one cannot be started.
        """
        self.coming = Generation(service, self._outlet, (), self.equipper)
        self._describe(self.coming)
        self.coming.start()

    def adopt(self, service: ServiceConfig, handover: Handover) -> None:
        """Take over the workers that were started before an exec.

        Raises:
            ConfigError, OSError: what it takes cannot be had.
        """
        boards = self.equipper.boards
        boards.adopt(handover.boards)
        adopted = dict(boards.current)
        self.strays += [Relay(self._outlet, pipe) for pipe in handover.strays]
        try:
            generation = Generation(
                service,
                self._outlet,
                handover.listeners,
                self.equipper,
                most=handover.most,
            )
        except BaseException:  # the workers end with this process
            for listener in handover.listeners:
                listener.close()
            raise
        generation.adopt(handover.workers, adopted)
        self.current = generation
        generation.drop_unused(handover.listeners)
        self._describe(generation)

    def hand_over(self) -> Handover:
        """Return what `adopt` takes."""
        assert self.current is not None
        handover = Handover(
            listeners=self.current.listeners,
            most=self.current.changed_most,
            boards=self.equipper.boards.descriptors(),
            strays=[r.descriptor for r in self.strays if r.descriptor >= 0],
        )
        for generation in self:
            handover.workers += generation.records(self.equipper.boards.current)
        return handover

    def try_sockets(self, service: ServiceConfig) -> None:
        """Open and close again the sockets and files that `adopt` would have to open.

        Those that were passed to us are left alone: they can be taken only once.

        Raises:
            ConfigError, OSError: one cannot be had.
        """
        assert self.current is not None
        at_hand = {listener.place for listener in self.current.listeners}
        taken: dict[str, int] = {}
        files = LogFiles()
        with ExitStack() as stack:
            stack.callback(files.close)
            for pool in self.equipper.pools_of(service):
                if pool.access_log is not None:
                    files.open(pool.access_log)
                for place in places_of(pool, taken):
                    if place not in at_hand and parse_address(place[0]).kind in _MADE:
                        stack.callback(open_listener(place, pool).close)

    # One turn

    def reap(self) -> None:
        """Take note of the workers that have ended.

        Raises:
            WorkerError: one of the first start has.
        """
        for generation in self:
            ended = generation.reap()
            self.strays += [each.member.relay for each in ended]
            if self._stopping:
                killed = {e.member for e in ended if e.member.was_killed}
                self.has_killed |= bool(killed - self._killed_before)
            # One that has had its last request is replaced when all have started.
            failed = [each for each in ended if not each.is_planned]
            if generation is self.coming and failed:
                self._give_up(generation, failed[0])
            else:
                generation.note_ends()

    def work(self) -> None:
        """Let every generation do what is due."""
        for generation in self:
            generation.turn()
        if self.coming is not None and self.coming.is_ready():
            self._take_over(self.coming)
        left = [generation for generation in self.leaving if not generation.is_done]
        if len(left) < len(self.leaving):
            self.leaving = left
            self._settle()
        if self._again is not None and self.is_steady:
            load, self._again = self._again, None
            self.renew(load)
            self.work()  # a pool without workers is ready at once

    def _take_over(self, coming: Generation) -> None:
        """Let the workers that have started take the place of those before them."""
        before, self.current, self.coming = self.current, coming, None
        coming.commit()
        if before is None:
            for listener in coming.listeners:
                log_info("listening on %s, pid %d", listener.address, os.getpid())
            self._note("ready", "")
            return
        for error in coming.apply_to_sockets(before):
            log_warning("%s", error)
        before.leave(after=coming)
        self.leaving.append(before)
        self._settle()
        log_info("reloaded")
        self._note("reloaded", "")

    # A reload

    def renew(self, load: Load | None = None) -> None:
        """Start the workers anew, beside those that serve; later, if some come already.

        Args:
            load: gives what to run from now on; None: what runs now, and as many.
        """
        if self._stopping:
            return
        if not self.is_steady:
            self._again = load or self._again or self._reload_same
            return
        assert self.current is not None
        self._note("reloading", "")
        coming: Generation | None = None
        load = load or self._reload_same
        try:
            coming = Generation(
                load(),
                self._outlet,
                self.current.listeners,
                self.equipper,
                most=self.current.most if load == self._reload_same else None,
            )
            self.coming = coming
            self._describe(coming)
            coming.start()
        except (FcgiAppError, OSError) as error:
            self._abandon(coming, describe_error(error))

    def _reload_same(self) -> ServiceConfig:
        assert self.current is not None
        return self.current.service

    def _give_up(self, coming: Generation, ended: Ended) -> None:
        """Take back a start that has failed, because a worker has ended.

        Raises:
            WorkerError: it was the first start.
        """
        name, worker = coming.pool_of(ended.member), ended.member
        what = f"worker {worker.pid} ended with {ended.describe()} right at its start"
        message = "\n".join([f"pool {name}: {what}", *worker.relay.lines])
        if self.current is None:
            raise WorkerError(message)
        self._abandon(coming, message)

    def _abandon(self, coming: Generation | None, reason: str) -> None:
        assert self.current is not None
        log_warning("reload failed, the workers stay as they are: %s", reason)
        self.coming = None
        if coming is not None:
            coming.leave()  # they may have clients already
            coming.close_but(self.current.listeners)
            self.leaving.append(coming)
        self.equipper.boards.put_back(self.current.boards_by_pool)
        self._describe(self.current)
        self._settle()
        self._note("reload failed", reason)

    # Scoreboards

    def _describe(self, generation: Generation) -> None:
        """Write into the scoreboards what is about to run."""
        boards = self.equipper.boards
        boards.describe(generation.service.pools, generation.most)

    def scale(self, name: str, number: int) -> None:
        """Run so many workers of a pool at most, for each address."""
        if self.current is not None:
            self.current.change_most(name, number)
            self._describe(self.current)

    def observe(self) -> bool:
        """Note in the scoreboards how many clients wait, and how many are served.

        Returns:
            Whether any requests have come since the last time, or are being served.
        """
        from ..status.observe import observe  # only where somebody looks

        if self.current is None:
            return False
        before, self._requests, active = self._requests, 0, 0
        for name, board in self.current.boards_by_pool.items():
            observe(board, self.current.sockets_of(name))
            self._requests += board.header.ended_requests
            for state in board.read_all():
                self._requests += state.requests
                active += state.active
        return active > 0 or self._requests != before

    def _settle(self) -> None:
        """Let go of what no pool needs any more."""
        if self.current is not None and self.coming is None:
            self.equipper.settle(self.current.service, self._used_boards())

    def _used_boards(self) -> list[Scoreboard]:
        return [b for g in self for b in g.boards_by_pool.values()]

    # The end

    def stop(self, *, quick: bool) -> None:
        """Ask all to stop; again with ``quick`` to hurry them."""
        if not self._stopping:
            members = [member for each in self for member in each.members]
            self._killed_before = {each for each in members if each.was_killed}
        self._stopping = True
        self._again = None
        coming, current, leaving = self.coming, self.current, self.leaving
        # Who was asked before may be draining a socket that is nobody else's.
        self.leaving = list(self)
        self.coming = self.current = None
        for generation in leaving:
            generation.leave(quick=quick)
        if coming is not None:
            coming.leave(quick=quick)
            coming.close_but(() if current is None else current.listeners)
        if current is not None:
            current.leave(quick=quick, last=True)

    def kill(self) -> None:
        """Kill all; they are still to be reaped."""
        self.has_killed = True
        for generation in self:
            generation.kill()

    def close(self) -> None:
        """Kill and reap all, and leave nothing behind."""
        listeners = list(self._listeners())
        for generation in self:
            generation.kill_all()
        for listener in listeners:
            listener.close()
        for relay in self.strays:
            relay.close()
        self.equipper.close()

    def _listeners(self) -> Iterator[Listener]:
        """Give all sockets that are open."""
        found: dict[int, Listener] = {}
        for generation in self:
            found |= {id(listener): listener for listener in generation.listeners}
        return (each for each in found.values() if each.socket.fileno() >= 0)
