"""A request whose body comes from a descriptor, and whose answer goes to two others."""

from __future__ import annotations

import os
import select
import selectors
import socket
from errno import EPIPE
from time import monotonic

from ..body import InputBuffer
from .exchange import Exchange
from .upload import BodySource, Upload

__all__ = ["DescriptorSource", "Outflow", "OutputLost", "Relay", "drain"]

LINGER = 30.0
"""Seconds for the rest of a body that nobody wants: nginx's lingering_time."""
LINGER_IDLE = 5.0
"""Seconds without a byte of it: nginx's lingering_timeout."""
SPOOL = 1 << 20
"""Bytes of output that wait in memory; the rest waits in a file."""
_PIECE = 65528
"""Bytes that are read at once: one record full."""
_MOST_AHEAD = 1 << 17
"""Bytes of output that may wait while nothing but the reader holds us up."""


class OutputLost(Exception):
    """The output cannot be passed on.

    Attributes:
        gone: because nobody reads it any more.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.gone = isinstance(error, ConnectionError)


class DescriptorSource:
    """A `BodySource` that reads a descriptor, which may block.

    Args:
        descriptor: borrowed.
        length: bytes that belong to the body, none is read beyond; None: all.

    Attributes:
        ended: the body is complete, or the descriptor has come to its end before.
    """

    def __init__(self, descriptor: int, length: int | None) -> None:
        self._descriptor = descriptor
        self._left = length
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLIN)
        self.ended = length == 0

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._descriptor

    def read_some(self) -> bytes | None:
        """Give what is there without waiting; None: nothing yet; empty: the end."""
        if self.ended:
            return b""
        if not self._poller.poll(0):
            return None
        size = _PIECE if self._left is None else min(_PIECE, self._left)
        try:
            data = os.read(self._descriptor, size)
        except BlockingIOError:
            return None
        except OSError:  # the web server is gone, and the body cut short
            data = b""
        if self._left is not None:
            self._left -= len(data)
        self.ended = not data or self._left == 0
        return data


class Outflow:
    """What waits to be written to a descriptor; takes any number of bytes at once.

    Args:
        descriptor: borrowed; it may block.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._waiting = InputBuffer()
        self._piece = b""

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._waiting.size + len(self._piece)

    def add(self, content: bytes) -> None:
        """Take bytes to write.

        Raises:
            OutputLost: there is no room for them on the disk.
        """
        try:
            if content:
                self._waiting.append(content, SPOOL)
        except OSError as error:
            raise OutputLost(error) from error

    def write(self) -> None:
        """Write some, once, to a descriptor that is ready for it.

        Raises:
            OutputLost: nobody reads them, or they cannot be written.
        """
        self._piece = self._piece or bytes(self._waiting.take(_PIECE))
        try:
            # A blocking pipe takes so much without waiting, and no byte more is safe:
            # nobody would look at the body, at the application and at the clock.
            written = os.write(self.descriptor, self._piece[: select.PIPE_BUF])
        except BlockingIOError:
            return
        except OSError as error:
            raise OutputLost(error) from error
        self._piece = self._piece[written:]

    def drop(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self._piece = b""


class Relay(Exchange):
    """An exchange that moves three ways at once and never waits for one of them alone.

    A CGI program's web server may read no output before it has got rid of the body,
    as Apache does; then the output waits here, on disk if it must.

    Args:
        address: for messages.
        connection: to the application; borrowed, must not block.
        upload: the request.
        source: the body in it.
        stdout: takes the output; the caller adds to it.
        stderr: takes FCGI_STDERR.
        timeout: seconds without progress; None waits for ever.
    """

    def __init__(
        self,
        address: str,
        connection: socket.socket,
        upload: Upload,
        source: DescriptorSource,
        stdout: Outflow,
        stderr: Outflow,
        *,
        timeout: float | None,
    ) -> None:
        super().__init__(
            address, connection, upload, timeout=timeout, on_stderr=stderr.add
        )
        self._source = source
        self._stdout = stdout
        self._stderr = stderr

    def _wait(self, awaited: BodySource | None) -> list[tuple[object, int]]:
        """Move what goes out, and tell how the connection is ready.

        Raises:
            OutputLost: the output cannot be written.
        """
        connection = select.POLLOUT if self.upload.pending else 0
        # Until the body is there, nobody but us may be waiting for the output.
        if not self._source.ended or self._stdout.size < _MOST_AHEAD:
            connection |= select.POLLIN
        poller = select.poll()
        if connection:  # else its end would wake us again and again
            poller.register(self._socket, connection)
        unwanted = self.upload.given_up and not self._source.ended
        if awaited is not None or unwanted:
            poller.register(self._source, select.POLLIN)
        ready = flow(poller, self._stdout, self._stderr, self._timeout)
        if ready is None:
            message = f"{self.address}: nothing moved for {self._timeout:g} seconds"
            raise TimeoutError(message)
        if unwanted and self._source.fileno() in ready:
            self._source.read_some()
        events = ready.get(self._socket.fileno(), 0)
        reading = selectors.EVENT_READ if events & ~select.POLLOUT else 0
        writing = selectors.EVENT_WRITE if events & select.POLLOUT else 0
        return [(self._socket, reading | writing)]


def flow(
    poller: select.poll,
    stdout: Outflow,
    stderr: Outflow,
    timeout: float | None,
) -> dict[int, int] | None:
    """Wait with ``poller`` until something can move, and write what can be written.

    Returns:
        Descriptors and their events; None when nothing has moved.

    Raises:
        OutputLost: the output, not that of ``stderr``, cannot be written.
    """
    outflows = {each.descriptor: each for each in (stderr, stdout)}
    for descriptor, outflow in outflows.items():
        if outflow.size:
            poller.register(descriptor, select.POLLOUT)
        elif outflow is stdout:  # no event but that its reader has gone
            poller.register(descriptor, 0)
    ready = dict(poller.poll(None if timeout is None else timeout * 1000))
    if not ready:
        return None
    for descriptor, outflow in outflows.items():
        if ready.get(descriptor):
            if outflow.size:
                try:
                    outflow.write()
                except OutputLost:
                    if outflow is stdout:
                        raise
                    outflow.drop()
            elif outflow is stdout:
                raise OutputLost(BrokenPipeError(EPIPE, "nobody reads it any more"))
    return ready


def drain(
    stdout: Outflow,
    stderr: Outflow,
    source: DescriptorSource,
    timeout: float | None,
) -> None:
    """Write what waits, and read the rest of the body, within the linger times.

    A web server that finds nobody reading the body forgets the answer (mod_cgid).

    Args:
        stdout: the output; so is the next one.
        stderr: of what is in it, nothing more is written if nobody reads it.
        source: the body.
        timeout: seconds in which some of the output must move; None: no limit.

    Raises:
        OutputLost: the output cannot be written, or nobody reads it.
    """
    until = monotonic() + LINGER
    while True:
        lingering = not source.ended and monotonic() < until
        if not (lingering or stdout.size or stderr.size):
            return
        poller = select.poll()
        if lingering:
            poller.register(source, select.POLLIN)
        limit = LINGER_IDLE if lingering else timeout
        if flow(poller, stdout, stderr, limit) is not None:
            if lingering:
                source.read_some()
        elif lingering:
            source.ended = True  # it is silent
        elif stdout.size:
            raise OutputLost(TimeoutError(f"nobody has read it for {limit:g} seconds"))
        else:
            stderr.drop()
