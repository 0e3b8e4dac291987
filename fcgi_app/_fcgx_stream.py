"""``FCGX_Stream``: a stream of one request, with C's results.

It is what fcgiapp.h has between a request and the program. Nothing is raised for what
C reports: reading then has come to its end, writing has failed, and ``error`` says
why.
"""

from __future__ import annotations

import errno
import io
from operator import index
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .errors import CallSequenceError, FcgiAppError

if TYPE_CHECKING:
    from .request import Request

__all__ = [
    "CALL_SEQ_ERROR",
    "PARAMS_ERROR",
    "PROTOCOL_ERROR",
    "UNSUPPORTED_VERSION",
    "FCGX_Stream",
    "stream_of",
]

UNSUPPORTED_VERSION, PROTOCOL_ERROR, PARAMS_ERROR, CALL_SEQ_ERROR = -2, -3, -4, -5
"""What ``error`` is besides the numbers of errno(3); the values of fcgiapp.h."""

_DIRECT = io.DEFAULT_BUFFER_SIZE
"""Bytes from which on a read goes past the buffer."""


class FCGX_Stream:
    """One of ``in_``, ``out`` and ``err`` of a request, for that request alone.

    To be used by one thread at a time, like the request.

    Attributes:
        isReader: it is ``in_``.
    """

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_at_eof",
        "_cleared",
        "_closed",
        "_descriptor",
        "_error",
        "_request",
        "isReader",
    )

    def __init__(self, request: Request, descriptor: int) -> None:
        self._request = request
        self._descriptor = descriptor
        self.isReader = descriptor == 0
        self._ahead = b""  # pushed back
        self._at_eof = False
        self._closed = False  # by FCGX_FClose
        self._error = 0
        self._cleared: OSError | None = None  # an error that was told to be forgotten

    @property
    def binary(self) -> Any:
        """The request's own binary stream, such as ``print(file=...)`` wraps."""
        request = self._request
        if self.isReader:
            return request.stdin
        return request.stdout if self._descriptor == 1 else request.stderr

    @property
    def isClosed(self) -> bool:
        """Whether nothing can be read or written any more."""
        return self._closed or self._request.finished

    @property
    def FCGI_errno(self) -> int:
        """What ``FCGX_GetError`` returns."""
        return self.error

    def __repr__(self) -> str:
        name = ("in_", "out", "err")[self._descriptor]
        return f"<FCGX_Stream {name} of {self._request!r}>"

    # Reading

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes; fewer only at the end, or when ``error`` says why."""
        size = max(size, 0)
        parts = [self._ahead[:size]] if self._ahead else []
        self._ahead = self._ahead[size:]
        left = size - sum(map(len, parts))
        while left > 0 and (more := self._pull(left)):
            parts.append(more)
            left -= len(more)
        return b"".join(parts)

    def read_line(self, size: int) -> bytes:
        r"""Read up to ``size`` bytes, no further than the next ``\n``."""
        line = self._ahead[: _line_length(self._ahead, size)]
        self._ahead = self._ahead[len(line) :]
        while len(line) < size and not line.endswith(b"\n"):
            more = self._pull(size - len(line), line=True)
            if not more:
                break
            line += more
        return line

    def _pull(self, size: int, line: bool = False) -> bytes:
        """Read what is there, and wait if nothing is.

        Never for more than one part: an error behind it takes nothing of it along.
        """
        if not self.isReader or self.isClosed or self._at_eof:
            return b""
        file: io.BufferedReader = self.binary
        try:
            if size >= _DIRECT and not line:
                data = file.read1(size)
            else:
                there = file.peek(1)
                wanted = _line_length(there, size) if line else size
                data = file.read(min(wanted, len(there)))
        except (OSError, ValueError, FcgiAppError) as error:
            self._at_eof = True
            self._error = self._error or _number_of(error)
            return b""
        if not data:
            self._at_eof = True
            self._check_end()
        return data

    def _check_end(self) -> None:
        """Look whether the end is the stream's own, and all of DATA has come."""
        request = self._request
        source, announced = request._body, None
        if request._filtering:
            source, announced = request._filter_input(), request.data_length
        if source.cut or (announced is not None and source.received < announced):
            self._error = self._error or PROTOCOL_ERROR

    def unread(self, byte: int) -> bool:
        """Push a byte back, to be read next; whether that could be."""
        if not self.isReader or self.isClosed:
            return False
        self._ahead = bytes((byte & 0xFF,)) + self._ahead
        return True

    def start_filter_data(self) -> bool:
        """Go on from STDIN to DATA; False, and nothing is lost, if it is too early."""
        if not self.isReader or self.isClosed:
            return self._fail(CALL_SEQ_ERROR)
        try:
            self._request.start_filter_data()
        except CallSequenceError:
            return self._fail(CALL_SEQ_ERROR)
        self._ahead = b""
        self._at_eof = False
        self._error = 0
        return True

    # Writing

    def write(self, data: bytes) -> bool:
        """Write all of ``data``; whether that went well, and all before it."""
        if self.isReader or self.isClosed:
            return False
        try:
            self.binary.write(data)
        except (OSError, ValueError) as error:
            return self._fail(_number_of(error))
        return not self.error

    def flush(self) -> bool:
        """Send what is held back; True for what has nothing to send."""
        if self.isReader or self.isClosed:
            return True
        try:
            self.binary.flush()
        except (OSError, ValueError) as error:
            return self._fail(_number_of(error))
        return not self.error

    def close(self) -> bool:
        """Take or give no more; the last of the two writers ends the request.

        Returns:
            Whether there never was an error.
        """
        if self.isClosed:
            return not self.error
        if not self.isReader:
            try:
                self.binary.close()
            except (OSError, ValueError) as error:
                self._fail(_number_of(error))
        self._closed = True
        self._ahead = b""
        if not self.isReader and self._is_last_writer():
            self._request.finish()
        return not self.error

    def _is_last_writer(self) -> bool:
        request = self._request
        return bool(request.stdout.closed and request.stderr.closed)

    # How it goes

    def _fail(self, number: int) -> bool:
        """Note an error, the first of them; return False."""
        self._error = self._error or number
        return False

    @property
    def error(self) -> int:
        """The first error: an errno, or a negative code of fcgiapp.h; 0: none."""
        if not (self._error or self.isReader or self._request.finished):
            lost: OSError | None = getattr(self.binary, "error", None)
            if lost is not None and lost is not self._cleared:
                self._error = lost.errno or errno.EPIPE
        return self._error

    def clear_error(self) -> None:
        """Forget the error, not what came of it: an end stays an end."""
        self._error = 0
        if not (self.isReader or self._request.finished):
            self._cleared = getattr(self.binary, "error", None)

    @property
    def at_eof(self) -> bool:
        """Whether the end has been met, by reading, closing or an error."""
        if self.isClosed:
            return True
        if self.isReader:
            return self._at_eof and not self._ahead
        return bool(self.error)

    def set_exit_status(self, status: int) -> None:
        """Set the app_status of the request."""
        self._request.app_status = index(status)


def _line_length(data: bytes, size: int) -> int:
    r"""How many of the first ``size`` bytes of ``data`` belong to its first line."""
    end = data.find(b"\n", 0, size) + 1
    return end or min(size, len(data))


def _number_of(error: BaseException) -> int:
    """Return the error number that stands for an exception."""
    if isinstance(error, FcgiAppError):
        return PROTOCOL_ERROR  # the web server has cut it short
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    return errno.EBADF  # ValueError: the stream has been closed


_streams: WeakKeyDictionary[Any, FCGX_Stream] = WeakKeyDictionary()


def stream_of(stream: object) -> FCGX_Stream | None:
    """Return the ``FCGX_Stream`` that an argument means; None for None.

    A binary stream of a request is one, too: ``request.stdout``, and what
    FCGI_ToFcgiStream gives.

    Raises:
        TypeError: it is none; names it.
    """
    if stream is None or isinstance(stream, FCGX_Stream):
        return stream
    found: FCGX_Stream | None = None
    try:
        found = _streams.get(stream)
    except TypeError:  # not everything can be looked up
        found = None
    if found is None:
        request, descriptor = _origin(stream)
        found = _streams[stream] = FCGX_Stream(request, descriptor)
    return found


def _origin(stream: Any) -> tuple[Request, int]:
    """Return whose binary stream this is, and which of the three."""
    from .streams import BodyReader, OutputStream

    if isinstance(stream, OutputStream):
        return stream._request, stream._descriptor
    raw = getattr(stream, "raw", None)
    if isinstance(raw, BodyReader):
        return raw._request, 0
    raise TypeError(f"{stream!r} is no FCGX_Stream, nor a stream of a request")
