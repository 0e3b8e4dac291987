"""A worker's slot in its pool's scoreboard, and all scoreboards of a supervisor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType

from .._log import log_warning
from ..scoreboard import VARIABLE, Scoreboard, SlotState
from .pool import PoolConfig, ServiceConfig

__all__ = ["Boards", "Seat"]

SPARE_SLOTS = 256
"""Beyond four for each worker: room for two generations, and for ``scale``. Slots that
nobody has used take no memory."""


class Seat:
    """A slot that a worker has been given; to be released when it has ended.

    Args:
        board: borrowed.
        number: of the slot, which has been taken.
    """

    def __init__(self, board: Scoreboard, number: int) -> None:
        self.board = board
        self.number = number

    @classmethod
    def take(cls, board: Scoreboard, max_requests: int) -> Seat | None:
        """Take a slot for a worker that ends after so many requests; None: all taken.

        Args:
            board: borrowed.
            max_requests: 0: it never does.
        """
        number = board.take_slot()
        if number is None:
            log_warning("all %d slots of the scoreboard are taken", board.capacity)
            return None
        board.configure_slot(number, max_requests=max_requests)
        return cls(board, number)

    @property
    def variable(self) -> tuple[str, str]:
        """What the worker has in its environment: name and value."""
        return VARIABLE, f"{self.board.fileno()}:{self.number}"

    def look(self, pid: int) -> SlotState | None:
        """Return what the process ``pid`` tells; None: nothing, or not yet.

        A slot that a child of the worker has taken says nothing about the worker.
        """
        state = self.board.read(self.number)
        return state if state is not None and state.pid == pid else None

    def release(self) -> None:
        """Give the slot back; its requests stay counted."""
        state = self.board.read(self.number)
        if state is not None and state.requests:
            count_up(self.board, "ended_requests", state.requests)
        self.board.free_slot(self.number)


def count_up(board: Scoreboard, name: str, difference: int = 1) -> None:
    """Add to a number of the header."""
    number = getattr(board.header, name)
    # Workers can write nonsense into this memory: more than 64 bits hold, or a path
    # that is no text. It shall not be the supervisor that falls over it.
    with suppress(ValueError):
        board.write_header(**{name: min(number + difference, 2**63 - 1)})


class Boards:
    """The scoreboards of a supervisor, one for each pool that it has or still stops.

    Those of pools that stay survive a reload and an exec; a pool that has become much
    larger gets a new one, and the workers before keep theirs.

    Attributes:
        current: by the name of the pool; read only.
    """

    def __init__(self) -> None:
        self._boards: dict[str, Scoreboard] = {}
        self._former: list[Scoreboard] = []
        self.current: Mapping[str, Scoreboard] = MappingProxyType(self._boards)

    def adopt(self, descriptors: Mapping[str, int]) -> None:
        """Take over what was there before an exec; what is not usable is closed."""
        for name, descriptor in descriptors.items():
            os.set_inheritable(descriptor, False)
            try:
                self._boards[name] = Scoreboard.open_fd(descriptor)
            except (OSError, ValueError) as error:  # perhaps of another version
                log_warning("pool %s: scoreboard: %s", name, error)
                os.close(descriptor)

    def descriptors(self) -> dict[str, int]:
        """Return what `adopt` takes."""
        return {name: board.fileno() for name, board in self._boards.items()}

    def provide(self, pool: PoolConfig) -> Scoreboard:
        """Return the board of a pool; a new one if there is none that is large enough.

        Raises:
            OSError: the system refuses it.
        """
        number = pool.workers * len(pool.bind)
        board = self._boards.get(pool.name)
        if board is None or board.capacity < 2 * number + SPARE_SLOTS // 2:
            before = board
            board = _create(pool.name, 4 * number + SPARE_SLOTS)
            board.write_header(started=time.time())
            if before is not None:
                _copy_counts(before, board)
                self._former.append(before)
            self._boards[pool.name] = board
        return board

    def put_back(self, boards: Mapping[str, Scoreboard]) -> None:
        """Let these be the boards of their pools, as they were before a reload."""
        for name, board in boards.items():
            other = self._boards.get(name)
            if other is not board:
                self._boards[name] = board
                self._former = [each for each in self._former if each is not board]
                if other is not None:
                    self._former.append(other)

    def describe(self, pools: Iterable[PoolConfig], most: Mapping[str, int]) -> None:
        """Write what the pools are into the headers.

        Args:
            pools: theirs are the boards.
            most: workers for each address, where it is not what the pool says.
        """
        for pool in pools:
            board = self._boards.get(pool.name)
            if board is not None:
                board.write_header(
                    manager=pool.manager,
                    most=most.get(pool.name, pool.workers) * len(pool.bind),
                    status_path=pool.status_path,
                    ping_path=pool.ping_path,
                )

    def sweep(self, service: ServiceConfig, used: Iterable[Scoreboard]) -> None:
        """Close the boards of pools that are gone, once no worker uses them.

        Args:
            service: what runs now.
            used: boards of workers that have not ended.
        """
        names = {pool.name for pool in service.pools}
        gone = [name for name in self._boards if name not in names]
        self._former += [self._boards.pop(name) for name in gone]
        kept = {id(board) for board in used}
        for board in self._former:
            if id(board) not in kept:
                board.close()
        self._former = [board for board in self._former if id(board) in kept]

    def close(self) -> None:
        """Close all of them."""
        for board in (*self._former, *self._boards.values()):
            board.close()
        self._former.clear()
        self._boards.clear()


def _create(name: str, capacity: int) -> Scoreboard:
    try:
        return Scoreboard.create(name, capacity)
    except OSError as error:  # RLIMIT_FSIZE counts for memory files, too
        what = f"scoreboard of pool {name}"
        raise OSError(error.errno, error.strerror, what) from None


def _copy_counts(before: Scoreboard, after: Scoreboard) -> None:
    header = before.header
    after.write_header(
        started=header.started,
        ended_requests=header.ended_requests,
        slow_requests=header.slow_requests,
        restarts=header.restarts,
        most_reached=header.most_reached,
    )
