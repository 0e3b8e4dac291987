"""What a supervisor tells itself across an exec: sockets, workers, descriptors."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from ..inherited import keep_activated
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

    What has a default was not known to every version of the program.

    Attributes:
        leaving: it was asked to stop, or is about to be.
        pool: name of its pool.
        slot: its slot in the pool's scoreboard; None: it has none.
        rest: what it has printed of an unfinished line, in ISO 8859-1.
        terminated: it has got SIGTERM, and is not to get a second one: that would mean
            at once.
        kill_at: when it is killed if it still runs then; infinite: never.
    """

    address: str
    number: int
    pid: int
    started: float
    expires: float
    pipe: int
    leaving: bool
    pool: str = ""
    slot: int | None = None
    rest: str = ""
    terminated: bool = False
    kill_at: float = inf


@dataclass
class Handover:
    """All of it; every descriptor stays open in the exec.

    Attributes:
        pid_file: descriptor of the locked pid file; None: there is none.
        most: workers of each pool, where TTIN and TTOU have changed the number.
        boards: descriptor of each pool's scoreboard.
        strays: pipes that what a worker had started still prints into.
        started: when the supervisor was started, seconds since 1970.
    """

    listeners: list[Listener] = field(default_factory=list)
    workers: list[WorkerRecord] = field(default_factory=list)
    pid_file: int | None = None
    most: dict[str, int] = field(default_factory=dict)
    boards: dict[str, int] = field(default_factory=dict)
    strays: list[int] = field(default_factory=list)
    started: float = 0.0

    def descriptors(self) -> Iterable[int]:
        """Return what has to stay open."""
        yield from (listener.socket.fileno() for listener in self.listeners)
        yield from (worker.pipe for worker in self.workers if worker.pipe >= 0)
        yield from self.boards.values()
        yield from self.strays
        if self.pid_file is not None:
            yield self.pid_file

    def exec(self, command: list[str], directory: str | None = None) -> None:
        """Execute ``command`` in this process; returns only by raising.

        No signal gets lost on the way: all stay blocked until the new program has
        handlers and unblocks them.

        Raises:
            OSError: the program cannot be executed; nothing has changed.
        """
        import json

        before = os.getcwd()
        memory = os.memfd_create("fcgi-app")  # close-on-exec, like all others
        # A later reload may bind those of systemd that nobody uses now.
        kept = [*self.descriptors(), *keep_activated(), memory]
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
            "boards": self.boards,
            "strays": self.strays,
            "started": self.started,
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
    import json

    with suppress(OSError, ValueError, KeyError):
        memory = int(text)
        found = json.loads(os.pread(memory, os.fstat(memory).st_size, 0))
        if found["pid"] == os.getpid():  # else the variable has leaked to a child
            os.close(memory)
            keep_activated()
            return _from_json(found)
    return None


def _from_json(found: dict[str, Any]) -> Handover:
    handover = Handover(
        pid_file=found["pid_file"],
        workers=[_record(worker) for worker in found["workers"]],
        most=found["most"],
        boards=found.get("boards", {}),
        strays=found.get("strays", []),
        started=found.get("started", 0.0),
    )
    for address, number, descriptor, file in found["listeners"]:
        os.set_inheritable(descriptor, False)
        where = None if file is None else (file[0], file[1], file[2])
        opened = socket.socket(fileno=descriptor)
        handover.listeners.append(Listener((address, number), opened, where))
    return handover


def _record(found: dict[str, Any]) -> WorkerRecord:
    """Make a record of what another version has written."""
    names = {each.name for each in fields(WorkerRecord)}
    return WorkerRecord(**{k: v for k, v in found.items() if k in names})
