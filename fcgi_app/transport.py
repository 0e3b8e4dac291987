"""One accepted connection: its socket, its protocol state, and its requests.

Everything about *one* connection is here, so that it works alone: how it is read,
written while its web server may be writing too, and closed without losing the answer.
Which connection has its turn is the acceptor's business.
"""

from __future__ import annotations

import errno
import io
import select
import socket
from collections.abc import Callable, Mapping
from math import inf
from threading import Lock
from time import monotonic
from typing import Any, Protocol

from ._log import log_info, log_warning
from .codec.constants import ProtocolStatus, Role
from .codec.records import END_REQUEST_LEN
from .errors import RemoteProtocolError
from .protocol import (
    AbortReceived,
    Connection,
    DataEnded,
    DataReceived,
    InputDiscarded,
    ParamsReceived,
    RequestRefused,
    RequestState,
    StdinEnded,
    StdinReceived,
)
from .request import Request
from .response import build_error
from .settings import Settings
from .streams import Buffer

__all__ = ["Transport"]

_RECV_SIZE = 65536
_NOW = socket.MSG_DONTWAIT
_JOIN_BELOW = 16384
"""Bytes up to which copying parts together costs less than a gathering write."""
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_MAX_BUFFERS = 64  # more are joined; the kernel's bound is 1,024 (IOV_MAX)
_MAX_REPLIES = 1 << 20
"""Bytes of short answers that a web server may leave unread; it is not read beyond."""
_LONGEST_WAIT = 1_000_000.0
"""Seconds: poll(2) takes 24 days at most."""
_STATUS_OF: dict[int, int] = {
    ProtocolStatus.OVERLOADED: 503,
    ProtocolStatus.UNKNOWN_ROLE: 501,
}


class Owner(Protocol):
    """Who holds the connections: the acceptor."""

    def request_ready(self, request: Request) -> bool:
        """Take a request that may run now; False when there is no room for it."""

    def settle(self, transport: Transport) -> None:
        """Wait for what comes next on a connection that stays."""

    def transport_closed(self, transport: Transport) -> None:
        """Forget a connection; its socket is still open during the call."""


class Transport:
    """One connection from a web server.

    Attributes:
        fd: the descriptor of ``sock``.
        requests: those that have their params and no end yet, in order of arrival.
        owed: the end-request records of requests that were answered before their
            input had ended; see ``end``.
        eof: no more bytes will come, or be looked at.
        unsent: short answers that the socket would not take.
        keep: whether the connection may stay when nothing is owed on it.
        lingering: our side is shut down; input is discarded until the peer closes.
        until: when a lingering connection is closed at the latest (monotonic clock).
        watched, place: the acceptor's notes on where it has this connection.
    """

    __slots__ = (
        "_connection",
        "_lock",
        "_lost",
        "_owner",
        "_peer",
        "_settings",
        "closed",
        "eof",
        "fd",
        "keep",
        "lingering",
        "owed",
        "place",
        "requests",
        "seen_bytes",
        "sock",
        "unsent",
        "until",
        "watched",
    )

    def __init__(
        self,
        sock: socket.socket,
        peer: Any,
        settings: Settings,
        values: Mapping[bytes, bytes],
        owner: Owner,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._peer = peer
        self._settings = settings
        self._connection = Connection(settings.limits, values)
        self._owner = owner
        self._lock = Lock()
        self.unsent: list[Buffer] = []
        self._lost = False  # nothing can be sent any more
        self.requests: list[Request] = []
        self.owed: dict[RequestState, bytes] = {}
        self.closed = False
        self.eof = False
        self.keep = True
        self.lingering = False
        self.watched = 0  # for which events of the selector
        self.seen_bytes = False
        self.until = inf
        self.place: dict[Transport, float] | None = None

    @property
    def paused(self) -> bool:
        """Whether reading on must wait until the application wants the input."""
        for request in self.requests:
            if request.dispatched and request.input_open:
                return True
        return False

    @property
    def choked(self) -> bool:
        """Whether reading on must wait until the web server takes short answers."""
        return sum(map(len, self.unsent)) > _MAX_REPLIES

    @property
    def serving(self) -> bool:
        """Whether it has one complete request to be served, and waits for nothing."""
        requests = self.requests
        return (
            len(requests) == 1
            and requests[0].state.input_ended
            and not (self.eof or self.unsent or self.owed or self.lingering)
        )

    @property
    def uploading(self) -> bool:
        """Whether the body of a request is due that has not been dispatched."""
        return any(not request.dispatched for request in self.requests)

    @property
    def begun(self) -> bool:
        """Whether a request, or any record, has come in part."""
        connection = self._connection
        return connection.receiving() or connection.mid_record

    @property
    def peer_name(self) -> str:
        """The peer, for the log."""
        if isinstance(self._peer, tuple):
            host, port = self._peer[:2]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return "a Unix socket" + (f" bound to {self._peer!r}" if self._peer else "")

    # Receiving

    def receive(self) -> bool:
        """Read once, without waiting, and act on it; whether anything was there.

        Afterwards ``closed`` tells if the connection has gone.
        """
        if self.eof or self.closed:
            return False
        try:
            data = self.sock.recv(_RECV_SIZE, _NOW)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._lost_input()
        elif self.lingering:
            pass
        else:
            self.seen_bytes = True
            self._feed(data)
        return True

    def _feed(self, data: bytes) -> None:
        connection = self._connection
        try:
            events = connection.receive_data(data)
            if len(events) == 2 and type(events[1]) is StdinEnded:
                self._on_two(events[0], events[1])
            else:
                for event in events:
                    _ON_EVENT[type(event)](self, event)
            if connection.error is not None:
                raise connection.error
        except (RemoteProtocolError, OSError) as error:  # or a body found no room
            log_warning("connection from %s: %s; closed", self.peer_name, error)
            self._lost_input()
            return
        replies = connection.data_to_send()
        if replies or self.unsent:
            self._reply(replies)

    def _lost_input(self) -> None:
        """No more input: drop what was incomplete, close if nothing is owed.

        A peer that has only shut down its side gets the answers that it is owed.
        """
        self.pay()
        self.eof = True
        self.keep = False
        cut = self._connection.receive_eof()
        gone = _poll(self.fd, 0, 0) & (select.POLLHUP | select.POLLERR)
        for request in list(self.requests):
            self._abort(request)
            if not request.running and (gone or request.state in cut):
                log_info("%s: its connection was lost; dropped", request)
                request.drop()
                self.requests.remove(request)
        if not self.requests and not self.closed:
            self.close()

    @staticmethod
    def _abort(request: Request) -> None:
        request._aborted = True
        request._body.cut_off()
        if request.role == Role.FILTER:
            request._filter_input().cut_off()

    def _reply(self, replies: bytes) -> None:
        """Send a short answer without waiting; what the socket refuses is kept.

        While a response is being sent it only joins the queue behind it.
        """
        self.unsent.append(replies)
        if self._lock.acquire(blocking=False):
            try:
                self.unsent = self._send_now(self._take_unsent())
            except OSError:
                self.unsent = []  # receiving will tell
            finally:
                self._lock.release()

    def send_replies(self) -> None:
        """Send on what the socket would not take before, and close if that is due."""
        self._reply(b"")
        if not self.unsent and self._is_done():
            self._linger()

    # Events

    def _on_params(self, event: ParamsReceived) -> None:
        state = event.request
        request = Request(
            self, self._settings, state.role, state.request_id, event.params
        )
        request.params_content = event.content
        request.state = state
        self.requests.append(request)
        if state.role == Role.AUTHORIZER:
            request._body.ended = True
            self._ready(request)
        elif not self._settings.read_ahead:
            self._ready(request)

    def _on_two(self, first: Any, end: StdinEnded) -> None:
        """Act on two events at once: mostly those of a request without a body."""
        if type(first) is not ParamsReceived or first.request is not end.request:
            _ON_EVENT[type(first)](self, first)
            self._on_stdin_end(end)
            return
        state, params, content = first
        request = Request(self, self._settings, state.role, state.request_id, params)
        request.params_content = content
        request.state = state
        self.requests.append(request)
        if params.get(b"CONTENT_LENGTH"):
            request._input_ended()
        else:
            request._body.ended = True
        self._ready(request)

    def _on_stdin(self, event: StdinReceived) -> None:
        request = self._find(event.request)
        if request is None or request.finished:
            return
        request._body.append(event.data, self._settings.spool)
        if (
            not request.dispatched
            and request._body.size >= self._settings.read_ahead
            and not self._settings.descriptors
        ):
            self._ready(request)

    def _on_stdin_end(self, event: StdinEnded) -> None:
        request = self._find(event.request)
        if request is not None and not request.finished:
            request._input_ended()
            if not request.dispatched:
                self._ready(request)

    def _on_data(self, event: DataReceived) -> None:
        request = self._find(event.request)
        if request is not None and not request.finished:
            request._filter_input().append(event.data, self._settings.spool)

    def _on_data_end(self, event: DataEnded) -> None:
        request = self._find(event.request)
        if request is not None and not request.finished:
            request._filter_input().ended = True

    def _on_abort(self, event: AbortReceived) -> None:
        """End it at once (§5.4), unless the application has it: then at its finish."""
        request = self._find(event.request)
        if request is not None:
            self._abort(request)
            request.unwanted = True
            if request.running:
                return
            request.drop()
            self.requests.remove(request)
        self._answer(event.request, self._connection.end_request(event.request))

    def _on_refused(self, event: RequestRefused) -> None:
        self._refuse(event.request, event.protocol_status)

    def _refuse(self, state: RequestState, protocol_status: int) -> None:
        """Answer with a real head: no server looks at the protocol status alone."""
        status = _STATUS_OF[protocol_status]
        log_warning(
            "connection from %s: request id %d, role %d, refused with %d",
            self.peer_name,
            state.request_id,
            state.role,
            status,
        )
        page = self._connection.stdout(state, build_error(status))
        end = self._connection.end_request(state, 0, protocol_status)
        self._answer(state, b"".join((*page, end)))

    def _answer(self, state: RequestState, end: bytes) -> None:
        """Send the whole of a short answer without ever waiting."""
        self._reply(end)
        self._after_end(state)

    def refuse(self, request: Request) -> None:
        """Answer 503 to a request that no application has seen."""
        request.drop()
        self.requests.remove(request)
        self._refuse(request.state, ProtocolStatus.OVERLOADED)

    def _ready(self, request: Request) -> None:
        request.dispatched = True
        if not self._owner.request_ready(request):
            self.refuse(request)

    def _find(self, state: RequestState) -> Request | None:
        for request in reversed(self.requests):
            if request.state is state:
                return request
        return None

    # The channel of a request

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Receive more; with ``wait``, until something came or the body is late."""
        if self.receive():
            return True
        if not wait or self.eof or self.closed:
            return False
        timeout = self._settings.body_timeout
        if not _poll(self.fd, select.POLLIN, timeout):
            log_warning("%s: no input for %g s; given up", request, timeout)
            self._lost_input()
            return False
        return self.receive()

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDOUT records; waits for the web server to take them."""
        if request.unwanted:
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "the web server aborted the request"
            )
        buffers: list[Buffer] = []
        for piece in pieces:
            buffers += self._connection.stdout(request.state, piece)
        if buffers:
            self._send(buffers)

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDERR records, one a piece."""
        stderr = self._connection.stderr
        records = b"".join([stderr(request.state, piece) for piece in pieces])
        if records:
            self._send([records])

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send all that is left of a response in one write; then keep or close.

        Of an early answer, end-request is held back until the body has come or no
        more of it comes: HAProxy and cgi-fcgi would stop reading their client at
        once, and the answer would be lost. nginx wants it at once: it sends no more.
        """
        connection = self._connection
        state = request.state
        if (
            request._stderr is None
            and len(stdout) < _JOIN_BELOW
            and state.input_ended
            and (self.keep or not state.keep_conn)
            and not (request.unwanted or self.unsent or self.closed)
        ):
            self._end_short(request, state, stdout)
            return
        early = not (state.input_ended or self.eof or request.server_is(b"nginx"))
        buffers: list[Buffer] = []
        log = request._stderr
        if stderr:
            buffers.append(connection.stderr(state, stderr))
        if stdout and not request.unwanted:
            buffers += connection.stdout(state, stdout)
        used = bool(stderr) or (log is not None and log.used)
        end = connection.end_request(state, request.app_status, stderr_used=used)
        if early:
            end, self.owed[state] = end[:-END_REQUEST_LEN], end[-END_REQUEST_LEN:]
            self.until = monotonic() + (self._settings.linger_timeout or inf)
        buffers.append(end)
        try:
            if self._is_last(request):
                self._send_last(buffers)
            else:
                self._send(buffers)
        except OSError as error:
            self._end_failed(request, error)
        self.requests.remove(request)
        if state in self.owed and not self.eof:
            self._owner.settle(self)
        else:
            self._after_end(state)

    def _end_short(self, request: Request, state: RequestState, stdout: bytes) -> None:
        """Do what ``end`` does where nothing is special: one small piece, one send."""
        connection = self._connection
        data = b"".join(connection.stdout(state, stdout))
        data += connection.end_request(state, request.app_status)
        try:
            with self._lock:
                sent = self.sock.send(data, _SEND_FLAGS)
        except OSError:
            sent = 0  # to be tried again where trouble is dealt with
        if sent != len(data):
            try:
                self._send([data[sent:]])
            except OSError as error:
                self._end_failed(request, error)
        self.requests.remove(request)
        self._after_end(state)

    def _end_failed(self, request: Request, error: OSError) -> None:
        log_info("%s: its end could not be sent: %s", request, error)
        self.keep = False
        self.eof = True

    def _on_discarded(self, event: InputDiscarded) -> None:
        if event.request in self.owed:
            self._answer(event.request, self.owed.pop(event.request))

    def pay(self) -> None:
        """Send the end-request records that are owed, whatever may still come."""
        while self.owed and not self.eof:
            state, end = self.owed.popitem()
            self._answer(state, end)

    def _is_last(self, request: Request) -> bool:
        """Whether a connection that was to be kept ends with this request."""
        return (
            not (self.keep or self.owed)
            and request.state.keep_conn
            and len(self.requests) == 1
            and not self._connection.receiving(but=request.state)
        )

    def hand_over(self, request: Request) -> None:
        """Close this process's copy of the connection, without shutting it down."""
        self.requests.remove(request)
        self.eof = True
        self.close()

    def fileno(self, request: Request, descriptor: int) -> int:
        """Raise: a stream of records has no descriptor."""
        raise io.UnsupportedOperation("a FastCGI stream has no descriptor")

    # Sending

    def _send(self, buffers: list[Buffer]) -> None:
        """Send all of ``buffers``, waiting for the web server where it is slow.

        Raises:
            OSError: it has gone, or takes nothing for ``write_timeout``.
        """
        if self.closed:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed")
        if self._lost:  # not to wait for the same thing again
            raise BrokenPipeError(errno.EPIPE, "the web server takes no more output")
        with self._lock:
            if self.unsent:
                buffers[:0] = self._take_unsent()
            if len(buffers) > _MAX_BUFFERS or sum(map(len, buffers)) < _JOIN_BELOW:
                buffers = [b"".join(buffers)]
            try:
                rest = self._send_now(buffers)
                while rest:
                    self._wait_writable()
                    rest = self._send_now(rest)
                    if not rest and self.unsent:
                        rest = self._take_unsent()
            except OSError:
                self._lost_output()
                raise

    def _take_unsent(self) -> list[Buffer]:
        unsent, self.unsent = self.unsent, []
        return [b"".join(unsent)]

    def _send_now(self, buffers: list[Buffer]) -> list[Buffer]:
        """Send what the socket takes at once; return the rest."""
        try:
            if len(buffers) == 1:
                sent = self.sock.send(buffers[0], _SEND_FLAGS)
                if sent == len(buffers[0]):
                    return []
            else:
                sent = self.sock.sendmsg(buffers, (), _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            return buffers
        return _behind(buffers, sent)

    def _wait_writable(self) -> None:
        """Wait until the web server takes more; meanwhile take what it sends.

        It may be one that reads no answer until its whole body is out (mod_fcgid):
        both would wait for ever.
        """
        timeout = self._settings.write_timeout
        wanted = select.POLLOUT
        if not (self.eof or self.choked):
            wanted |= select.POLLIN
        ready = _poll(self.fd, wanted, timeout)
        if not ready:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the web server took no output for {timeout:g} s"
            )
        if ready & select.POLLIN:
            self.receive()
            if self.closed:
                raise BrokenPipeError(errno.EPIPE, "the connection is closed")

    def _send_last(self, buffers: list[Buffer]) -> None:
        """Send the end and our FIN in one segment, on a connection meant to be kept.

        A web server that saw the end first might reuse the connection for a request,
        which would be lost.
        """
        tcp = self.sock.family != socket.AF_UNIX and hasattr(socket, "TCP_CORK")
        if tcp:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self._send(buffers)
        self.sock.shutdown(socket.SHUT_WR)  # this lets the corked segment go

    def _lost_output(self) -> None:
        """Abort every request of the connection: the web server takes no more."""
        self._lost = True
        self.eof = True
        self.keep = False
        for request in list(self.requests):
            self._abort(request)
            if not request.running:
                request.drop()
                self.requests.remove(request)

    # Closing

    def _after_end(self, state: RequestState) -> None:
        """Keep the connection after a request's end, or close it, or linger."""
        if not state.keep_conn:
            self.keep = False
        if self.closed:
            return
        if self._is_done():
            # A web server that meant to keep it may be sending its next request.
            quiet = not state.keep_conn and state.input_ended
            if self.eof or (quiet and not self._unread(state)):
                self.close()
            else:
                self._linger()
        self._owner.settle(self)

    def _is_done(self) -> bool:
        """Whether a connection that is not kept has no purpose any more."""
        busy = self.requests or self.owed or self.unsent or self.lingering
        return not (self.keep or busy)

    def _unread(self, state: RequestState) -> bool:
        """Whether input may be waiting: closing then would destroy the answer."""
        if state.role == Role.AUTHORIZER:
            return self.receive() and not self.eof
        return self._connection.mid_record

    def refuse_keeping(self) -> None:
        """Close when nothing is owed any more; at once if nothing is owed now."""
        self.keep = False
        if self._is_done() and not self.begun:
            self.close()

    def give_up(self) -> None:
        """The peer was silent for too long: end what is owed, or drop it and close."""
        if self.owed:
            self.pay()
        else:
            self._lost_input()

    def _linger(self) -> None:
        """Shut our side down and discard input: a reset would destroy the answer."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.lingering = True
        if self._settings.linger_timeout:
            self.until = monotonic() + self._settings.linger_timeout

    def close(self) -> None:
        """Close the socket; idempotent."""
        if not self.closed:
            self.closed = True
            self.eof = True
            self._owner.transport_closed(self)
            self.sock.close()


def _behind(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """Return what follows the first ``sent`` bytes of ``buffers``."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []


def _poll(fd: int, events: int, timeout: float) -> int:
    """Wait up to ``timeout`` seconds for ``events`` on ``fd``; 0: they did not come."""
    poller = select.poll()
    poller.register(fd, events)
    wait = min(timeout, _LONGEST_WAIT) * 1000 if timeout or not events else None
    ready = poller.poll(wait)
    return ready[0][1] if ready else 0


_ON_EVENT: dict[type, Callable[[Transport, Any], None]] = {
    ParamsReceived: Transport._on_params,
    StdinReceived: Transport._on_stdin,
    StdinEnded: Transport._on_stdin_end,
    DataReceived: Transport._on_data,
    DataEnded: Transport._on_data_end,
    AbortReceived: Transport._on_abort,
    InputDiscarded: Transport._on_discarded,
    RequestRefused: Transport._on_refused,
}
