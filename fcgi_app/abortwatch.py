"""Noticing in the background that a request is not wanted any more.

For a program that serves one request at a time and computes: nobody reads its
connection meanwhile. What is noticed is the end of the connection, and an
abort-request record before which nothing else is waiting to be read.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from types import TracebackType

from .codec.constants import HEADER_LEN, RecordType
from .codec.records import HEADER

__all__ = ["AbortWatch"]

_HANG_UP = getattr(select, "POLLRDHUP", 0)  # Linux: the peer has shut down its side
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class AbortWatch:
    """Calls ``callback`` in a thread of its own, once at most; leaving it ends that.

    Args:
        source: the connection, or the descriptor that a CGI program writes to. What
            is watched is a copy: the original may be closed meanwhile.
        request_id: whose abort-request record counts.
        callback: must not raise.

    Raises:
        OSError: there is no descriptor for the copy.
        RuntimeError: there can be no thread.
    """

    def __init__(
        self,
        source: socket.SocketType | int,
        request_id: int,
        callback: Callable[[], object],
    ) -> None:
        self._request_id = request_id
        self._callback = callback
        self._copy: socket.socket | int
        if isinstance(source, int):
            self._copy = os.dup(source)
        else:
            self._copy = socket.socket(fileno=os.dup(source.fileno()))
        pipe: tuple[int, ...] = ()
        try:
            pipe = ended, self._end = os.pipe()
            Thread(
                target=self._run, args=(ended,), name="fcgi_app abort", daemon=True
            ).start()
        except BaseException:
            for descriptor in pipe:
                os.close(descriptor)
            self._close_copy()
            raise

    def __enter__(self) -> AbortWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # its end has come already
            os.write(self._end, b"\0")  # a forked child may hold a copy of this
        os.close(self._end)

    def _close_copy(self) -> None:
        if isinstance(self._copy, int):
            os.close(self._copy)
        else:
            self._copy.close()

    def _run(self, ended: int) -> None:
        try:
            if self._wait(ended):
                self._callback()
        finally:
            os.close(ended)
            self._close_copy()

    def _wait(self, ended: int) -> bool:
        """Wait for an abort (True) or for the end of the watch (False)."""
        copy = self._copy if isinstance(self._copy, int) else self._copy.fileno()
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        poller.register(copy, _HANG_UP | (0 if copy is self._copy else select.POLLIN))
        while True:
            ready = dict(poller.poll())
            if ended in ready:
                return False
            if ready[copy] & ~select.POLLIN or self._is_abort():
                return True
            poller.modify(copy, _HANG_UP)  # other records: no look beyond them

    def _is_abort(self) -> bool:
        """Whether the connection has ended, or an abort-request is what comes next."""
        assert not isinstance(self._copy, int)
        try:
            header = self._copy.recv(HEADER_LEN, _PEEK)
        except BlockingIOError:
            return False  # somebody has read it
        except OSError:
            return True
        if len(header) < HEADER_LEN:
            return not header
        _, record_type, request_id, _, _ = HEADER.unpack(header)
        return bool(
            record_type == RecordType.ABORT_REQUEST and request_id == self._request_id
        )
