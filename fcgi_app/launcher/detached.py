"""Workers that nobody supervises, started by a process that leaves the terminal.

What ``fcgistarter`` does, besides opening the socket and `spawn_all`.
"""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ..errors import FcgiAppError, WorkerError
from .signals import ignored_signals, reset_signals

__all__ = ["run_detached"]

_SIGNAL_TICK = 0.5
"""Seconds after which a signal is seen that came between Python and a system call."""


def run_detached(start: Callable[[], object]) -> None:
    """Call ``start`` in a process without terminal; return when it has succeeded.

    The process is forked, leads a session of its own, works in ``/``, has /dev/null as
    descriptors 0, 1 and 2, and resets its signals. It ends when ``start`` returns, so
    that what ``start`` has spawned becomes a child of init; the umask, the environment
    and the other descriptors stay.

    Descriptors 0, 1 and 2 must be open (``sockets.plug_standard_descriptors``), and
    this must be the only thread. What was written to buffered streams should be
    flushed: the new process drops its copy.

    Args:
        start: spawns workers; what it raises is reported to the caller.

    Raises:
        WorkerError: ``start`` raised; the message is that of its error (its traceback
            if it is no :class:`FcgiAppError` or OSError). Nothing in the new session's
            process group survives; nor does it when Ctrl-C ends the wait.
    """
    # SIGINT waits while there is a process that the clean-up does not know yet.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid, reader = _fork_detached(start)
        report = None
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            report = _read_report(reader)
        finally:
            os.close(reader)
            if report != "":
                _kill_group(pid)
            status = _reap(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if report is None:
        raise WorkerError(f"the detached process ended early: {status}")
    if report:
        raise WorkerError(report)


def _fork_detached(start: Callable[[], object]) -> tuple[int, int]:
    """Fork the detached process; return its pid and the pipe that its report is on."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _be_detached(start, writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return pid, reader


def _be_detached(start: Callable[[], object], writer: int) -> NoReturn:
    """Live the detached process's life; the report ends with a NUL, empty is good."""
    report = ""
    try:
        _leave_terminal()
        start()
    except (FcgiAppError, OSError) as error:
        report = str(error) or repr(error)
    except BaseException:  # noqa: BLE001  # raised to the caller, through the pipe
        report = traceback.format_exc()
    try:
        os.write(writer, report.encode("utf-8", "surrogateescape") + b"\0")
    finally:
        os._exit(1 if report else 0)


def _leave_terminal() -> None:
    """Become a session leader in ``/`` whose standard descriptors are /dev/null."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    reset_signals(ignored_signals())


def _read_report(reader: int) -> str | None:
    """Read up to the NUL that ends a report; None if the pipe ends before it.

    A process that ``start`` has forked may hold the pipe open, so its end is not
    waited for.
    """
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    report = b""
    while not report.endswith(b"\0"):
        # Ctrl-C just before a system call does not interrupt it: the call has to end.
        while not poller.poll(_SIGNAL_TICK * 1000):
            pass
        piece = os.read(reader, 65536)
        if not piece:
            return None
        report += piece
    return report[:-1].decode("utf-8", "surrogateescape")


def _kill_group(pid: int) -> None:
    """Kill our unreaped child ``pid`` and the process group that it leads, if it does.

    The child goes first: it may not lead a group yet.
    """
    with suppress(ProcessLookupError):  # SIGCHLD is ignored: the system has reaped it
        os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reap(pid: int) -> str:
    """Wait for the end of our child ``pid`` and describe it."""
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # SIGCHLD is ignored: the system has reaped it
        return "status unknown"
    if status < 0:
        return f"killed by signal {-status}"
    return f"exit status {status}"
