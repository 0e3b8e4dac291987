"""C's ``FILE *`` onto the streams of the current request (FCGI_ToFILE(3)).

A standard file has one ``FILE *`` for the life of the process, made by
fopencookie(3): what C code writes to it goes to whatever request is current, so a
pointer that a C library keeps is never wrong. The one for output has no buffer in C,
so that ``print`` and C keep their order. The one for input holds no more than the
rest of a line, so that C code and Python may read by turns.

Needs cffi, in its ABI mode: no compiler. Importing this module raises ImportError
where that, or fopencookie, is missing.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from typing import TYPE_CHECKING, Any

from ._cstdio import FCGI_FILE, IONBF, StandardFile, refuse
from .loop import process_loop

if TYPE_CHECKING:
    from .request import Request

try:
    from cffi import FFI
except ImportError as missing:
    raise ImportError(
        "FCGI_ToFILE needs cffi, which is not installed (pip install cffi)",
        name="cffi",
    ) from missing

__all__ = ["clear_input", "pointer_of"]

_ffi = FFI()
_ffi.cdef(
    """
    typedef struct {
        ssize_t (*read)(void *, char *, size_t);
        ssize_t (*write)(void *, const char *, size_t);
        int (*seek)(void *, int64_t *, int);
        int (*close)(void *);
    } cookie_io_functions_t;
    FILE *fopencookie(void *, const char *, cookie_io_functions_t);
    FILE *fdopen(int, const char *);
    int setvbuf(FILE *, char *, int, size_t);
    int fflush(FILE *);
    int fclose(FILE *);
    void clearerr(FILE *);
    void __fpurge(FILE *);
    extern FILE *stdin;
    extern FILE *stdout;
    extern FILE *stderr;
    """
)
_libc: Any = _ffi.dlopen(None)
for _name in ("fopencookie", "__fpurge"):
    if not hasattr(_libc, _name):
        raise ImportError(f"FCGI_ToFILE needs {_name}(3), which is not in this libc")

_made: dict[int, Any] = {}
"""Descriptor → the permanent ``FILE *``, once somebody has asked for it."""
_interrupted: list[BaseException] = []
"""What a signal handler has raised in a callback: it cannot go through C code."""


def pointer_of(file: FCGI_FILE) -> Any:
    """Return a ``FILE *`` onto ``file``, as cffi's ``FILE *``; NULL if it is closed."""
    if isinstance(file, StandardFile) and not file.redirected:
        if process_loop.current is not None and file.binary is None:
            return _ffi.NULL
        if process_loop.started and process_loop.is_cgi:
            return _process_file(file.descriptor)
        return _request_file(file.descriptor)
    if file.binary is None:
        return _ffi.NULL
    if file.c_file is None:
        file.c_file = _DescriptorFile(file)
    return file.c_file.pointer


# The request's streams


def _request_file(descriptor: int) -> Any:
    pointer = _made.get(descriptor)
    if pointer is None:
        if not _made:
            process_loop.settle_with(_settle)
            os.register_at_fork(before=_flush)
            atexit.register(_unbuffer)
        pointer = _made[descriptor] = _open_cookie(descriptor)
        if descriptor:
            _libc.setvbuf(pointer, _ffi.NULL, IONBF, 0)
    return pointer


def _open_cookie(descriptor: int) -> Any:
    functions: Any = _ffi.new("cookie_io_functions_t *")
    if descriptor == 0:
        functions.read = _read
    else:
        functions.write = _write
    cookie = _ffi.cast("void *", descriptor)
    pointer = _libc.fopencookie(cookie, b"w" if descriptor else b"r", functions[0])
    if not pointer:
        raise OSError(_ffi.errno, os.strerror(_ffi.errno), "fopencookie")
    return pointer


def _failed(kind: Any, error: Any, traceback: Any) -> None:
    """Turn what a callback raises into errno; C gets its error result."""
    _ffi.errno = getattr(error, "errno", None) or errno.EPIPE
    if not isinstance(error, (OSError, ValueError)):
        _interrupted.append(error)


@_ffi.callback(
    "ssize_t(void *, const char *, size_t)", error=0, onerror=_failed
)  # 0, not -1: glibc's rule for a write that failed
def _write(cookie: Any, buffer: Any, size: int) -> int:
    descriptor = int(_ffi.cast("intptr_t", cookie))
    data = _ffi.buffer(buffer, size)[:]
    stream = process_loop.stream(descriptor)
    if stream is None:
        _write_own(descriptor, data)
        return size
    stream.write(data)
    error: OSError | None = getattr(stream, "error", None)
    if error is not None:
        raise BrokenPipeError(error.errno or errno.EPIPE, "output was lost")
    return size


def _write_own(descriptor: int, data: bytes) -> None:
    """Write to the process's own descriptor, behind what Python has written."""
    text = sys.__stdout__ if descriptor == 1 else sys.__stderr__
    if text is not None and not text.closed:
        text.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@_ffi.callback("ssize_t(void *, char *, size_t)", error=-1, onerror=_failed)
def _read(cookie: Any, buffer: Any, size: int) -> int:
    stream = process_loop.stream(0)
    if stream is None or stream.closed:
        return 0
    waiting = stream.peek(1)[:size]
    data = stream.read(waiting.find(b"\n") + 1 or len(waiting))
    _ffi.buffer(buffer, size)[: len(data)] = data
    return len(data)


def _flush() -> None:
    """Pass on what C code holds back in a buffer that it has set itself."""
    for descriptor, pointer in _made.items():
        if descriptor:
            _libc.fflush(pointer)


def _settle() -> None:
    """Leave nothing of one request in C for the next: no data, no EOF, no error.

    Raises:
        BaseException: an interruption that came while C code was calling.
    """
    _flush()
    for pointer in _made.values():
        _libc.__fpurge(pointer)
        _libc.clearerr(pointer)
    if _interrupted:
        raise _interrupted.pop()


def clear_input() -> None:
    """Let C code go on reading behind an end of file: a filter's DATA follows."""
    if 0 in _made:
        _libc.__fpurge(_made[0])
        _libc.clearerr(_made[0])


def _unbuffer() -> None:
    """At exit: C's own exit flushes buffers, and must find nothing to call us for."""
    _interrupted.clear()  # the process is ending already
    _flush()
    for descriptor, pointer in _made.items():
        if descriptor:
            _libc.setvbuf(pointer, _ffi.NULL, IONBF, 0)


# The process's own (CGI)


def _process_file(descriptor: int) -> Any:
    """Return C's own ``stdin``, ``stdout`` or ``stderr``, in step with Python's."""
    request = process_loop.current
    if descriptor == 0:
        if request is not None and request._body.received:
            return _request_file(0)  # else what Python has read ahead would be lost
        pointer = _libc.stdin
    else:
        pointer = _libc.stdout if descriptor == 1 else _libc.stderr
        _libc.fflush(pointer)
        if request is not None:
            _write_through(request, descriptor)
    _libc.setvbuf(pointer, _ffi.NULL, IONBF, 0)
    return pointer


def _write_through(request: Request, descriptor: int) -> None:
    """Send what Python holds back; from now on it passes all on at once, unseen.

    The response head, too: C code may write the rest of it.
    """
    process_loop.stream(descriptor).flush()
    stdout = request.response
    if descriptor == 2 or request.descriptors is not None:
        return  # descriptors=True: Python's writes have always gone out at once
    stdout._limit = 0
    held = stdout._release_head()
    if held:
        stdout._emit([held])


# Files of the operating system


class _DescriptorFile:
    """A ``FILE *`` of fdopen(3) on a duplicate of a file's descriptor."""

    def __init__(self, file: FCGI_FILE) -> None:
        stream = file.binary
        mode = b"w" if stream.writable() else b"r"
        if stream.readable() and stream.writable():
            mode = b"r+"
        file.unbuffer()
        descriptor = os.dup(file.fileno())
        self.pointer = _libc.fdopen(descriptor, mode)
        if not self.pointer:
            number = _ffi.errno
            os.close(descriptor)
            raise OSError(number, os.strerror(number), "fdopen")
        _libc.setvbuf(self.pointer, _ffi.NULL, IONBF, 0)

    def close(self) -> bool:
        """Flush and close it; whether that went well."""
        if _libc.fclose(self.pointer) == 0:
            return True
        return refuse(_ffi.errno)
