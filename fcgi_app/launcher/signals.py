"""Signals as something to wait for: their numbers come out of a pipe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

__all__ = ["STOP_SIGNALS", "SignalPipe", "ignored_signals", "reset_signals"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What asks a launcher to stop; multiwatch and the FastCGI servers send SIGUSR1."""

_READ_BYTES = 4096

_PYTHON_IGNORES = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""What every Python process ignores; subprocess itself resets these for a child."""


class SignalPipe:
    """Takes signals while it is entered; only the main thread may (PEP 475, signal).

    SIGCHLD is always taken. A stop signal that is ignored, as nohup(1) does it, stays
    ignored.

    Args:
        numbers: the signals besides SIGCHLD.
    """

    def __init__(self, numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        self._numbers = numbers
        self._taken: dict[int, Any] = {}

    def __enter__(self) -> SignalPipe:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._old = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._take(number)
        # Even if it is ignored, which would let the system reap our children.
        self._take(signal.SIGCHLD)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._taken.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old)
        self._close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._reader

    def read(self) -> list[int]:
        """Return the numbers of the signals that have come, in order; never waits."""
        with suppress(BlockingIOError):
            return list(os.read(self._reader, _READ_BYTES))
        return []

    def leave_to_parent(self) -> None:
        """Forget all of it in a forked child: every signal has its default action.

        Call it while the signals are blocked, or one that is meant for the child would
        be told to the parent.
        """
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        self._taken.clear()
        signal.set_wakeup_fd(-1)
        self._close()

    def _take(self, number: signal.Signals) -> None:
        self._taken[number] = signal.signal(number, _do_nothing)

    def _close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Let the signal be written to the pipe, which only a handler makes happen."""


def ignored_signals() -> list[signal.Signals | int]:
    """Return the signals that this process ignores and exec would pass on."""
    return [
        number
        for number in signal.valid_signals()
        if number not in _PYTHON_IGNORES and signal.getsignal(number) == signal.SIG_IGN
    ]


def reset_signals(ignored: Iterable[signal.Signals | int]) -> None:
    """Give ``ignored`` their default action back and block no signal."""
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
