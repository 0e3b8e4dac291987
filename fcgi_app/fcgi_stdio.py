r"""libfcgi's fcgi_stdio.h: its names and its results, for scripts that come from C.

::

    from fcgi_app.fcgi_stdio import *

    count = 0
    while FCGI_Accept() >= 0:
        count += 1
        FCGI_printf("Content-Type: text/plain\r\n\r\nRequest number %d\n", count)

A ``FCGI_FILE`` is the current request's stream (``FCGI_stdin``, ``FCGI_stdout``,
``FCGI_stderr``) or a file of the operating system. Results are C's: 0 or a count for
success, -1 (``EOF``) or None (``NULL``) for failure, with ``get_errno()`` for errno.
What only a mistake in the script can cause raises TypeError or ValueError. ``str``
arguments are encoded as UTF-8 with surrogateescape, bytes are taken as they are, and
what is read is bytes. What C stores through a pointer is returned:

=======================================  ============================================
C                                        here
=======================================  ============================================
``fgets(line, n, f)``                    ``line = FCGI_fgets(n, f)``; None: at EOF
``gets(line)``                           ``line = FCGI_gets()``, of any length
``n = fread(p, size, n, f)``             ``data = FCGI_fread(size, n, f)``
``fwrite(p, size, n, f)``                ``FCGI_fwrite(data, size, n, f)``
``fgetpos(f, &pos)``                     ``pos = FCGI_fgetpos(f)``; -1: failed
``vfprintf(f, format, ap)``              ``FCGI_vfprintf(f, format, arguments)``
``setvbuf(f, NULL, _IOLBF, 0)``          ``FCGI_setvbuf(f, None, _IOLBF, 0)``
``perror(s)``, ``errno``                 ``FCGI_perror(s)``, ``get_errno()``
``scanf``                                nothing: libfcgi has none either
=======================================  ============================================

Outside of a request, and once a standard stream has been closed, nothing is behind
``FCGI_stdin`` and the others: every call fails. The streams of a request do not seek
(ESPIPE) and have no setvbuf; in CGI they have a descriptor, and setvbuf.

Where libfcgi has a defect or an undefined case, this does what the C standard says:
``fwrite`` returns 0 on an error, not a huge count; ``fread`` nothing, not -1; output
that cannot be delivered fails in every later call, not only when a buffer fills;
``fflush(NULL)`` flushes the request's streams too; ``perror`` ends its line; ``pclose``
of what is no pipe fails and does nothing; ``clearerr`` clears EOF; ``fclose`` of a
pipe waits for its process; exit status and streams start anew with each request.
In CGI ``FCGI_SetExitStatus`` sets the exit status of the process.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import stdio
from ._cformat import encode, format_c
from ._cstdio import (
    EOF,
    FCGI_FILE,
    IOFBF,
    IOLBF,
    IONBF,
    StandardFile,
    file_of,
    get_errno,
    open_file,
    open_files,
    open_pipe,
    set_errno,
    standard_files,
)
from .errors import CallSequenceError

if TYPE_CHECKING:
    from typing import TextIO

    File = FCGI_FILE | TextIO  # sys.stdin, sys.stdout and sys.stderr, no other

__all__ = [
    "EOF",
    "FCGI_FILE",
    "SEEK_CUR",
    "SEEK_END",
    "SEEK_SET",
    "_IOFBF",
    "_IOLBF",
    "_IONBF",
    "FCGI_Accept",
    "FCGI_Finish",
    "FCGI_SetExitStatus",
    "FCGI_StartFilterData",
    "FCGI_ToFILE",
    "FCGI_ToFcgiStream",
    "FCGI_clearerr",
    "FCGI_fclose",
    "FCGI_fdopen",
    "FCGI_feof",
    "FCGI_ferror",
    "FCGI_fflush",
    "FCGI_fgetc",
    "FCGI_fgetpos",
    "FCGI_fgets",
    "FCGI_fileno",
    "FCGI_fopen",
    "FCGI_fprintf",
    "FCGI_fputc",
    "FCGI_fputs",
    "FCGI_fread",
    "FCGI_freopen",
    "FCGI_fseek",
    "FCGI_fsetpos",
    "FCGI_ftell",
    "FCGI_fwrite",
    "FCGI_getchar",
    "FCGI_gets",
    "FCGI_pclose",
    "FCGI_perror",
    "FCGI_popen",
    "FCGI_printf",
    "FCGI_putchar",
    "FCGI_puts",
    "FCGI_rewind",
    "FCGI_setbuf",
    "FCGI_setvbuf",
    "FCGI_stderr",
    "FCGI_stdin",
    "FCGI_stdout",
    "FCGI_tmpfile",
    "FCGI_ungetc",
    "FCGI_vfprintf",
    "FCGI_vprintf",
    "get_errno",
]

SEEK_SET, SEEK_CUR, SEEK_END = os.SEEK_SET, os.SEEK_CUR, os.SEEK_END
_IOFBF, _IOLBF, _IONBF = IOFBF, IOLBF, IONBF

FCGI_stdin, FCGI_stdout, FCGI_stderr = standard_files


# The four calls, and the two macros


def FCGI_Accept() -> int:
    """Finish the request before, and wait for the next (``accept``).

    Returns:
        0: a request is current; -1: no more will come.
    """
    return 0 if stdio.accept() else EOF


def FCGI_Finish() -> None:
    """End the current request now (``finish``); does nothing without one."""
    stdio.finish()


def FCGI_SetExitStatus(status: int) -> None:
    """Set the exit status of the current request (``set_exit_status``)."""
    stdio.set_exit_status(status)


def FCGI_StartFilterData() -> int:
    """Let ``FCGI_stdin`` give a filter's DATA (``start_filter_data``).

    Returns:
        0; -1: no request is current, it is no filter, DATA has been started, or
        STDIN has not been read to its end. Nothing is lost then.
    """
    try:
        stdio.start_filter_data()
    except (CallSequenceError, OSError):  # or the file is incomplete
        return EOF
    if "fcgi_app.cfile" in sys.modules:
        from .cfile import clear_input

        clear_input()
    return 0


def FCGI_ToFILE(stream: File) -> Any:
    """Return a C ``FILE *`` (of cffi) onto ``stream``; NULL if that is closed.

    FCGI_ToFILE(3) tells what it follows and how long it lives. ``sys.stdin``,
    ``sys.stdout`` and ``sys.stderr`` may be given as well.

    Raises:
        ImportError: cffi is not installed, or the C library has no fopencookie(3).
    """
    from .cfile import pointer_of

    return pointer_of(file_of(stream))


def FCGI_ToFcgiStream(stream: File) -> Any:
    """Return the request's binary stream behind ``stream``.

    None where there is none: outside of a request, for files, and in CGI.
    """
    file = file_of(stream)
    if not isinstance(file, StandardFile) or file.request_stream is None:
        return None
    return None if stdio.is_cgi() else file.request_stream


# Opening and closing


def FCGI_fopen(path: str | bytes | os.PathLike[str], mode: str) -> FCGI_FILE | None:
    """Open a file; ``mode`` as for fopen(3). None: it could not be opened."""
    file = open_file(path, mode)
    return None if file is None else FCGI_FILE(file)


def FCGI_fdopen(descriptor: int, mode: str) -> FCGI_FILE | None:
    """Make a file of an open descriptor, which is its own from now on; or None."""
    file = open_file(descriptor, mode)
    return None if file is None else FCGI_FILE(file)


def FCGI_freopen(
    path: str | bytes | os.PathLike[str], mode: str, stream: File
) -> FCGI_FILE | None:
    """Close ``stream`` and open another file as the same ``FCGI_FILE``; or None.

    A standard stream is the request's again in the next request. ``print`` knows
    nothing of it: the request's own stream has been closed.
    """
    target = file_of(stream)
    if target.binary is None:
        set_errno(errno.EBADF)
        return None
    target.close()
    file = open_file(path, mode)
    if file is None:
        return None
    target.adopt(file)
    return target


def FCGI_tmpfile() -> FCGI_FILE | None:
    """Open a temporary file that has no name; or None."""
    from tempfile import TemporaryFile

    try:
        return FCGI_FILE(TemporaryFile(prefix="fcgi_app-"))
    except OSError as error:
        set_errno(error)
        return None


def FCGI_popen(command: str | bytes, mode: str) -> FCGI_FILE | None:
    """Run a shell command and read its output (``"r"``) or write its input (``"w"``).

    Its other standard descriptors are those of the process. None: it failed.
    """
    return open_pipe(command, mode)


def FCGI_pclose(stream: FCGI_FILE) -> int:
    """Close the end of a pipe and wait for its process.

    Returns:
        its wait status, as pclose(3): exit status * 256, or the number of the signal
        that killed it (``os.waitstatus_to_exitcode`` tells them apart); -1, and
        nothing is done, if ``stream`` is not from ``FCGI_popen``.
    """
    process = file_of(stream).process
    if process is None or stream.binary is None:
        set_errno(errno.EINVAL)
        return EOF
    stream.close()
    status: int = process.returncode
    return -status if status < 0 else status << 8


def FCGI_fclose(stream: File) -> int:
    """Close a file, or a stream of the request.

    Returns:
        0; -1: some output could not be delivered (FCGI_Accept(3)).
    """
    return 0 if file_of(stream).close() else EOF


def FCGI_fflush(stream: File | None) -> int:
    """Send what has gathered; None: of all files. Returns 0 or -1."""
    if stream is not None:
        return 0 if file_of(stream).flush() else EOF
    result = 0
    for file in (*standard_files, *open_files):
        if file.binary is not None and not file.flush():
            result = EOF
    return result


def FCGI_setvbuf(stream: File, buffer: None, mode: int, size: int) -> int:
    """Choose when output goes out: ``_IOFBF``, ``_IOLBF`` or ``_IONBF``.

    Returns 0; -1 for the streams of a FastCGI request. ``size`` has no meaning.
    """
    file = file_of(stream)
    if FCGI_ToFcgiStream(file) is not None:
        set_errno(errno.ENOTSUP)
        return EOF
    return 0 if file.set_buffering(mode) else EOF


def FCGI_setbuf(stream: File, buffer: object) -> None:
    """Unbuffered if ``buffer`` is None, else fully buffered; as ``FCGI_setvbuf``."""
    FCGI_setvbuf(stream, None, IONBF if buffer is None else IOFBF, 0)


# Position


def FCGI_fseek(stream: File, offset: int, whence: int) -> int:
    """Move to ``offset`` bytes from ``whence`` (``SEEK_SET`` …). Returns 0 or -1."""
    return 0 if file_of(stream).seek(offset, whence) else EOF


def FCGI_ftell(stream: File) -> int:
    """Return the position in bytes, or -1."""
    return file_of(stream).tell()


def FCGI_rewind(stream: File) -> None:
    """Move to the start and clear the error."""
    if FCGI_fseek(stream, 0, SEEK_SET) == 0:
        FCGI_clearerr(stream)


def FCGI_fgetpos(stream: File) -> int:
    """Return the position for ``FCGI_fsetpos``, or -1."""
    return FCGI_ftell(stream)


def FCGI_fsetpos(stream: File, position: int) -> int:
    """Move to what ``FCGI_fgetpos`` has returned. Returns 0 or -1."""
    return FCGI_fseek(stream, position, SEEK_SET)


# Reading


def FCGI_fgetc(stream: File) -> int:
    """Read a byte: 0 to 255, or ``EOF`` (getc, too)."""
    data = file_of(stream).read(1)
    return data[0] if data else EOF


def FCGI_getchar() -> int:
    """Read a byte of ``FCGI_stdin``: 0 to 255, or ``EOF``."""
    return FCGI_fgetc(FCGI_stdin)


def FCGI_ungetc(byte: int, stream: File) -> int:
    """Push a byte back, to be read next. Returns it; -1 for ``EOF`` or on failure.

    Only the functions of this module see it. Any number of bytes may be pushed back.
    """
    if byte == EOF or not file_of(stream).unread(_byte("FCGI_ungetc", byte)):
        return EOF
    return byte & 0xFF


def FCGI_fgets(size: int, stream: File) -> bytes | None:
    r"""Read a line, with its ``\n``, of at most ``size - 1`` bytes; None at EOF."""
    file = file_of(stream)
    if size <= 1:
        return b"" if size == 1 and file.binary is not None else None
    return file.read_line(size - 1) or None


def FCGI_gets() -> bytes | None:
    r"""Read a line of ``FCGI_stdin``, however long, without its ``\n``; None at EOF."""
    line = FCGI_stdin.read_line(sys.maxsize)
    return line.removesuffix(b"\n") if line else None


def FCGI_fread(size: int, count: int, stream: File) -> bytes:
    """Read ``size * count`` bytes; less only at EOF or after an error.

    The number of items that C returns is ``len(data) // size``.
    """
    _check_items("FCGI_fread", size, count)
    return file_of(stream).read(size * count)


# Writing


def FCGI_fputc(byte: int, stream: File) -> int:
    """Write a byte (putc, too). Returns it, or ``EOF``."""
    value = _byte("FCGI_fputc", byte) & 0xFF
    return value if file_of(stream).write(bytes((value,))) else EOF


def FCGI_putchar(byte: int) -> int:
    """Write a byte to ``FCGI_stdout``. Returns it, or ``EOF``."""
    return FCGI_fputc(byte, FCGI_stdout)


def FCGI_fputs(text: str | bytes, stream: File) -> int:
    """Write ``text``. Returns the number of bytes, or ``EOF``."""
    return _put(file_of(stream), encode(text))


def FCGI_puts(text: str | bytes) -> int:
    r"""Write ``text`` and ``\n`` to ``FCGI_stdout``. Returns the count, or ``EOF``."""
    return _put(FCGI_stdout, encode(text) + b"\n")


def FCGI_fwrite(data: str | bytes, size: int, count: int, stream: File) -> int:
    """Write ``count`` items of ``size`` bytes. Returns ``count``, or 0 on an error.

    Raises:
        ValueError: ``data`` is shorter than that.
    """
    _check_items("FCGI_fwrite", size, count)
    content = encode(data)
    if len(content) < size * count:
        raise ValueError(
            f"FCGI_fwrite: {count} items of {size} bytes in {len(content)} bytes"
        )
    if not size * count:
        return 0
    return count if file_of(stream).write(content[: size * count]) else 0


def FCGI_fprintf(stream: File, template: str | bytes, *arguments: Any) -> int:
    """Write as fprintf(3). Returns the number of bytes, or -1.

    Length modifiers may be left out. There is no ``%n``, ``%a``, or ``%1$d``.

    Raises:
        ValueError: the format is wrong.
        TypeError: an argument is missing, or of the wrong type.
    """
    return FCGI_vfprintf(stream, template, arguments)


def FCGI_printf(template: str | bytes, *arguments: Any) -> int:
    """``FCGI_fprintf`` to ``FCGI_stdout``."""
    return FCGI_vfprintf(FCGI_stdout, template, arguments)


def FCGI_vfprintf(stream: File, template: str | bytes, arguments: Sequence[Any]) -> int:
    """``FCGI_fprintf`` with the arguments in a sequence."""
    return _put(file_of(stream), format_c(template, arguments))


def FCGI_vprintf(template: str | bytes, arguments: Sequence[Any]) -> int:
    """``FCGI_printf`` with the arguments in a sequence."""
    return FCGI_vfprintf(FCGI_stdout, template, arguments)


def FCGI_perror(text: str | bytes | None) -> None:
    """Write ``text`` and what errno means to ``FCGI_stderr``, as a line."""
    prefix = encode(text) + b": " if text else b""
    FCGI_stderr.write(prefix + encode(os.strerror(get_errno())) + b"\n")


# How a stream is


def FCGI_feof(stream: File) -> int:
    """Return not 0 at the end of file; a request's stream: also after an error."""
    return EOF if file_of(stream).at_eof else 0


def FCGI_ferror(stream: File) -> int:
    """Return 0, the errno of what has gone wrong, or -1 with nothing behind."""
    return file_of(stream).error


def FCGI_clearerr(stream: File) -> None:
    """Forget the error and the end of file."""
    file_of(stream).clear_error()


def FCGI_fileno(stream: File) -> int:
    """Return the descriptor; -1 for the streams of a FastCGI request."""
    return file_of(stream).fileno()


def _put(file: FCGI_FILE, data: bytes) -> int:
    return len(data) if file.write(data) else EOF


def _byte(function: str, value: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{function}: {value!r} must be an int; ord() makes one")
    return value


def _check_items(function: str, size: int, count: int) -> None:
    if size < 0 or count < 0:
        raise ValueError(f"{function}: {count} items of {size} bytes")
