"""The bytes that an HTTP client sends: its head line by line, its body as it comes."""

from __future__ import annotations

import io
import os
import re
import socket
from collections.abc import Callable

from .params import BadRequest, HttpRequest

__all__ = ["ChunkedDecoder", "ClientGone", "Incoming", "RequestBody", "open_body"]

_RECEIVE = 65536
_MAX_LINE = 8190
"""Bytes of a line between chunks: httpd's LimitRequestFieldSize."""
_MAX_TRAILERS = 100
"""Lines after the last chunk: httpd's LimitRequestFields."""
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
_LENGTH = re.compile(r"[0-9]{1,18}")


class ClientGone(Exception):
    """The HTTP client closed its connection, or takes nothing any more."""


class Incoming(io.BufferedIOBase):
    """The reading side of a client's connection; its buffer outlives a request.

    Borrows the socket, which has a timeout: its descriptor therefore never blocks.

    Attributes:
        ended: the stream ended where a line was wanted.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.ended = False
        self._socket = connection
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def readline(self, size: int | None = -1, /) -> bytes:
        """Wait for a line; cut off after ``size`` bytes, or where the stream ends."""
        limit = len(self._buffer) + _RECEIVE if size is None or size < 0 else size
        while True:
            end = self._buffer.find(b"\n", 0, limit) + 1
            if end or len(self._buffer) >= limit:
                return self._take(end or limit)
            received = self._socket.recv(_RECEIVE)
            if not received:
                self.ended = True
                return self._take(len(self._buffer))
            self._buffer += received

    def read_some(self, limit: int) -> bytes | None:
        """Give up to ``limit`` bytes without waiting; None if there are none yet.

        Raises:
            ClientGone: the stream has ended.
        """
        if self._buffer:
            return self._take(min(limit, len(self._buffer)))
        try:
            received = os.read(self._socket.fileno(), min(limit, _RECEIVE))
        except BlockingIOError:
            return None
        except OSError as error:
            raise ClientGone(f"in its request: {error.strerror}") from error
        if not received:
            raise ClientGone("in its request")
        return received

    def give_back(self, data: bytes) -> None:
        """Put bytes in front that belong to the next request."""
        self._buffer[:0] = data

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


class RequestBody:
    """The body of a request, as it comes; a `fcgi_app.client.BodySource`.

    Attributes:
        length: in bytes; None if that shows when it ends.
        invite: called before the first byte is read, if the client waits for a word.
        awaited: the last read found nothing: it is the client's turn.
    """

    length: int | None = None
    invite: Callable[[], None] | None = None
    awaited: bool = False

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    @property
    def ended(self) -> bool:
        """Whether all of it has been read."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Give the descriptor of the client's connection."""
        return self._incoming.fileno()

    def read_some(self) -> bytes | None:
        """Give what is there without waiting; None: nothing yet; empty: the end."""
        if self.invite is not None:
            self.invite()
            self.invite = None
        some = self._read_some()
        self.awaited = some is None
        return some

    def _read_some(self) -> bytes | None:
        raise NotImplementedError


class LengthBody(RequestBody):
    """A body whose length the head tells."""

    def __init__(self, incoming: Incoming, length: int) -> None:
        super().__init__(incoming)
        self.length = length
        self._left = length

    @property
    def ended(self) -> bool:
        return not self._left

    def _read_some(self) -> bytes | None:
        if not self._left:
            return b""
        some = self._incoming.read_some(self._left)
        self._left -= len(some or b"")
        return some


class ChunkedBody(RequestBody):
    """A chunked body, decoded."""

    def __init__(self, incoming: Incoming) -> None:
        super().__init__(incoming)
        self._decoder = ChunkedDecoder()

    @property
    def ended(self) -> bool:
        return self._decoder.ended

    def _read_some(self) -> bytes | None:
        while not self._decoder.ended:
            some = self._incoming.read_some(_RECEIVE)
            if some is None:
                return None
            decoded = self._decoder.feed(some)
            self._incoming.give_back(self._decoder.surplus)
            if decoded:
                return decoded
        return b""


class ChunkedDecoder:
    """The chunked transfer coding (RFC 9112 §7.1); bytes in, bytes out, no I/O.

    Chunk extensions and trailers are dropped.

    Attributes:
        ended: the last chunk and the trailers have come.
        surplus: bytes after them.
    """

    def __init__(self) -> None:
        self.ended = False
        self.surplus = b""
        self._buffer = bytearray()
        self._left = 0
        self._expect: Callable[[bytes], None] = self._size_line
        self._trailers = 0

    def feed(self, received: bytes) -> bytes:
        """Take bytes of the connection; give what they hold of the body.

        Raises:
            BadRequest: they are not chunked.
        """
        self._buffer += received
        decoded = bytearray()
        while not self.ended and self._buffer:
            if self._left:
                piece = self._buffer[: self._left]
                decoded += piece
                del self._buffer[: len(piece)]
                self._left -= len(piece)
            elif not self._next_line():
                break
        if self.ended:
            self.surplus = bytes(self._buffer)
            self._buffer.clear()
        return bytes(decoded)

    def _next_line(self) -> bool:
        end = self._buffer.find(b"\n", 0, _MAX_LINE)
        if end < 0:
            if len(self._buffer) >= _MAX_LINE:
                raise BadRequest(f"A line between chunks exceeds {_MAX_LINE} bytes.")
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if not line.endswith(b"\r"):
            raise BadRequest(f"The line {line[:40]!r} between chunks has no CR LF.")
        self._expect(line[:-1])
        return True

    def _size_line(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise BadRequest(f"{line[:40]!r} is no chunk size.")
        self._left = int(match[1], 16)
        self._expect = self._end_of_chunk if self._left else self._trailer

    def _end_of_chunk(self, line: bytes) -> None:
        if line:
            raise BadRequest(f"The chunk goes on after its end: {line[:40]!r}.")
        self._expect = self._size_line

    def _trailer(self, line: bytes) -> None:
        self.ended = not line
        self._trailers += 1
        if self._trailers > _MAX_TRAILERS:
            raise BadRequest(f"More than {_MAX_TRAILERS} trailers.")


def open_body(request: HttpRequest, incoming: Incoming) -> RequestBody | None:
    """Give the body of a request (RFC 9112 §6.3); None if it cannot have one.

    Raises:
        BadRequest: its length is malformed or ambiguous (400), or its coding unknown
            (501).
    """
    coding = request.header("transfer-encoding")
    length = request.header("content-length")
    if coding is not None:
        if length is not None or request.version == "HTTP/1.0":
            # Two servers in a row may not agree which of the two counts.
            raise BadRequest("Transfer-Encoding and Content-Length exclude each other.")
        if coding.strip().lower() != "chunked":
            raise BadRequest(f"Transfer-Encoding {coding!r} is unknown.", 501)
        return ChunkedBody(incoming)
    if length is None:
        return None
    if not _LENGTH.fullmatch(length.strip()):
        raise BadRequest(f"Content-Length {length!r} is malformed.")
    return LengthBody(incoming, int(length))
