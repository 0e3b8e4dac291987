"""The binary streams of a request: STDIN and DATA in, STDOUT and STDERR out.

They belong to their request for good: after its end they are closed files, whoever
still holds them. What follows the current request is in ``stdio``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from time import monotonic

from ._log import log_warning
from .body import InputBuffer, keep_memory
from .codec.constants import Role
from .errors import RequestAborted
from .response import (
    MAX_HEAD_BYTES,
    MalformedHead,
    ResponseHead,
    build_error,
    known_head,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .codec.records import Buffer
    from .filepart import FileSource
    from .request import Request

__all__ = ["BodyReader", "OutputStream", "StderrStream", "StdoutStream"]


_AUTHORIZER = int(Role.AUTHORIZER)
_MAX_LINE = 8192
"""Bytes of a line on STDERR that go out before its end (httpd cuts at 8 KiB)."""
_LONG_PART = 16384
"""Bytes of a part from which a record of its own costs less than joining it."""
_SOON = 0.05
"""Seconds from one send to the next in a response that comes quickly."""
_STREAK = 8
"""Sends in such a row, from which on they are greater."""
_MORE = 4
"""How much greater."""
_SHORT_FILE = 131072
"""Bytes of a file up to which reading costs less than having the kernel send it."""


class BodyReader(io.RawIOBase):
    """The raw layer of ``request.stdin``: reads one input buffer, waits for more."""

    def __init__(self, request: Request, source: InputBuffer) -> None:
        self._request = request
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to ``len(buffer)`` bytes; 0 at the end of the stream.

        Raises:
            RequestAborted: under ``run``, the rest of the body will never come.
        """
        source = self._source
        if not source.size:
            self._request._wait_input(source)
        data = source.take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def fileno(self) -> int:
        """Return the descriptor of a CGI body; a FastCGI stream has none."""
        return self._request._channel.fileno(self._request, 0)

    def readall(self) -> bytes:
        """Read to the end of the stream."""
        piece = self._read_piece()
        if self._source.ended and not self._source.size:
            piece = bytes(piece)
            self._read_piece()  # nothing, or that it has been cut off
            return piece
        # It gives what was written without another copy. The pieces themselves are
        # gone at once: together they would be as big again, and fresh memory, which
        # costs more than what is done with it.
        whole = io.BytesIO()
        source = self._source
        try:
            while piece:
                whole.write(piece)
                if source.gathers and not source.size:
                    source.whole = whole
                piece = self._read_piece()
        finally:
            source.whole = None
        keep_memory(whole.tell())
        return whole.getvalue()

    def _read_piece(self) -> Buffer:
        """Wait for input; none at the end of the stream."""
        source = self._source
        if not source.size:
            self._request._wait_input(source)
        return source.take(sys.maxsize)


class OutputStream(io.BufferedIOBase):
    """What STDOUT and STDERR of a request have in common.

    ``closed`` is a plain attribute in place of the property of ``io``: it is looked
    at for every write.
    """

    __slots__ = (
        *("_emitted", "_limit", "_parts", "_request", "_size", "_streak"),
        *("closed", "error"),
    )
    closed: bool

    def __init__(self, request: Request) -> None:
        self._request = request
        self._limit = request._settings.output_buffer
        self._emitted = 0.0
        self._streak = 0
        # The same list for the life of the stream, emptied where it is copied, without
        # a call in between: another thread may write or flush at any moment.
        self._parts: list[bytes] = []
        self._size = 0
        self.closed = False
        self.error: OSError | None = None
        """Why output was dropped, if any was."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Take all of ``data`` (bytes-like); it is sent when enough has gathered.

        Raises:
            ValueError: the stream is closed.
            RequestAborted: under ``run`` only; elsewhere output after an abort is
                dropped, as libfcgi does.
        """
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if type(data) is not bytes:
            view = memoryview(data).cast("B")
            data = view if len(view) >= self._limit else bytes(view)
        size = len(data)
        self._size += size
        if self._size < self._limit:
            self._parts.append(data)
        else:
            self._overflow(data)
        return size

    def fileno(self) -> int:
        """Return the descriptor of a CGI stream; a FastCGI stream has none."""
        return self._request._channel.fileno(self._request, self._descriptor)

    _descriptor = 1

    def writelines(self, lines: Iterable[Any], /) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def _overflow(self, data: Buffer) -> None:
        gathered, size = self._parts, self._size
        parts, gathered[:], self._size = gathered[:], (), 0
        if parts and size - len(data) < len(parts) * _LONG_PART:
            parts = [b"".join(parts)]
        now = monotonic()
        if self._limit:
            self._streak = self._streak + 1 if now - self._emitted < _SOON else 0
            limit = self._request._settings.output_buffer
            self._limit = limit * _MORE if self._streak >= _STREAK else limit
        self._emitted = now
        self._emit([*parts, data])

    def flush(self) -> None:
        """Send what has gathered."""
        gathered = self._parts
        if gathered and not self.closed:
            parts, gathered[:], self._size = gathered[:], (), 0
            if parts:
                self._emit([b"".join(parts)])

    def _emit(self, pieces: list[Buffer]) -> None:
        raise NotImplementedError

    def _dropped(self, error: OSError) -> None:
        """Note that output was lost; under ``run`` the handler is told at once."""
        self.error = error.with_traceback(None)  # whose frames hold this stream
        if self._request.strict:
            raise RequestAborted("the web server has gone") from error

    def close(self) -> None:
        """Flush, and take no more.

        Raises:
            OSError: some output could not be delivered (FCGI_Accept(3)).
        """
        if self.closed:
            return
        try:
            self.flush()
        finally:
            self.closed = True
        if self.error is not None:
            raise self.error

    def _finish_silently(self) -> bytes:
        """Close without sending; return what has not been sent."""
        gathered = self._parts
        parts, gathered[:] = gathered[:], ()
        self.closed = True
        return b"".join(parts)

    def _finish(self) -> bytes:
        """Close; return what is to be sent with the end of the request."""
        return self._finish_silently()


class StdoutStream(OutputStream):
    """The response: the head is held back until it is whole, and mended."""

    __slots__ = ("_discard", "_head", "head_sent")

    def __init__(self, request: Request) -> None:
        self._request = request  # and not by super(): one is made for each request
        self._limit = request._settings.output_buffer
        self._emitted = 0.0
        self._streak = 0
        self._parts = []
        self._size = 0
        self.closed = False
        self.error = None
        self.head_sent = False
        """Whether the response head has gone out."""
        self._head: ResponseHead | None = None  # what has come of the head in pieces
        self._discard = False  # what follows the head

    def _emit(self, pieces: list[Buffer]) -> None:
        if not self.head_sent:
            pieces = self._begin(pieces)
        elif self._discard:
            return
        try:
            self._request._send_stdout(pieces)
        except OSError as error:
            self._dropped(error)

    def send_file(self, source: FileSource) -> None:
        """Send what is left of ``source`` behind what was written.

        Raises:
            ValueError: the stream is closed.
            OSError: the file could not be read, or has become shorter.
            RequestAborted: under ``run``, as for ``write``.
        """
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._discard:
            return
        if source.left <= _SHORT_FILE:
            while source.left:
                self.write(source.read(source.left))
            return
        gathered = self._parts
        parts, gathered[:], self._size = gathered[:], (), 0
        pieces: list[Buffer] = [b"".join(parts)] if parts else []
        if not self.head_sent:
            pieces = self._begin(pieces)
        self._send_behind(pieces, source)

    def _send_behind(self, pieces: list[Buffer], source: FileSource) -> None:
        while source.left and not self.head_sent:  # the head may end in the file
            pieces += self._begin([source.read(MAX_HEAD_BYTES)])
        try:
            if self._discard:
                self._request._send_stdout(pieces)
            else:
                self._request._send_file(pieces, source)
        except OSError as error:
            self._dropped(error)
        if source.error is not None:
            raise source.error

    def _begin(self, pieces: list[Buffer]) -> list[Buffer]:
        """Return what may go out of ``pieces``; what is far behind the head, uncopied.

        ``_through_head`` in steps: no head is longer than one of them.
        """
        begun: list[Buffer] = []
        for piece in pieces:
            rest = memoryview(piece)
            while not self.head_sent:
                begun.append(self._through_head(bytes(rest[:MAX_HEAD_BYTES])))
                rest = rest[MAX_HEAD_BYTES:]
                if not rest:
                    break
            if self._discard:
                break
            if rest:
                begun.append(rest)
        return begun

    def _through_head(self, data: bytes) -> bytes:
        """Return what may go out now that ``data`` has come."""
        request = self._request
        if request.passthrough:
            return self._release_head() + data
        whole = None
        if self._head is None and request.role != _AUTHORIZER:
            whole = known_head(data)
        if whole is None:
            head = self._head = self._head or ResponseHead(
                authorizer=request.role == _AUTHORIZER
            )
            try:
                whole = head.feed(data)
            except MalformedHead as reason:
                return self._refuse(reason)
            if whole is None:
                return b""
            self._head = None
        self.head_sent = True
        mended, body = whole
        if request.is_head:
            self._discard = True
            return mended
        return mended + body if body else mended

    def _release_head(self) -> bytes:
        """Look at the head no more; return what has been held back of it."""
        self.head_sent = True
        head, self._head = self._head, None
        return b"" if head is None else head.held()

    def _refuse(self, reason: MalformedHead) -> bytes:
        """Return a 500 in place of what is no response; the log tells the reason."""
        log_warning("%s: %s; answered 500", self._request, reason)
        return self._error_page(500)

    def _error_page(self, status: int) -> bytes:
        self._release_head()
        self._discard = True
        page = build_error(status)
        if self._request.is_head:
            page = page.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        return page

    def _fail(self, status: int) -> None:
        """Answer with an error page, unless a head has gone out."""
        if not self.head_sent:
            self._parts.clear()
            self._size = 0
            page = self._error_page(status)
            try:
                self._request._send_stdout([page])
            except OSError as error:
                self.error = error

    def _finish(self) -> bytes:
        """Close; return what remains, a 500 if there never was a whole head."""
        rest = self._finish_silently()
        if self.head_sent:
            return b"" if self._discard else rest
        request = self._request
        if request.unwanted:
            return b""
        if not rest and request.is_cgi and self._head is None:
            return b""  # a child may have written to descriptor 1 itself
        rest = self._through_head(rest)
        if self._head is not None:
            if request._aborted:
                return b""  # it broke off for that reason; nobody waits for more
            rest = self._refuse(self._head.unfinished())
        return rest


class StderrStream(OutputStream):
    """The log: each line goes out at once, as a record of its own.

    httpd makes one line of its error log out of each record.
    """

    __slots__ = ("used",)
    _descriptor = 2

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.used = False
        """Whether any record has gone out, so that the stream's end is owed."""

    def write(self, data: Any, /) -> int:
        """Take all of ``data``; whole lines are sent at once."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        data = bytes(memoryview(data))
        self._parts.append(data)
        self._size += len(data)
        if b"\n" in data or self._size > _MAX_LINE:
            # Taken first: a signal handler may print in the middle of this.
            gathered = self._parts
            parts, gathered[:], self._size = gathered[:], (), 0
            text = b"".join(parts)
            cut = text.rfind(b"\n") + 1 or len(text)
            try:
                self._emit(list(text[:cut].splitlines(keepends=True)))
            finally:
                if cut < len(text):
                    self._parts.insert(0, text[cut:])
                    self._size += len(text) - cut
        return len(data)

    def _emit(self, pieces: list[Buffer]) -> None:
        self.used = True
        try:
            self._request._send_stderr(pieces)
        except OSError as error:
            self._dropped(error)
