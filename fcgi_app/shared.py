"""A connection whose requests are served at the same time, by several threads.

One thread, the acceptor's, reads every connection and sends what a slow web server
would not take at once. The threads that serve requests send as much as goes without
waiting, and then wait for that one. All of it happens under the one lock of the
acceptor, which nobody holds while waiting.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from selectors import EVENT_READ
from threading import Condition

from ._log import log_info, log_warning
from .body import InputBuffer
from .codec.constants import MAX_CONTENT_LENGTH
from .codec.records import STREAM_CHUNK, Buffer, cut_stream
from .filepart import FilePart, FileSource
from .outlet import Outlet, connection_lost, is_fixed
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import IO, Any, Protocol

    from .link import Owner
    from .request import Request
    from .settings import Settings

    class SharedOwner(Owner, Protocol):
        """Who holds the connections, and lets threads in, one at a time."""

        lock: Any
        """A ``threading.RLock``."""

        @property
        def alone(self) -> bool:
            """Whether there is no thread that reads and writes: in a forked child."""

        def watch(
            self, request: Request, callback: Callable[[], object]
        ) -> AbstractContextManager[object]:
            """Have ``callback`` called in a thread once ``request`` is aborted."""

        def interrupt(self) -> None:
            """Let the acceptor's thread look around, if it is another one's turn."""


__all__ = ["SharedTransport"]

_SHARE = 65536
"""Bytes of one request that may wait in a connection's queue when its thread goes on.
Whoever has more waits; so a short answer goes out behind a share of each long one."""
_TURN = 4 * _SHARE
"""Bytes that go out on one connection before other threads get the lock. Whoever lets
go of a lock and takes it again at once is nearly always first, so it has to wait."""
_PAUSE = 50e-6
"""Seconds that it waits: what it takes to wake a thread."""
_MOST_AT_ONCE = 1 << 20
"""Bytes of input read from a file at a time: all other threads wait meanwhile."""


class Waiters:
    """The threads that wait for something to happen on one connection.

    Each method is to be called with the acceptor's lock held.
    """

    __slots__ = ("_condition", "_lock")

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._condition: Condition | None = None  # most connections never need it

    def wait_for(self, predicate: Callable[[], object], timeout: float | None) -> bool:
        """Wait until ``predicate()``; False when ``timeout`` seconds were too short."""
        if self._condition is None:
            self._condition = Condition(self._lock)
        return bool(self._condition.wait_for(predicate, timeout))

    def give_way(self) -> None:
        """Let other threads have the lock for a moment."""
        self.wait_for(lambda: False, _PAUSE)

    def notify(self) -> None:
        """Let every one of them look again."""
        if self._condition is not None:
            self._condition.notify_all()


class SharedInput(InputBuffer):
    """An input buffer that one thread fills and another one empties."""

    __slots__ = ("_lock",)
    gathers = False

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock

    def take(self, limit: int) -> Buffer:
        """Remove and return up to ``limit`` bytes; none when it is empty."""
        with self._lock:
            return super().take(min(limit, _MOST_AT_ONCE))

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
        sent: bytes that the socket has taken, or that went to nowhere.
    """

    __slots__ = ("_turn", "_waiters", "sent")

    def __init__(self, sock: socket.SocketType, waiters: Waiters) -> None:
        super().__init__(sock)
        self._waiters = waiters
        self._turn = 0  # what had been sent when others had the lock
        self.sent = 0

    def send(
        self, buffers: list[Buffer], wait: Callable[[], None], left: int = _SHARE
    ) -> None:
        """Queue ``buffers``, and wait until ``left`` bytes of it at most are unsent.

        Whole records: what other threads send comes before or behind all of them.

        Raises:
            OSError: the socket, or ``wait``, says that it is over.
        """
        self.push_all(buffers)
        mine = self.sent + self.pending
        while not self.lost and mine - self.sent > left:
            wait()
            self._turn = self.sent
        if self.sent - self._turn >= _TURN:
            self._waiters.give_way()
            self._turn = self.sent
        if self.queue and not all(map(is_fixed, buffers)):
            self._keep()
        if self.lost:
            raise connection_lost()

    def push_all(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers`` and send what the socket takes, without waiting."""
        if not self.lost:
            self.queue += buffers
        self.push()

    def _took(self, size: int) -> None:
        self.sent += size
        self._waiters.notify()

    def lose(self) -> None:
        """Send nothing any more."""
        self._lose()

    def _lose(self) -> None:
        super()._lose()
        self._waiters.notify()

    def _remove(self, sent: int, whole: int = 0) -> None:
        self.sent += sent
        super()._remove(sent, whole)
        self._waiters.notify()


class SharedTransport(Transport):
    """One connection from a web server, for a ``ThreadedAcceptor``."""

    __slots__ = ("_held", "_waiters")

    _owner: SharedOwner
    _outlet: SharedOutlet

    def __init__(
        self,
        sock: socket.SocketType,
        peer: Any,
        settings: Settings,
        values: Mapping[bytes, bytes],
        owner: SharedOwner,
    ) -> None:
        self._waiters = Waiters(owner.lock)
        self._held: list[Request] = []
        super().__init__(sock, peer, settings, values, owner)

    def _make_outlet(self, sock: socket.SocketType) -> SharedOutlet:
        return SharedOutlet(sock, self._waiters)

    def _make_input(self) -> SharedInput:
        return SharedInput(self._owner.lock)

    # What the acceptor asks

    @property
    def serving(self) -> bool:
        """False: while a request is served, its connection is watched."""
        return False

    @property
    def paused(self) -> bool:
        """Whether reading on must wait until the application wants the input.

        Only where one request has the connection: others would wait for it. Their
        input goes to a file when there is too much of it. So does that of a request
        whose application waits for its abort, which comes behind the input.
        """
        requests = self.requests
        if self._handed_over:
            return True
        if len(requests) != 1:
            return False
        request = requests[0]
        if request.watchful or not (request.dispatched and request.input_open):
            return False
        unread = request._body.size
        if request._data is not None:
            unread += request._data.size
        return unread >= max(self._settings.read_ahead, 1)

    @property
    def _handed_over(self) -> bool:
        """Whether a forked child reads, or is to read, what comes."""
        return any(request._detached for request in self.requests)

    # Receiving: with the lock held, by any thread

    def receive(self) -> bool:
        """Read once, without waiting, and act on it; whether anything was there."""
        return not self._handed_over and super().receive()

    def _feed(self, data: bytes) -> None:
        super()._feed(data)
        self._waiters.notify()

    def _abort(self, request: Request) -> None:
        super()._abort(request)
        self._waiters.notify()

    # Two requests of the same id, sent without waiting for the first one's end: their
    # answers could not be told apart, so they are served one after the other.

    def _ready(self, request: Request) -> None:
        if self._is_behind(request):
            request.dispatched = True
            self._held.append(request)
        else:
            super()._ready(request)

    def _is_behind(self, request: Request) -> bool:
        """Whether an earlier request of the same id has not ended."""
        for other in self.requests:
            if other.request_id == request.request_id:
                return other is not request
        return False

    def _release_held(self) -> None:
        for request in list(self._held):
            if request.finished:
                self._held.remove(request)
            elif not self._is_behind(request):
                self._held.remove(request)
                super()._ready(request)

    # The channel of a request: called by the thread that has it

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Receive more; with ``wait``, until something came or the body is late."""
        with self._owner.lock:
            if self._owner.alone:
                return super().fill(request, wait=wait)
            if wait:
                return self._wait_input(request)
            came = not self.choked and self.receive()
            if came:
                self._settle_from_afar()
            return came

    def _wait_input(self, request: Request) -> bool:
        """Wait until the acceptor's thread has received some input."""
        source = request.reading
        if source.size or source.ended:
            return True
        if self.eof or self.deaf or self.closed:
            self._abort(request)  # else its thread would ask for ever
            return False
        self._settle_from_afar()  # there is room again for what comes
        timeout = self._settings.body_timeout
        if self._waiters.wait_for(lambda: source.size or source.ended, timeout or None):
            return True
        log_warning("%s: no input for %g s; given up", request, timeout)
        self._abort(request)
        return False

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Wait until the request is aborted, ``timeout`` seconds at most."""
        with self._owner.lock:
            if self._owner.alone:
                super().wait_aborted(request, timeout)
                return
            self._be_watchful(request)
            self._waiters.wait_for(
                lambda: request._aborted or request.finished, timeout
            )

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called by a thread of its own once it is aborted."""
        with self._owner.lock:
            if self._owner.alone:
                return super().watch(request, callback)
            self._be_watchful(request)
            return self._owner.watch(request, callback)

    def _be_watchful(self, request: Request) -> None:
        if not request.watchful:
            request.watchful = True
            self._settle_from_afar()

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDOUT records; waits for the web server to take most of them.

        What other threads send may come between any two.
        """
        with self._owner.lock:
            short = sum(map(len, pieces)) <= MAX_CONTENT_LENGTH
            if short or self._owner.alone:
                super().send_stdout(request, pieces)
                return
            for content in cut_stream(pieces):
                super().send_stdout(request, content)

    # ``send_file`` has the lock for each record, and not from end to end.
    _file_share = STREAM_CHUNK

    def _send_part(self, buffers: list[Any], source: FileSource) -> None:
        """Send a record of a file; behind the last one, wait until all is sent."""
        if type(buffers[-1]) is FilePart:
            buffers[-1].load()  # nobody else is to wait for a disk
        with self._owner.lock:
            last = self._owner.alone or not source.left
            self._send_together(buffers, 0 if last else _SHARE)

    def _release(self, source: FileSource) -> None:
        with self._owner.lock:
            super()._release(source)

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDERR records, one a piece."""
        with self._owner.lock:
            super().send_stderr(request, pieces)

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send all that is left of a response; then keep or close."""
        with self._owner.lock:
            super().end(request, stderr, stdout)
            self._release_held()
            self._waiters.notify()
            self._owner.interrupt()

    def refuse(self, request: Request) -> None:
        """Answer 503 to a request that no application has seen."""
        with self._owner.lock:
            super().refuse(request)

    def hand_over(self, request: Request) -> None:
        """Close this process's copy of the connection, without shutting it down."""
        with self._owner.lock:
            super().hand_over(request)
            self._owner.interrupt()

    # Waiting

    def _settle_from_afar(self) -> None:
        """Have the acceptor's thread watch what is wanted now."""
        self._owner.settle(self)
        self._owner.interrupt()

    def _wait_writable(self) -> None:
        """Wait until the acceptor's thread has sent some of the queue."""
        outlet = self._outlet
        if self._owner.alone:
            super()._wait_writable()
            outlet.push()
            return
        timeout = self._settings.write_timeout
        sent = outlet.sent
        self._settle_from_afar()
        came = self._waiters.wait_for(
            lambda: outlet.sent != sent or outlet.lost or self.closed, timeout or None
        )
        if self.closed:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed")
        if not came:
            outlet.lose()
            raise TimeoutError(
                errno.ETIMEDOUT, f"the web server took no output for {timeout:g} s"
            )

    def _send(self, buffers: list[Buffer]) -> None:
        if self._owner.alone:
            self._send_together(buffers, 0)
        else:
            super()._send(buffers)

    def _send_end(self, buffers: list[Buffer], last: bool) -> None:
        # An end-request record that is owed may follow at any time.
        if last:
            self._cork()
        self._send_together(buffers, 0 if last or self._owner.alone else _SHARE)
        if last:
            self.sock.shutdown(socket.SHUT_WR)

    def _send_together(self, buffers: list[Buffer], left: int) -> None:
        if self.closed:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed")
        try:
            self._outlet.send(buffers, self._wait_writable, left)
        finally:
            self._note_loss()

    def _next_step(self) -> None:
        if self._held:
            self._release_held()
        # One of many has ended: the connection is watched already as it should be.
        if (
            len(self.requests) > 1
            and self.watched == EVENT_READ
            and not (self._outlet.queue or self._outlet.lost or self.deaf)
        ):
            return
        super()._next_step()

    def close(self) -> None:
        """Close the socket; idempotent. What is still being served, is aborted."""
        if self.closed:
            return
        for request in list(self.requests):
            self._abort(request)
            if not request.running:
                log_info("%s: its connection was closed; dropped", request)
                request.drop()
                self.requests.remove(request)
        super().close()
        self._waiters.notify()
