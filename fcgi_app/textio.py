"""The permanent text streams that follow the current request.

``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` are one object each for the life of
the process, so that ``from sys import stdout`` and a logging handler made early keep
working. Each request finds them as new: whatever the last one closed, detached or
reconfigured. Text is UTF-8 with surrogateescape, whatever the locale, and no newline
is translated, so what came in can always go out again.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TextIO

    class BinaryOut(Protocol):
        """What a ``TextOut`` writes to while a request is current."""

        def write(self, data: bytes, /) -> object:
            """Take all of ``data``."""

        def flush(self) -> None:
            """Send what has gathered."""

        def close(self) -> None:
            """End the stream."""

        def fileno(self) -> int:
            """Return its descriptor, or raise ``io.UnsupportedOperation``."""


__all__ = ["TextIn", "TextOut"]

_ENCODING = "utf-8"
_ERRORS = "surrogateescape"
_NEWLINES = (None, "", "\n", "\r", "\r\n")
_KEEP: Any = object()


class TextOut(io.TextIOBase):
    """A text stream over whatever binary stream is bound; the process's own if none.

    Args:
        name: ``stdout`` or ``stderr``.
        own: the process's own stream; None: output outside a request is dropped.
    """

    # Plain attributes in place of properties of io, and each with a place of its own:
    # they are looked at for every request and every print().
    __slots__ = (
        "_changed",
        "_detached",
        "_encoder",
        "_following",
        "_member",
        "_newline",
        "_own",
        "_put",
        "_source",
        "_stream",
        "closed",
        "encoding",
        "errors",
        "line_buffering",
        "name",
        "room",
    )
    closed: bool
    encoding: str
    errors: str
    mode = "w"

    def __init__(self, name: str, own: TextIO | None) -> None:
        self.name = f"<{name}>"
        self._member = name
        self._own = own
        self._stream: BinaryOut | None = None
        self._source: Any = None
        # Takes encoded text; None: not known yet, or not as simple as that.
        self._put: Callable[[bytes], object] | None = None
        self.room = 0
        self._changed = False
        self._following: _FollowingBuffer | None = None
        self._forget_changes()

    def _forget_changes(self) -> None:
        self.closed = False
        self.encoding = _ENCODING
        self.errors = _ERRORS
        self.line_buffering = False
        self._newline: str | None = "\n"
        self._encoder: codecs.IncrementalEncoder | None = None
        self._detached = False
        self._changed = False

    def bind(self, source: object) -> None:
        """Follow ``source.stdout`` (or ``stderr``), as new; None: the process's own."""
        if self._changed:
            self._forget_changes()
        self._source = source
        self._stream = self._put = None

    def follow(self, source: object, stream: BinaryOut) -> None:
        """Go on with ``stream``, which has got all that was gathered."""
        self._source = source
        self._stream = stream
        self._put = stream.write
        self.room = sys.maxsize

    def fall_back(self, own: TextIO | None) -> None:
        """Write to ``own`` from now on where nothing is bound; None: drop it."""
        self._own = own

    @property
    def _bound(self) -> BinaryOut | None:
        """The stream that is followed; None: the process's own."""
        if self._stream is None and self._source is not None:
            self._stream = getattr(self._source, self._member)
            if self._stream is not None and not self._changed:
                self._put = self._stream.write
                self.room = sys.maxsize
        return self._stream

    @property
    def _is_open(self) -> bool:
        """Whether there is a stream to follow, though nobody may have asked for it."""
        return bool(getattr(self._source, "opened", self._source is not None))

    def _change(self) -> None:
        """Note that text is not to be written in the plain way until the next bind."""
        self._changed = True
        self._put = None

    # Writing

    def write(self, text: str, /) -> int:
        """Write ``text``; return its length in characters."""
        put = self._put
        if put is None:
            if self._changed or self._bound is None:
                return self._write_slowly(text)
            put = self._put
            if put is None:
                return self._write_slowly(text)
        try:
            data = text.encode()  # quicker than with a way out of errors
        except UnicodeEncodeError:
            data = None
        except AttributeError:
            raise _not_text(text) from None
        if data is None:
            return self._write_slowly(text)
        self.room = room = self.room - len(data)
        if room < 0:
            self._write_beyond(data)
        else:
            put(data)
        return len(text)

    def _write_beyond(self, data: bytes) -> None:
        """Write what is too much to be gathered."""
        self.room += len(data)  # it counts what has been gathered
        stream = self._bound
        assert stream is not None
        stream.write(data)

    def _write_slowly(self, text: str) -> int:
        if not isinstance(text, str):
            raise _not_text(text)
        self._check_usable()
        stream = self._bound
        if stream is None:
            if self._own is not None:
                self._own.write(text)
            return len(text)
        put = stream.write
        if self._newline not in (None, "", "\n"):
            text = text.replace("\n", str(self._newline))
        if self._encoder is not None:
            put(self._encoder.encode(text))
        else:
            put(text.encode(self.encoding, self.errors))
        if self.line_buffering and ("\n" in text or "\r" in text):
            self.flush()
        return len(text)

    def _check_usable(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._detached:
            raise ValueError("underlying buffer has been detached")

    def flush(self) -> None:
        """Send what has gathered."""
        if self.closed or self._detached:
            return
        if self._put is not None or self._stream is not None:
            if not _called_by_interpreter():
                stream = self._bound
                if stream is not None:
                    stream.flush()
        elif self._own is not None and not self._is_open:
            self._own.flush()

    def writable(self) -> bool:
        """Return True."""
        return True

    # What scripts do to a standard stream

    @property
    def buffer(self) -> Any:
        """The request's binary stream; outside a request, one that will follow."""
        if self._bound is not None:
            return self._bound
        if self._following is None:
            self._following = _FollowingBuffer(self)
        return self._following

    def close(self) -> None:
        """End the request's stream; the object is as new for the next request.

        Raises:
            OSError: some output could not be delivered (FCGI_Accept(3)).
        """
        if self._bound is None:
            # The garbage collector closes, too, maybe after the process's own stream.
            if not getattr(self._own, "closed", False):
                self.flush()
        elif not self.closed:
            self._change()
            self.closed = True
            self._bound.close()

    def detach(self) -> Any:
        """Return the request's binary stream; this one is unusable until the next."""
        self._check_usable()
        stream = self.buffer
        if self._bound is not None:
            self._change()
            self._detached = True
        return stream

    def reconfigure(
        self,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = _KEEP,
        line_buffering: bool | None = None,
        write_through: bool | None = None,
    ) -> None:
        """Change how text is written, for the current request only.

        ``write_through`` is accepted and has nothing to do: text is never held back
        from ``buffer``.
        """
        if self._bound is None:
            return
        if newline is not _KEEP:
            if newline not in _NEWLINES:
                raise ValueError(f"illegal newline value: {newline!r}")
            self._newline = newline
        if encoding is not None:
            self.encoding = codecs.lookup(encoding).name
            self.errors = errors or "strict"
        elif errors is not None:
            self.errors = errors
        if encoding is not None or errors is not None:
            codecs.lookup_error(self.errors)
            self._encoder = codecs.getincrementalencoder(self.encoding)(self.errors)
        if line_buffering is not None:
            self.line_buffering = line_buffering
        self._change()

    @property
    def write_through(self) -> bool:
        """True: text goes to ``buffer`` at once, so both may be mixed."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, where there is one.

        Raises:
            io.UnsupportedOperation: a FastCGI stream has none.
        """
        if self._bound is not None:
            return self._bound.fileno()
        if self._own is None:
            raise io.UnsupportedOperation("fileno")
        return self._own.fileno()

    def isatty(self) -> bool:
        """Return whether the process's own stream is a terminal; never in a request."""
        return self._bound is None and self._own is not None and self._own.isatty()

    def __repr__(self) -> str:
        """Name the stream and what it follows."""
        return f"<fcgi_app.TextOut name={self.name!r} bound={self._bound!r}>"


def _called_by_interpreter() -> bool:
    """Whether no Python code called the caller of this.

    The interpreter flushes ``sys.stdout`` before it reports an uncaught exception.
    A head that it sent would stand in the way of the 500; the rest of the page goes
    out at the end of the process in any case.
    """
    try:
        sys._getframe(2)
    except ValueError:
        return True
    return False


def _not_text(thing: object) -> TypeError:
    return TypeError(f"write() argument must be str, not {type(thing).__name__}")


class _FollowingBuffer(io.BufferedIOBase):
    """``sys.stdout.buffer`` as seen outside a request: follows like its text stream."""

    def __init__(self, text: TextOut) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Write to the current request, or to the process's own stream."""
        text = self._text
        if text._bound is not None:
            text._bound.write(data)
        elif text._own is not None:
            text._own.flush()
            text._own.buffer.write(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Flush the stream that is followed."""
        self._text.flush()

    def close(self) -> None:
        """Only flush: the stream belongs to all requests."""
        self.flush()

    def fileno(self) -> int:
        return self._text.fileno()

    def __del__(self) -> None:
        """Flush nothing: the process's own stream may be closed by then."""


class TextIn(io.TextIOBase):
    """``sys.stdin``: the body of the current request as text; at EOF outside of one."""

    __slots__ = ("_closed", "_detached", "_empty", "_inner", "_source")
    mode = "r"
    name = "<stdin>"

    def __init__(self) -> None:
        self._closed = False
        self._source: Any = None
        self._inner: io.TextIOWrapper | None = None
        self._empty = io.TextIOWrapper(io.BytesIO(), _ENCODING, _ERRORS, "\n")
        self._detached = False

    def bind(self, source: Any) -> None:
        """Read ``source.stdin``, which may change on the way; None: be at EOF."""
        self._source = source
        self._inner = None
        self._closed = False
        self._detached = False

    def _text(self) -> io.TextIOWrapper:
        """Return the current request's text, decoded anew if its bytes have changed."""
        if self._closed:
            raise ValueError("I/O operation on closed file.")
        if self._detached:
            raise ValueError("underlying buffer has been detached")
        if self._source is None:
            return self._empty
        binary = self._source.stdin
        if binary is None:
            return self._empty
        inner = self._inner
        if inner is None or inner.buffer is not binary:
            inner = self._inner = io.TextIOWrapper(binary, _ENCODING, _ERRORS, "\n")
        return inner

    @property
    def closed(self) -> bool:
        """Whether it has been closed for the current request."""
        return self._closed

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1, /) -> str:
        """Read up to ``size`` characters; all by default."""
        return self._text().read(size)

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        r"""Read to the next ``\n``, of at most ``size`` characters."""
        return self._text().readline(size)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        """Iterate over the lines."""
        return iter(self._text())

    def __next__(self) -> str:  # type: ignore[override]
        """Return the next line."""
        return next(self._text())

    @property
    def buffer(self) -> Any:
        """The body as bytes."""
        return self._text().buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding that the body is decoded with."""
        return self._text().encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What happens to bytes that cannot be decoded."""
        return self._text().errors

    def reconfigure(self, **changes: Any) -> None:
        """Change how the body is decoded (``io.TextIOWrapper.reconfigure``)."""
        self._text().reconfigure(**changes)

    def detach(self) -> Any:
        """Return the body as bytes; this stream is unusable until the next request."""
        text = self._text()
        if text is self._empty:
            return text.buffer
        self._detached = True
        return text.detach()

    def close(self) -> None:
        """Close it for the current request."""
        if self._source is not None and self._source.stdin is not None:
            self._closed = True

    def isatty(self) -> bool:
        """Return False."""
        return False

    def fileno(self) -> int:
        """Return the descriptor, where the body comes from one (CGI)."""
        return self._text().fileno()
