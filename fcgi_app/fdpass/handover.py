"""A client's connection that a web server has handed over.

mod_proxy_fdpass has sent a response head with ``Connection: close`` before, so the
body ends where the connection ends. It has not shut the connection down, and nothing
of the web server looks at it any more: how it ends is up to its new owner.
"""

from __future__ import annotations

import errno
import select
import socket
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple

from .._log import log_warning
from .client import TLS_CAUSE, speaks_tls

__all__ = ["Handover", "Peer"]

WRITE_TIMEOUT = 60.0
"""Seconds, as the setting write_timeout of the FastCGI side (httpd: Timeout 60)."""
LINGER_IDLE = 2.0
"""Seconds, as httpd's own lingering close (SECONDS_TO_LINGER)."""
LINGER_TIMEOUT = 30.0
"""Seconds, as httpd's own lingering close (MAX_SECS_TO_LINGER)."""

_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_DONTWAIT = int(socket.MSG_DONTWAIT)
_DISCARD_BYTES = 65536
_LONGEST_WAIT = 1_000_000.0
"""Seconds: poll(2) takes 24 days at most."""


class Peer(NamedTuple):
    """Who handed the socket over: SO_PEERCRED of its connection, see unix(7).

    Attributes:
        pid: process id; 0: of another pid namespace.
        uid: effective user id when it connected.
        gid: effective group id when it connected.
    """

    pid: int
    uid: int
    gid: int


class Handover:
    """A client's socket, with what came along; a context manager that closes it.

    Not for two threads at once.

    Attributes:
        socket: a connected stream socket, owned, blocking, close-on-exec. The client
            gets what is written to it as it is: a response body. After `detach` it
            is its new owner's.
        data: payload of the message, today one NUL byte from httpd.
        peer: the process that sent it.
        address: the client's address as ``getpeername`` gives it: ``(host, port)``,
            for IPv6 with flow info and scope id; None: a Unix socket has none.
        write_timeout: seconds for which `write` puts up with a client that takes no
            byte; 0: no limit.
        linger_idle: seconds without a byte after which `close` waits no longer for
            the client to close.
        linger_timeout: seconds after which it waits no longer in any case; 0: it
            does not wait at all.
    """

    __slots__ = (
        "_detached",
        "_written",
        "address",
        "data",
        "linger_idle",
        "linger_timeout",
        "peer",
        "socket",
        "write_timeout",
    )

    def __init__(
        self,
        client: socket.socket,
        data: bytes,
        peer: Peer,
        address: tuple[Any, ...] | None,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        self.socket = client
        self.data = data
        self.peer = peer
        self.address = address
        self.write_timeout = write_timeout
        self.linger_idle = LINGER_IDLE
        self.linger_timeout = LINGER_TIMEOUT
        self._written = False
        self._detached = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"descriptor {self.fileno()}"
        return f"<Handover of {self.address} by pid {self.peer.pid}: {state}>"

    @property
    def closed(self) -> bool:
        """Whether `close` or `detach` was called, or the socket closed."""
        return self._detached or self.socket.fileno() < 0

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 when it is closed or detached."""
        return -1 if self._detached else self.socket.fileno()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, waiting for the client where that is needed.

        The first call looks at what the client has sent since: bytes of TLS mean that
        it cannot understand what is written here.

        Raises:
            ConnectionError: the client has gone, or speaks TLS.
            TimeoutError: it took no byte for ``write_timeout`` seconds. It is not
                known how much has arrived, so nothing but `close` makes sense.
            OSError: the socket is closed or detached.
        """
        if self._detached:
            raise OSError(errno.EBADF, "the handover is detached")
        if not self._written:
            self._refuse_tls()
            self._written = True
        rest = memoryview(data).cast("B")
        while rest:
            try:
                rest = rest[self.socket.send(rest, _SEND_FLAGS) :]
            except BlockingIOError:
                if not _wait(self.socket, select.POLLOUT, self.write_timeout or None):
                    raise TimeoutError(
                        errno.ETIMEDOUT,
                        f"{self._client} took no byte for {self.write_timeout:g} s",
                    ) from None

    def _refuse_tls(self) -> None:
        if speaks_tls(self.socket):
            log_warning("fdpass: %s: %s", self._client, TLS_CAUSE)
            raise ConnectionAbortedError(
                errno.ECONNABORTED, f"{self._client}: {TLS_CAUSE}"
            )

    @property
    def _client(self) -> str:
        return f"client {self.address[0]}" if self.address else "client"

    def close(self) -> None:
        """End the body and close; waits until the client has closed, too.

        Closing at once would reset the connection if anything of the client is still
        unread, and destroy what it has not read of the body. So the end of the body
        is sent, and input is discarded until the client closes: see ``linger_idle``
        and ``linger_timeout``. Idempotent; nothing is raised for a client that has
        gone.
        """
        if self.closed:
            return
        try:
            # Reset or never connected: there is nothing to wait for.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
                self._linger()
        finally:
            self.socket.close()

    def _linger(self) -> None:
        until = monotonic() + self.linger_timeout
        while (left := until - monotonic()) > 0:
            try:
                if not self.socket.recv(_DISCARD_BYTES, _DONTWAIT):
                    return
            except BlockingIOError:
                if not _wait(self.socket, select.POLLIN, min(left, self.linger_idle)):
                    return

    def detach(self) -> socket.socket:
        """Give the socket away: it is the caller's, who has to shut it down and close.

        Raises:
            OSError: it is closed or detached already.
        """
        if self.closed:
            raise OSError(errno.EBADF, "the handover is closed or detached already")
        self._detached = True
        return self.socket

    def __enter__(self) -> Handover:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _wait(client: socket.socket, events: int, seconds: float | None) -> bool:
    """Wait for ``events`` or an error of the socket; False: in vain."""
    poller = select.poll()  # select(2) has no room for descriptors above 1,023
    poller.register(client, events)
    wait = None if seconds is None else min(seconds, _LONGEST_WAIT) * 1000
    return bool(poller.poll(wait))
