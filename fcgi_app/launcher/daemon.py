"""Leaving the terminal, with a caller that learns how the start went."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from .handover import is_executed_again

__all__ = ["fork_daemon"]

_READY = b"\0"


def fork_daemon() -> int | Callable[[], None]:
    """Fork a process that leads a session of its own, and wait until it is ready.

    The new process works in ``/``. It keeps the standard error until it is ready, so
    that errors of the start are seen; it ends with the status that the caller's process
    is to end with. Call it while there is no other thread.

    Returns:
        In the new process a function to call, once, when it is ready: descriptors 0, 1
        and 2 are then /dev/null, but for those that have become a file in the
        meantime. In the caller's process the exit status: 0 when the new process is
        ready, else its own, 128 + n if signal n has ended it.

        A process that is a daemon already, and has executed itself again, stays one.

    Raises:
        OSError: there can be no process.
    """
    if is_executed_again():
        os.chdir("/")
        return lambda: None
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        return _wait_for_start(pid, reader)
    os.close(reader)
    os.setsid()
    os.chdir("/")
    first = [_identify(descriptor) for descriptor in range(3)]

    def tell_ready() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            if _identify(descriptor) == first[descriptor]:
                os.dup2(null, descriptor)
        if null > 2:
            os.close(null)
        with suppress(BrokenPipeError):  # the caller has been killed
            os.write(writer, _READY)
        os.close(writer)

    return tell_ready


def _identify(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _wait_for_start(pid: int, reader: int) -> int:
    """Return 0 when the process says that it is ready, else how it has ended."""
    try:
        if os.read(reader, 1) == _READY:
            return 0
    except KeyboardInterrupt:
        # It does not get the terminal's Ctrl-C, being in another session.
        os.kill(pid, signal.SIGINT)
    finally:
        os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - status if status < 0 else status
