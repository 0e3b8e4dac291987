"""The end of clients' connections, without waiting for any of them.

Closing a socket in which something is still unread resets the connection and destroys
what the client has not read of the answer. So the end of the answer is sent, and input
is discarded until the client closes, too; the times are those of httpd.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from math import inf
from time import monotonic

__all__ = ["IDLE_SECONDS", "MOST_SECONDS", "Lingering"]

IDLE_SECONDS = 2.0
"""Without a byte of input (httpd: SECONDS_TO_LINGER)."""
MOST_SECONDS = 30.0
"""In all (httpd: MAX_SECS_TO_LINGER)."""

_DISCARD_BYTES = 65536
_DONTWAIT = int(socket.MSG_DONTWAIT)


class Lingering:
    """Sockets on their way out.

    Args:
        selector: where they wait; the data of a key is a function without arguments,
            which whoever selects has to call.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        # Socket → when it is idle for too long, when its time is over in any case.
        self._sockets: dict[socket.socket, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, client: socket.socket) -> None:
        """Send the end of the answer and close when the client has; takes ownership."""
        try:
            client.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone
            client.close()
            return
        now = monotonic()
        self._sockets[client] = (now + IDLE_SECONDS, now + MOST_SECONDS)
        self._selector.register(client, selectors.EVENT_READ, self._reader_of(client))
        self._discard(client)

    def _reader_of(self, client: socket.socket) -> Callable[[], None]:
        return lambda: self._discard(client)

    def _discard(self, client: socket.socket) -> None:
        if client not in self._sockets:  # closed since select saw it
            return
        try:
            data = client.recv(_DISCARD_BYTES, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            _, end = self._sockets[client]
            self._sockets[client] = (monotonic() + IDLE_SECONDS, end)
        else:
            self._close(client)

    def next_deadline(self) -> float:
        """Return when `close_late` is due, on the clock of `time.monotonic`; or inf."""
        return min(map(min, self._sockets.values()), default=inf)

    def close_late(self) -> None:
        """Close those whose time is over."""
        now = monotonic()
        for client in [c for c, due in self._sockets.items() if min(due) <= now]:
            self._close(client)

    def close(self) -> None:
        """Close all of them at once."""
        for client in list(self._sockets):
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        del self._sockets[client]
        self._selector.unregister(client)
        client.close()
