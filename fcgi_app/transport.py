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
from contextlib import AbstractContextManager, suppress
from math import inf
from time import monotonic
from typing import Any, Protocol

from ._log import log_info, log_warning
from .abortwatch import AbortWatch
from .body import NO_INPUT, InputBuffer
from .codec.constants import MAX_CONTENT_LENGTH, ProtocolStatus, Role
from .codec.records import END_REQUEST_LEN, Buffer
from .errors import RemoteProtocolError
from .outlet import Outlet, poll_socket
from .protocol import (
    AbortReceived,
    Connection,
    DataEnded,
    DataReceived,
    Event,
    InputDiscarded,
    ParamsReceived,
    RecurringParams,
    RequestRefused,
    RequestState,
    State,
    StdinEnded,
    StdinReceived,
    Varied,
)
from .request import Request
from .response import build_error
from .settings import Settings

__all__ = ["Transport"]

_RECV_SIZE = 65536
_NOW = socket.MSG_DONTWAIT
_MAX_REPLIES = 1 << 20
"""Bytes of short answers that a web server may leave unread; it is not read beyond."""
_COMPLETE = State.COMPLETE  # a look into the class is slow before Python 3.12
_AUTHORIZER = int(Role.AUTHORIZER)
_RESPONDER = int(Role.RESPONDER)
_STATUS_OF: dict[int, int] = {
    ProtocolStatus.OVERLOADED: 503,
    ProtocolStatus.UNKNOWN_ROLE: 501,
}


class Owner(Protocol):
    """Who holds the connections: the acceptor."""

    recurring: RecurringParams
    """What the params of all connections have in common."""

    def request_ready(self, request: Request) -> bool:
        """Take a request that may run now; False when there is no room for it."""

    def settle(self, transport: Transport) -> None:
        """Wait for what comes next on a connection that stays."""

    def rest(self, transport: Transport) -> None:
        """Keep a connection on which nothing is owed: ``settle`` in that case."""

    def aborted(self, request: Request) -> None:
        """Tell who waits for the end of ``request`` that it is unwanted, or lost."""

    def transport_closed(self, transport: Transport) -> None:
        """Forget a connection; its socket is still open during the call."""


class Transport:
    """One connection from a web server.

    Attributes:
        fd: the descriptor of ``sock``.
        requests: those that have their params and no end yet, in order of arrival.
        owed: the end-request records of requests that were answered before their
            input had ended; see ``end``.
        eof: the peer sends no more.
        deaf: what the peer sends is not looked at any more.
        keep: whether the connection may stay when nothing is owed on it.
        lingering: our side is shut down; input is discarded until the peer closes.
        until: when lingering, or owing, ends at the latest (monotonic clock).
        watched, place: the acceptor's notes on where it has this connection.
    """

    __slots__ = (
        "_connection",
        "_outlet",
        "_owner",
        "_peer",
        "_quiet",
        "_settings",
        "closed",
        "deaf",
        "eof",
        "fd",
        "keep",
        "lingering",
        "owed",
        "place",
        "requests",
        "seen_bytes",
        "sock",
        "until",
        "watched",
    )

    def __init__(
        self,
        sock: socket.SocketType,
        peer: Any,
        settings: Settings,
        values: Mapping[bytes, bytes],
        owner: Owner,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._peer = peer
        self._settings = settings
        self._connection = Connection(settings.limits, values, owner.recurring)
        self._owner = owner
        self._outlet = self._make_outlet(sock)
        self.requests: list[Request] = []
        self.owed: dict[RequestState, bytes] = {}
        self.closed = False
        self.deaf = False
        self.eof = False
        self.keep = True
        self.lingering = False
        self._quiet = False  # the last request's end leaves no input behind
        self.watched = 0  # for which events of the selector
        self.seen_bytes = False
        self.until = inf
        self.place: dict[Transport, float] | None = None

    def _make_outlet(self, sock: socket.SocketType) -> Outlet:
        return Outlet(sock)

    def _make_input(self) -> InputBuffer:
        return InputBuffer()

    # What the acceptor asks

    @property
    def paused(self) -> bool:
        """Whether reading on must wait until the application wants the input."""
        for request in self.requests:
            if request.dispatched and request.input_open:
                return True
        return False

    @property
    def unsent(self) -> int:
        """How many bytes the web server has not taken yet."""
        return self._outlet.pending

    @property
    def choked(self) -> bool:
        """Whether reading on must wait until the web server takes short answers."""
        return self._outlet.pending > _MAX_REPLIES

    @property
    def serving(self) -> bool:
        """Whether it has one complete request to be served, and waits for nothing."""
        requests = self.requests
        return (
            len(requests) == 1
            and requests[0].state.state is _COMPLETE
            and not (self.eof or self.deaf or self.owed or self._outlet.queue)
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
            self._peer_ended()
        elif not (self.lingering or self.deaf):
            self.seen_bytes = True
            self._feed(data)
        return True

    def _feed(self, data: bytes) -> None:
        connection = self._connection
        whole = connection.receive_whole(data)
        if whole is not None:
            self._on_whole(*whole)
            return
        try:
            self._handle(connection.receive_part(data))
            if connection.error is not None:
                raise connection.error
        except RemoteProtocolError as error:
            log_warning("connection from %s: %s; closed", self.peer_name, error)
            self._stop_listening()
            return
        replies = connection.data_to_send()
        if replies:
            self._outlet.push(replies)

    def _handle(self, events: list[Event]) -> None:
        """Act on events; params with the end of an empty STDIN behind are one step."""
        begun: ParamsReceived | None = None
        for event in events:
            if begun is not None:
                first, begun = begun, None
                if type(event) is StdinEnded and event.request is first.request:
                    self._on_whole(*first)
                    continue
                self._on_params(first)
            if type(event) is ParamsReceived and event.request.role == _RESPONDER:
                begun = event
            else:
                _ON_EVENT[type(event)](self, event)
        if begun is not None:
            self._on_params(begun)

    def _peer_ended(self) -> None:
        """Note that the peer has closed, or shut down its side to wait for answers."""
        self.eof = True
        gone = bool(poll_socket(self.fd, 0) & (select.POLLHUP | select.POLLERR))
        for request in self.requests:
            self._abort(request)
        self._stop_listening(gone)

    def _stop_listening(self, gone: bool = False) -> None:
        """Drop what is incomplete (all, if the peer has gone); the rest is answered."""
        self.deaf = True
        self.keep = False
        self.pay()
        cut = self._connection.receive_eof()
        for request in list(self.requests):
            if gone or request.state in cut:
                self._abort(request)
                if not request.running:
                    log_info("%s: its connection was lost; dropped", request)
                    request.drop()
                    self.requests.remove(request)
        self._next_step()

    def _abort(self, request: Request) -> None:
        request.abort()
        self._owner.aborted(request)

    def send_replies(self) -> None:
        """Send on what the socket would not take before."""
        self._outlet.push()
        self._next_step()

    # Events

    def _on_params(self, event: ParamsReceived) -> None:
        state = event.request
        request = Request(
            self,
            self._settings,
            state.role,
            state.request_id,
            event.params,
            self._make_input(),
        )
        if state.role == Role.FILTER:
            request._data = self._make_input()
        request.params_content = event.content
        request.state = state
        self.requests.append(request)
        if state.role == Role.AUTHORIZER:
            request._body.ended = True
            self._ready(request)
        elif not self._settings.read_ahead:
            self._ready(request)

    def _on_whole(
        self,
        state: RequestState,
        params: dict[bytes, bytes],
        content: bytes,
        varied: Varied | None = None,
    ) -> None:
        """Act on a request that has come with the end of its body, mostly without."""
        request = Request(
            self, self._settings, state.role, state.request_id, params, NO_INPUT
        )
        request.params_content = content
        request.varied = varied
        request.state = state
        self.requests.append(request)
        if params.get(b"CONTENT_LENGTH"):
            request._input_ended()
        self._ready(request)

    def _on_stdin(self, event: StdinReceived) -> None:
        request = self._find(event.request)
        if request is None or request.finished:
            return
        self._keep_input(request, request._body, event.data)
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
            self._keep_input(request, request._filter_input(), event.data)

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
        self._outlet.push(end)
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

    def _keep_input(self, request: Request, source: InputBuffer, data: bytes) -> None:
        """Keep input that nobody has read; where there is no room, one request ends."""
        if source.ended:
            return
        try:
            source.append(data, self._settings.spool)
        except OSError as error:
            log_warning("%s: its body could not be kept: %s", request, error)
            if request.running:
                self._abort(request)
            else:
                self.refuse(request)

    # The channel of a request

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Receive more; with ``wait``, until something came or the body is late."""
        if not self.choked and self.receive():
            return True
        if not wait or self.eof or self.deaf or self.closed:
            return False
        timeout = self._settings.body_timeout
        ready = poll_socket(self.fd, self._wanted(), timeout)
        if not ready:
            log_warning("%s: no input for %g s; given up", request, timeout)
            self._stop_listening()
            return False
        if ready & select.POLLOUT:
            self._outlet.push()
        return self.receive() if ready & ~select.POLLOUT else True

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Receive until the request is aborted or ``timeout`` seconds have passed."""
        until = inf if timeout is None else monotonic() + timeout
        while not (request._aborted or self.eof or self.deaf or self.closed):
            left = until - monotonic()
            if left <= 0 or not poll_socket(
                self.fd, select.POLLIN, 0.0 if left == inf else left
            ):
                self.receive()
                return
            self.receive()

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called, in a thread of its own, once it is aborted."""
        return AbortWatch(self.sock, request.request_id, callback)

    def _wanted(self) -> int:
        """Return what to wait for while a request wants input."""
        if self.choked:
            return select.POLLOUT
        return select.POLLIN | (select.POLLOUT if self._outlet.pending else 0)

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
            self.keep
            and state.state is _COMPLETE
            and request._stderr is None
            and not request.unwanted
            and len(stdout) <= MAX_CONTENT_LENGTH
            and not (self.closed or self._outlet.queue)
        ):
            self._end_shortly(request, stdout)
            return
        early = not (state.input_ended or self.deaf or request.server_is(b"nginx"))
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
            self._send_end(buffers, self._is_last(request))
        except OSError as error:
            log_info("%s: its end could not be sent: %s", request, error)
        self.requests.remove(request)
        if state in self.owed:
            self._owner.settle(self)
        else:
            self._after_end(state)

    def _end_shortly(self, request: Request, stdout: bytes) -> None:
        """Send the usual end of a response: one short piece, and nothing owed."""
        connection = self._connection
        state = request.state
        data = connection.short_response(state, stdout, request.app_status)
        requests = self.requests
        try:
            if not self._outlet.send_at_once(data):
                self._send([])
        except OSError as error:
            log_info("%s: its end could not be sent: %s", request, error)
            self._note_loss()
        requests.remove(request)
        # With nothing owed on it, either way, the connection just waits.
        if (
            state.keep_conn
            and self.keep
            and not (requests or self.owed or self.lingering or self._outlet.queue)
            and connection.idle
        ):
            self._owner.rest(self)
        else:
            self._after_end(state)

    def _on_discarded(self, event: InputDiscarded) -> None:
        if event.request in self.owed:
            self._answer(event.request, self.owed.pop(event.request))

    def pay(self) -> None:
        """Send the end-request records that are owed, whatever may still come."""
        while self.owed:
            state, end = self.owed.popitem()
            self._quiet = False
            self.keep = self.keep and state.keep_conn
            self._outlet.push(end)

    def _is_last(self, request: Request) -> bool:
        """Whether a connection that was to be kept ends with this request."""
        return (
            not (self.keep or self.owed or self.deaf)
            and request.state.keep_conn
            and len(self.requests) == 1
            and not self._connection.receiving(but=request.state)
        )

    def hand_over(self, request: Request) -> None:
        """Close this process's copy of the connection, without shutting it down."""
        self.requests.remove(request)
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
        try:
            self._outlet.send(buffers, self._wait_writable)
        finally:
            self._note_loss()

    def _send_end(self, buffers: list[Buffer], last: bool) -> None:
        """Send the end of a response, which nothing may get in between.

        With ``last``, our FIN leaves in the same segment. A web server that saw the
        end first might reuse the connection for a request, which would be lost.

        Raises:
            OSError: as ``_send``.
        """
        if last:
            self._cork()
        self._send(buffers)
        if last:
            self.sock.shutdown(socket.SHUT_WR)  # this lets a corked segment go

    def _note_loss(self) -> None:
        if self._outlet.lost:
            self._gone()

    def _cork(self) -> None:
        if self.sock.family != socket.AF_UNIX and hasattr(socket, "TCP_CORK"):
            with suppress(OSError):  # then they leave one after the other
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def _wait_writable(self) -> None:
        """Wait until the web server takes more; meanwhile take what it sends.

        It may be one that reads no answer until its whole body is out (mod_fcgid):
        both would wait for ever.
        """
        timeout = self._settings.write_timeout
        wanted = select.POLLOUT
        if not (self.eof or self.deaf or self.choked):
            wanted |= select.POLLIN
        ready = poll_socket(self.fd, wanted, timeout)
        if not ready:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the web server took no output for {timeout:g} s"
            )
        if ready & select.POLLIN:
            self.receive()

    def _gone(self) -> None:
        """Abort every request of the connection: the web server takes no more."""
        self.eof = self.deaf = True
        self.keep = False
        self.owed.clear()
        for request in list(self.requests):
            self._abort(request)
            if not request.running:
                request.drop()
                self.requests.remove(request)

    # What comes next

    def _after_end(self, state: RequestState) -> None:
        """Note what a request's end means for its connection."""
        if not state.keep_conn:
            self.keep = False
        self._quiet = not state.keep_conn and state.input_ended
        if self._quiet and state.role == _AUTHORIZER:
            self._quiet = not self._has_unread()
        self._next_step()

    def _has_unread(self) -> bool:
        """Whether input is waiting in the socket; an authorizer's was not expected."""
        try:
            return bool(self.sock.recv(1, _NOW | socket.MSG_PEEK))
        except OSError:
            return False

    def _next_step(self) -> None:
        """Close the connection, linger, or wait: only here that is decided."""
        if self.closed:
            return
        if self._outlet.lost:
            self._gone()
            if not self.requests:
                self.close()
                return
        elif not (self.requests or self.owed or self.unsent or self.lingering):
            neighbour = not self.deaf and self._connection.receiving()
            if not (self.keep or neighbour):
                if self.eof or (self._quiet and not self._connection.mid_record):
                    self.close()
                    return
                self._linger()
        elif self.lingering and self.eof:
            self.close()
            return
        self._owner.settle(self)

    def refuse_keeping(self) -> None:
        """Close when nothing is owed any more; at once if nothing is owed now."""
        self.keep = False
        busy = self.requests or self.owed or self.unsent or self.lingering
        # The first request of a connection that was just made is on its way.
        if not busy and not self.begun and self.seen_bytes:
            self.close()

    def give_up(self) -> None:
        """End what is owed, or drop it and close: the peer was silent for too long."""
        if self.owed:
            self.pay()
            self._next_step()
        elif self.lingering or self.unsent:
            self.close()
        else:
            self._stop_listening()
            if not (self.requests or self.unsent):
                self.close()  # it has had its time; nothing is left to arrive

    def _linger(self) -> None:
        """Shut our side down and discard input: a reset would destroy the answer."""
        self.lingering = True
        self.until = monotonic() + (self._settings.linger_timeout or inf)
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; idempotent."""
        if not self.closed:
            self.closed = True
            self.eof = self.deaf = True
            self._owner.transport_closed(self)
            self.sock.close()


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
