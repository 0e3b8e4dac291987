"""The attendants of a supervisor as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from .._log import log_warning
from ..errors import ConfigError, describe_error
from .attendant import Attendant, Event, Supervision

__all__ = ["Attendants"]


class Attendants:
    """Several attendants, opened and closed together.

    Args:
        attendants: in the order in which they are opened; closed in the reverse order.
    """

    def __init__(self, attendants: Iterable[Attendant] = ()) -> None:
        self._all = list(attendants)
        self._open: list[Attendant] = []
        self._owners: dict[int, Attendant] = {}

    def open(self, supervision: Supervision) -> None:
        """Open all.

        Raises:
            ConfigError, OSError: one cannot be opened; all are closed.
        """
        for attendant in self._all:
            self._open.append(attendant)  # `close` comes after a failed `open`, too
            try:
                attendant.open(supervision)
            except BaseException:
                self.close()
                raise

    def open_again(self, supervision: Supervision) -> None:
        """Open all after an exec, also a failed one; who cannot be is left out."""
        for attendant in self._all:
            try:
                attendant.open(supervision)
            except (ConfigError, OSError) as error:
                log_warning("cannot be opened again: %s", describe_error(error))
                attendant.close()
            else:
                self._open.append(attendant)

    def watched(self) -> Mapping[int, int]:
        """Return descriptor → events of poll(2)."""
        found: dict[int, int] = {}
        self._owners = {}
        for attendant in self._open:
            for descriptor, events in attendant.watched().items():
                found[descriptor] = events
                self._owners[descriptor] = attendant
        return found

    def handle(self, descriptor: int, events: int) -> bool:
        """Give an event to whom it belongs; False: to none of these."""
        owner = self._owners.get(descriptor)
        if owner is None:
            return False
        owner.handle(descriptor, events)
        return True

    def due(self) -> float:
        """Return when `turn` has something to do."""
        return min((attendant.due() for attendant in self._open), default=inf)

    def turn(self, now: float) -> None:
        """Do what is due."""
        for attendant in self._open:
            attendant.turn(now)

    def note(self, event: Event, text: str = "") -> None:
        """Tell all what happens."""
        for attendant in self._open:
            attendant.note(event, text)

    def close(self) -> None:
        """Close all that are open."""
        while self._open:
            self._open.pop().close()
        self._owners = {}
