"""The service of ``fcgi-app fdpass``: one receiver, or a pool of them on one socket."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..fdpass import Receiver
from ..sockets import (
    AddressKind,
    open_socket,
    parse_address,
    plug_standard_descriptors,
    remove_socket_file,
)
from .identity import find_user
from .inetd import Inetd, InetdOptions
from .prefork import Prefork

__all__ = ["BACKLOG", "FdpassService", "find_users"]

BACKLOG = 4096
"""Senders that wait for an accept; when it is full, Apache's threads block."""

_IN_RECEIVER = 16
"""Clients that the receiver may hold: the queue proper is that of `Inetd`, which counts
descriptors; these come out of its reserve."""


@dataclass(frozen=True)
class FdpassService:
    """Receives clients and runs a program for each.

    Attributes:
        bind: where to listen: any form of `fcgi_app.addresses` that is a Unix socket.
        inetd: what to run, and how.
        mode: permission bits of the socket file.
        allow_uids: user ids that may hand over; None: everybody who can connect.
        workers: processes that receive.
    """

    bind: str
    inetd: InetdOptions
    mode: int = 0o600
    allow_uids: frozenset[int] | None = None
    workers: int = 1

    def run(self) -> int:
        """Serve until a stop signal; only in the main thread of the process.

        Descriptors 0, 1 and 2 that are closed become /dev/null.

        Returns:
            0 after an orderly stop; else the number of the signal that cut it short.

        Raises:
            ConfigError: an argument is invalid, or ``bind`` is not a Unix socket.
            OSError: the system refuses the socket.
        """
        plug_standard_descriptors()
        if parse_address(self.bind).kind is AddressKind.TCP:
            raise ConfigError("--bind", self.bind, "must be a Unix socket: unix:PATH")
        if self.workers == 1:
            with Receiver(
                self.bind,
                mode=self.mode,
                allow_uids=self.allow_uids,
                backlog=BACKLOG,
                max_queued=_IN_RECEIVER,
            ) as receiver:
                return Inetd(receiver, self.inetd).run()
        return self._run_pool()

    def _run_pool(self) -> int:
        has_file = parse_address(self.bind).kind is AddressKind.UNIX
        mode = self.mode if has_file else None
        with open_socket(self.bind, backlog=BACKLOG, mode=mode) as listener:

            def remove_file() -> None:
                remove_socket_file(listener)

            def serve(lifeline: int) -> int:
                with listener:
                    inherited = os.dup(listener.fileno())
                with Receiver(
                    inherited, allow_uids=self.allow_uids, max_queued=1
                ) as receiver:
                    options = replace(self.inetd, shared=True)
                    return 1 if Inetd(receiver, options, lifeline).run() else 0

            pool = Prefork(
                serve,
                self.workers,
                stop_timeout=self.inetd.stop_timeout,
                on_stop=remove_file,
            )
            try:
                return pool.run()
            finally:
                remove_file()


def find_users(names: Iterable[str]) -> frozenset[int]:
    """Return the ids of users that are given by name or by number.

    Raises:
        ConfigError: there is no user of that name.
    """
    return frozenset(find_user("--allow-user", name) for name in names)
