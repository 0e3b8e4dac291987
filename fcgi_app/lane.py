"""The native acceptor: connections on which only whole requests come live in C.

A request that has come in one piece, and is answered in one, needs no objects for its
connection: one call into C waits, accepts, receives and looks through it, another one
sends the answer and keeps or closes the connection. As soon as anything else happens, a
long body, a long response, an abort that somebody asks for, the connection becomes a
``Transport`` like any other, and is served as it always was; when nothing is under way
on it any more, it goes back.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
from _thread import RLock  # threading has the same one, and loads more
from collections.abc import Callable, Collection
from math import ceil, inf
from selectors import EVENT_READ, EVENT_WRITE, EpollSelector
from time import monotonic

from ._backend import ffi, lib
from .acceptor import _FIRST_PAUSE, _LONGEST_PAUSE, Acceptor, Admission
from .body import NO_INPUT, InputBuffer
from .bulk import BulkTransport
from .codec.constants import MAX_CONTENT_LENGTH, Role
from .codec.params import build_params
from .codec.records import Buffer
from .filepart import FileSource
from .link import Link
from .request import Request
from .settings import Settings
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any


__all__ = ["LaneAcceptor"]

_RECV_SIZE = 65536
_ROLE_SIZE = len(build_params([(b"FCGI_ROLE", b"RESPONDER")]))
"""C puts this pair behind the params, and has room for it behind what it receives."""
_LONGEST_WAIT_MS = 1_000_000_000
_RESPONDER = int(Role.RESPONDER)
_CONTENT: int = lib.FCGI_LANE_CONTENT
_HEAD: int = lib.FCGI_LANE_HEAD
_BODY: int = lib.FCGI_LANE_BODY
_END_MASK = _HEAD - 1
_ID: int = lib.FCGI_LANE_ID
_ID_MASK = 0xFFFF
_NONE: int = lib.FCGI_TURN_NONE
_OTHER: int = lib.FCGI_TURN_OTHER
_PART: int = lib.FCGI_TURN_PART
_ERROR: int = lib.FCGI_TURN_ERROR
_next = lib.fcgi_lane_next
_answer = lib.fcgi_lane_answer


class _LaneChannel:
    """The channel of requests that have come whole: it answers them in one piece.

    Whatever else is asked of it makes a ``Transport`` the request's channel.
    """

    def __init__(self, acceptor: LaneAcceptor) -> None:
        self._acceptor = acceptor
        self._promote = acceptor.promote

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send all of the response and its end in one write; then keep or close."""
        if (
            request._stderr is None
            and not request.unwanted
            and len(stdout) <= MAX_CONTENT_LENGTH
        ):
            channel = self._acceptor.answer(request, stdout)
            if channel is not None:
                channel.end(request, stderr, stdout)
        else:
            self._promote(request).end(request, stderr, stdout)

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send output before the end."""
        self._promote(request).send_stdout(request, pieces)

    def send_file(
        self, request: Request, pieces: list[Buffer], source: FileSource
    ) -> None:
        """Send output and a file behind it."""
        self._promote(request).send_file(request, pieces, source)

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Send log lines."""
        self._promote(request).send_stderr(request, pieces)

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Look whether the web server has aborted the request, or has gone."""
        return self._promote(request).fill(request, wait=wait)

    def refuse(self, request: Request) -> None:
        """Answer 503."""
        self._promote(request).refuse(request)

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Wait until the request is aborted."""
        self._promote(request).wait_aborted(request, timeout)

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called once it is aborted."""
        return self._promote(request).watch(request, callback)

    def detach(self, request: Request) -> None:
        """Make its connection one that a forked child can share."""
        self._promote(request)

    def hand_over(self, request: Request) -> None:
        """Close this process's copy of the connection."""
        self._promote(request).hand_over(request)

    def fileno(self, request: Request, descriptor: int) -> int:
        """Raise: a stream of records has no descriptor."""
        raise io.UnsupportedOperation("a FastCGI stream has no descriptor")


class _SentInPart:
    """The channel of a request whose answer C has begun to send.

    Args:
        transport: what has its connection since.
        stdout: the rest of the response, as C has got it.
        left: bytes of all that C was to send that are still to be sent.
    """

    def __init__(self, transport: Transport, stdout: bytes, left: int) -> None:
        self._transport = transport
        self._rest = (stdout, left)

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send what is left; what the streams still hold is known to C."""
        request._channel = self._transport
        self._transport._end_shortly(request, *self._rest)

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the connection."""
        return getattr(self._transport, name)


class LaneAcceptor(Acceptor):
    """An ``Acceptor`` with the same results, whose usual case is C's."""

    _transport = BulkTransport

    def __init__(
        self,
        listeners: list[socket.socket],
        settings: Settings,
        admits: Admission | None = None,
        release: Callable[[socket.socket], object] | None = None,
    ) -> None:
        super().__init__(listeners, settings, admits, release)
        assert isinstance(self._selector, EpollSelector)
        limits = settings.limits
        made = lib.fcgi_lane_new(
            self._selector.fileno(),
            _RECV_SIZE,
            min(limits.max_params, 0xFFFFFFFF),
            min(limits.max_params_bytes, 0xFFFFFFFF),
            min(settings.spool, 0xFFFFFFFF),
        )
        if made == ffi.NULL:
            raise MemoryError("no memory for the connections")
        self.lane = ffi.gc(made, lib.fcgi_lane_free)
        start = lib.fcgi_lane_buffer(self.lane)
        self._buffer = ffi.buffer(start, _RECV_SIZE)
        self.window = ffi.buffer(start + _CONTENT, _RECV_SIZE + _ROLE_SIZE - _CONTENT)
        """Begins with the params of the request that C has given last."""
        self._channel = _LaneChannel(self)
        self._keep_ms = ceil(min(settings.keep_timeout * 1000, _LONGEST_WAIT_MS))
        self._retired = False
        self._failed_at = -inf
        self.given: Request | None = None
        """What C has given last, until it is answered there or promoted."""
        self._lock = RLock()  # of who does either; its signal handlers pass
        self._limit()
        for listener in listeners:
            # Who may connect is decided in Python, and so is what a special class of
            # sockets does.
            if admits is None and type(listener) is socket.socket:
                tcp = listener.family != socket.AF_UNIX
                lib.fcgi_lane_listen(self.lane, listener.fileno(), tcp)

    # For the loop

    def next_request(self, timeout: float | None = None) -> Request | None:
        """Wait for the next request, as ``Acceptor.next_request`` does."""
        if timeout is None and self.is_quiet:
            turn = _next(self.lane, -1, 0)
            if turn > 0:
                request = self.begin(turn)
                request.running = True
                return request
            self._act(turn)
        return super().next_request(timeout)

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to do, or to be in time for, but to wait."""
        return self._nearest == inf and not (
            self._ready
            or self._owing
            or self.stopping
            or self._paused_until
            or self._keep_ms
        )

    def begin(self, turn: int) -> Request:
        """Make the request that C has given."""
        request = Request(
            self._channel,
            self._settings,
            _RESPONDER,
            turn >> _ID & _ID_MASK,
            None,
            self._body() if turn & _BODY else NO_INPUT,
        )
        request.params_list = self.window[: (turn & _END_MASK) - _CONTENT]
        request.is_head = turn & _HEAD != 0
        request.dispatched = True
        self.given = request
        return request

    def _body(self) -> InputBuffer:
        """Make the body of the request that C has given last."""
        found = lib.fcgi_lane_body(self.lane)
        body = InputBuffer()
        body.append(
            self._buffer[found >> 32 : found & 0xFFFFFFFF], self._settings.spool
        )
        body.ended = True
        return body

    # One turn

    def _turn(self, until: float | None) -> bool:
        if self._retired:
            return super()._turn(until)
        if self.given is not None and self.given in self._ready:
            return False  # C has room for one at a time
        came = False
        wait = self._milliseconds(until)
        while True:
            turn = _next(self.lane, wait, bool(self._ready))
            came |= self._act(turn)
            if wait or turn == _NONE or self._ready or self._retired:
                break
        if self._keep_ms:
            self._expire_waiting()
        if self._nearest != inf and monotonic() >= self._nearest:
            self._expire()
        if self._paused_until and monotonic() >= self._paused_until:
            self._resume_accepting()
        return came

    def _milliseconds(self, until: float | None) -> int:
        """How long C may wait, rounded up; -1: for ever."""
        wait = self._time_to_wait(until)
        found = -1 if wait is None else min(ceil(wait * 1000), _LONGEST_WAIT_MS)
        if self._keep_ms:
            due: int = lib.fcgi_lane_due(self.lane, self._keep_ms)
            if due >= 0 and (found < 0 or due < found):
                return due
        return found

    def _act(self, turn: int) -> bool:
        """Do what C has found to be done; whether anything came in."""
        if turn > 0:
            self._ready.append(self.begin(turn))
            return True
        if turn == _NONE:
            return False
        if turn == _OTHER:
            return self._act_on_other()
        if turn == _PART:
            return self._act_on_part()
        number = lib.fcgi_lane_error(self.lane)
        error = OSError(number, os.strerror(number))
        if turn != _ERROR:
            raise error
        self._accept_failed(error)
        return False

    def _accept_failed(self, error: OSError) -> None:
        """Do what is to be done; C does not tell of one accepted in between."""
        now = monotonic()
        if now - self._failed_at > 2 * _LONGEST_PAUSE:
            self._pause = _FIRST_PAUSE
        self._failed_at = now
        super()._accept_failed(error)

    def _act_on_other(self) -> bool:
        """Serve a descriptor that C only watches, as ``Acceptor._turn`` does."""
        fd = lib.fcgi_lane_other(self.lane)
        try:
            owner = self._selector.get_map()[fd].data
        except KeyError:  # it has been closed after the wait
            return False
        if isinstance(owner, Transport):
            ready = lib.fcgi_lane_events(self.lane)
            events = EVENT_READ if ready & ~select.EPOLLOUT else 0
            if ready & ~select.EPOLLIN:
                events |= EVENT_WRITE
            came = self._serve(owner, events)
            if owner.place is self._idle:
                self._give_back(owner)
            return came
        if owner is None:
            self._clear_wake()
        else:
            self._consider(owner)
        return False

    def _act_on_part(self) -> bool:
        """Let a connection be served in Python, on which something else has come."""
        size = lib.fcgi_lane_received(self.lane)
        data = self._buffer[:size]
        transport = self._transport_of(lib.fcgi_lane_release(self.lane))
        if data:
            transport.seen_bytes = True
            transport._feed(data)
            if size == _RECV_SIZE and not transport.serving:
                transport.receive()  # there is more, nearly always
        if not transport.serving:
            self.settle(transport)
        self._make_room()
        return bool(data)

    # Between C and Python

    def _transport_of(self, fd: int) -> Transport:
        """Make the object for a connection that was C's."""
        # Type and protocol are told, to save two system calls; nobody looks at them.
        sock = socket.socket(-1, socket.SOCK_STREAM, 0, fd)
        if sock.gettimeout() is not None:  # by socket.setdefaulttimeout
            sock.settimeout(None)
        try:
            peer = sock.getpeername()
        except OSError:
            peer = None  # it has gone
        transport = self._transport(sock, peer, self._settings, self._values, self)
        self._connections.add(transport)
        self._limit()
        return transport

    def answer(self, request: Request, stdout: bytes) -> Any:
        """Let C send all of a response; return what ends it where that was not done."""
        with self._lock:
            if request is not self.given:  # a thread has promoted it
                return request._channel
            status = request.app_status & 0xFFFFFFFF
            self.given = None  # first: a signal handler may raise when C is back
            left = _answer(self.lane, status, stdout, len(stdout))
            if left == 0:
                return None
            self.given = request
            if left > 0:
                return self.sent_in_part(request, stdout, left)
            return self.promote(request)

    def promote(self, request: Request) -> Transport:
        """Give the request that C has given last a connection in Python.

        Any thread may call it: for one that comes second that is done already.

        Raises:
            OSError: the request has been answered.
        """
        with self._lock:
            if request is not self.given:
                channel: Any = request._channel
                if channel is self._channel:
                    raise BrokenPipeError(errno.EPIPE, "the request has been answered")
                found: Transport = channel
                return found
            self.given = None
            keep = bool(lib.fcgi_lane_keep(self.lane))
            fd = lib.fcgi_lane_release(self.lane)
            if fd < 0:
                raise BrokenPipeError(errno.EPIPE, "the request has been answered")
            transport = self._transport_of(fd)
            transport.seen_bytes = True
            transport.resume(request, keep)
            return transport

    def sent_in_part(self, request: Request, stdout: bytes, left: int) -> Any:
        """Give what ends a request of whose answer C could not send ``left`` bytes."""
        return _SentInPart(self.promote(request), stdout, left)

    def _give_back(self, link: Link) -> None:
        """Let C have an idle connection on which everything is as it was at first."""
        if self._retired or not link.can_rest:
            return
        super().transport_closed(link)
        fd = link.give_up_socket()
        if lib.fcgi_lane_adopt(self.lane, fd):
            os.close(fd)  # no room to keep it: its web server opens another one
        self._limit()

    def rest(self, link: Link) -> None:
        """Keep a connection on which nothing is owed."""
        self._give_back(link)
        if not link.closed:
            super().rest(link)

    def transport_closed(self, link: Link) -> None:
        """Forget a connection that is about to close its socket."""
        super().transport_closed(link)
        self._limit()

    def _limit(self) -> None:
        """Tell C how many connections may be left to it.

        Called whenever Python has got one more or one less. Without any there is
        nothing to be in time for, whatever the last wait knew of.
        """
        if not self._connections:
            self._nearest = inf
        left = max(self._most_connections - len(self._connections), 1)
        lib.fcgi_lane_limit(self.lane, min(left, 0xFFFFFFFF))

    def _make_room(self) -> None:
        count = len(self._connections) + lib.fcgi_lane_count(self.lane)
        if count > self._most_connections:
            self._close_oldest_idle()

    def _close_oldest_idle(self) -> bool:
        fd = lib.fcgi_lane_oldest(self.lane)
        if fd < 0:
            return super()._close_oldest_idle()
        os.close(fd)
        return True

    def _expire_waiting(self) -> None:
        """Close the connections that have been unused for ``keep_timeout``."""
        while lib.fcgi_lane_due(self.lane, self._keep_ms) == 0:
            os.close(lib.fcgi_lane_oldest(self.lane))

    # The end

    def retire(self) -> None:
        """Take no new connection, and let Python have those that there are."""
        if not self._retired:
            self._retired = True
            lib.fcgi_lane_unlisten(self.lane)
            if self.given is not None:
                self.promote(self.given)
            while (fd := lib.fcgi_lane_oldest(self.lane)) >= 0:
                transport = self._transport_of(fd)
                transport.seen_bytes = True
                self.settle(transport)
        super().retire()

    def close(self) -> None:
        """Close everything; what was not answered is lost."""
        self._retired = True
        self.given = None
        lib.fcgi_lane_abandon(self.lane)
        super().close()

    def abandon(self, but: Collection[Transport] = ()) -> None:
        """In a forked child: close our copies of every socket, and touch no peer."""
        self._lock = RLock()  # another thread may have held it
        self._retired = True
        self.given = None
        lib.fcgi_lane_abandon(self.lane)
        super().abandon(but)
