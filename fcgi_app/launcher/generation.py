"""All workers that were started from one configuration; a reload makes a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from .handover import WorkerRecord
from .listeners import Listener, Place, open_listener, places_of
from .member import Member
from .pool import ServiceConfig
from .relay import Outlet
from .roster import Ended, Roster

__all__ = ["Generation"]


class Generation:
    """The rosters of a service, and the sockets that they use.

    Sockets that are there already are used again; the others are opened, and closed
    again if that fails for one.

    Args:
        service: what to run.
        existing: sockets of the generation before it; they stay that one's.
        most: workers of a pool, where it is not what the pool says.

    Attributes:
        listeners: the sockets in use, new ones too.
        rosters: one for each socket.

    Raises:
        ConfigError: an address, a user or a group is not usable.
        OSError: the system refuses a socket.
    """

    def __init__(
        self,
        service: ServiceConfig,
        outlet: Outlet,
        existing: Iterable[Listener],
        *,
        most: Mapping[str, int] | None = None,
    ) -> None:
        self.listeners: list[Listener] = []
        self.rosters: list[Roster] = []
        self._ended: list[tuple[Roster, list[Ended]]] = []
        self._active = False
        at_hand = {listener.place: listener for listener in existing}
        taken: dict[str, int] = {}
        try:
            for pool in service.pools:
                for place in places_of(pool, taken):
                    listener = at_hand.get(place) or open_listener(place, pool)
                    self.listeners.append(listener)
                    number = (most or {}).get(pool.name)
                    self.rosters.append(Roster(pool, listener, outlet, most=number))
        except BaseException:
            self.close_but(at_hand.values())
            raise

    @property
    def members(self) -> list[Member]:
        """All workers that have not been reaped."""
        return [member for roster in self.rosters for member in roster.members]

    @property
    def most(self) -> dict[str, int]:
        """How many workers each pool may have now."""
        return {roster.pool.name: roster.most for roster in self.rosters}

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

    def commit(self) -> None:
        """From now on workers are replaced, and started and stopped as needed."""
        self._active = True

    def turn(self) -> None:
        """Do everything that is to do now."""
        if self._active:
            for roster in self.rosters:
                roster.turn()

    def due(self) -> float:
        """Return when `turn` has something to do next."""
        return min((roster.due() for roster in self.rosters), default=inf)

    def reap(self) -> list[Ended]:
        """Return the workers that have ended, and forget them."""
        self._ended = [(roster, roster.reap()) for roster in self.rosters]
        return [each for _, ended in self._ended for each in ended]

    def note_ends(self) -> None:
        """Report what `reap` has returned."""
        for roster, ended in self._ended:
            roster.note_ends(ended)

    def leave(self, *, quick: bool = False) -> None:
        """Stop all workers."""
        self._active = True
        for roster in self.rosters:
            roster.leave(quick=quick)

    def kill(self) -> None:
        """Kill all workers; they are still to be reaped."""
        for member in self.members:
            member.kill()

    def kill_all(self) -> None:
        """Kill and reap all workers."""
        for roster in self.rosters:
            roster.kill_all()

    # Sockets

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

    def records(self) -> list[WorkerRecord]:
        """Describe the workers to the program that is executed next."""
        return [
            WorkerRecord(
                *roster.listener.place,
                member.pid,
                member.started,
                member.expires,
                member.relay.descriptor,
                member.leaves,
            )
            for roster in self.rosters
            for member in roster.members
        ]

    def adopt(self, records: Sequence[WorkerRecord]) -> None:
        """Take over the workers that were started before an exec.

        Those of an address that is not used any more are asked to stop.
        """
        by_place: dict[Place, Roster] = {r.listener.place: r for r in self.rosters}
        for record in records:
            roster = by_place.get((record.address, record.number))
            if roster is None:
                roster = self.rosters[0]
                record = WorkerRecord(**{**vars(record), "leaving": True})
            roster.adopt(record)
        self.commit()
