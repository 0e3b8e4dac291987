"""What workers get besides what their pool says: scoreboard and access log.

The supervisor keeps it from one generation of workers to the next. The pool that serves
what the scoreboards say is made here as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ..scoreboard import Scoreboard
from .logfiles import LogFiles
from .pool import STATUS_POOL, PoolConfig, ServiceConfig
from .seat import Boards
from .starter import STATUS_VARIABLE, Equipment

__all__ = ["Equipper"]

_RUN_STATUS = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module('fcgi_app.status.service', run_name='__main__', alter_sys=True)"
)
"""Finds the package where the supervisor has found it, even without an installation."""


class Equipper:
    """Owns scoreboards and access logs."""

    def __init__(self) -> None:
        self.boards = Boards()
        self.files = LogFiles()
        self._readers: dict[Scoreboard, int] = {}

    def pools_of(self, service: ServiceConfig) -> list[PoolConfig]:
        """Return all pools that are to run: those of the service, and the status pool.

        The latter comes last, when all scoreboards are there.
        """
        pools = list(service.pools)
        if service.status_listen is not None:
            pools.append(_status_pool(service, service.status_listen))
        return pools

    def equip(self, pool: PoolConfig, service: ServiceConfig) -> Equipment:
        """Return what the workers of one of these pools get.

        Raises:
            OSError: the system refuses a scoreboard, or the access log.
        """
        if pool.name == STATUS_POOL and service.status_listen is not None:
            return self._for_status(service)
        board = self.boards.provide(pool)
        if pool.access_log is None:
            return Equipment(board)
        descriptor = self.files.open(pool.access_log)
        variables = {
            "FCGI_APP_ACCESS_LOG": f"fd:{descriptor}",
            "FCGI_APP_ACCESS_FORMAT": pool.access_format,
        }
        return Equipment(board, (descriptor,), variables)

    def _for_status(self, service: ServiceConfig) -> Equipment:
        boards = [self.boards.current[pool.name] for pool in service.pools]
        descriptors = [self._reader(board) for board in boards]
        text = ",".join(map(str, descriptors))
        return Equipment(None, descriptors, {STATUS_VARIABLE: text})

    def _reader(self, board: Scoreboard) -> int:
        """Return a descriptor that is good for reading only, if this can be had."""
        if board not in self._readers:
            try:
                reader = os.open(f"/proc/self/fd/{board.fileno()}", os.O_RDONLY)
            except OSError:
                reader = os.dup(board.fileno())
            self._readers[board] = reader
        return self._readers[board]

    def settle(self, service: ServiceConfig, used: Iterable[Scoreboard]) -> None:
        """Let go of what only pools had that are gone.

        Args:
            service: what runs from now on.
            used: scoreboards of workers that have not ended.
        """
        paths = {pool.access_log for pool in service.pools if pool.access_log}
        self.files.keep_only(paths)
        current = set()
        if service.status_listen is not None:
            current = {self.boards.current[pool.name] for pool in service.pools}
        for board in [board for board in self._readers if board not in current]:
            os.close(self._readers.pop(board))
        self.boards.sweep(service, used)

    def close(self) -> None:
        """Close everything."""
        self.files.close()
        for reader in self._readers.values():
            os.close(reader)
        self._readers.clear()
        self.boards.close()


def _status_pool(service: ServiceConfig, address: str) -> PoolConfig:
    """Return the pool of the status service.

    It is who the first pool's workers are: nothing serves clients as root only since
    somebody looks.
    """
    first = service.pools[0]
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return PoolConfig(
        name=STATUS_POOL,
        bind=(address,),
        command=(sys.executable, "-c", _RUN_STATUS, os.path.abspath(package)),
        stop_timeout=first.stop_timeout,
        user=first.user,
        group=first.group,
    )
