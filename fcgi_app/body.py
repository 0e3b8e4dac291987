"""Input of a request that has come and has not been read yet."""

from __future__ import annotations

import io
import os
from collections import deque
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

    from .codec.records import Buffer

__all__ = ["NO_INPUT", "InputBuffer", "keep_memory"]


_COPY_SIZE = 65536
_LONG = 131072
"""Bytes from which on glibc treats memory in a special way, before it learns."""
_KEPT = 4 << 20
"""Twice as many bytes stay with the process where `keep_memory` works."""


class InputBuffer:
    """A queue of bytes: appended as records arrive, read by the application.

    A signal handler may receive, and so append, while the application reads: for its
    sake numbers are changed without a call in between.

    Whatever nobody reads while more than ``spool`` bytes wait goes to an unnamed
    temporary file. That happens when a web server interleaves requests (HAProxy), or
    sends a body while it takes no answer (mod_fcgid): FastCGI has no way to stop it.

    Attributes:
        ended: the end of the stream has come; no bytes follow.
        cut: it ended before its time, by an abort or with its connection.
        received: bytes that ever came.
        size: bytes that can be read now.
        whole: where all that comes goes, set by who waits for all of it; else None.
        gathers: whether it may be set, where nothing is here.
    """

    __slots__ = (
        "_chunks",
        "_file",
        "_in_file",
        "_read_at",
        "cut",
        "ended",
        "received",
        "size",
        "whole",
    )
    gathers = True

    def __init__(self) -> None:
        self._chunks: deque[Buffer] = deque()
        self._file: IO[bytes] | None = None
        self._in_file = 0  # bytes of it that have not been read
        self._read_at = 0
        self.ended = False
        self.cut = False
        self.received = 0
        self.size = 0
        self.whole: io.BytesIO | None = None

    def append(self, data: Buffer, spool: int) -> None:
        """Add ``data``; the buffer goes to disk beyond ``spool`` bytes.

        What is not bytes is copied.

        Raises:
            OSError: there can be no temporary file, or it cannot grow; nothing of
                ``data`` has been added then.
        """
        added = len(data)
        if self.whole is not None:
            self.whole.write(data)
        else:
            if self._file is None and self.size + added <= spool:
                self._chunks.append(bytes(data))
            else:
                self._append_to_file(data)
            self.size += added
        self.received += added

    def _append_to_file(self, data: Buffer) -> None:
        if self._file is None:
            self._file = _open_temporary()
            self._read_at = 0
        _write_all(self._file, data, self._read_at + self._in_file)
        added = len(data)
        self._in_file += added

    def take(self, limit: int) -> Buffer:
        """Remove and return up to ``limit`` bytes; none when it is empty."""
        data: Buffer
        if self._chunks:
            data = self._chunks.popleft()
            if len(data) > limit:
                data = memoryview(data)
                self._chunks.appendleft(data[limit:])
                data = data[:limit]
        elif self._in_file:
            data = self._take_from_file(min(limit, self._in_file))
        else:
            return b""
        taken = len(data)
        self.size -= taken
        return data

    def _take_from_file(self, limit: int) -> bytes:
        file = self._file
        assert file is not None
        data = os.pread(file.fileno(), limit, self._read_at)
        taken = len(data)
        self._read_at += taken
        self._in_file -= taken
        if not self._in_file:
            self._file = None
            file.close()
        return data

    def to_file(self) -> IO[bytes]:
        """Move what can be read to an unnamed file, positioned at its start.

        Raises:
            OSError: there can be no such file, or it cannot grow.
        """
        file = _open_temporary()
        size = 0
        try:
            while data := self.take(_COPY_SIZE):
                _write_all(file, data, size)
                size += len(data)
        except OSError:
            file.close()
            raise
        return file

    def cut_off(self) -> None:
        """Note that the rest of the stream will never come."""
        if not self.ended:
            self.ended = self.cut = True

    def clear(self) -> None:
        """Forget what has not been read."""
        self._chunks.clear()
        self.size = self._in_file = 0
        file = self._file
        if file is not None:
            self._file = None
            file.close()


NO_INPUT = InputBuffer()
"""The input of every request that has none: it has ended, and never changes."""
NO_INPUT.ended = True


def keep_memory(size: int) -> None:
    """Have the next body of ``size`` bytes find the memory that this one has taken.

    glibc gives back what is free at the end of the heap beyond a bound that depends on
    what has been freed before. Whether a process lies on this side of it or on that is
    chance, and on that side each request gets its pages anew, which costs more than all
    that is done with them.
    """
    if size >= _LONG:
        _raise_bound()


@cache
def _raise_bound() -> None:
    """Free a block, which makes the bound twice its size (mallopt(3)), once.

    It is never touched, so that it never has pages. Other allocators do nothing else,
    nor does that of 32-bit machines.
    """
    try:  # contextlib is slow to load
        bytes(_KEPT)
    except MemoryError:
        pass  # it only saves time; the body that has been read must not be lost for it


def _write_all(file: IO[bytes], data: Buffer, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, position)
        view = view[written:]
        position += written


def _open_temporary() -> IO[bytes]:
    """Open an unnamed file, unbuffered, so that closing it can lose and raise nothing.

    Raises:
        OSError: there is no room for it, or no descriptor.
    """
    try:
        from tempfile import TemporaryFile  # slow to load and hardly ever needed
    except ImportError as error:  # for want of a descriptor
        raise OSError(error) from error
    return TemporaryFile(prefix="fcgi_app-", buffering=0)
