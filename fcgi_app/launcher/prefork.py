"""Forked copies of this process that do the same, and what keeps their number.

Here is the one fork of the launchers that no exec follows: the copies share what the
parent has opened, above all a listening socket.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from math import inf
from time import monotonic
from typing import NoReturn

from .._log import log_exception, log_warning
from ..errors import ConfigError
from .signals import SignalPipe
from .workers import STOP_GRACE

__all__ = ["Prefork"]

_SHORT_LIFE = 1.0
"""Seconds: a copy that ends sooner is replaced only after as long a pause."""

Serve = Callable[[int], int]
"""(lifeline) → exit status of a copy. The lifeline is a descriptor that reaches its end
when the parent is gone."""


class Prefork:
    """Keeps ``count`` copies of this process at work.

    A copy leads a session of its own, so that Ctrl-C does not reach it, and starts
    with every signal at its default action.

    Args:
        serve: what a copy does. SIGTERM asks it to stop, a second one to be quick.
        count: how many copies.
        stop_timeout: seconds that they have after a stop signal before they are
            killed.
        on_stop: called in the parent before the first of them is asked to stop.
    """

    def __init__(
        self,
        serve: Serve,
        count: int,
        *,
        stop_timeout: float,
        on_stop: Callable[[], object] = lambda: None,
    ) -> None:
        if count < 1:
            raise ConfigError("workers", count, "must be at least 1")
        self._serve = serve
        self._count = count
        self._stop_timeout = stop_timeout
        self._on_stop = on_stop
        self._started: dict[int, float] = {}
        self._deadline = inf
        self._next_start = 0.0
        self._stopping = False
        self._cut_short = False
        self._last = 0

    def run(self) -> int:
        """Keep them running until a stop signal; only in the main thread.

        Returns:
            0 when all of them have ended with status 0 after the signal; else the
            number of the last signal.
        """
        with ExitStack() as stack:
            self._lifeline, keep = os.pipe()
            stack.callback(os.close, keep)
            stack.callback(os.close, self._lifeline)
            self._keep = keep
            signals = stack.enter_context(SignalPipe())
            stack.callback(self._kill_all)
            poller = select.poll()
            poller.register(signals, select.POLLIN)
            while self._started or not self._stopping:
                self._fill_up(signals)
                poller.poll(self._time_to_wait())
                self._handle(signals.read())
            return self._last if self._cut_short else 0

    def _time_to_wait(self) -> float | None:
        """Milliseconds until something is due; None: nothing is."""
        due = self._deadline
        if not self._stopping and len(self._started) < self._count:
            due = min(due, self._next_start)
        return None if due == inf else max(0.0, due - monotonic()) * 1000

    def _handle(self, numbers: list[int]) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
        for number in numbers:
            if number != signal.SIGCHLD:
                self._last = number
                self._ask_to_stop()
        if monotonic() >= self._deadline:
            self._deadline = inf
            self._cut_short = True
            self._send(signal.SIGKILL)

    # Starting

    def _fill_up(self, signals: SignalPipe) -> None:
        while (
            not self._stopping
            and len(self._started) < self._count
            and monotonic() >= self._next_start
        ):
            try:
                self._fork(signals)
            except OSError as error:
                log_warning("cannot fork: %s; trying again", error)
                self._next_start = monotonic() + _SHORT_LIFE

    def _fork(self, signals: SignalPipe) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # No signal may come to the copy before it has forgotten its parent's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(signals, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._started[pid] = monotonic()

    def _be_worker(
        self, signals: SignalPipe, mask: set[signal.Signals | int]
    ) -> NoReturn:
        """Live the copy's life."""
        status = 1
        try:
            signals.leave_to_parent()
            os.close(self._keep)
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = self._serve(self._lifeline)
        except BaseException:  # noqa: BLE001  # nothing of the parent's may run on
            log_exception("worker %d ends", os.getpid())
        finally:
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)

    # Ending

    def _reap(self) -> None:
        for pid in list(self._started):
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has reaped it
                found, status = pid, 0
            if found:
                self._note_end(pid, os.waitstatus_to_exitcode(status))

    def _note_end(self, pid: int, status: int) -> None:
        lived = monotonic() - self._started.pop(pid)
        if self._stopping:
            # SIGTERM itself ends a copy that has not taken its signals yet.
            if status not in (0, -signal.SIGTERM):
                self._cut_short = True
            return
        what = f"signal {-status}" if status < 0 else f"exit status {status}"
        log_warning("worker %d ended with %s; starting another", pid, what)
        if lived < _SHORT_LIFE:
            self._next_start = monotonic() + _SHORT_LIFE

    def _ask_to_stop(self) -> None:
        """Ask all copies to stop; asked a second time, they are quicker about it."""
        if not self._stopping:
            self._stopping = True
            self._on_stop()
            # A copy terminates its own children after the timeout and kills them
            # after the grace: it needs a little longer than both.
            self._deadline = monotonic() + self._stop_timeout + 2 * STOP_GRACE
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._started:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kill_all(self) -> None:
        """Leave no copy behind, when an error of ours ends the parent."""
        self._send(signal.SIGKILL)
        for pid in self._started:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._started.clear()
