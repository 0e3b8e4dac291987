"""The slot of the scoreboard while C writes it: on the native backend's short way.

Between two requests that are usual nobody in Python learns of them, so C notes for the
supervisor when each begins and ends. The counts are `Sight`'s, and lent.
"""

from __future__ import annotations

from ._backend import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .request import Request
    from .sight import Sight
    from .watching import Watcher

__all__ = ["LentSlot"]


class LentSlot:
    """The slot of this process, as C and Python write it by turns.

    Args:
        watcher: tells of the requests that Python has.
        sight: its sight, which has a slot.
        revoke: has the slot given back soon; for any thread.

    Attributes:
        made: what C has of it.
        is_lent: C writes it; reset by ``Sight.take_back``.
    """

    __slots__ = (
        *("_begun", "_ended", "_sight", "_watcher"),
        *("is_lent", "made"),
    )

    def __init__(
        self, watcher: Watcher, sight: Sight, revoke: Callable[[], object]
    ) -> None:
        self._watcher = watcher
        self._sight = sight
        self.is_lent = False
        self._begun = self._ended = 0
        self.made: Any = ffi.new("struct fcgi_slot *")
        # The memory lives as long as the process. A view that is kept could be dealt
        # with in the wrong order at its end, which Python 3.12 does not survive.
        with ffi.from_buffer(sight.memory, require_writable=True) as memory:
            self.made.memory = ffi.cast("uint8_t *", memory)
        self.made.most = sight.most
        for index, path in enumerate(sorted(sight.paths)):
            self.made.path_size[index] = len(path)
            ffi.memmove(self.made.path[index], path, len(path))
        sight.on_share(revoke)

    def lend(self) -> bool:
        """Let C write the slot of this process, which waits; False: it cannot be."""
        self.take_back()  # after an exception of a signal handler
        counts = self._sight.lend()
        if counts is None:
            return False
        made = self.made
        self._begun, self._ended, made.duration, made.since = counts
        made.begun, made.ended = self._begun, self._ended
        made.started = 0.0
        self.is_lent = True
        return True

    def take_back(self, request: Request | None = None) -> None:
        """Let Python write it again; ``request`` is what runs."""
        if not self.is_lent:
            return
        made = self.made
        started = made.started
        begun = made.begun - self._begun
        watch = None
        if request is not None:
            watch = self._watcher.resume(request, started)
        elif started:
            begun -= 1  # it will be given again
        ended = made.ended - self._ended
        self._sight.take_back(self, begun, ended, made.duration, made.since, watch)

    def forget(self) -> None:
        """In a forked child: the slot is the parent's."""
        self.is_lent = False
