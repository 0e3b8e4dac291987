"""What the FCGX functions share in a process: its sockets, its stop, its end.

There is one ``FcgxProcess``, ``process``. It finds out what the process is, as the
loop does, but leaves ``sys`` and the environment alone.
"""

from __future__ import annotations

import _thread
import atexit
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, current_thread, get_ident, main_thread
from typing import TYPE_CHECKING, Any

from ._fcgx_signals import next_unless_interrupted
from ._log import log_exception, log_warning
from .access import admission
from .addresses import parse_address
from .errors import CallSequenceError
from .inherited import forces_cgi, inherited_listener, plug_standard_descriptors
from .loop import process_loop
from .request import Request
from .settings import Settings
from .sockets import open_socket, remove_socket_file
from .threaded import ThreadedAcceptor
from .watching import Watcher, open_log, watched

if TYPE_CHECKING:
    from .accesslog import AccessLog
    from .watching import Source

__all__ = ["FcgxProcess", "process"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

Identity = tuple[int, int]
"""Device and inode of an open socket: its number may be another's by now."""


class FcgxProcess:
    """See the module's docstring.

    Attributes:
        initialized: ``initialize`` has succeeded.
        stopping: ``stop`` has been asked, or this is a forked child.
    """

    def __init__(self) -> None:
        self.initialized = False
        self.stopping = False
        self._lock = Lock()
        self._settings = Settings()
        self._admits: Callable[[int, Any], bool] | None = None
        self._log: AccessLog | None = None
        self._given: list[socket.socket] = []  # of ``listen``, or from descriptor 0
        self._cgi_served = False
        self._opened: dict[int, socket.socket] = {}  # by FCGX_OpenSocket
        self._opener = 0  # process that has opened them
        self._acceptors: dict[int, tuple[ThreadedAcceptor, Source, Identity]] = {}
        self._open: dict[Request, int] = {}  # and the thread that took it
        self._signals: list[int] = []
        self._terminating = False
        self._woken_by: ThreadedAcceptor | None = None
        self._pid = os.getpid()
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._after_fork,
        )

    # What the process is

    def initialize(self) -> None:
        """Find out what the process is, once; any thread may call it.

        Raises:
            ConfigError: a setting is invalid, or descriptor 0 is a socket that is
                neither listening nor connected.
        """
        with self._lock:
            if self.initialized:
                return
            changes = {**process_loop._changes, "descriptors": False}
            self._settings = Settings.from_environ(os.environ).changed(**changes)
            self._admits = admission(os.environ)
            self._log = open_log(self._settings)
            if not process_loop.started:  # else the loop has descriptor 0
                # Put there early, since a web server has started the process.
                process_loop.remove_streams()
                plug_standard_descriptors()
                self._given = list(process_loop._listeners)
                if not self._given and (inherited := inherited_listener()) is not None:
                    self._given = [inherited]
            self._pid = os.getpid()  # a fork may have come before
            self._catch_signals()
            atexit.register(self._at_exit)
            self.initialized = True

    @property
    def is_cgi(self) -> bool:
        """Whether this is a CGI program: no listening socket was found or opened."""
        if process_loop.started:
            return process_loop.is_cgi
        return not (self._given or self._opened)

    # Sockets

    def open_socket(self, address: str, backlog: int) -> int:
        """Listen on ``address``; return the descriptor, 0 where CGI is forced.

        Raises:
            ConfigError: the address is malformed, or FCGI_FORCE_CGI is.
            OSError: it cannot be had; names it.
        """
        if not (set(address) & set(":/@")) and address not in ("", "systemd"):
            address = "unix:" + address  # what libfcgi takes for a path
        if forces_cgi(os.environ):
            parse_address(address)  # a malformed one is told all the same
            return 0
        listener = open_socket(address, backlog=backlog)
        with self._lock:
            self._opener = os.getpid()
            self._opened[listener.fileno()] = listener
        return listener.fileno()

    def _release(self, listener: socket.socket) -> None:
        """Close a socket that was opened here, and remove its file if it is ours."""
        with suppress(OSError):
            if self._opener == os.getpid():
                remove_socket_file(listener)
            listener.close()

    def _acceptor(self, descriptor: int) -> tuple[ThreadedAcceptor, Source]:
        """Return what accepts on a listening socket, the same for all threads.

        Returns:
            The acceptor, and what gives its requests.

        Raises:
            OSError: the descriptor is no listening socket (EBADF, ENOTSOCK, EINVAL),
                or there are no descriptors for it.
        """
        known = self._acceptors.get(descriptor)
        if known is not None and self._is_same(descriptor, known[2]):
            return known[:2]
        with self._lock:
            known = self._acceptors.get(descriptor)
            if known is not None and self._is_same(descriptor, known[2]):
                return known[:2]
            return self._make_acceptor(descriptor)

    def _make_acceptor(self, descriptor: int) -> tuple[ThreadedAcceptor, Source]:
        release: Callable[[socket.socket], object] | None = None
        if descriptor == 0:
            listeners = self._given
            release = process_loop._release_own if process_loop._listeners else None
        elif descriptor in self._opened:
            listeners, release = [self._opened[descriptor]], self._release
        else:
            listeners = [_duplicate(descriptor)]
        identity = _identity(listeners[0].fileno())
        try:
            acceptor = ThreadedAcceptor(
                listeners, self._settings, self._admits, release
            )
        except OSError:
            if descriptor and descriptor not in self._opened:
                listeners[0].close()  # the copy
            raise
        source = watched(acceptor, self.stop, self._log)
        if descriptor in self._acceptors:
            self._acceptors[descriptor][0].stop()  # its socket has been closed
        self._acceptors[descriptor] = acceptor, source, identity
        if self.stopping:  # meanwhile, by a signal
            acceptor.stop()
        return acceptor, source

    def _is_same(self, descriptor: int, identity: Identity) -> bool:
        """Whether the number still means the socket that is accepted on."""
        if descriptor == 0 or descriptor in self._opened:
            return True
        return _identity(descriptor) == identity

    # Requests

    def next_request(self, descriptor: int, *, interruptible: bool) -> Request | None:
        """Wait for the next request on a listening socket; None: there is no more.

        Args:
            descriptor: its number; 0: what the process was started with, be it CGI.
            interruptible: in the main thread, a signal that is handled ends the wait.

        Raises:
            CallSequenceError: descriptor 0 belongs to ``accept()``.
            OSError: no listening socket; InterruptedError: a signal has been handled.
        """
        if descriptor == 0 and process_loop.started:
            raise CallSequenceError("FCGX_Accept_r: descriptor 0 is that of accept()")
        if descriptor == 0 and not self._given:
            request = self._cgi_request()
        elif self.stopping and descriptor not in self._acceptors:
            return None
        else:
            acceptor, source = self._acceptor(descriptor)
            main = current_thread() is main_thread()
            if main and self._woken_by is not acceptor:
                self._be_woken_by(acceptor)
            if not (main and interruptible):
                request = source.next_request()
            elif isinstance(source, Watcher):
                request = source.take(lambda: next_unless_interrupted(acceptor))
            else:
                request = next_unless_interrupted(acceptor)
        if request is not None:
            self._open[request] = get_ident()
        return request

    def _cgi_request(self) -> Request | None:
        with self._lock:
            if self._cgi_served or self._pid != os.getpid():
                return None
            self._cgi_served = True
        from .cgi import cgi_request

        return cgi_request(dict(os.environb), self._settings)

    def adopt(self, request: Request) -> None:
        """Have a request, which a parent has detached, ended with this process."""
        self._open[request] = get_ident()

    def ended(self, request: Request) -> None:
        """Note that the application has no more to do with a request."""
        self._open.pop(request, None)
        if request.is_cgi and self._pid == os.getpid():
            # The loop's hooks end the process with it, as they do for accept().
            process_loop.hooks.exit_status = request.app_status

    def abandon(self, request: Request) -> None:
        """Answer a request that nobody has ended and nobody can any more.

        May be called by the garbage collector at any moment, even while this thread
        holds a lock: a thread of its own does it.
        """
        if request in self._open and not request.finished:
            with suppress(RuntimeError):  # the interpreter is at its end
                _thread.start_new_thread(self._give_up, (request,))

    def _give_up(self, request: Request) -> None:
        try:
            log_warning("%s: dropped without FCGX_Finish_r", request)
            self._end(request, failed=True)
        except Exception:  # noqa: BLE001 - this thread has nobody to tell it
            log_exception("%s could not be ended", request)

    def _end(self, request: Request, failed: bool) -> None:
        if failed:
            request.fail()
        request.finish()
        self.ended(request)

    # The end

    def stop(self) -> None:
        """Take no new connection; safe in signal handlers and from any thread."""
        self.stopping = True
        for acceptor, *_ in list(self._acceptors.values()):
            acceptor.stop()

    def _catch_signals(self) -> None:
        """Take the stop signals that nobody else has; only the main thread may."""
        if current_thread() is not main_thread():
            return
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._on_signal)
                self._signals.append(number)

    def _on_signal(self, number: int, frame: object) -> None:
        """Stop politely; the second time at once, and so in CGI."""
        serving = self._given or self._opened or self._acceptors
        if self._terminating or not serving:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self._terminating = True
            self.stop()

    def _be_woken_by(self, acceptor: ThreadedAcceptor) -> None:
        """Have the main thread notice a signal that comes right before it waits.

        Nothing but the acceptor's thread can tell it, see `ThreadedAcceptor`.
        """
        wake = acceptor.wake_descriptor
        before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        if before != -1 and self._woken_by is None:  # an event loop has its own
            signal.set_wakeup_fd(before)
        else:
            self._woken_by = acceptor

    def _release_signals(self) -> None:
        if self._woken_by is not None and current_thread() is main_thread():
            self._woken_by = None
            signal.set_wakeup_fd(-1)
        for number in self._signals:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_DFL)
        self._signals = []

    def _at_exit(self) -> None:
        """End what is open and close every connection well: the process ends."""
        if self._pid != os.getpid():
            return
        self.stop()
        # Only an uncaught exception of the main thread has left a trace there.
        failed = getattr(sys, "last_type", None) is not None
        for request, thread in list(self._open.items()):
            try:
                self._end(request, failed or thread != get_ident())
            except Exception:  # noqa: BLE001 - the process must end all the same
                log_exception("%s could not be ended", request)
        for acceptor, *_ in list(self._acceptors.values()):
            acceptor.shut_down()
        for listener in self._opened.values():
            self._release(listener)
        self._release_signals()
        hooks = process_loop.hooks
        if failed:
            hooks.exit_status = 0  # an exception has one of its own
        elif hooks.exit_status:
            hooks.leaving = None  # nobody watches sys.exit where there is no loop

    # Forks

    def _after_fork(self) -> None:
        """In a forked child: the parent's requests and connections are not ours.

        Before the first request it is a server as its parent would have been.
        """
        self._lock.release()
        if not self.initialized:
            return
        self._pid = os.getpid()
        for request in self._open:
            if not request._detached:
                request.forget_output()
        in_request = bool(self._open or self._acceptors or self._cgi_served)
        self._open = {}
        if in_request:
            self.stopping = True
            self._release_signals()
            for listener in self._opened.values():
                with suppress(OSError):
                    listener.close()
            self._opened = {}
            self._acceptors = {}


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket of our own for a listening socket of the caller's.

    Raises:
        OSError: it is not open (EBADF), no socket (ENOTSOCK), not listening (EINVAL).
    """
    listener = socket.socket(fileno=os.dup(descriptor))
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise OSError(errno.EINVAL, f"descriptor {descriptor} is not listening")
    return listener


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


process = FcgxProcess()
