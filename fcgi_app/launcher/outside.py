"""What can be seen of a worker from outside, and when a signal is harmless.

Only Linux shows it, in proc(5). Where it is not shown, "unknown" is the answer, and the
caller does what launchers always did.

A stop signal may come at a bad moment. In libfcgi it interrupts the read of a request,
which is then lost (no SA_RESTART, and EINTR is an error there); a program without a
handler dies in the middle of a request. A worker that waits for the next client loses
nothing. It is therefore halted for less than a millisecond, looked at, and only if it
waits does it find the signal when it goes on.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import NamedTuple

__all__ = ["read_activity", "read_rss", "terminate_quietly", "waits_for_clients"]

_HALT_SECONDS = 0.01
_HALT_TICK = 0.0002


class _Calls(NamedTuple):
    """Numbers of system calls in which a program waits, from <asm/unistd.h>."""

    accept: tuple[int, ...]
    poll: int  # -1: this machine has none
    ppoll: int
    epoll: tuple[int, ...]
    select: tuple[int, ...]


_CALLS = {
    "x86_64": _Calls((43, 288), 7, 271, (232, 281), (23, 270)),
    "aarch64": _Calls((202, 242), -1, 73, (22,), (72,)),
}.get(os.uname().machine)


def read_activity(pid: int) -> str | None:
    """Return something that stays equal as long as the main thread only sleeps.

    None: unknown. It is the number of times that the thread has gone to sleep; other
    threads and child processes are not seen.
    """
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("voluntary_ctxt_switches:"):
                    return line
    except OSError:
        pass
    return None


def read_rss(pid: int) -> int | None:
    """Return the resident memory of a process in bytes; None: unknown."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def waits_for_clients(pid: int) -> bool | None:
    """Tell whether the process waits for clients; None: unknown."""
    call = _system_call(pid)
    if call is None or _CALLS is None:
        return None
    return _is_wait(call, _CALLS)


def terminate_quietly(pid: int) -> bool:
    """Send SIGTERM to our child ``pid`` if it waits for clients, else do nothing.

    It must be unreaped. Blocks for at most 10 ms.

    Returns:
        Whether the signal was sent, or the process has ended. Also sent if nothing can
        be seen of the process, for then there is no better moment.
    """
    waits = waits_for_clients(pid)
    if waits is False:
        return False
    with suppress(ProcessLookupError):
        if waits is None:
            os.kill(pid, signal.SIGTERM)
            return True
        before = _state_of_wait(pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            # One descriptor more: the accept has just succeeded.
            quiet = _halts(pid) and _state_of_wait(pid) == before
            if quiet and waits_for_clients(pid):
                os.kill(pid, signal.SIGTERM)
                return True
        finally:
            os.kill(pid, signal.SIGCONT)
        return False
    return True


def _halts(pid: int) -> bool:
    """Wait until the process is halted; False if it takes too long or it has ended."""
    deadline = time.monotonic() + _HALT_SECONDS
    while (state := _state(pid)) != "T":
        if state in ("Z", "") or time.monotonic() > deadline:
            return False
        time.sleep(_HALT_TICK)
    return True


def _state(pid: int) -> str:
    """Return the letter of the process's state, see proc(5); empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return chr(stat.read().rpartition(b") ")[2][0])
    except (OSError, IndexError):
        return ""


def _state_of_wait(pid: int) -> tuple[list[int] | None, int]:
    """Return the system call and the number of open descriptors."""
    try:
        return _system_call(pid), len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return _system_call(pid), -1


def _system_call(pid: int) -> list[int] | None:
    """Return number and arguments of the system call that the main thread sleeps in.

    Empty: it is in none, or it runs. None: unknown, or no right to see it.
    """
    try:
        with open(f"/proc/{pid}/syscall") as file:
            words = file.read().split()
    except OSError:
        return None
    if len(words) < 7:  # "running", or "-1" with the stack pointer
        return []
    return [int(word, 0) for word in words[:7]]


def _is_wait(call: list[int], calls: _Calls) -> bool:
    """Tell whether this is how programs wait for clients.

    Not so a poll of one descriptor for a limited time: so libfcgi waits for the first
    bytes of a connection that it has accepted.
    """
    if not call:
        return False
    number, arguments = call[0], call[1:]
    if number == calls.poll:
        endless = arguments[2] & 0xFFFFFFFF == 0xFFFFFFFF
        return arguments[1] > (0 if endless else 1)
    if number == calls.ppoll:
        return arguments[1] > (0 if arguments[2] == 0 else 1)
    if number in calls.select:  # without descriptors it is a sleep
        return arguments[0] > 0
    return number in calls.accept + calls.epoll
