"""FCGI_FAIL_ACCEPT_ON_INTR: a wait for a request that a signal can end."""

from __future__ import annotations

import _thread
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .request import Request
    from .threaded import ThreadedAcceptor

__all__ = ["next_unless_interrupted"]


def next_unless_interrupted(acceptor: ThreadedAcceptor) -> Request | None:
    """Wait for a request in the main thread until a signal has been handled.

    Raises:
        InterruptedError: that came first.
    """
    with _watched_signals(acceptor) as handled, acceptor.lock:
        while True:
            with suppress(TimeoutError):
                return acceptor.next_request(0)
            if handled:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            acceptor.changed.wait()


@contextmanager
def _watched_signals(acceptor: ThreadedAcceptor) -> Iterator[list[int]]:
    """Give a list that grows by each signal for which a handler has been called.

    Python goes on waiting after a signal; nothing but its handler tells of it.
    """
    handled: list[int] = []
    wrapped: dict[int, tuple[Any, Any]] = {}

    def wrap(handler: Callable[[int, Any], object]) -> Callable[[int, Any], None]:
        def handle(number: int, frame: Any) -> None:
            handled.append(number)
            handler(number, frame)
            # By another thread, which gets the lock when this one waits: so the wait
            # cannot begin just after it should have ended.
            _thread.start_new_thread(_wake, (acceptor,))

        return handle

    try:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                wrapped[number] = handler, wrap(handler)
                signal.signal(number, wrapped[number][1])
        yield handled
    finally:
        for caught, (handler, ours) in wrapped.items():
            if signal.getsignal(caught) is ours:  # a handler may have set another
                signal.signal(caught, handler)


def _wake(acceptor: ThreadedAcceptor) -> None:
    with acceptor.lock:
        acceptor.changed.notify_all()
