"""A socket's way out: everything that is sent goes through one queue, in order."""

from __future__ import annotations

import errno
import os
import select
import socket
from _thread import RLock  # threading has the same one, and loads more
from collections.abc import Callable
from itertools import accumulate, islice, takewhile

from .codec.records import Buffer
from .filepart import FilePart, FileSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Output(Protocol):
        """Records that send themselves."""

        def send_to(self, sock: socket.SocketType) -> int:
            """Send what the socket takes, without waiting; how many bytes are left."""

        def buffers(self) -> list[Buffer]:
            """Give all of them."""


__all__ = ["Outlet", "connection_lost", "is_fixed", "poll_socket"]

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_MORE = getattr(socket, "MSG_MORE", 0)
_JOIN_BELOW = 16384
"""Bytes up to which copying parts together costs less than a gathering write."""
_MAX_BUFFERS = 64  # at a time; the kernel's bound is 1,024 (IOV_MAX)
_FIXED = (bytes, FilePart)
_LONGEST_WAIT = 1_000_000.0
"""Seconds: poll(2) takes 24 days at most."""


class Outlet:
    """Sends buffers whole and in the order in which they came.

    A signal handler may print while a write waits, and an exception of it may end
    that wait: what was not sent stays in the queue, and what the handler printed
    comes behind it, so that records are never cut or mixed. Threads may send, too:
    one waits for the other.

    Attributes:
        queue: what is waiting for the socket to take it.
        lost: nothing can be sent any more.
        replied: bytes of short answers that came into the queue since it was empty.
    """

    __slots__ = ("_lock", "_mixed", "_sending", "_sock", "lost", "queue", "replied")

    def __init__(self, sock: socket.SocketType) -> None:
        self._sock = sock
        self.queue: list[Any] = []  # Buffer; FilePart, too, where it is mixed
        self._mixed = False  # for good, so that nobody has to look
        self._lock = RLock()  # of the thread that sends; its signal handlers pass
        self._sending = False
        self.lost = False
        self.replied = 0

    @property
    def pending(self) -> int:
        """How many bytes are waiting for the socket to take them."""
        return sum(map(len, self.queue)) if self.queue else 0

    def push(self, data: bytes = b"") -> None:
        """Queue a short answer and send what the socket takes, without waiting."""
        with self._lock:
            if data and not self.lost:
                self.queue.append(data)
                self.replied += len(data)
            if not self._sending and not self.lost:
                self._sending = True
                try:
                    self._drain()
                except OSError:
                    self._lose()  # receiving will tell
                finally:
                    self._sending = False

    def push_all(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers`` and send what the socket takes, without waiting."""
        with self._lock:
            if not self.lost:
                self.queue += buffers
            self.push()
            self._keep()

    def send(self, buffers: list[Buffer], wait: Callable[[], None]) -> None:
        """Queue ``buffers`` and send everything, calling ``wait`` for the socket.

        A call from within another one (a signal handler's) only queues them.

        Raises:
            OSError: the socket, or ``wait``, says that it is over.
        """
        with self._lock:
            if self.lost:
                raise connection_lost()
            self.queue += buffers
            if self._sending:
                self._keep()
            else:
                self._send_all(wait)

    def send_output(self, output: Output, wait: Callable[[], None]) -> None:
        """Do the same with what can send itself, if it need not wait for others.

        Raises:
            OSError: as ``send``.
        """
        with self._lock:
            if self._sending:
                self.send(output.buffers(), wait)
            else:
                self._send_all(wait, output)

    def _send_all(self, wait: Callable[[], None], output: Output | None = None) -> None:
        self._sending = True
        waiting = False
        try:
            if self.lost:  # a signal handler has found out
                raise connection_lost()
            if output is not None:
                if self.queue:  # part of a record may be in front
                    self.queue += output.buffers()
                elif left := output.send_to(self._sock):
                    # What a signal handler sends comes behind it.
                    self.queue[:0] = _last(output.buffers(), left)
            while not self._drain():
                waiting = True
                wait()
                waiting = False
        except BaseException as error:
            if not waiting or isinstance(error, OSError):
                self._lose()  # it is not known what has been sent
            self._keep()
            raise
        finally:
            self._sending = False

    def send_at_once(self, data: bytes) -> bool:
        """Send ``data`` without waiting; queue what does not go, all if others wait.

        Returns:
            Whether everything has been sent.

        Raises:
            OSError: the socket says that it is over.
        """
        with self._lock:
            if self.lost:
                raise connection_lost()
            if self._sending or self.queue:
                self.queue.append(data)
                return False
            self._sending = True
            try:
                sent = self._sock.send(data, _FLAGS)
                if sent == len(data):
                    return True
                self.queue.append(memoryview(data)[sent:])
            except (BlockingIOError, InterruptedError):
                self.queue.append(data)
            except BaseException:
                self._lose()
                raise
            finally:
                self._sending = False
            return False

    def admit_files(self) -> None:
        """Let ``FilePart`` objects be sent like buffers from now on.

        sendfile(2) knows no MSG_DONTWAIT, so the socket itself becomes non-blocking.

        Raises:
            OSError: the socket is closed.
        """
        if not self._mixed:
            os.set_blocking(self._sock.fileno(), False)
            self._mixed = True

    def release(self, source: FileSource) -> None:
        """Let go of a file, at once or when what waits of it has been sent."""
        source.abandoned = True
        self._close_unless_waiting(source)

    def close_files(self) -> None:
        """Close the files of which something waits; the socket is closed."""
        for entry in self.queue:
            if type(entry) is FilePart and entry.source.abandoned:
                entry.source.close()

    def _close_unless_waiting(self, source: FileSource) -> None:
        for entry in self.queue:
            if type(entry) is FilePart and entry.source is source:
                return
        source.close()

    def _keep(self) -> None:
        """Copy what waits and is not ours: whoever wrote it goes on, and may change it.

        What is sent before that is never copied.
        """
        self.queue[:] = [b if is_fixed(b) else bytes(b) for b in self.queue]

    def _lose(self) -> None:
        self.lost = True
        if self._mixed:
            self.close_files()
        self.queue = []

    def _drain(self) -> bool:
        """Send what the socket takes; whether the queue is empty then."""
        if self._mixed:
            return self._drain_mixed()
        while self.queue:
            queue = self.queue
            buffers = queue[:_MAX_BUFFERS]  # a signal handler may add to it meanwhile
            there = len(buffers)
            size = sum(map(len, buffers))
            if there > 1 and size < _JOIN_BELOW:
                if there == _MAX_BUFFERS:
                    ends = accumulate(map(len, queue))
                    there = len(list(takewhile(_JOIN_BELOW.__ge__, ends)))
                    buffers = queue[:there]
                    size = sum(map(len, buffers))
                buffers = [b"".join(buffers)]
                queue[:there] = buffers
                there = 1
            try:
                if there == 1:
                    sent = self._sock.send(buffers[0], _FLAGS)
                else:
                    sent = self._sock.sendmsg(buffers, (), _FLAGS)
            except (BlockingIOError, InterruptedError):
                return False
            self._remove(sent, there if sent == size else 0)  # all, nearly always
        self.replied = 0
        return True

    def _drain_mixed(self) -> bool:
        """Do the same where files may be among what waits."""
        while self.queue:
            first = self.queue[0]
            if type(first) is FilePart:
                self._took(first.send_to(self._sock))
                if first:
                    return False
                del self.queue[0]
                if first.source.abandoned:
                    self._close_unless_waiting(first.source)
                continue
            buffers: list[Buffer] = []
            flags = _FLAGS
            for entry in self.queue[:_MAX_BUFFERS]:
                if type(entry) is FilePart:
                    flags |= _MORE  # one segment with what follows
                    break
                buffers.append(entry)
            try:
                self._remove(self._sock.sendmsg(buffers, (), flags))
            except (BlockingIOError, InterruptedError):
                return False
        self.replied = 0
        return True

    def _took(self, size: int) -> None:
        """Take note that ``size`` bytes of a file have been sent or dropped."""

    def _remove(self, sent: int, whole: int = 0) -> None:
        """Take off what has been sent; ``whole``: that was so many buffers."""
        queue = self.queue
        if whole:
            del queue[:whole]
            return
        # No more have been tried to be sent, and of files' parts many may wait.
        ends = list(accumulate(map(len, islice(queue, _MAX_BUFFERS))))
        done = sum(map(sent.__ge__, ends))
        if done:
            sent -= ends[done - 1]
        del queue[:done]
        if sent:
            queue[0] = memoryview(queue[0])[sent:]


def connection_lost() -> OSError:
    """Make the error of whoever has something to send when nothing can be sent."""
    return BrokenPipeError(errno.EPIPE, "the connection is lost")


def _last(buffers: list[Buffer], left: int) -> list[Buffer]:
    """Return the last ``left`` bytes of ``buffers``, uncopied."""
    first = len(buffers)
    while left > 0:
        first -= 1
        left -= len(buffers[first])
    return [memoryview(buffers[first])[-left:], *buffers[first + 1 :]]


def is_fixed(buffer: Buffer) -> bool:
    """Whether nobody can change a buffer any more: bytes, or a view of some.

    A part of a file counts as such: it has a descriptor of its own.
    """
    return type(buffer.obj if type(buffer) is memoryview else buffer) in _FIXED


def poll_socket(fd: int, events: int, timeout: float = 0.0) -> int:
    """Wait for ``events`` on ``fd``, ``timeout`` seconds or for ever (0).

    Returns:
        What there is; 0: nothing came. With no ``events`` it tells whether the peer
        has gone, and 0 seconds are no wait.
    """
    poller = select.poll()
    poller.register(fd, events)
    wait = min(timeout, _LONGEST_WAIT) * 1000 if timeout or not events else None
    ready = poller.poll(wait)
    return ready[0][1] if ready else 0
