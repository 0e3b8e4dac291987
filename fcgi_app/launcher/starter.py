"""How a worker of a pool is started."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .._log import log_info
from ..errors import WorkerError
from ..scoreboard import VARIABLE as SCOREBOARD_VARIABLE
from ..scoreboard import Scoreboard
from .chance import draw_chance
from .childsetup import prepare_child
from .identity import worker_environment
from .listeners import Listener
from .member import Member
from .policy import draw_lifetime, draw_requests
from .pool import PoolConfig
from .relay import Outlet, Relay
from .seat import Seat
from .workers import spawn

__all__ = ["STATUS_VARIABLE", "Equipment", "Starter", "is_short_of_something"]

STATUS_VARIABLE = "_FCGI_APP_STATUS"
"""Environment variable of the status service: descriptors of scoreboards, as 7,8."""

OUR_VARIABLES = (SCOREBOARD_VARIABLE, STATUS_VARIABLE)
"""What a supervisor tells its workers."""

_SHORT = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""The system has no process, memory or descriptor to give now; see fork(2)."""


@dataclass(frozen=True)
class Equipment:
    """What the workers of a pool get besides what its configuration says.

    Attributes:
        board: where they tell what they do; None: nowhere. Borrowed.
        descriptors: that stay open in them, with these numbers. Borrowed.
        variables: of their environment.
    """

    board: Scoreboard | None = None
    descriptors: Sequence[int] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def is_short_of_something(error: BaseException) -> bool:
    """Tell whether a start has failed for want of something that may come back."""
    cause = error.__cause__ if isinstance(error, WorkerError) else error
    return isinstance(cause, OSError) and cause.errno in _SHORT


class Starter:
    """Starts the workers of one socket of a pool.

    Args:
        pool: what to run.
        listener: borrowed; the workers' descriptor 0.
        outlet: where goes what they print; borrowed.
        label: the pool and the socket, for messages.
        equipment: what they get besides.

    Raises:
        ConfigError: there is no such user or group.
    """

    def __init__(
        self,
        pool: PoolConfig,
        listener: Listener,
        outlet: Outlet,
        label: str,
        equipment: Equipment,
    ) -> None:
        self._pool = pool
        self._listener = listener
        self._outlet = outlet
        self._label = label
        self._equipment = equipment
        self._environment = worker_environment(pool, os.environ)
        for name in OUR_VARIABLES:  # of a supervisor of ours
            self._environment.pop(name, None)
        self._environment.update(equipment.variables)
        self._prepare = prepare_child(pool)

    def start(self, now: float) -> Member:
        """Start a worker.

        Raises:
            WorkerError: it cannot be started; the message has what it has printed.
            OSError: there are no descriptors.
        """
        relay = Relay(self._outlet)
        seat = None
        try:
            seat = self._take_seat()
            member = self._spawn(relay, seat, now)
        except BaseException as error:
            relay.close_writer()
            relay.drain()
            relay.close()
            if seat is not None:
                seat.release()
            if isinstance(error, WorkerError) and relay.lines:
                message = "\n".join([str(error), *relay.lines])
                raise WorkerError(message) from error.__cause__
            raise
        relay.close_writer()
        log_info("%s: worker %d started", self._label, member.pid)
        return member

    def _take_seat(self) -> Seat | None:
        board = self._equipment.board
        if board is None:
            return None
        return Seat.take(board, draw_requests(self._pool, draw_chance))

    def _spawn(self, relay: Relay, seat: Seat | None, now: float) -> Member:
        environment, descriptors = self._environment, [*self._equipment.descriptors]
        if seat is not None:
            name, value = seat.variable
            environment = {**environment, name: value}
            descriptors.append(seat.board.fileno())
        worker = spawn(
            self._pool.command,
            self._listener.socket,
            env=environment,
            stdout=relay.writer,
            stderr=relay.writer,
            new_session=True,
            # Who ignores SIGTERM must not survive either, and a supervisor that ends
            # as it should has stopped all before.
            die_with_parent=True,
            death_signal=signal.SIGKILL,
            prepare=self._prepare,
            pass_fds=descriptors,
        )
        lifetime = draw_lifetime(self._pool, draw_chance)
        return Member(worker, relay, now, now + lifetime, seat=seat)
