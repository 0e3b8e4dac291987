"""Many connections in, one ready request after the other out.

The acceptor waits on the listening sockets and on every connection at once, so that
no connection, kept open or slow, ever keeps another from being served. It takes a new
connection only when it has nothing else to serve: the next process of a pool may be
free when this one is not.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from math import inf
from selectors import EVENT_READ, EVENT_WRITE
from time import monotonic

from ._log import log_warning
from .accepting import accept_plain, kind_of
from .codec.constants import FCGI_MAX_CONNS, FCGI_MAX_REQS, FCGI_MPXS_CONNS
from .link import Link
from .outlet import poll_socket
from .places import Places
from .protocol import RecurringParams
from .request import Request
from .settings import Settings
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


__all__ = ["Acceptor"]

Admission = Callable[[int, object], bool]
"""(address family, peer address) → whether that peer may connect."""

# Errors of accept(2) that mean this connection, or that say to try again at once.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "ECONNABORTED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EINTR",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)
_FIRST_PAUSE = 0.05  # seconds without accept when the process is out of descriptors
_LONGEST_PAUSE = 1.0
_FIRST_BYTES_SECONDS = 0.002
"""nginx and httpd send their request some 10 us after connect(2) has returned."""
_LONGEST_WAIT = 1_000_000.0  # seconds; epoll and poll(2) take 24 days at most

_Select = Callable[[float | None], list[tuple[selectors.SelectorKey, int]]]


class Acceptor(Places):
    """See the module's docstring.

    Args:
        listeners: listening sockets; owned, made non-blocking, closed by ``stop``.
        settings: times and limits.
        admits: who may connect; None: everybody.
        release: what closes a listening socket; None: its ``close``.

    Attributes:
        stopping: ``stop`` has been asked.
    """

    _transport: type[Transport] = Transport
    _multiplexes = False
    """Whether several requests of a connection are served at the same time."""

    def __init__(
        self,
        listeners: list[socket.socket],
        settings: Settings,
        admits: Admission | None = None,
        release: Callable[[socket.socket], object] | None = None,
    ) -> None:
        super().__init__(settings)
        self._admits = admits
        self._release = release or socket.socket.close
        self._listeners = listeners
        self._kinds = {listener: kind_of(listener) for listener in listeners}
        self._select: _Select = self._selector.select
        self._ready: deque[Request] = deque()
        self._connections: set[Transport] = set()
        self._most_connections = min(settings.max_connections, _room())
        self.stopping = False
        self._closed = False
        self._passed_over = False
        self._paused_until = 0.0
        self._pause = _FIRST_PAUSE
        self._values = _values(settings, self._multiplexes)
        self.recurring = RecurringParams()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._selector.register(self._wake_in, EVENT_READ, None)
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, EVENT_READ, listener)

    # For the loop

    def next_request(self, timeout: float | None = None) -> Request | None:
        """Wait for the next request; None when ``stop`` was asked and all is done.

        Raises:
            TimeoutError: ``timeout`` seconds have passed without one.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            if self._owing:
                self._turn(0.0)  # ends that are due are not to wait for a request
            while self._ready:
                request = self._ready.popleft()
                if not request.finished:
                    request.running = True
                    return request
            if self.stopping:
                self.retire()
                self._drain()
                if not self._ready:
                    self.close()
                    return None
                continue
            late = until is not None and monotonic() >= until
            self._turn(until)  # once at least: a timeout of 0 takes what is there
            if late and not (self._ready or self.stopping):
                raise TimeoutError(f"no request came within {timeout:g} s")

    def stop(self) -> None:
        """Ask for the end: safe in signal handlers and from any thread."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Let a waiting ``next_request`` look around; safe in signal handlers."""
        try:
            os.write(self._wake_out, b"\0")
        except OSError:  # full (then it wakes anyway) or closed
            return

    @property
    def wake_descriptor(self) -> int:
        """A non-blocking descriptor to write to, for ``signal.set_wakeup_fd``."""
        return self._wake_out

    # For the connections

    def request_ready(self, request: Request) -> bool:
        """Queue a request that may run; False when too many are waiting."""
        if len(self._ready) >= self._settings.max_queued:
            return False
        self._ready.append(request)
        return True

    def aborted(self, request: Request) -> None:
        """Nobody waits: the one thread that could is the one that has noticed."""

    def transport_closed(self, link: Link) -> None:
        """Forget a connection that is about to close its socket."""
        self._connections.discard(link)
        self._put(link, None)
        if link.watched:
            self._watch(link, 0)

    # One turn

    def _turn(self, until: float | None) -> bool:
        """Wait for something to happen, handle all of it; whether anything came in."""
        came = False
        connect_on: list[socket.socket] = []
        wait = None  # the usual case: nothing to be in time for
        if self._nearest != inf or until is not None or self._paused_until:
            wait = self._time_to_wait(until)
        for key, events in self._select(wait):
            owner = key.data
            if isinstance(owner, Transport):
                came |= self._serve(owner, events)
            elif owner is None:
                self._clear_wake()
            else:
                connect_on.append(owner)
        if self._nearest != inf and monotonic() >= self._nearest:
            self._expire()
        for listener in connect_on:
            self._consider(listener)
        if self._paused_until and monotonic() >= self._paused_until:
            self._resume_accepting()
        return came

    def _serve(self, transport: Transport, events: int) -> bool:
        """Do what a connection is ready for; whether anything came in."""
        came = False
        if events & EVENT_WRITE:
            transport.send_replies()
        if events & EVENT_READ:
            came = transport.receive()
        if not transport.serving:  # else it stays where it is meanwhile
            self.settle(transport)
        return came

    def _time_to_wait(self, until: float | None) -> float | None:
        """Seconds until the nearest deadline; None without one."""
        nearest = self._nearest
        if until is not None and until < nearest:
            nearest = until
        if self._paused_until and self._paused_until < nearest:
            nearest = self._paused_until
        if nearest == inf:
            return None
        return min(max(0.0, nearest - monotonic()), _LONGEST_WAIT)

    def _clear_wake(self) -> bytes:
        """Return what woke us: numbers of signals, and 0 for `wake`."""
        try:
            return os.read(self._wake_in, 4096)
        except BlockingIOError:
            return b""

    # Accepting

    def _consider(self, listener: socket.socket) -> None:
        """Take a new connection if nothing else waits, or if it had to wait before.

        Without the second rule one busy kept connection would shut all others out.
        """
        if self.stopping or self._paused_until:
            return
        if self._ready and not self._passed_over:
            self._passed_over = True
            return
        self._passed_over = False
        self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = accept_plain(listener, self._kinds[listener])
        except OSError as error:
            self._accept_failed(error)
            return
        self._pause = _FIRST_PAUSE
        if sock.gettimeout() is not None:  # by socket.setdefaulttimeout
            sock.settimeout(None)  # every call that must not wait says so itself
        if self._admits is not None and not self._admits(sock.family, peer):
            log_warning(
                "connection from %s refused: not in FCGI_WEB_SERVER_ADDRS",
                peer[0] if peer and sock.family != socket.AF_UNIX else "a Unix socket",
            )
            sock.close()
            return
        if sock.family != socket.AF_UNIX:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:  # what is not TCP has no such option
                pass
        transport = self._transport(sock, peer, self._settings, self._values, self)
        self._connections.add(transport)
        # The request is nearly always there already: one look saves a registration.
        transport.receive()
        # Else it is on its way. Who takes the next connection meanwhile takes it from
        # another process, which may have nothing to do.
        waits = not (transport.seen_bytes or transport.closed or self._multiplexes)
        if waits and poll_socket(transport.fd, select.POLLIN, _FIRST_BYTES_SECONDS):
            transport.receive()
        if not transport.serving or transport.begun:
            self.settle(transport)  # else its request is about to be served
        if len(self._connections) > self._most_connections:
            self._close_oldest_idle()

    def _accept_failed(self, error: OSError) -> None:
        """Another process was faster, the peer has gone, or we are out of something."""
        if error.errno in _PASSING:
            return
        if self._close_oldest_idle():
            return
        if self._pause == _FIRST_PAUSE:
            log_warning("accept: %s; trying again", error)
        self._paused_until = monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        for listener in self._listeners:
            self._selector.unregister(listener)

    def _resume_accepting(self) -> None:
        self._paused_until = 0.0
        if not self.stopping:
            for listener in self._listeners:
                self._selector.register(listener, EVENT_READ, listener)

    def _close_oldest_idle(self) -> bool:
        """Make room: close the kept connection that is unused longest."""
        for transport in self._idle:
            if not transport.requests:
                transport.close()
                return True
        return False

    # The end

    def retire(self) -> None:
        """Take no new connection, and keep none once nothing is owed on it.

        Requests that web servers have sent already on open connections will be served.
        Idempotent.
        """
        self._close_listeners()
        self._sweep()
        for transport in list(self._connections):
            transport.refuse_keeping()

    def refuse_waiting(self) -> None:
        """Refuse the requests in the queue: the process ends before their turn."""
        self.stopping = True
        while self._ready:
            request = self._ready.popleft()
            if not request.finished:
                request.refuse()

    def shut_down(self) -> None:
        """Close everything, after what was sent has had time to arrive."""
        self.stopping = True
        if not self._closed:
            while self._drain():
                self.refuse_waiting()
            self.close()

    def _drain(self) -> bool:
        """Wait for requests that are coming in, and for input still on its way.

        As long as something comes the wait goes on, to ``linger_timeout`` at most;
        then, or after ``stop_timeout`` of silence, the rest is lost.

        Returns:
            Whether a request is ready, so that the wait is not over.
        """
        settings = self._settings
        latest = _deadline(settings.linger_timeout)
        until = min(_deadline(settings.stop_timeout), latest)
        while not self._ready and self._connections and monotonic() < until:
            if self._turn(until):
                until = min(_deadline(settings.stop_timeout), latest)
        return bool(self._ready)

    def _sweep(self) -> None:
        """Read, without waiting, whatever the connections have for us."""
        if self._closed:
            return
        for key, _ in self._select(0):
            if isinstance(key.data, Transport):
                key.data.receive()
                self.settle(key.data)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            if not self._paused_until:
                self._selector.unregister(listener)
            self._release(listener)
        self._listeners = []
        self._paused_until = 0.0

    def close(self) -> None:
        """Close everything; what was not answered is lost."""
        self._close_listeners()
        for transport in list(self._connections):
            transport.pay()
            transport.close()
        if not self._closed:
            self._closed = True
            self._selector.close()
            self._close_pipe()

    def _close_pipe(self) -> None:
        """Close what ``wake`` writes to; nobody finds the numbers afterwards."""
        pipe = self._wake_in, self._wake_out
        self._wake_in = self._wake_out = -1
        for descriptor in pipe:
            if descriptor >= 0:
                os.close(descriptor)

    def abandon(self, but: Collection[Transport] = ()) -> None:
        """In a forked child: close our copies of every socket, and touch no peer.

        Args:
            but: connections that the child answers on.
        """
        self.stopping = True
        self._ready.clear()
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for transport in self._connections:
            if transport not in but:
                transport.closed = True
                transport.sock.close()
        self._connections = set(but)
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._select = self._selector.select
        for transport in but:
            transport.watched = 0
            transport.place = None
            transport.forget_receiver()


def _room() -> int:
    """How many connections leave the application descriptors for its own files."""
    limit = os.sysconf("SC_OPEN_MAX")  # RLIMIT_NOFILE
    if limit < 0:
        return sys.maxsize
    return max(limit - 64, limit // 2)


def _deadline(wait: float) -> float:
    """When ``wait`` seconds have passed; 0 is no limit."""
    return monotonic() + wait if wait else inf


def _values(settings: Settings, multiplexes: bool) -> Mapping[bytes, bytes]:
    """Return the true answers to GET_VALUES (§4.1).

    FCGI_MPXS_CONNS is 0 where requests wait for each other; they are queued, not
    refused, when a web server interleaves them all the same (HAProxy does).
    """
    return {
        FCGI_MAX_CONNS: str(settings.max_connections).encode(),
        FCGI_MAX_REQS: str(settings.max_queued).encode(),
        FCGI_MPXS_CONNS: b"1" if multiplexes else b"0",
    }
