"""Descriptors 0, 1 and 2 that belong to the request while it runs (opt-in).

With them, children (``os.system("date")``) and C code that writes to descriptor 1
reach the web server in order, as in CGI. The body stands in an unnamed file on
descriptor 0; descriptors 1 and 2 are pipes, which a thread empties into the request.
A thread, because a child may write more than a pipe holds while we wait for it.
"""

from __future__ import annotations

import io
import os
import select
from threading import Thread

from ._log import log_exception
from .cgi import CgiChannel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .body import InputBuffer
    from .channel import Channel
    from .request import Request

__all__ = ["DescriptorWriter", "RequestDescriptors", "flush_c_stdio"]

_READ_SIZE = 65536


class DescriptorWriter(io.BufferedIOBase):
    """Writes to a descriptor at once, so that children find everything in order."""

    closed: bool = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any, /) -> int:
        """Write all of ``data``."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            view = view[os.write(self._descriptor, view) :]
        return size

    def close(self) -> None:
        """Take no more; the descriptor stays until the request's end."""
        self.closed = True


class RequestDescriptors:
    """The descriptors of one request, from ``__init__`` to ``leave``.

    Attributes:
        stdin, stdout, stderr: binary streams over descriptors 0, 1 and 2.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        channel = request._channel
        while not request._body.ended:
            channel.fill(request, wait=True)
        self._saved: list[int] = []
        self._pipes: list[int] = []
        self._done_in = self._done_out = -1
        self._thread: Thread | None = None
        try:
            self._take(channel)
        except BaseException:
            self._give_back()
            raise

    def _take(self, channel: Channel) -> None:
        """Put file and pipes on the descriptors; ``_give_back`` undoes it."""
        for descriptor in (0, 1, 2):
            self._saved.append(_duplicate(descriptor))
        if isinstance(channel, CgiChannel):
            channel.stdout, channel.stderr = self._saved[1:]
        self.stdin = self._stand_on_0(self._request._body)
        for descriptor in (1, 2):
            self._pipes.append(_pipe_on(descriptor))
        self._done_in, self._done_out = os.pipe()
        self.stdout = DescriptorWriter(1)
        self.stderr = DescriptorWriter(2)
        # A daemon: at the end of the process, threads are waited for before atexit
        # functions run, one of which ends the request and this thread.
        thread = Thread(target=self._pump, name="fcgi_app descriptors", daemon=True)
        thread.start()
        self._thread = thread

    def start_filter_data(self) -> None:
        """Put a filter's DATA in place of its STDIN, when all of it has come."""
        data = self._request._filter_input()
        while not data.ended:
            self._request._channel.fill(self._request, wait=True)
        self._request.check_data()
        self.stdin.close()
        self.stdin = self._stand_on_0(data)

    @staticmethod
    def _stand_on_0(source: InputBuffer) -> io.BufferedReader:
        """Put what ``source`` holds into a file on descriptor 0; return its reader."""
        with source.to_file() as file:
            os.dup2(file.fileno(), 0)
        return io.BufferedReader(io.FileIO(0, "r", closefd=False))

    def leave(self) -> None:
        """Put the process's own descriptors back; what was written has been taken."""
        flush_c_stdio()
        self.stdout.close()
        self.stderr.close()
        self.stdin.close()
        self._give_back()

    def _give_back(self) -> None:
        for descriptor, saved in enumerate(self._saved):
            os.dup2(saved, descriptor)
        if self._done_out >= 0:
            os.close(self._done_out)
        if self._thread is not None:
            self._thread.join()
        for descriptor in (self._done_in, *self._pipes, *self._saved):
            if descriptor >= 0:
                os.close(descriptor)
        channel = self._request._channel
        if isinstance(channel, CgiChannel):
            channel.stdout, channel.stderr = 1, 2

    def _pump(self) -> None:
        """Move what is written to the pipes on to the request, as it comes."""
        poller = select.poll()
        sinks = dict(
            zip(self._pipes, (self._request.response, self._request.log), strict=True)
        )
        for descriptor in (*sinks, self._done_in):
            poller.register(descriptor, select.POLLIN)
        done = False
        while sinks and not done:
            ready = {descriptor for descriptor, _ in poller.poll()}
            # When the request is over, one more round takes all that is there;
            # a child left in the background may hold the pipe open for ever.
            done = self._done_in in ready
            for descriptor in list(sinks) if done else ready & sinks.keys():
                if not self._move(descriptor, sinks[descriptor]) and not done:
                    poller.unregister(descriptor)
                    del sinks[descriptor]

    def _move(self, descriptor: int, sink: Any) -> bool:
        """Empty one pipe into its stream; False at its end."""
        while True:
            try:
                data = os.read(descriptor, _READ_SIZE)
            except BlockingIOError:
                break
            if not data:
                return False
            self._give(sink, data)
        self._give(sink, b"")
        return True

    @staticmethod
    def _give(sink: Any, data: bytes) -> None:
        try:
            if data:
                sink.write(data)
            else:
                sink.flush()
        except ConnectionError:
            return  # aborted: dropped like all other output
        except Exception:  # noqa: BLE001 - the pipe must be emptied all the same
            log_exception("output of descriptor was lost")


def _duplicate(descriptor: int) -> int:
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    return fcntl(descriptor, F_DUPFD_CLOEXEC, 3)


def _pipe_on(descriptor: int) -> int:
    """Put a pipe on ``descriptor``; return its reading end, non-blocking."""
    reading, writing = os.pipe()
    os.dup2(writing, descriptor)
    os.close(writing)
    os.set_blocking(reading, False)
    return reading


def flush_c_stdio() -> None:
    """Flush what C code in this process has printed; fflush(3) of NULL."""
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None).fflush(None)
