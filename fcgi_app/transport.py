"""One accepted connection: its socket, its protocol state, and its requests.

Everything about *one* connection works alone: how it is read, here; how it is written
while its web server may be writing too, in ``sending``; how it ends without losing the
answer, in ``link``. Which connection has its turn is the acceptor's business.
"""

from __future__ import annotations

import errno
import select
import socket
from _thread import get_ident  # threading has the same one, and loads more
from collections.abc import Callable
from math import inf
from time import monotonic

from ._log import log_info, log_warning
from .body import NO_INPUT, InputBuffer
from .codec.constants import ProtocolStatus, Role
from .errors import RemoteProtocolError
from .outlet import poll_socket
from .protocol import (
    AbortReceived,
    DataEnded,
    DataReceived,
    Event,
    InputDiscarded,
    ParamsReceived,
    RequestRefused,
    RequestState,
    StdinEnded,
    StdinReceived,
    Varied,
)
from .request import Request
from .response import build_error
from .sending import SendingLink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from .codec.records import Buffer


__all__ = ["Transport"]

_RECV_SIZE = 65536
_RECV_BODY_SIZE = 4 * _RECV_SIZE
"""While a body is coming. Linux keeps some 200 KiB for a socket."""
_NOW = socket.MSG_DONTWAIT
_LOOK = 0.5
"""Seconds between two looks for what a wait does not notice."""
_RESPONDER = int(Role.RESPONDER)
_STATUS_OF: dict[int, int] = {
    ProtocolStatus.OVERLOADED: 503,
    ProtocolStatus.UNKNOWN_ROLE: 501,
}


class Transport(SendingLink):
    """A connection from a web server, as the acceptor and requests use it."""

    __slots__ = ()

    def _make_input(self) -> InputBuffer:
        return InputBuffer()

    # Receiving

    def receive(self) -> bool:
        """Read once, without waiting, and act on it; whether anything was there.

        Afterwards ``closed`` tells if the connection has gone.
        """
        if self._is_inside() or self.eof or self.closed:
            return False  # inside, there are bytes that come before
        self._receiver = get_ident()
        try:
            return self._receive()
        finally:
            self._receiver = 0

    def forget_receiver(self) -> None:
        """In a forked child: the thread that was receiving is not there."""
        self._receiver = 0

    def _receive(self) -> bool:
        try:
            long = self._connection.mid_content
            data = self.sock.recv(_RECV_BODY_SIZE if long else _RECV_SIZE, _NOW)
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
                    self._on_whole(first.request, first.params, first.content)
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
        body: bytes = b"",
    ) -> None:
        """Act on a request that has come with all of its body, mostly without any."""
        request = Request(
            self,
            self._settings,
            state.role,
            state.request_id,
            params,
            self._make_input() if body else NO_INPUT,
        )
        request.params_content = content
        request.varied = varied
        request.state = state
        self.requests.append(request)
        if body:
            self._keep_input(request, request._body, body)
        if request.finished:
            return  # there is no room for it
        if body or params.get(b"CONTENT_LENGTH"):
            request._input_ended()
        self._ready(request)

    def resume(self, request: Request, keep_conn: bool) -> None:
        """Carry a request that has come whole, and elsewhere."""
        request.state = self._connection.resume(request.request_id, keep_conn)
        request._channel = self
        self.requests.append(request)

    def _on_stdin(self, event: StdinReceived) -> None:
        self._take_stdin(event.request, event.data)

    def _take_stdin(self, state: RequestState, data: Buffer) -> None:
        request = self._find(state)
        if request is None or request.finished:
            return
        self._keep_input(request, request._body, data)
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

    def _on_discarded(self, event: InputDiscarded) -> None:
        if event.request in self.owed:
            self._answer(event.request, self.owed.pop(event.request))

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
        page = self._connection.stdout(state, (build_error(status),))
        end = self._connection.end_request(state, 0, protocol_status)
        self._answer(state, b"".join((*page, end)))

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

    def _keep_input(self, request: Request, source: InputBuffer, data: Buffer) -> None:
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

    # The channel of a request: what comes, and waiting; ``sending`` has the rest

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Receive more; with ``wait``, until something came or the body is late.

        Raises:
            RuntimeError: a signal handler waits for what has been received already.
        """
        if not self.choked and self.receive():
            return True
        if not wait:
            return False
        if self.eof or self.deaf or self.closed:
            self._abort(request)  # else it would be asked for ever
            return False
        if self._is_inside():
            raise RuntimeError(f"{request}: a signal handler reads in the middle of it")
        timeout = self._settings.body_timeout
        source = request.reading
        size = source.size
        ready = self._poll(
            self._wanted(), timeout, lambda: source.ended or source.size != size
        )
        if source.ended or source.size != size:
            return True  # a signal handler, or another thread, has received it
        if not ready:
            log_warning("%s: no input for %g s; given up", request, timeout)
            self._stop_listening()
            return False
        if ready & select.POLLOUT:
            self._outlet.push()
        return self.receive() if ready & ~select.POLLOUT else True

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Receive until the request is aborted or ``timeout`` seconds have passed.

        A signal handler in the middle of receiving can only wait for the peer to go.
        """
        until = inf if timeout is None else monotonic() + timeout
        while not (request._aborted or self.eof or self.deaf or self.closed):
            left = until - monotonic()
            if left > 0 and self._is_inside():
                poll_socket(self.fd, 0, left)
                return
            if left > 0:
                ready = self._poll(self._wanted(), left, lambda: request._aborted)
                if ready & select.POLLOUT:
                    self._outlet.push()
            if not self.choked:
                self.receive()
            if left <= 0:
                return

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called, in a thread of its own, once it is aborted."""
        from .abortwatch import AbortWatch  # and with it threading

        return AbortWatch(self.sock, request.request_id, callback)

    def _poll(
        self, events: int, timeout: float, seen: Callable[[], object] = bool
    ) -> int:
        """Wait as ``poll_socket`` does, or until ``seen`` tells what it is for.

        Python calls signal handlers between two waits. So the wait is one of many: else
        a signal that comes right before it, or that another thread gets, would be
        noticed at its end, and so would what a handler has received meanwhile.
        """
        until = monotonic() + timeout if timeout else inf
        while True:
            left = until - monotonic()
            ready = poll_socket(self.fd, events, max(min(left, _LOOK), 0.001))
            if ready or left <= _LOOK or seen():
                return ready

    def _wanted(self) -> int:
        """Return what to wait for while a request wants input."""
        if self.choked:
            return select.POLLOUT
        return select.POLLIN | (select.POLLOUT if self._outlet.pending else 0)

    def _wait_writable(self) -> None:
        """Wait until the web server takes more; meanwhile take what it sends.

        It may be one that reads no answer until its whole body is out (mod_fcgid):
        both would wait for ever.
        """
        timeout = self._settings.write_timeout
        wanted = select.POLLOUT
        if not (self.eof or self.deaf or self.choked):
            wanted |= select.POLLIN
        ready = self._poll(wanted, timeout)
        if not ready:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the web server took no output for {timeout:g} s"
            )
        if ready & select.POLLIN:
            self.receive()

    # The deadline has passed

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
