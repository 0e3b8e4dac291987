"""The web server's side: hand a client's socket to another process, as httpd does."""

from __future__ import annotations

import os
import socket
from types import TracebackType

from ..errors import ConfigError
from ..sockets import connect
from .address import parse_unix_address
from .ancillary import DATA_MAX_BYTES, build_rights

__all__ = ["Sender", "send"]

_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_WHOLE_BYTES = 2048
"""What a socket with the least SO_SNDBUF (4608) still takes in one piece."""


def send(sock: socket.socket, client: socket.socket | int, data: bytes = b"\0") -> None:
    """Send the descriptor of ``client`` over ``sock``.

    Both stay the caller's. Close ``client`` next, since the connection lives as long
    as one process has it open; do not shut it down. Send its response head before.

    Args:
        sock: a connected Unix stream socket. `Receiver` takes one client from each.
        client: a socket, or a descriptor.
        data: goes with it, 1 to 16,384 bytes; httpd sends one NUL.

    Raises:
        ConfigError: ``data`` has another length.
        TimeoutError: the timeout of ``sock`` has passed.
        OSError: of the socket, or ``client`` is closed. The kernel lets no process
            have more descriptors under way than RLIMIT_NOFILE: ETOOMANYREFS.
    """
    if not 0 < len(data) <= DATA_MAX_BYTES:
        raise ConfigError(
            "data", data[:20], f"{len(data)} bytes, must be 1 to {DATA_MAX_BYTES}"
        )
    descriptor = client if isinstance(client, int) else client.fileno()
    if len(data) > _WHOLE_BYTES:
        # In parts the receiver would close before the last ones: it has the descriptor.
        sock.sendall(data[:-1], _NOSIGNAL)
        data = data[-1:]
    sock.sendmsg([data], build_rights([descriptor]), _NOSIGNAL)


class Sender:
    """Hands clients to the receiver at a path; each in a connection of its own.

    Nothing is connected before `send`, and nothing stays open between two calls, so
    the receiver may be restarted in the meantime.

    Args:
        path: a path, ``unix:PATH`` or ``@name``.
        timeout: seconds for connecting and for sending; None: no limit, as httpd has
            none.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float | None = None
    ) -> None:
        self.address = str(parse_unix_address(path))
        if timeout is not None and not timeout > 0:
            raise ConfigError("timeout", timeout, "must be greater than 0 seconds")
        self._timeout = timeout

    def send(self, client: socket.socket | int, data: bytes = b"\0") -> None:
        """Connect, send ``client`` as `fcgi_app.fdpass.send` does, and disconnect.

        There is no answer: that it was sent does not mean that it was taken.

        Raises:
            ConfigError, TimeoutError, OSError: as `fcgi_app.fdpass.send`; no
                connection, for ConnectionRefusedError and FileNotFoundError because
                nobody receives there.
        """
        with connect(self.address, timeout=self._timeout) as connection:
            send(connection, client, data)

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None
