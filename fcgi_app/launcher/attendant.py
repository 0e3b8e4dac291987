"""What a supervisor looks after besides workers, and what that may ask of it.

An attendant is a control socket, a watched file, a service manager to tell: something
with descriptors, times and interest in what happens. It never blocks, for workers and
requests wait meanwhile, and it raises nothing: what goes wrong is logged by itself. An
OSError or ConfigError of `Attendant.open` alone is let through, and ends the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from ..scoreboard import Scoreboard

__all__ = ["Attendant", "Event", "Supervision"]

Event = Literal[
    "ready", "reloading", "reloaded", "reload failed", "stopping", "executing"
]
"""What attendants are told; ``reloaded`` and ``reload failed`` follow ``reloading``.

``ready`` comes once all pools have started, and after an exec at once; ``executing``
right before an exec, which may fail: then ``reload failed`` follows, with the reason.
"""


class Supervision(Protocol):
    """A supervisor, as attendants see it; all of it returns at once."""

    @property
    def scoreboards(self) -> Mapping[str, Scoreboard]:
        """What the workers tell, by the name of the pool; borrowed."""

    def reload(self) -> None:
        """Start the workers anew, as SIGHUP asks for."""

    def stop(self, *, quick: bool = False) -> None:
        """Stop, as SIGTERM asks for, or ``quick`` as SIGINT does."""

    def scale(self, pool: str, number: int, *, relative: bool = False) -> int:
        """Change how many workers each address of a pool has, or may have.

        Args:
            pool: its name.
            number: the new number, or with ``relative`` how many more; never below 1.
            relative: as SIGTTIN and SIGTTOU mean it.

        Returns:
            The new number.

        Raises:
            ConfigError: there is no such pool, or the number is out of range.
        """

    def reopen_log(self) -> None:
        """Open the log file again, as SIGUSR1 asks for."""

    def observe(self) -> bool:
        """Note in the scoreboards how many clients wait, and how many are served.

        Returns:
            Whether any requests have come since the last time, or are being served.
        """

    def report(self) -> dict[str, Any]:
        """Describe supervisor, pools and workers in values that JSON has.

        Keys: ``version``, ``pid``, ``started`` (seconds since 1970), ``state``
        (``starting``, ``running``, ``reloading``, ``stopping``), ``pools``: a list of
        ``name``, ``manager``, ``command``, ``addresses`` (a list), ``most``, and
        ``workers``: a list of ``pid``, ``address``, ``slot`` (of the pool's scoreboard;
        None: it has none), ``state`` (``starting``, ``serving``, ``leaving``),
        ``started`` (seconds since 1970), ``leaving`` (a bool).
        """


class Attendant(Protocol):
    """What a supervisor looks after; times are of the monotonic clock."""

    def open(self, supervision: Supervision) -> None:
        """Begin; called once, before the first worker starts or is taken over.

        Raises:
            ConfigError: an address is not usable.
            OSError: the system refuses a socket or a file.
        """

    def watched(self) -> Mapping[int, int]:
        """Return which descriptors to wait for: descriptor → events of poll(2)."""

    def handle(self, descriptor: int, events: int) -> None:
        """Do what an event of a descriptor asks for.

        It may have been closed since, by an earlier `handle` of the same turn.
        """

    def due(self) -> float:
        """Return when `turn` has something to do; infinite for never.

        An attendant with a time that is always due again wakes an idle machine: no more
        than once a second, and better never.
        """

    def turn(self, now: float) -> None:
        """Do what is due; called after every wait, also when nothing is."""

    def note(self, event: Event, text: str) -> None:
        """Take note of what happens; ``text`` says more, or is empty."""

    def close(self) -> None:
        """Release everything; called at the end, once, also after a failed `open`.

        Before an exec as well: what is executed opens anew. If the exec fails, `open`
        is called again.
        """
