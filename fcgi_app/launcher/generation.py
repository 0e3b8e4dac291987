"""All workers that were started from one configuration; a reload makes a new one."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

from ..errors import ConfigError, describe_error
from ..scoreboard import Scoreboard
from .equipping import Equipper
from .handover import WorkerRecord
from .listeners import Listener, Place, open_listener, places_of
from .member import Member
from .pool import PoolConfig, ServiceConfig
from .relay import Outlet
from .roster import Ended, Roster
from .seat import Seat

__all__ = ["Generation"]


class Generation:
    """The rosters of a service, and the sockets that they use.

    Sockets that are there already are used again; the others are opened, and closed
    again if that fails for one.

    Args:
        service: what to run.
        outlet: where goes what the workers print; borrowed.
        existing: sockets of the generation before it; they stay that one's.
        equipper: knows what workers get besides what the configuration says; borrowed.
        most: workers of a pool, where it is not what the pool says.

    Attributes:
        service: as given.
        listeners: the sockets in use, new ones too.
        rosters: one for each socket.

    Raises:
        ConfigError: an address, a user or a group is not usable.
        OSError: the system refuses a socket, a scoreboard or an access log.
    """

    def __init__(
        self,
        service: ServiceConfig,
        outlet: Outlet,
        existing: Iterable[Listener],
        equipper: Equipper,
        *,
        most: Mapping[str, int] | None = None,
    ) -> None:
        self.service = service
        self.listeners: list[Listener] = []
        self.rosters: list[Roster] = []
        self._ended: list[tuple[Roster, list[Ended]]] = []
        self._active = False
        at_hand = {listener.place: listener for listener in existing}
        taken: dict[str, int] = {}
        try:
            for pool in equipper.pools_of(service):
                equipment = equipper.equip(pool, service)
                for place in places_of(pool, taken):
                    listener = at_hand.get(place) or open_listener(place, pool)
                    self.listeners.append(listener)
                    number = (most or {}).get(pool.name)
                    self.rosters.append(
                        Roster(pool, listener, outlet, most=number, equipment=equipment)
                    )
        except BaseException:
            self.close_but(at_hand.values())
            raise

    @property
    def members(self) -> list[Member]:
        """All workers that have not been reaped."""
        return [member for roster in self.rosters for member in roster.members]

    @property
    def boards_by_pool(self) -> dict[str, Scoreboard]:
        """The scoreboards of these workers, by the name of the pool."""
        return {r.pool.name: r.board for r in self.rosters if r.board is not None}

    @property
    def watched(self) -> dict[int, Roster]:
        """The sockets to be watched, by descriptor."""
        if not self._active:
            return {}
        return {r.watched: r for r in self.rosters if r.watched >= 0}

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be done after `leave`."""
        return all(roster.is_done for roster in self.rosters)

    @property
    def most(self) -> dict[str, int]:
        """How many workers each pool of the service may have now, for an address."""
        names = {pool.name for pool in self.service.pools}
        return {r.pool.name: r.most for r in self.rosters if r.pool.name in names}

    @property
    def changed_most(self) -> dict[str, int]:
        """The same, of those pools alone where it is not what the service says."""
        said = {pool.name: pool.workers for pool in self.service.pools}
        return {name: n for name, n in self.most.items() if n != said[name]}

    def pool_of(self, member: Member) -> str:
        """Return the name of the pool of a worker that was reaped last."""
        for roster, ended in self._ended:
            if any(each.member is member for each in ended):
                return roster.pool.name
        return ""

    def start(self) -> None:
        """Start the workers that run from the beginning.

        Raises:
            WorkerError: one cannot be started. Those before it run.
        """
        for roster in self.rosters:
            roster.start_first()

    def is_ready(self) -> bool:
        """Tell whether all of these have started."""
        waiting = [r for r in self.rosters if not r.is_ready()]
        return not waiting

    def change_most(self, name: str, number: int) -> None:
        """Run so many workers of a pool at most, for each address."""
        for roster in self.rosters:
            if roster.pool.name == name:
                roster.change_most(number)

    def commit(self) -> None:
        """From now on workers are replaced, and started and stopped as needed."""
        self._active = True

    def turn(self) -> None:
        """Do everything that is to do now."""
        if self._active:
            for roster in self.rosters:
                roster.turn()

    def due(self) -> float:
        """Return when `turn` has something to do next, or `is_ready` changes."""
        if not self._active:
            return min((roster.start_due() for roster in self.rosters), default=inf)
        return min((roster.due() for roster in self.rosters), default=inf)

    def reap(self) -> list[Ended]:
        """Return the workers that have ended, and forget them."""
        self._ended = [(roster, roster.reap()) for roster in self.rosters]
        return [each for _, ended in self._ended for each in ended]

    def note_ends(self) -> None:
        """Report what `reap` has returned."""
        for roster, ended in self._ended:
            roster.note_ends(ended)

    def leave(
        self,
        *,
        quick: bool = False,
        after: Generation | None = None,
        last: bool = False,
    ) -> None:
        """Stop all workers.

        Args:
            quick: at once.
            after: who serves from now on; sockets that it does not have are served
                until their queues are empty, and closed.
            last: nobody serves from now on, which is the same for all sockets.
        """
        self._active = True
        kept = {id(each) for each in after.listeners} if after is not None else set()
        for roster in self.rosters:
            gone = after is not None and id(roster.listener) not in kept
            roster.leave(quick=quick, last=last or gone)

    def kill(self) -> None:
        """Kill all workers; they are still to be reaped."""
        for member in self.members:
            member.kill()

    def kill_all(self) -> None:
        """Kill and reap all workers."""
        for roster in self.rosters:
            roster.kill_all()

    # Sockets

    def sockets_of(self, name: str) -> list[socket.socket]:
        """Return the sockets of a pool that are open."""
        found = [r.listener.socket for r in self.rosters if r.pool.name == name]
        return [each for each in found if each.fileno() >= 0]

    def apply_to_sockets(self, before: Generation) -> list[str]:
        """Give sockets that stay the backlog, mode and owner that are new.

        Returns:
            What went wrong, a line for each socket; it stays what it was.
        """
        errors = []
        pools = {id(roster.listener): roster.pool for roster in before.rosters}
        for roster in self.rosters:
            pool = pools.get(id(roster.listener))
            if pool is None or _socket_of(pool) == _socket_of(roster.pool):
                continue
            try:
                roster.listener.apply(roster.pool)
            except (ConfigError, OSError) as error:
                errors.append(f"{roster.label}: {describe_error(error)}")
        return errors

    def drop_unused(self, before: Iterable[Listener]) -> None:
        """Close the sockets that were used before and are not any more."""
        used = {id(listener) for listener in self.listeners}
        for listener in before:
            if id(listener) not in used:
                listener.close()

    def close_but(self, kept: Iterable[Listener]) -> None:
        """Close the sockets that are not among those."""
        others = {id(listener) for listener in kept}
        for listener in self.listeners:
            if id(listener) not in others:
                listener.close()

    # An exec

    def records(self, boards: Mapping[str, Scoreboard]) -> list[WorkerRecord]:
        """Describe the workers to the program that is executed next.

        Args:
            boards: the scoreboards that it gets, by the name of the pool.
        """
        return [
            WorkerRecord(
                *roster.listener.place,
                member.pid,
                member.started,
                member.expires,
                member.relay.descriptor,
                member.leaves,
                roster.pool.name,
                _slot_in(boards.get(roster.pool.name), member.seat),
                member.relay.rest.decode("latin-1"),
                member.was_terminated,
                member.kill_at,
            )
            for roster in self.rosters
            for member in roster.members
        ]

    def adopt(
        self, records: Sequence[WorkerRecord], boards: Mapping[str, Scoreboard]
    ) -> None:
        """Take over the workers that were started before an exec.

        Those of an address that is not used any more are asked to stop.

        Args:
            records: what `records` has said.
            boards: the scoreboards from before the exec; a pool may have a new one.
        """
        by_place: dict[Place, Roster] = {r.listener.place: r for r in self.rosters}
        for record in records:
            roster = by_place.get((record.address, record.number))
            if roster is None:
                roster = self.rosters[0]
                record = replace(record, leaving=True)
            same = record.pool == roster.pool.name
            if not same or roster.board is not boards.get(record.pool):
                record = replace(record, slot=None)  # it is of another scoreboard
            roster.adopt(record)
        self.commit()


def _slot_in(board: Scoreboard | None, seat: Seat | None) -> int | None:
    """Return the number of a slot in this scoreboard; None: it is in another one."""
    return seat.number if seat is not None and seat.board is board else None


def _socket_of(pool: PoolConfig) -> tuple[object, ...]:
    return pool.backlog, pool.socket_mode, pool.socket_owner
