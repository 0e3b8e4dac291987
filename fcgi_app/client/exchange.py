"""One request and its answer on a connection, both directions at once."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from time import monotonic

from ..codec.constants import ProtocolStatus
from ..errors import CallSequenceError, RemoteProtocolError
from .answer import Answer, AnswerError
from .head import MAX_HEAD, Head, find_head_end, parse_head
from .upload import BodySource, Upload

__all__ = ["Exchange"]

_RECEIVE = 65536
_REFUSALS = {
    ProtocolStatus.CANT_MPX_CONN: 503,
    ProtocolStatus.OVERLOADED: 503,
    ProtocolStatus.UNKNOWN_ROLE: 501,
}


class Exchange:
    """One request and its answer; borrows the connection, which must not block.

    Attributes:
        head: bytes of the response head; empty until it is complete.
        stderr: FCGI_STDERR so far, unless ``on_stderr`` takes it.
        answered: whether anything has come, of whatever kind.
        first_byte_at: when the first byte of the output came, or the end without
            any, in seconds of `time.monotonic`; 0 before.
    """

    def __init__(
        self,
        address: str,
        connection: socket.socket,
        upload: Upload,
        *,
        timeout: float | None,
        on_stderr: Callable[[bytes], object] | None = None,
    ) -> None:
        self.address = address
        self.upload = upload
        self.answer = Answer()
        self.head = b""
        self.stderr = b""
        self.answered = False
        self.first_byte_at = 0.0
        self._socket = connection
        self._timeout = timeout
        self._on_stderr = on_stderr

    @property
    def reusable(self) -> bool:
        """Whether the next request can follow on the connection."""
        return self.upload.done and not self.answer.surplus

    def pump(self) -> None:
        """Wait until a direction can move, and move it.

        Raises:
            AnswerError: the answer is malformed or cut off.
            TimeoutError: nothing moves.
            CallSequenceError: the connection has been closed.
        """
        if self._socket.fileno() < 0:
            raise CallSequenceError(f"{self.address}: closed before the answer's end")
        for ready, events in self._wait(self.upload.refill()):
            if ready is self._socket and events & selectors.EVENT_WRITE:
                self._send()
            if ready is self._socket and events & selectors.EVENT_READ:
                self._receive()
        self._pass_stderr()

    def read_head(self) -> Head:
        """Pump until the response head is complete, and take it off the output.

        Raises:
            AnswerError: there is none, or it is malformed.
            TimeoutError: nothing moves.
        """
        output = self.answer.stdout
        seen = 0
        while (end := find_head_end(output, seen)) is None:
            seen = len(output)
            hopeless = seen > MAX_HEAD or output.startswith((b"\n", b"\r\n"))
            if hopeless or self.answer.end is not None:
                break
            self.pump()
        try:
            head = parse_head(bytes(output[:end])) if end else self._no_head()
        except RemoteProtocolError as error:
            raise self._failure(error) from None
        self.head = bytes(output[:end]) if end else b""
        del output[: len(self.head)]
        return head

    def _no_head(self) -> Head:
        """Make one for a refusal, which needs no output; else say what came instead."""
        output, end = self.answer.stdout, self.answer.end
        if output:
            start = bytes(output[:100])
            raise RemoteProtocolError(f"the output is no response head: {start!r}")
        if end is not None and end.protocol_status in _REFUSALS:
            return Head(_REFUSALS[ProtocolStatus(end.protocol_status)], "", [])
        raise RemoteProtocolError("the answer ended without any output")

    def _wait(self, awaited: BodySource | None) -> list[tuple[object, int]]:
        writing = selectors.EVENT_WRITE if self.upload.pending else 0
        # poll(2): no descriptor of its own, no limit on the number of others.
        with selectors.PollSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | writing)
            if awaited is not None:
                selector.register(awaited, selectors.EVENT_READ)
            ready = selector.select(self._timeout)
        if not ready:
            message = f"{self.address}: nothing moved for {self._timeout:g} seconds"
            raise TimeoutError(message)
        return [(key.fileobj, events) for key, events in ready]

    def _send(self) -> None:
        try:
            self.upload.sent(self._socket.send(self.upload.pending))
        except BlockingIOError:
            return
        except ConnectionError:
            # It reads no more; but its answer may be here already.
            self.upload.give_up()

    def _receive(self) -> None:
        try:
            received = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except ConnectionError as error:
            reason = f"no END_REQUEST: {error.strerror}"
            raise self._cut_off(reason) from error
        if not received:
            raise self._cut_off("the connection was closed without END_REQUEST")
        self.answered = True
        try:
            self.answer.feed(received)
        except RemoteProtocolError as error:
            raise self._failure(error) from None
        if not self.first_byte_at and (self.answer.stdout or self.answer.end):
            self.first_byte_at = monotonic()

    def _pass_stderr(self) -> None:
        if stderr := self.answer.take_stderr():
            if self._on_stderr is not None:
                self._on_stderr(stderr)
            else:
                self.stderr += stderr

    def _cut_off(self, reason: str) -> AnswerError:
        failure = self._failure(RemoteProtocolError(reason))
        failure.cut_off = True
        return failure

    def _failure(self, error: RemoteProtocolError) -> AnswerError:
        """Say where it happened, and add what came until then."""
        self._pass_stderr()
        failure = AnswerError(
            f"{self.address}: {error.args[0]}",
            request_id=error.request_id,
            section=error.section,
        )
        rest = self.answer.take_stdout()
        failure.head = self.head or rest
        failure.body = rest if self.head else b""
        failure.stderr = self.stderr
        return failure
