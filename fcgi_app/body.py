"""Input of a request that has come and has not been read yet."""

from __future__ import annotations

from collections import deque
from typing import IO

__all__ = ["InputBuffer"]


_COPY_SIZE = 65536


class InputBuffer:
    """A queue of bytes: appended as records arrive, read by the application.

    Whatever nobody reads while more than ``spool`` bytes wait goes to an unnamed
    temporary file. That happens when a web server interleaves requests (HAProxy), or
    sends a body while it takes no answer (mod_fcgid): FastCGI has no way to stop it.

    Attributes:
        ended: the end of the stream has come; no bytes follow.
        received: bytes that ever came.
        size: bytes that can be read now.
    """

    __slots__ = (
        "_chunks",
        "_file",
        "_in_file",
        "_read_at",
        "ended",
        "received",
        "size",
    )

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._file: IO[bytes] | None = None
        self._in_file = 0  # bytes of it that have not been read
        self._read_at = 0
        self.ended = False
        self.received = 0
        self.size = 0

    def append(self, data: bytes, spool: int) -> None:
        """Add ``data``; the buffer goes to disk beyond ``spool`` bytes."""
        self.received += len(data)
        self.size += len(data)
        if self._file is None and self.size <= spool:
            self._chunks.append(data)
            return
        if self._file is None:
            from tempfile import TemporaryFile  # slow to load and hardly ever needed

            self._file = TemporaryFile(prefix="fcgi_app-")  # noqa: SIM115 - kept open
            self._read_at = 0
        self._file.seek(0, 2)
        self._file.write(data)
        self._in_file += len(data)

    def take(self, limit: int) -> bytes:
        """Remove and return up to ``limit`` bytes; none when it is empty."""
        if self._chunks:
            data = self._chunks.popleft()
            if len(data) > limit:
                self._chunks.appendleft(data[limit:])
                data = data[:limit]
        elif self._in_file:
            data = self._take_from_file(min(limit, self._in_file))
        else:
            return b""
        self.size -= len(data)
        return data

    def _take_from_file(self, limit: int) -> bytes:
        file = self._file
        assert file is not None
        file.seek(self._read_at)
        data = file.read(limit)
        self._read_at += len(data)
        self._in_file -= len(data)
        if not self._in_file:
            file.close()
            self._file = None
        return data

    def to_file(self) -> IO[bytes]:
        """Move what can be read to an unnamed file, positioned at its start."""
        from tempfile import TemporaryFile

        file = TemporaryFile(prefix="fcgi_app-")  # noqa: SIM115 - the caller's
        while data := self.take(_COPY_SIZE):
            file.write(data)
        file.seek(0)
        return file

    def clear(self) -> None:
        """Forget what has not been read."""
        self._chunks.clear()
        self.size = self._in_file = 0
        if self._file is not None:
            self._file.close()
            self._file = None
