"""``FCGI_FILE``: what fcgi_stdio has in place of ``FILE``, and its errno.

Either a file of the operating system, as C's ``FILE`` is, or one of the three
standard files, which are whatever the current request has. Every operation gives a
result in C's sense, sets errno, and raises nothing for what C reports.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from .errors import IncompleteData, RequestAborted
from .loop import process_loop
from .textio import TextIn, TextOut

if TYPE_CHECKING:
    from subprocess import Popen

__all__ = [
    "EOF",
    "FCGI_FILE",
    "IOFBF",
    "IOLBF",
    "IONBF",
    "StandardFile",
    "file_of",
    "get_errno",
    "open_file",
    "open_files",
    "open_pipe",
    "refuse",
    "set_errno",
    "standard_files",
]

EOF = -1
IOFBF, IOLBF, IONBF = 0, 1, 2
"""Buffering modes of setvbuf(3), with the numbers that glibc has for them."""

_errno = 0


def get_errno() -> int:
    """Return the error number of the last call that failed (errno(3)); 0: none has."""
    return _errno


def set_errno(error: BaseException | int, default: int = errno.EBADF) -> int:
    """Set errno to a number, or to what an exception says; return it."""
    global _errno
    number = error if isinstance(error, int) else getattr(error, "errno", None)
    _errno = number or default
    return _errno


def refuse(error: BaseException | int, default: int = errno.EBADF) -> bool:
    """Set errno and return False."""
    set_errno(error, default)
    return False


class CFile(Protocol):
    """A ``FILE *`` onto a ``FCGI_FILE`` (module ``cfile``)."""

    pointer: Any

    def close(self) -> bool:
        """Flush and close it; whether that went well."""


class FCGI_FILE:
    """A file as C sees it; made by ``FCGI_fopen`` and its like, closed by them.

    Args:
        file: a binary file object, which is this one's own from now on.
        process: for ``FCGI_popen``, the process at the other end.
    """

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_at_eof",
        "_buffering",
        "_error",
        "_file",
        "c_file",
        "process",
    )

    def __init__(self, file: Any, process: Popen[bytes] | None = None) -> None:
        self.c_file: CFile | None = None
        self.adopt(file, process)

    def adopt(self, file: Any, process: Popen[bytes] | None = None) -> None:
        """Be ``file`` from now on, as new."""
        self._file = file
        self.process = process
        self._forget()
        if file is not None:
            open_files.add(self)

    def _forget(self) -> None:
        self._ahead = b""  # pushed back
        self._at_eof = False
        self._error = 0
        self._buffering = IOFBF

    @property
    def binary(self) -> Any:
        """The binary file object that is behind it now; None: there is none."""
        return self._file

    def _open(self) -> Any:
        stream = self.binary
        if stream is None:
            set_errno(errno.EBADF)
        return stream

    def _failed(self, error: BaseException | int, default: int = errno.EBADF) -> bool:
        """Note an error for ferror and errno; return False."""
        self._error = set_errno(error, default)
        return False

    def __repr__(self) -> str:
        """Name what is behind it."""
        return f"<{type(self).__name__} of {self.binary!r}>"

    # Reading

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes; fewer only at the end of the file or after an error."""
        return self._gather("read", size, None)

    def read_line(self, size: int) -> bytes:
        r"""Read up to ``size`` bytes, no further than the next ``\n``."""
        return self._gather("readline", size, b"\n")

    def _gather(self, method: str, size: int, stop: bytes | None) -> bytes:
        stream = self._open()
        if stream is None:
            return b""
        cut = size if stop is None else min(size, self._ahead.find(stop) + 1 or size)
        data, self._ahead = self._ahead[:cut], self._ahead[cut:]
        while len(data) < size and (stop is None or not data.endswith(stop)):
            more = self._pull(self._reader(stream, method), size - len(data))
            if not more:
                break
            data += more
        return data

    def _reader(self, stream: Any, method: str) -> Any:
        """Return what reads from ``stream``."""
        return getattr(stream, method)

    def _pull(self, read: Any, size: int) -> bytes:
        if self._at_eof:
            return b""
        try:
            data: bytes | None = read(size)
        except RequestAborted:
            self._failed(errno.ECONNABORTED)
            return b""
        except (OSError, ValueError) as error:
            short = isinstance(error, IncompleteData)
            self._failed(error, errno.EPROTO if short else errno.EBADF)
            return b""
        if data is None:  # an unbuffered file of the application's that must not wait
            self._failed(errno.EAGAIN)
        elif not data:
            self._at_eof = True
            self._check_end()
        return data or b""

    def _check_end(self) -> None:
        """Look whether the end that was read is the proper one."""

    def unread(self, byte: int) -> bool:
        """Push a byte back; any number of them."""
        if self._open() is None:
            return False
        self._ahead = bytes((byte & 0xFF,)) + self._ahead
        self._at_eof = False
        return True

    # Writing

    def write(self, data: bytes) -> bool:
        """Write all of ``data``; whether that went well."""
        stream = self._open()
        if stream is None:
            return False
        try:
            _write_all(stream, data)
            if self._buffering == IONBF or (self._buffering == IOLBF and b"\n" in data):
                stream.flush()
        except (OSError, ValueError) as error:
            return self._failed(error)
        return self._check_delivery(stream)

    def flush(self) -> bool:
        """Send what is held back; whether it could be delivered."""
        stream = self._open()
        if stream is None:
            return False
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            return self._failed(error)
        return self._check_delivery(stream)

    def _check_delivery(self, stream: Any) -> bool:
        """Look for the error that a request's stream keeps to itself."""
        error: OSError | None = getattr(stream, "error", None)
        return error is None or self._failed(error, errno.EPIPE)

    def set_buffering(self, mode: int) -> bool:
        """Have output go out when a buffer is full, at each line, or at once."""
        if mode not in (IOFBF, IOLBF, IONBF):
            return refuse(errno.EINVAL)
        if self._open() is None:
            return False
        self._buffering = mode
        return True

    def unbuffer(self) -> None:
        """Hold nothing back in Python: the descriptor is going to be used besides.

        What has been read ahead is given back, except to a pipe.
        """
        self._buffering = IONBF
        buffered = self._file
        buffered.flush()
        if buffered.seekable():
            position = self.tell()
            self._file = buffered.detach()
            self._file.seek(position)
            self._ahead = b""

    # Position

    def seek(self, offset: int, whence: int) -> bool:
        """Move the position; what was pushed back is forgotten."""
        stream = self._seekable()
        if stream is None:
            return False
        if whence == os.SEEK_CUR:
            offset -= len(self._ahead)
        try:
            stream.seek(offset, whence)
        except (OSError, ValueError) as error:
            return refuse(error, errno.EINVAL)
        self._ahead = b""
        self._at_eof = False
        return True

    def tell(self) -> int:
        """Return the position in bytes, or -1."""
        stream = self._seekable()
        return EOF if stream is None else int(stream.tell()) - len(self._ahead)

    def _seekable(self) -> Any:
        stream = self._open()
        if stream is not None and not stream.seekable():
            set_errno(errno.ESPIPE)
            return None
        return stream

    # How it goes

    @property
    def at_eof(self) -> bool:
        """Whether reading has met the end, or nothing is behind it."""
        return self.binary is None or self._at_eof

    @property
    def error(self) -> int:
        """The errno of what went wrong last; 0: nothing; -1: nothing is behind it."""
        return EOF if self.binary is None else self._error

    def clear_error(self) -> None:
        """Forget the error and the end that was met."""
        self._error = 0
        self._at_eof = False

    def fileno(self) -> int:
        """Return the descriptor, -1 without one."""
        stream = self._open()
        try:
            return EOF if stream is None else int(stream.fileno())
        except (OSError, ValueError) as error:
            set_errno(error)
            return EOF

    def close(self) -> bool:
        """Close it, and wait for its process; whether all output was delivered."""
        stream = self._open()
        if stream is None:
            return False
        open_files.discard(self)
        c_file, self.c_file = self.c_file, None
        self._file = None
        self._forget()
        try:
            well = c_file is None or c_file.close()
            stream.close()
        except (OSError, ValueError) as error:
            well = refuse(error, errno.EPIPE)
        if self.process is not None:
            self.process.wait()
        return well


class StandardFile(FCGI_FILE):
    """``FCGI_stdin`` (0), ``FCGI_stdout`` (1), ``FCGI_stderr`` (2), for good.

    Behind it is the current request's stream, nothing outside of a request or once
    it has been closed, and a file of its own from ``FCGI_freopen`` to the request's
    end.
    """

    __slots__ = ("_seen", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._seen: Any = None
        super().__init__(None)

    @property
    def redirected(self) -> bool:
        """Whether ``FCGI_freopen`` has put a file in the place of the request's."""
        return self._file is not None

    @property
    def request_stream(self) -> Any:
        """The request's own binary stream; None where that is not behind it."""
        if self._file is not None:
            return None
        stream = process_loop.stream(self.descriptor)
        if stream is not self._seen:  # another request, or a filter's DATA
            self._seen = stream
            self._forget()
        return None if stream is None or stream.closed else stream

    @property
    def binary(self) -> Any:
        """The file of ``FCGI_freopen``, or the request's own stream."""
        return self._file if self._file is not None else self.request_stream

    def _reader(self, stream: Any, method: str) -> Any:
        """As in C, what has come of a filter's file is read in front of an error."""
        request = process_loop.current
        if self._file is not None or request is None or not request._filtering:
            return super()._reader(stream, method)

        def read(size: int) -> bytes:
            there: bytes = stream.peek(1)[:size]
            line = there.find(b"\n") + 1 if method == "readline" else 0
            part: bytes = stream.read(line or len(there))
            return part

        return read

    def _check_end(self) -> None:
        request = process_loop.current
        if self._file is None and request is not None and request.aborted:
            self._failed(errno.ECONNABORTED)

    @property
    def at_eof(self) -> bool:
        """As libfcgi: also after an error, so that loops come to an end."""
        return super().at_eof or bool(self.error)

    @property
    def error(self) -> int:
        """The errno of what went wrong; lost output of ``print`` counts."""
        lost: OSError | None = getattr(self.binary, "error", None)
        if lost is not None and not self._error:
            return lost.errno or errno.EPIPE
        return super().error

    def settle(self) -> None:
        """Let go of what the last request had; the next look finds it as new."""
        if self._file is not None:
            self.close()
        self._seen = None


def _write_all(stream: Any, data: bytes) -> None:
    done = 0
    while True:
        count = stream.write(data[done:] if done else data)
        if count is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        done += count
        if done >= len(data):
            return


open_files: WeakSet[FCGI_FILE] = WeakSet()
"""The files that fflush(NULL) is about, besides the standard ones."""

standard_files = (StandardFile(0), StandardFile(1), StandardFile(2))
for _file in standard_files:
    process_loop.settle_with(_file.settle)

_TEXTS = {"<stdin>": 0, "<stdout>": 1, "<stderr>": 2}


def file_of(stream: object) -> FCGI_FILE:
    """Return the ``FCGI_FILE`` that an argument means: ``sys.stdout`` is one, too.

    Raises:
        TypeError: it is no file of fcgi_stdio; names it.
    """
    if isinstance(stream, FCGI_FILE):
        return stream
    if isinstance(stream, (TextIn, TextOut)):
        return standard_files[_TEXTS[stream.name]]
    raise TypeError(
        f"{stream!r} is no FCGI_FILE, and not sys.stdin, stdout or stderr of a request"
    )


def open_file(path: str | bytes | os.PathLike[str] | int, mode: str) -> Any:
    """Open a binary file by path or descriptor; None, with errno, if that fails.

    Args:
        path: a path, or a descriptor that will be the file's own.
        mode: as for fopen(3).
    """
    letter, rest = mode[:1], mode[1:]
    if letter not in ("r", "w", "a") or set(rest) - set("+bxecmt"):
        set_errno(errno.EINVAL)
        return None
    if "x" in rest and letter != "r":  # C11: fail if the file is there
        letter = "x"
    try:
        if "+" not in rest:
            return open(path, letter + "b")
        raw = io.FileIO(path, letter + "b+")
        # A terminal or a socket stays unbuffered: Python has no buffer for those.
        return io.BufferedRandom(raw) if raw.seekable() else raw
    except (OSError, ValueError) as error:
        set_errno(error)
        return None


def open_pipe(command: str | bytes, mode: str) -> FCGI_FILE | None:
    """Run a shell command at the other end of a pipe (popen(3)); None if that fails."""
    if mode not in ("r", "w", "re", "we"):
        set_errno(errno.EINVAL)
        return None
    from subprocess import PIPE, Popen

    try:
        if mode[0] == "r":
            process = Popen(command, shell=True, stdout=PIPE)
            return FCGI_FILE(process.stdout, process)
        process = Popen(command, shell=True, stdin=PIPE)
        return FCGI_FILE(process.stdin, process)
    except OSError as error:
        set_errno(error)
        return None
