"""The listening sockets of a supervisor; they outlive workers, reloads and an exec."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..addresses import AddressKind, parse_address
from ..sockets import bound_address, held_socket_file, open_socket
from .identity import UNCHANGED, find_owner
from .pool import PoolConfig

__all__ = ["Listener", "Place", "open_listener", "places_of"]

Place = tuple[str, int]
"""An address, and which of the sockets of this address it is, from 0 on: port 0 may be
asked for more than once."""


@dataclass(frozen=True, eq=False)
class Listener:
    """One listening socket.

    Attributes:
        place: what it was opened for.
        socket: owned.
        file: path, device and inode of the socket file that was made for it; None:
            there is none, or it was there before us.
    """

    place: Place
    socket: socket.socket
    file: tuple[str, int, int] | None = None

    @property
    def address(self) -> str:
        """Where it listens, with the true port if 0 was asked for."""
        if self.socket.fileno() < 0:
            return self.place[0]
        return bound_address(self.socket)

    def has_client(self) -> bool:
        """Tell whether somebody waits to be accepted."""
        if self.socket.fileno() < 0:
            return False
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        return bool(poller.poll(0))

    def remove_file(self) -> None:
        """Remove the socket file, unless another has taken its place.

        Who is in the queue stays there, and nobody else comes.
        """
        with suppress(OSError):  # the directory may be gone or closed to us
            path = self._own_file()
            if path is not None:
                os.unlink(path)

    def apply(self, pool: PoolConfig) -> None:
        """Take over backlog, mode and owner of a pool that is new to the socket.

        A mode or owner that the pool does not say stays what it is.

        Raises:
            ConfigError: the owner is not known.
            OSError: the system refuses it.
        """
        if parse_address(self.place[0]).kind in (AddressKind.UNIX, AddressKind.TCP):
            self.socket.listen(pool.backlog)  # another's socket stays as it is
        if self._own_file() is None or self.file is None:
            return
        uid, gid = find_owner(pool.socket_owner)
        with held_socket_file(*self.file) as path:
            if (uid, gid) != (UNCHANGED, UNCHANGED):
                os.chown(path, uid, gid)
            if pool.socket_mode is not None:
                os.chmod(path, pool.socket_mode)

    def close(self) -> None:
        """Remove the socket file and close the socket; idempotent."""
        self.remove_file()
        self.socket.close()

    def _own_file(self) -> str | None:
        """Return the path of our socket file; None: there is none, or another's."""
        # Once the socket is closed, the file of somebody else may have the same inode.
        if self.file is None or self.socket.fileno() < 0:
            return None
        path, device, inode = self.file
        try:
            status = os.lstat(path)
        except OSError:
            return None
        same = (status.st_dev, status.st_ino) == (device, inode)
        return path if same else None


def places_of(pool: PoolConfig, taken: dict[str, int]) -> Iterator[Place]:
    """Give the places of a pool's addresses; counts addresses in ``taken``."""
    for address in pool.bind:
        number = taken.get(address, 0)
        taken[address] = number + 1
        yield address, number


def open_listener(place: Place, pool: PoolConfig) -> Listener:
    """Open the socket of a place, with the backlog, mode and owner of the pool.

    Raises:
        ConfigError: the address is no listening socket, or the owner is not known.
        OSError: the system refuses.
    """
    address = place[0]
    parsed = parse_address(address)
    if parsed.kind is not AddressKind.UNIX:
        return Listener(place, open_socket(address, backlog=pool.backlog))
    uid, gid = find_owner(pool.socket_owner)
    mode = pool.socket_mode
    path = os.path.abspath(parsed.name)
    opened = open_socket(f"unix:{path}", backlog=pool.backlog, mode=mode)
    status = os.lstat(path)
    listener = Listener(place, opened, (path, status.st_dev, status.st_ino))
    try:
        if (uid, gid) != (UNCHANGED, UNCHANGED):
            with held_socket_file(path, status.st_dev, status.st_ino) as held:
                os.chown(held, uid, gid)
    except BaseException:
        listener.close()
        raise
    return listener
