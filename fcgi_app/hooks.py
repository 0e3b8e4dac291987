"""What the loop hangs into the process while it runs: signals, exit, fork.

Everything here is put back when the loop is over, and nothing replaces what the
application has set up itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import TracebackType

from ._log import log_exception
from .calling import exit_status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .loop import Loop

__all__ = ["ProcessHooks"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class ProcessHooks:
    """The hooks of one ``Loop``; see the module's docstring."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._installed = False
        self._signals: list[int] = []
        self._mask: set[Any] | None = None  # of signals, while a fork is under way
        self._wakeup = False
        self._excepthook: Any = None
        self._exit: Any = None
        self._failed = False
        self._terminating = False  # a stop signal has come
        self.leaving: int | None = None
        """The status given to ``sys.exit``; None once somebody has caught that."""
        self.exit_status = 0
        """Exit status that a CGI program asked for with ``set_exit_status``."""
        # Registered when the package is imported, so that what the application
        # registers later runs earlier, while its request is still open.
        atexit.register(self._at_exit)
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork,
        )

    def install(self) -> None:
        """Hang everything in."""
        self._installed = True
        self.watch_exit()
        self._excepthook, sys.excepthook = sys.excepthook, self._uncaught
        if self._loop.acceptor is not None:
            self._catch_signals(self._loop.acceptor.wake_descriptor)

    def watch_exit(self) -> None:
        """Note the status that ``sys.exit`` is called with; early, like the streams."""
        if self._exit is None:
            self._exit, sys.exit = sys.exit, self._sys_exit

    def remove(self) -> None:
        """Put everything back that is still ours."""
        if not self._installed:
            return
        self._installed = False
        if sys.excepthook == self._uncaught:
            sys.excepthook = self._excepthook
        if sys.exit == self._sys_exit:
            sys.exit, self._exit = self._exit, None
        self._release_signals()

    # Signals

    def _catch_signals(self, wake_descriptor: int) -> None:
        """Take the stop signals that nobody else has; only the main thread may."""
        try:
            previous = signal.set_wakeup_fd(wake_descriptor, warn_on_full_buffer=False)
        except ValueError:  # not the main thread: last_call() remains
            return
        if previous != -1:  # an event loop has its own; our handler wakes by itself
            signal.set_wakeup_fd(previous)
        else:
            self._wakeup = True
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._stop)
                self._signals.append(number)

    def _release_signals(self) -> None:
        for number in self._signals:
            if signal.getsignal(number) == self._stop:
                signal.signal(number, signal.SIG_DFL)
        self._signals = []
        if self._wakeup:
            self._wakeup = False
            signal.set_wakeup_fd(-1)

    def _stop(self, number: int, frame: object) -> None:
        """Stop politely; the second time at once, and so in a forked child."""
        acceptor = self._loop.acceptor
        mine = self._loop.owns_process()  # not so if it comes right behind a fork
        if acceptor is None or self._terminating or not mine:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self._terminating = True
            self._loop.stop()

    # The ways out

    def _uncaught(
        self,
        kind: type[BaseException],
        error: BaseException,
        traceback: TracebackType | None,
    ) -> None:
        """``sys.excepthook``: the log gets the traceback, the web server its 500."""
        if self._loop.current is None or not self._loop.owns_process():
            self._excepthook(kind, error, traceback)
            return
        self._failed = True
        request = self._loop.current
        request.strict = False
        request.fail()  # first: hooks flush sys.stdout, and so would send a half page
        self._excepthook(kind, error, traceback)  # into FCGI_STDERR

    def _sys_exit(self, status: Any = None, /) -> NoReturn:
        """``sys.exit``: nothing else tells atexit functions the exit status."""
        self.leaving = exit_status_of(status)
        raise SystemExit(status)

    def _at_exit(self) -> None:
        if not self._loop.owns_process():
            return
        try:
            status = 1 if self._failed else self.leaving
            self._loop.at_exit(status)
        except Exception:  # noqa: BLE001 - the process must end all the same
            log_exception("error at the end of the process")
        self.remove()
        if self.exit_status and not self._failed and self.leaving is None:
            _exit_with(self.exit_status)

    # Forks

    def _before_fork(self) -> None:
        """Hold stop signals back: the child is to have its own way with them.

        One that came before the child has put its handlers in order would be lost:
        the interpreter forgets signals that were pending at a fork.
        """
        if self._signals:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _after_fork_in_parent(self) -> None:
        self._restore_mask()

    def _after_fork(self) -> None:
        if self._installed:
            self._loop.after_fork()
            self._release_signals()
        self._restore_mask()

    def _restore_mask(self) -> None:
        if self._mask is not None:
            mask, self._mask = self._mask, None
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exit_with(status: int) -> NoReturn:
    """End the process with the status that a CGI program asked for.

    An atexit function cannot change the exit status in any other way. This one runs
    last, or nearly so, and does what would still have happened.
    """
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if "_ctypes" in sys.modules or "_cffi_backend" in sys.modules:  # C may print
        from .descriptors import flush_c_stdio

        flush_c_stdio()
    os._exit(status & 0xFF)
