"""The answer as the caller sees it: complete, or still coming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .answer import AnswerError
from .exchange import Exchange
from .head import Head, find_header

__all__ = ["Response", "StreamedResponse"]


@dataclass(frozen=True)
class Response:
    """A complete answer.

    Attributes:
        status: HTTP status, see `Head`. Of a refusal that has no head (OVERLOADED,
            CANT_MPX_CONN, UNKNOWN_ROLE) the one that says it in HTTP: 503, 501.
        reason: text of the status, empty if the application gave none.
        headers: (name, value) in their order, latin-1.
        body: everything after the head.
        stderr: everything of FCGI_STDERR.
        app_status: of END_REQUEST; the exit status, signed (§5.5).
        protocol_status: of END_REQUEST; a `ProtocolStatus`, or another number.
        head: the bytes of the head as they came, with the blank line.
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    stderr: bytes
    app_status: int
    protocol_status: int
    head: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; other bytes become surrogate escapes."""
        return self.body.decode("utf-8", "surrogateescape")

    def header(self, name: str) -> str | None:
        """Give the first header of that name, in any case; None if there is none."""
        return find_header(self.headers, name)


class StreamedResponse:
    """An answer whose head has come; made by `Client.stream`, used in ``with``.

    Iterating gives the bytes of the body as they come, each once. Leaving ``with``
    before the end closes the connection, which the application takes as an abort.

    Attributes:
        status: see `Head`; so are ``reason`` and ``headers``.
        reason: text of the status, empty if the application gave none.
        headers: (name, value) in their order, latin-1.
    """

    def __init__(
        self, head: Head, exchange: Exchange, release: Callable[[bool], None]
    ) -> None:
        self.status, self.reason, self.headers = head
        self._exchange = exchange
        self._answer = exchange.answer
        self._release: Callable[[bool], None] | None = release
        self._release_at_end()

    def __enter__(self) -> StreamedResponse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> bytes:
        """The bytes of the head as they came, with the blank line."""
        return self._exchange.head

    @property
    def stderr(self) -> bytes:
        """FCGI_STDERR so far; empty if ``on_stderr`` takes it."""
        return self._exchange.stderr

    @property
    def first_byte_at(self) -> float:
        """When the first byte of the answer came, in seconds of `time.monotonic`."""
        return self._exchange.first_byte_at

    @property
    def ended(self) -> bool:
        """Whether END_REQUEST has come."""
        return self._answer.end is not None

    @property
    def app_status(self) -> int | None:
        """The exit status of END_REQUEST; None before it came."""
        return self._answer.end.app_status if self._answer.end else None

    @property
    def protocol_status(self) -> int | None:
        """The protocol status of END_REQUEST; None before it came."""
        return self._answer.end.protocol_status if self._answer.end else None

    def header(self, name: str) -> str | None:
        """Give the first header of that name, in any case; None if there is none."""
        return find_header(self.headers, name)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            if chunk := self._answer.take_stdout():
                yield chunk
            elif self.ended:
                return
            else:
                self._pump()

    def read(self) -> bytes:
        """Give the rest of the body; an `AnswerError` keeps all that came of it."""
        chunks = []
        try:
            for chunk in self:
                chunks.append(chunk)
        except AnswerError as error:
            error.body = b"".join(chunks) + error.body
            raise
        return b"".join(chunks)

    def complete(self) -> Response:
        """Read to the end and give everything that has not been handed out."""
        body = self.read()
        assert self._answer.end is not None
        return Response(
            self.status,
            self.reason,
            self.headers,
            body,
            self.stderr,
            *self._answer.end,
            head=self.head,
        )

    def abort(self) -> None:
        """Send ABORT_REQUEST (§5.4) instead of the rest of the body; then read on."""
        if not self.ended:
            self._exchange.upload.abort()

    def close(self) -> None:
        """Let go of the connection; before the end of the answer this closes it."""
        if self._release is not None:
            release, self._release = self._release, None
            release(False)

    def _pump(self) -> None:
        try:
            self._exchange.pump()
        except BaseException:
            self.close()
            raise
        self._release_at_end()

    def _release_at_end(self) -> None:
        if self.ended and self._release is not None:
            release, self._release = self._release, None
            release(self._exchange.reusable)
