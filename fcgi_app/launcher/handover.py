"""What a supervisor tells itself across an exec: sockets, workers, descriptors."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .listeners import Listener

__all__ = ["AdoptedWorker", "Handover", "WorkerRecord", "is_executed_again"]
__all__ += ["take_handover"]

_VARIABLE = "_FCGI_HANDOVER"
"""Names the descriptor of the memory file; removed from the environment when read."""


class AdoptedWorker:
    """A child of this process that was started before the exec.

    It has what `Worker` has, as far as a supervisor needs it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, as `Worker.poll`; never blocks."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._status = 0
            else:
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
        return self._status


@dataclass(frozen=True)
class WorkerRecord:
    """A worker: its socket's place, pid, two times of the monotonic clock, its pipe.

    Attributes:
        leaving: it was asked to stop, or is about to be.
    """

    address: str
    number: int
    pid: int
    started: float
    expires: float
    pipe: int
    leaving: bool


@dataclass
class Handover:
    """All of it; every descriptor stays open in the exec.

    Attributes:
        pid_file: descriptor of the locked pid file; None: there is none.
        most: workers of each pool, where TTIN and TTOU have changed the number.
    """

    listeners: list[Listener] = field(default_factory=list)
    workers: list[WorkerRecord] = field(default_factory=list)
    pid_file: int | None = None
    most: dict[str, int] = field(default_factory=dict)

    def descriptors(self) -> Iterable[int]:
        """Return what has to stay open."""
        yield from (listener.socket.fileno() for listener in self.listeners)
        yield from (worker.pipe for worker in self.workers if worker.pipe >= 0)
        if self.pid_file is not None:
            yield self.pid_file

    def exec(self, command: list[str], directory: str | None = None) -> None:
        """Execute ``command`` in this process; returns only by raising.

        No signal gets lost on the way: all stay blocked until the new program has
        handlers and unblocks them.

        Raises:
            OSError: the program cannot be executed; nothing has changed.
        """
        before = os.getcwd()
        memory = os.memfd_create("fcgi-app")  # close-on-exec, like all others
        kept = [*self.descriptors(), memory]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            os.write(memory, json.dumps(self._to_json()).encode())
            for descriptor in kept:
                os.set_inheritable(descriptor, True)
            environment = {**os.environ, _VARIABLE: str(memory)}
            os.chdir(directory or before)
            os.execvpe(command[0], command, environment)
        finally:
            os.chdir(before)
            for descriptor in kept:
                os.set_inheritable(descriptor, False)
            os.close(memory)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _to_json(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "listeners": [
                [*x.place, x.socket.fileno(), x.file] for x in self.listeners
            ],
            "workers": [vars(worker) for worker in self.workers],
            "pid_file": self.pid_file,
            "most": self.most,
        }


def is_executed_again() -> bool:
    """Tell whether there is something for `take_handover`."""
    return _VARIABLE in os.environ


def take_handover() -> Handover | None:
    """Return what this process has left itself, once; None: nothing.

    Listening sockets become close-on-exec again. Every signal is blocked: unblock them
    when there are handlers.
    """
    text = os.environ.pop(_VARIABLE, None)
    if text is None or not text.isdigit():
        return None
    with suppress(OSError, ValueError, KeyError):
        memory = int(text)
        found = json.loads(os.pread(memory, os.fstat(memory).st_size, 0))
        if found["pid"] == os.getpid():  # else the variable has leaked to a child
            os.close(memory)
            return _from_json(found)
    return None


def _from_json(found: dict[str, Any]) -> Handover:
    handover = Handover(
        pid_file=found["pid_file"],
        workers=[WorkerRecord(**worker) for worker in found["workers"]],
        most=found["most"],
    )
    for address, number, descriptor, file in found["listeners"]:
        os.set_inheritable(descriptor, False)
        where = None if file is None else (file[0], file[1], file[2])
        opened = socket.socket(fileno=descriptor)
        handover.listeners.append(Listener((address, number), opened, where))
    return handover
