"""Many connections in, ready requests out to many threads.

The same as ``acceptor`` with one more thread, which does nothing but read, send on,
and watch the deadlines; so what happens on a connection is noticed while the threads
that serve requests compute.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from threading import Condition, Lock, RLock, Thread, current_thread
from time import monotonic
from weakref import WeakSet

from ._log import flush_log, log_exception, log_in_background
from .acceptor import Acceptor, Admission
from .request import Request, serving
from .settings import Settings
from .shared import SharedTransport
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = ["ThreadedAcceptor"]


class ThreadedAcceptor(Acceptor):
    """See the module's docstring. ``next_request`` may be called by many threads.

    Its own thread starts with the first of these calls. Args are ``Acceptor``'s.

    Attributes:
        lock: guards all connections; nobody waits for anything while holding it.
        changed: of ``lock``; notified when a request is ready, and when none will be.
        alone: there is no thread that reads and writes: this is a forked child.
    """

    _transport = SharedTransport
    _multiplexes = True

    def __init__(
        self,
        listeners: list[socket.socket],
        settings: Settings,
        admits: Admission | None = None,
        release: Callable[[socket.socket], object] | None = None,
    ) -> None:
        self.lock = RLock()
        self.changed = Condition(self.lock)
        self.alone = False
        self._work = Condition(self.lock)  # notified when a request is ready
        self._bell = Lock()  # released for who is in `wait`
        self._bell.acquire()
        self._thread: Thread | None = None
        self._over = False
        self._refusing = False  # nobody takes requests any more
        self._planned = inf  # the deadline that the thread is waiting for
        self._watches: dict[Request, list[Callable[[], object]]] = {}
        log_in_background()  # for the lock's sake
        super().__init__(listeners, settings, admits, release)
        self._select = self._select_unlocked
        self._modifies_waiting = not isinstance(self._selector, _SEEN_AT_ONCE)
        _living.add(self)

    # For the threads that serve

    def next_request(self, timeout: float | None = None) -> Request | None:
        """Wait for the next request; None when ``stop`` was asked and all is done.

        Raises:
            TimeoutError: ``timeout`` seconds have passed without one.
            RuntimeError: the acceptor's thread cannot be started.
        """
        until = inf if timeout is None else monotonic() + timeout
        with self.lock:
            self._start()
            while True:
                while self._ready:
                    request = self._ready.popleft()
                    if not request.finished:
                        request.running = True
                        return request
                if self._over or self.alone:
                    return None
                left = until - monotonic()
                if left <= 0:
                    raise TimeoutError(f"no request came within {timeout:g} s")
                try:
                    self._work.wait(None if left == inf else left)
                except BaseException:  # of a signal handler, in the main thread
                    self._work.notify()  # what we were woken for is another one's now
                    raise

    def start(self) -> None:
        """Start the acceptor's own thread; ``next_request`` does it if need be.

        Raises:
            RuntimeError: it cannot be started.
        """
        with self.lock:
            self._start()

    def shut_down(self) -> None:
        """Stop, and wait until all that has been asked is served and sent.

        Requests that no thread takes any more are refused.
        """
        self._refusing = True
        self.stop()
        with self.lock:
            thread = self._thread
            if thread is None and not self._over:
                self._over = True
                self.retire()
                super().shut_down()
                self._tell_all()
        if thread is current_thread():
            return
        if thread is not None:
            thread.join(self._settings.linger_timeout or None)
        if self._over:
            super()._close_pipe()
        flush_log()

    def wait(self) -> None:
        """Wait until it has been stopped and all is served.

        Signal handlers get their turn in the main thread, see `_clear_wake`. One that
        raises must leave no lock behind, as it may in a condition's Python code.
        """
        while not self._over:
            self._bell.acquire()

    def _clear_wake(self) -> bytes:
        """Wake the main thread, too, when a signal has come.

        Only there Python calls the handler. A signal that comes right before that
        thread begins to wait, or that the system gives to another one, does not end
        the wait.
        """
        woken_by = super()._clear_wake()
        if any(woken_by):
            self._tell_all()
        return woken_by

    def _close_pipe(self) -> None:
        """Leave it to ``shut_down``: a signal may be about to write to it."""

    def _tell_all(self) -> None:
        """Wake everybody who waits, to look around."""
        self._work.notify_all()
        self.changed.notify_all()
        with suppress(RuntimeError):  # it has rung already
            self._bell.release()

    def _start(self) -> None:
        if self._thread is None and not (self._over or self.alone):
            thread = Thread(target=self._run, name="fcgi_app acceptor", daemon=True)
            thread.start()  # it waits for the lock, which we have
            self._thread = thread

    # For the connections

    def request_ready(self, request: Request) -> bool:
        """Queue a request that may run; False when too many are waiting."""
        ready = super().request_ready(request)
        if ready:
            self._work.notify()
            self.changed.notify_all()
        return ready

    def aborted(self, request: Request) -> None:
        """Have the callbacks called that wait for the end of ``request``."""
        for callback in self._watches.pop(request, ()):
            _call_elsewhere(callback)

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called in a thread of its own once it is aborted."""
        with self.lock:
            if request._aborted:
                _call_elsewhere(callback)
            else:
                self._watches.setdefault(request, []).append(callback)
        return self._watching(request)

    @contextmanager
    def _watching(self, request: Request) -> Iterator[None]:
        try:
            yield
        finally:
            with self.lock:
                self._watches.pop(request, None)

    def interrupt(self) -> None:
        """Wake the acceptor's thread if it waits for less than it should."""
        if self._nearest < self._planned or self.stopping or self._modifies_waiting:
            self.wake()

    # The acceptor's thread

    def _run(self) -> None:
        try:
            with self.lock:
                while not self._over:
                    if self.stopping:
                        self._finish()
                    else:
                        self._turn(None)
        except Exception:  # noqa: BLE001 - nobody else would tell
            log_exception("the acceptor's thread failed")
            flush_log()
            os._exit(70)  # EX_SOFTWARE: a process that serves nothing must not stay

    def _select_unlocked(
        self, wait: float | None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, and let the other threads in meanwhile."""
        self._planned = self._nearest
        self.lock.release()
        try:
            return self._selector.select(wait)
        except OSError as error:
            if error.errno != errno.EBADF or not self._modifies_waiting:
                raise
            return []  # a thread has closed a connection before select(2) saw it
        finally:
            self.lock.acquire()
            self._planned = -inf  # it is awake, and looks again before it waits

    def _finish(self) -> None:
        """Serve what has been asked, send what has been answered, then close."""
        self.retire()
        while True:
            if self._refusing:
                self.refuse_waiting()
            if not self._busy():
                break
            self._turn(None)
        if not self._drain():
            self._over = True
            self.close()
            self._tell_all()

    def _busy(self) -> bool:
        """Whether a request is being served, or an answer on its way."""
        if self._ready:
            return True
        for transport in self._connections:
            if transport.unsent and not transport.closed:
                return True
            if any(request.dispatched for request in transport.requests):
                return True
        return False

    # Forks

    def abandon(self, but: Collection[Transport] = ()) -> None:
        """In a forked child: close our copies of every socket, and touch no peer."""
        self.alone = True
        self._thread = None
        self._watches.clear()
        super().abandon(but)

    def abandon_others(self) -> None:
        """In a forked child: keep nothing but what was detached for it."""
        current = serving.get()
        mine = [
            transport
            for transport in self._connections
            if any(request._detached for request in transport.requests)
        ]
        for transport in mine:
            if current in transport.requests:  # the others have children of their own
                mine = [transport]
                break
        self.abandon(mine)


_SEEN_AT_ONCE = tuple(
    getattr(selectors, name)
    for name in ("EpollSelector", "KqueueSelector")
    if hasattr(selectors, name)
)
"""Selectors whose ``select`` notices what another thread registers meanwhile."""
_living: WeakSet[ThreadedAcceptor] = WeakSet()
_held: list[Any] = []


def _call_elsewhere(callback: Callable[[], object]) -> None:
    """Call it in a thread: that of the connections has no time for it."""
    try:
        Thread(target=callback, name="fcgi_app abort", daemon=True).start()
    except RuntimeError:  # there are too many; late is worse than slow
        callback()


def _before_fork() -> None:
    """Have no connection in the middle of anything in the child."""
    for acceptor in sorted(_living, key=id):  # in the same order for all who fork
        acceptor.lock.acquire()
        _held.append(acceptor)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().lock.release()


def _after_fork_in_child() -> None:
    request = serving.get()
    mine = request is not None and isinstance(request._channel, SharedTransport)
    if request is not None and mine and not request._detached:
        request.forget_output()
        serving.set(None)  # what the child prints goes to the log
    while _held:
        acceptor = _held.pop()
        acceptor.abandon_others()
        acceptor.lock.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
