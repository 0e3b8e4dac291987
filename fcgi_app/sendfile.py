"""``Request.send_file``: what may be asked of it, and the ways that a file can go."""

from __future__ import annotations

import fcntl
import io
import os
import stat
from operator import index

from .filepart import FileSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .request import Request

    class HasFileno(Protocol):
        """What a file is here: it has a descriptor."""

        def fileno(self) -> int:
            """Return the descriptor."""


__all__ = ["open_source", "send_file"]

_READ_SIZE = 65536
_UNREADABLE = os.O_WRONLY | getattr(os, "O_PATH", 0)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def send_file(
    request: Request, file: HasFileno | int, offset: int, count: int | None
) -> int:
    """Do what ``Request.send_file`` says."""
    source = open_source(file, offset, count)
    size = source.left
    try:
        if request.descriptors is not None:
            while source.left:
                request.stdout.write(source.read(_READ_SIZE))
        else:
            request.response.send_file(source)
    finally:
        if not source.abandoned:
            source.close()
    return size


def open_source(file: Any, offset: int, count: int | None) -> FileSource:
    """Check what is to be sent, and open a descriptor of our own for it.

    Raises:
        TypeError, ValueError, OSError: see ``Request.send_file``.
    """
    offset = _check_number("offset", offset)
    if count is not None:
        count = _check_number("count", count)
    descriptor = _descriptor_of(file)
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        name = f"descriptor {descriptor}"
        raise OSError(error.errno, f"send_file: file: {error.strerror}", name) from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise ValueError(f"send_file: file: {file!r} is {kind}, not a regular file")
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & _UNREADABLE:
        raise ValueError(f"send_file: file: {file!r} is not open for reading")
    there = max(status.st_size - offset, 0)
    size = there if count is None else min(count, there)
    given: Any = getattr(file, "name", None)
    is_path = isinstance(given, str | bytes)
    name = os.fsdecode(given) if is_path else f"descriptor {descriptor}"
    return FileSource(os.dup(descriptor), name, offset, size)


def _check_number(name: str, value: Any) -> int:
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"send_file: {name}: {value!r} is not an integer") from None
    if number < 0:
        raise ValueError(f"send_file: {name}: {number} is negative")
    return number


def _descriptor_of(file: Any) -> int:
    """Return the descriptor of ``file``, which is one, or has ``fileno``."""
    if isinstance(file, int):
        return file
    mode = getattr(file, "mode", "b")
    if isinstance(file, io.TextIOBase) or (isinstance(mode, str) and "b" not in mode):
        raise ValueError(f"send_file: file: {file!r} is not open in binary mode")
    if getattr(file, "closed", False):
        raise ValueError(f"send_file: file: {file!r} is closed")
    try:
        fileno = file.fileno
    except AttributeError:
        raise TypeError(
            f"send_file: file: {file!r} is no descriptor and has no fileno()"
        ) from None
    try:
        return index(fileno())
    except io.UnsupportedOperation:
        raise io.UnsupportedOperation(
            f"send_file: file: {file!r} has no descriptor; write what it has"
        ) from None
