"""The listening sockets of a supervisor; they outlive workers, reloads and an exec."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..addresses import AddressKind, parse_address
from ..sockets import open_socket
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

    def close(self) -> None:
        """Remove the socket file, unless another has taken its place, and close."""
        # Once it is closed, the file of somebody else may have the same inode.
        if self.file is not None and self.socket.fileno() >= 0:
            path, device, inode = self.file
            with suppress(OSError):  # the directory may be gone or closed to us
                status = os.lstat(path)
                if (status.st_dev, status.st_ino) == (device, inode):
                    os.unlink(path)
        self.socket.close()


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
            os.chown(path, uid, gid)
    except BaseException:
        listener.close()
        raise
    return listener
