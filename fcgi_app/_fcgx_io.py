"""What fcgiapp.h has for one stream: reading, writing, errors; a part of fcgiapp."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from ._cformat import encode, format_c
from ._fcgx_stream import FCGX_Stream, stream_of

if TYPE_CHECKING:
    import io
    from typing import BinaryIO

    Stream = FCGX_Stream | BinaryIO | io.BufferedIOBase | None

__all__ = [
    "EOF",
    "FCGX_ClearError",
    "FCGX_FClose",
    "FCGX_FFlush",
    "FCGX_FPrintF",
    "FCGX_GetChar",
    "FCGX_GetError",
    "FCGX_GetLine",
    "FCGX_GetStr",
    "FCGX_HasSeenEOF",
    "FCGX_PutChar",
    "FCGX_PutS",
    "FCGX_PutStr",
    "FCGX_SetExitStatus",
    "FCGX_StartFilterData",
    "FCGX_UnGetChar",
    "FCGX_VFPrintF",
]

EOF = -1


def FCGX_StartFilterData(stream: Stream) -> int:
    """Let ``in_`` of a filter go on to DATA (FCGI_StartFilterData(3)).

    Returns:
        0; -1: it is no reader of a filter, DATA has been started, or STDIN has not
        been read to its end. ``FCGX_GetError`` is FCGX_CALL_SEQ_ERROR then, and
        nothing is lost.
    """
    found = stream_of(stream)
    return 0 if found is not None and found.start_filter_data() else EOF


def FCGX_SetExitStatus(status: int, stream: Stream) -> None:
    """Set the exit status that the request of ``stream`` ends with.

    The last call counts, for this request only. In CGI it is the process's.

    Raises:
        TypeError: ``status`` is no integer.
    """
    found = stream_of(stream)
    if found is not None:
        found.set_exit_status(status)


# Reading


def FCGX_GetChar(stream: Stream) -> int:
    """Read a byte: 0 to 255, or ``EOF``."""
    data = FCGX_GetStr(1, stream)
    return data[0] if data else EOF


def FCGX_UnGetChar(byte: int, stream: Stream) -> int:
    """Push a byte back, to be read next; any number of them.

    Returns it; ``EOF`` for ``EOF``, for a writer, and for a stream that is closed.
    """
    found = stream_of(stream)
    if byte == EOF or found is None or not found.unread(index(byte)):
        return EOF
    return byte & 0xFF


def FCGX_GetStr(size: int, stream: Stream) -> bytes:
    """Read ``size`` bytes; fewer only at EOF or after an error (``FCGX_GetError``)."""
    found = stream_of(stream)
    return b"" if found is None else found.read(size)


def FCGX_GetLine(size: int, stream: Stream) -> bytes | None:
    r"""Read a line, with its ``\n``, of at most ``size - 1`` bytes; None at EOF."""
    found = stream_of(stream)
    if found is None:
        return None
    return b"" if size <= 1 else found.read_line(size - 1) or None


def FCGX_HasSeenEOF(stream: Stream) -> int:
    """Return ``EOF`` if reading has met the end, after an error and a close; else 0.

    It does not look ahead.
    """
    found = stream_of(stream)
    return EOF if found is None or found.at_eof else 0


# Writing


def FCGX_PutChar(byte: int, stream: Stream) -> int:
    """Write a byte. Returns it, or ``EOF``."""
    value = index(byte) & 0xFF
    return value if _put(stream, bytes((value,))) >= 0 else EOF


def FCGX_PutStr(data: str | bytes, size: int, stream: Stream) -> int:
    """Write the first ``size`` bytes of ``data``. Returns ``size``, or ``EOF``.

    Raises:
        ValueError: ``data`` is shorter than that.
    """
    content = encode(data)
    if not 0 <= size <= len(content):
        raise ValueError(f"FCGX_PutStr: {size} bytes of {len(content)}")
    return _put(stream, content[:size])


def FCGX_PutS(text: str | bytes, stream: Stream) -> int:
    """Write ``text``; nothing is appended. Returns the number of bytes, or ``EOF``."""
    return _put(stream, encode(text))


def FCGX_FPrintF(stream: Stream, template: str | bytes, *arguments: Any) -> int:
    """Write as fprintf(3). Returns the number of bytes, or -1.

    Length modifiers may be left out. There is no ``%n``, ``%a``, or ``%1$d``.

    Raises:
        ValueError: the format is wrong.
        TypeError: an argument is missing, or of the wrong type.
    """
    return FCGX_VFPrintF(stream, template, arguments)


def FCGX_VFPrintF(
    stream: Stream, template: str | bytes, arguments: Sequence[Any]
) -> int:
    """``FCGX_FPrintF`` with the arguments in a sequence."""
    return _put(stream, format_c(template, arguments))


def FCGX_FFlush(stream: Stream) -> int:
    """Send what has gathered.

    Returns:
        0, also for readers and closed streams; -1: it could not be delivered.
    """
    found = stream_of(stream)
    return 0 if found is not None and found.flush() else EOF


def FCGX_FClose(stream: Stream) -> int:
    """Close a stream; closing both ``out`` and ``err`` ends the request.

    Returns:
        0, also for None; -1: some output was lost, or there was another error.
    """
    found = stream_of(stream)
    return 0 if found is None or found.close() else EOF


# Errors


def FCGX_GetError(stream: Stream) -> int:
    """Return the first error of a stream: 0, an errno, or a code of FCGX.

    FCGX_PROTOCOL_ERROR: the web server has aborted the request, or its connection has
    gone, before the end of what was read. -1 for None.
    """
    found = stream_of(stream)
    return EOF if found is None else found.error


def FCGX_ClearError(stream: Stream) -> None:
    """Forget the error; a stream that has come to its end stays there."""
    found = stream_of(stream)
    if found is not None:
        found.clear_error()


def _put(stream: Stream, data: bytes) -> int:
    found = stream_of(stream)
    return len(data) if found is not None and found.write(data) else EOF
