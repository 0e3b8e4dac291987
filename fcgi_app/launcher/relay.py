"""What workers print and we log, on its way to our own standard error."""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress

__all__ = ["Outlet", "Relay"]

KEPT_LINES = 10
"""Lines of a worker that are shown when it dies at its start."""

_READ_BYTES = 65536
_MOST_READS = 64  # a pipe has 64 KiB, or a mebibyte if its user wants so
_MOST_WAITING = 1 << 20
_LONGEST_LINE = 65536
"""A longer line is passed on in pieces."""


class Outlet:
    """Our standard error, which may be a pipe that nobody reads for a while.

    What cannot be written, on a full disk, is lost: the workers must not stand still
    for it. So is what comes while a mebibyte waits.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self.descriptor = descriptor
        self._waiting = bytearray()

    @property
    def is_blocked(self) -> bool:
        """Whether something waits for the descriptor to become writable."""
        return bool(self._waiting)

    def write(self, text: bytes) -> None:
        """Write, or keep it until `flush` if that would wait."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting += text
        self.flush()

    def flush(self) -> None:
        """Write what can be written without waiting."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLOUT)
        while self._waiting:
            if not poller.poll(0):
                return
            # A pipe that is writable takes so much without waiting.
            piece = bytes(self._waiting[: select.PIPE_BUF])
            try:
                written = os.write(self.descriptor, piece)
            except BlockingIOError:
                return
            except OSError:
                written = len(piece)
            del self._waiting[:written]


class Relay:
    """The pipe of one worker's standard output and error; passes on whole lines.

    Args:
        outlet: where to.
        descriptor: the reading end, owned; -1: it is closed already; None: a new
            pipe, whose other end is ``writer``, for the caller to close.
        rest: of an unfinished line that has been read before.

    Attributes:
        descriptor: the reading end; -1 when it is closed.
        lines: the last lines.
        rest: of a line whose end has not been read.
    """

    def __init__(
        self, outlet: Outlet, descriptor: int | None = None, rest: bytes = b""
    ) -> None:
        self.writer = -1
        if descriptor is None:
            descriptor, self.writer = os.pipe()
        elif descriptor >= 0:
            os.set_inheritable(descriptor, False)
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._outlet = outlet
        self.rest = rest

    def close_writer(self) -> None:
        """Close our copy of the writing end."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def pump(self) -> None:
        """Pass on what has come; at the end of the pipe, close it."""
        if self.descriptor < 0:
            return
        with suppress(BlockingIOError):
            piece = os.read(self.descriptor, _READ_BYTES)
            if not piece:
                self.close()
                return
            head, newline, self.rest = (self.rest + piece).rpartition(b"\n")
            self._pass_on(head + newline)
            if len(self.rest) >= _LONGEST_LINE:
                self._pass_on(self.rest)
                self.rest = b""

    def drain(self) -> None:
        """Pass on all that is in the pipe; a child of the worker may hold it open."""
        for _ in range(_MOST_READS):
            if self.descriptor < 0 or not _has_input(self.descriptor):
                return
            self.pump()

    def close(self) -> None:
        """Close the reading end; an unfinished line is passed on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self.rest:
            self._pass_on(self.rest + b"\n")
            self.rest = b""

    def _pass_on(self, text: bytes) -> None:
        if not text:
            return
        self._outlet.write(text)
        for line in text.splitlines()[-KEPT_LINES:]:
            self.lines.append(line.decode("utf-8", "replace")[:500])


def _has_input(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
