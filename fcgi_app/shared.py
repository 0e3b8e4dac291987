"""A connection whose requests are served at the same time, by several threads.

One thread, the acceptor's, reads every connection and sends what a slow web server
would not take at once. The threads that serve requests send as much as goes without
waiting, and then wait for that one. All of it happens under the one lock of the
acceptor, which nobody holds while waiting.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from threading import Condition
from typing import IO, TYPE_CHECKING, Any, Protocol

from ._log import log_warning
from .body import InputBuffer
from .codec.records import Buffer
from .outlet import Outlet
from .transport import Owner, Transport

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .request import Request

__all__ = ["SharedOwner", "SharedTransport"]

_SHARE = 65536
"""Bytes of one request that may wait in a connection's queue when its thread goes on.
Whoever has more waits; so a short answer goes out behind a share of each long one."""


class SharedOwner(Owner, Protocol):
    """Who holds the connections, and lets threads in, one at a time."""

    lock: Any
    """A ``threading.RLock``."""
    changed: Condition
    """Of ``lock``: notified when a waiting thread may go on."""

    @property
    def alone(self) -> bool:
        """Whether there is no thread that reads and writes: in a forked child."""

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called in a thread once ``request`` is aborted."""

    def interrupt(self) -> None:
        """Let the acceptor's thread look around, if it is another one's turn."""


class SharedInput(InputBuffer):
    """An input buffer that one thread fills and another one empties."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock

    def take(self, limit: int) -> bytes:
        """Remove and return up to ``limit`` bytes; none when it is empty."""
        with self._lock:
            return super().take(limit)

    def to_file(self) -> IO[bytes]:
        """Move what can be read to an unnamed file, positioned at its start."""
        with self._lock:
            return super().to_file()

    def clear(self) -> None:
        """Forget what has not been read."""
        with self._lock:
            super().clear()


class SharedOutlet(Outlet):
    """A way out that several threads use, each with its share of the queue.

    To be used with the acceptor's lock held; ``wait`` gives it up meanwhile.

    Attributes:
        sent: bytes that the socket has ever taken.
    """

    __slots__ = ("sent",)

    def __init__(self, sock: socket.SocketType) -> None:
        super().__init__(sock)
        self.sent = 0

    def send(self, buffers: list[Buffer], wait: Callable[[], None]) -> None:
        """Queue ``buffers``, and wait until all but a share of them has been sent.

        Raises:
            OSError: the socket, or ``wait``, says that it is over.
        """
        share: list[Buffer] = []
        size = 0
        for buffer in buffers:
            share.append(buffer)
            size += len(buffer)
            if size >= _SHARE:
                self._send_share(share, wait)
                share, size = [], 0
        self._send_share(share, wait)

    def _send_share(self, buffers: list[Buffer], wait: Callable[[], None]) -> None:
        self.push_all(buffers)
        mine = self.sent + self.pending
        while mine - self.sent > _SHARE:
            if self.lost:
                raise BrokenPipeError(errno.EPIPE, "the connection is lost")
            wait()
        if self.lost:
            raise BrokenPipeError(errno.EPIPE, "the connection is lost")

    def push_all(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers`` and send what the socket takes, without waiting."""
        if not self.lost:
            self.queue += buffers
        self.push()

    def _remove(self, sent: int) -> None:
        self.sent += sent
        super()._remove(sent)


class SharedTransport(Transport):
    """One connection from a web server, for a ``ThreadedAcceptor``."""

    __slots__ = ()

    _owner: SharedOwner
    _outlet: SharedOutlet

    def _make_outlet(self, sock: socket.SocketType) -> SharedOutlet:
        return SharedOutlet(sock)

    def _make_input(self) -> SharedInput:
        return SharedInput(self._owner.lock)

    @property
    def paused(self) -> bool:
        """Whether reading on must wait until the application wants the input.

        Only where one request has the connection: others would wait for it. Their
        input goes to a file when there is too much of it.
        """
        if len(self.requests) != 1:
            return False
        request = self.requests[0]
        if not (request.running and request.input_open):
            return False
        unread = request._body.size
        if request._data is not None:
            unread += request._data.size
        return unread >= max(self._settings.read_ahead, 1)

    # The channel of a request: called by the thread that has it

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Wait until more input has come or the body is late; else do nothing."""
        owner = self._owner
        with owner.lock:
            if owner.alone:
                return super().fill(request, wait=wait)
            if not wait:
                return False
            source = request._filter_input() if request._filtering else request._body
            if source.size or source.ended:
                return True
            if self.eof or self.deaf or self.closed:
                self._abort(request)  # else its thread would ask for ever
                return False
            self._settle_from_afar()  # there is room again for what comes
            timeout = self._settings.body_timeout
            if not owner.changed.wait_for(
                lambda: source.size or source.ended, timeout or None
            ):
                log_warning("%s: no input for %g s; given up", request, timeout)
                self._abort(request)
                return False
            return True

    def _keep_input(self, request: Request, source: InputBuffer, data: bytes) -> None:
        super()._keep_input(request, source, data)
        if request.running:
            self._owner.changed.notify_all()

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Wait until the request is aborted, ``timeout`` seconds at most."""
        with self._owner.lock:
            self._owner.changed.wait_for(
                lambda: request._aborted or request.finished, timeout
            )

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called by a thread of its own once it is aborted."""
        return self._owner.watch(request, callback)

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDOUT records; waits for the web server to take most of them."""
        with self._owner.lock:
            super().send_stdout(request, pieces)

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDERR records, one a piece."""
        with self._owner.lock:
            super().send_stderr(request, pieces)

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send all that is left of a response; then keep or close."""
        with self._owner.lock:
            super().end(request, stderr, stdout)
            self._owner.interrupt()

    def refuse(self, request: Request) -> None:
        """Answer 503 to a request that no application has seen."""
        with self._owner.lock:
            super().refuse(request)

    def hand_over(self, request: Request) -> None:
        """Close this process's copy of the connection, without shutting it down."""
        with self._owner.lock:
            super().hand_over(request)

    # Waiting

    def _settle_from_afar(self) -> None:
        """Have the acceptor's thread watch what is wanted now."""
        self._owner.settle(self)
        self._owner.interrupt()

    def _wait_writable(self) -> None:
        """Wait until the acceptor's thread has sent some of the queue."""
        if self._owner.alone:
            super()._wait_writable()
            self._outlet.push()
            return
        timeout = self._settings.write_timeout
        sent = self._outlet.sent
        self._settle_from_afar()
        came = self._owner.changed.wait_for(
            lambda: self._outlet.sent != sent or self._outlet.lost or self.closed,
            timeout or None,
        )
        if self.closed:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed")
        if not came:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the web server took no output for {timeout:g} s"
            )

    def send_replies(self) -> None:
        """Send on what the socket would not take before."""
        super().send_replies()
        self._owner.changed.notify_all()

    def _send(self, buffers: list[Buffer], last: bool = False) -> None:
        if not (last or self._owner.alone):
            super()._send(buffers)
            return
        if last:
            self._cork()
        super()._send(buffers)
        try:
            while self._outlet.queue:
                self._wait_writable()
            if last:
                self.sock.shutdown(socket.SHUT_WR)
        finally:
            self._note_loss()

    def _on_stdin_end(self, event: Any) -> None:
        super()._on_stdin_end(event)
        self._owner.changed.notify_all()

    def _on_data_end(self, event: Any) -> None:
        super()._on_data_end(event)
        self._owner.changed.notify_all()

    def close(self) -> None:
        """Close the socket; idempotent."""
        super().close()
        self._owner.changed.notify_all()
