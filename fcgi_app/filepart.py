"""A file on its way out: the kernel takes what is sent from the file itself.

A ``FileSource`` is what ``send_file`` was asked for. It goes out in parts, which wait
in an ``Outlet`` among what else is sent, and become records as they leave.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable

from ._log import log_warning
from .codec.constants import HEADER_LEN
from .codec.records import STREAM_CHUNK

__all__ = ["FilePart", "FileSource"]

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_WITH_MORE = _FLAGS | getattr(socket, "MSG_MORE", 0)
_SENDFILE: Callable[[int, int, int, int], int] | None = getattr(os, "sendfile", None)
_NULS = memoryview(bytes(STREAM_CHUNK))


class FileSource:
    """A piece of a regular file, with a descriptor of its own.

    Args:
        descriptor: of the file; it becomes this object's, which closes it.
        name: what errors call the file.
        offset: where the piece begins, in bytes from the beginning of the file.
        count: bytes of the piece, all of which are there now.

    Attributes:
        fd: the descriptor; -1 once it is closed.
        left: bytes that have not been taken.
        sent: bytes that went out of the parts that were taken.
        error: why the piece does not go out whole.
        by_kernel: whether sendfile(2) may be tried.
        abandoned: nobody waits for the piece: what is found missing is logged.
    """

    __slots__ = (
        "_count",
        "_name",
        "_offset",
        "abandoned",
        "by_kernel",
        "error",
        "fd",
        "left",
        "sent",
    )

    def __init__(self, descriptor: int, name: str, offset: int, count: int) -> None:
        self.fd = descriptor
        self._name = name
        self._offset = offset
        self._count = self.left = count
        self.sent = 0
        self.error: OSError | None = None
        # It cannot be told MSG_NOSIGNAL: who wants SIGPIPE would die of a web server
        # that has gone.
        self.by_kernel = (
            _SENDFILE is not None and signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
        )
        self.abandoned = False

    @property
    def position(self) -> int:
        """Where in the file the next byte that is taken stands."""
        return self._offset + self._count - self.left

    def take(self, size: int, header: Callable[[int], bytes]) -> FilePart:
        """Return the next ``size`` bytes, or all that are left, as they are sent.

        Args:
            size: bytes of the file.
            header: gives the header of a record with so much content.
        """
        size = min(size, self.left)
        part = FilePart(self, self.position, size, header)
        self.left -= size
        return part

    def read(self, size: int) -> bytes:
        """Take and read the next bytes: ``size`` or fewer; none only at the end.

        Raises:
            OSError: the file cannot be read, or has become shorter.
        """
        size = min(size, self.left)
        if not size:
            return b""
        data = os.pread(self.fd, size, self.position)
        if not data:
            self.fail_at(self.position)
        if self.error is not None:
            raise self.error
        self.left -= len(data)
        return data

    def fail_at(self, position: int) -> None:
        """Note that the file ends at ``position``, before the end of the piece."""
        self.fail(
            OSError(
                errno.EIO,
                f"the file has become shorter while it was sent: "
                f"{max(position - self._offset, 0)} of {self._count} bytes are there "
                f"from offset {self._offset} on",
                self._name,
            )
        )

    def fail(self, error: OSError) -> None:
        """Note why the rest does not go out."""
        if self.error is None:
            self.error = error
            if self.abandoned:
                log_warning("send_file: %s", error)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class FilePart:
    """The records of a part of a file, as they wait to be sent.

    Its length is that of the records, in bytes, and becomes less as they leave.

    A header promises what follows it. Each goes out only for bytes that are there at
    that moment; if they have gone when their turn comes, NUL stands in their place,
    and that record is the last one.
    """

    __slots__ = (
        "_content",
        "_fill",
        "_header",
        "_left",
        "_make_header",
        "_offset",
        "source",
    )

    def __init__(
        self, source: FileSource, offset: int, size: int, header: Callable[[int], bytes]
    ) -> None:
        self.source = source
        self._offset = offset
        self._left = size
        self._make_header = header
        self._header = b""  # what has not been sent of a record's header
        self._content = 0  # bytes of that record's content that have not been sent
        self._fill = False  # they are not in the file any more

    def __len__(self) -> int:
        further = -((self._content - self._left) // STREAM_CHUNK)  # records, rounded up
        return len(self._header) + self._left + further * HEADER_LEN

    def load(self) -> None:
        """Have what it consists of in memory; waits for the disk."""
        if hasattr(os, "posix_fadvise"):
            fd = self.source.fd
            try:
                os.posix_fadvise(fd, self._offset, self._left, os.POSIX_FADV_WILLNEED)
                os.pread(fd, 1, self._offset + self._left - 1)
            except OSError:  # whoever sends it will be told
                pass

    def send_to(self, sock: socket.SocketType) -> int:
        """Send what the socket takes, which must be non-blocking for the kernel.

        Returns:
            By how much its length has become less: what was sent, and what will never
            be. It is done when the length is 0, and waits for the socket otherwise.

        Raises:
            OSError: the socket says that it is over.
        """
        before = len(self)
        try:
            while self._left:
                if not self._content:
                    self._begin_record()
                elif self._header:
                    sent = sock.send(self._header, _WITH_MORE)
                    self._header = self._header[sent:]
                else:
                    self._send_content(sock)
        except (BlockingIOError, InterruptedError):
            pass
        return before - len(self)

    def _begin_record(self) -> None:
        source = self.source
        size = min(self._left, STREAM_CHUNK)
        if source.error is None:
            try:
                there = os.fstat(source.fd).st_size - self._offset
            except OSError as error:
                source.fail(error)
            else:
                if there < size:
                    source.fail_at(self._offset + there)
                    self._left = size = max(there, 0)
                self._content = size
        if self._content:
            self._header = self._make_header(size)
        else:
            self._left = 0  # nothing has been promised

    def _send_content(self, sock: socket.SocketType) -> None:
        if self._fill:
            sent = sock.send(_NULS[: self._content], _FLAGS)
        elif self.source.by_kernel:
            sent = self._send_by_kernel(sock)
        else:
            sent = self._send_by_reading(sock)
        self._offset += sent
        self._left -= sent
        self._content -= sent
        self.source.sent += sent

    def _send_by_kernel(self, sock: socket.SocketType) -> int:
        source = self.source
        assert _SENDFILE is not None
        try:
            sent = _SENDFILE(sock.fileno(), source.fd, self._offset, self._content)
        except (BlockingIOError, InterruptedError):
            raise
        except OSError:
            # Reading and sending will tell whose error it is, if it was one: some file
            # systems just cannot do it.
            source.by_kernel = False
            return 0
        if not sent:
            source.fail_at(self._offset)
            self._give_up()
        return sent

    def _send_by_reading(self, sock: socket.SocketType) -> int:
        source = self.source
        try:
            data = os.pread(source.fd, self._content, self._offset)
        except OSError as error:
            source.fail(error)
        else:
            if data:
                return sock.send(data, _FLAGS)
            source.fail_at(self._offset)
        self._give_up()
        return 0

    def _give_up(self) -> None:
        """Send NUL for the rest of the record, and nothing behind it."""
        self._fill = True
        self._left = self._content
