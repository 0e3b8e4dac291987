"""A pool at one moment, as its scoreboard and the system show it: values only.

Texts are as a web server has sent them: who shows them to a person has to care for
control characters. Workers can write anything into a scoreboard, so that no number is
taken for granted that other code would stumble over.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..scoreboard import Header, Scoreboard, SlotState
from .listenqueue import ListenQueue
from .process import read_process

__all__ = ["Moment", "PoolView", "WorkerView", "take_snapshot", "view_of_slot"]
__all__ += ["view_of_pool"]


_ENDLESS = 1e12
"""Seconds; more than any clock has counted."""


@dataclass(frozen=True)
class Moment:
    """One moment by two clocks.

    Attributes:
        monotonic: seconds; what times in a scoreboard are of.
        unix: seconds since 1970.
    """

    monotonic: float
    unix: float

    @classmethod
    def now(cls) -> Moment:
        """Return this moment."""
        return cls(time.monotonic(), time.time())


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """One worker.

    Attributes:
        pid: 0: not known, since it is about to start or does not tell.
        state: ``starting``, ``idle``, ``running``, ``ending``, or ``unknown`` for a
            program that does not tell and cannot be looked at.
        leaving: it has been asked to stop.
        address: of the socket that it serves; empty: not known.
        started: seconds since 1970; None: not known.
        requests: those that it has finished; None: it does not tell.
        active: those that it serves now; None: it does not tell.
        threads: requests that it can serve at a time; 0: it does not tell.
        max_requests: after so many it ends; 0: never.
        request_seconds: for how long the oldest one has been running; None: none is.
        last_seconds: how long the last one took that ended; None: none has.
        method, uri, script, remote: of the oldest one that is running, or else of the
            last; empty: there was none, or it was not said.
        content_length: of the same; bytes, None: not said.
        rss: resident memory, bytes; None: not known.
        cpu: seconds of processor time since its start; None: not known.
    """

    pid: int = 0
    state: str = "unknown"
    leaving: bool = False
    address: str = ""
    started: float | None = None
    requests: int | None = None
    active: int | None = None
    threads: int = 0
    max_requests: int = 0
    request_seconds: float | None = None
    last_seconds: float | None = None
    method: str = ""
    uri: str = ""
    script: str = ""
    remote: str = ""
    content_length: int | None = None
    rss: int | None = None
    cpu: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether it serves a request."""
        return self.state == "running" or bool(self.active)


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """One pool.

    Attributes:
        name, manager: as it is configured.
        status_path, ping_path: the same; empty: none.
        taken: when this was seen, seconds since 1970.
        started: when the pool was, the same.
        most: workers that there may be for an address.
        accepted: requests that its workers have got.
        queue: connections that wait to be accepted and how many may; None: not seen.
        queue_most: the most that were seen waiting.
        active_most: the most workers that were seen running at a time.
        most_reached: how often a worker was wanted, and ``most`` were there.
        slow_requests: requests that took longer than ``slow_log``.
        restarts: workers that died and were replaced.
        workers: all that have not ended.
    """

    name: str
    manager: str
    status_path: str
    ping_path: str
    taken: float
    started: float
    most: int
    accepted: int
    queue: ListenQueue | None
    queue_most: int
    active_most: int
    most_reached: int
    slow_requests: int
    restarts: int
    workers: tuple[WorkerView, ...]

    @property
    def idle(self) -> int:
        """Workers that wait for a request."""
        return sum(worker.state == "idle" for worker in self.workers)

    @property
    def active(self) -> int:
        """Workers that serve a request."""
        return sum(worker.is_running for worker in self.workers)

    @property
    def active_requests(self) -> int:
        """Requests that are being served."""
        return sum(worker.active or 0 for worker in self.workers)


def take_snapshot(board: Scoreboard, moment: Moment | None = None) -> PoolView:
    """Look at a pool through its scoreboard alone, and at its processes."""
    now = moment or Moment.now()
    workers = [view_of_slot(state, now) for state in board.read_all()]
    return view_of_pool(board.header, map(_with_process, workers), now)


def view_of_pool(
    header: Header, workers: Iterable[WorkerView], now: Moment
) -> PoolView:
    """Put a pool's header and its workers together."""
    seen = tuple(workers)
    running = sum(worker.is_running for worker in seen)
    requests = sum((each.requests or 0) + (each.active or 0) for each in seen)
    # A socket without room for a single connection is none: nothing was noted down.
    queue = ListenQueue(header.queue, header.queue_size) if header.queue_size else None
    return PoolView(
        name=header.name,
        manager=header.manager,
        status_path=header.status_path,
        ping_path=header.ping_path,
        taken=now.unix,
        started=_time(header.started),
        most=header.most,
        accepted=header.ended_requests + requests,
        queue=queue,
        queue_most=max(header.queue_most, queue.waiting if queue else 0),
        active_most=max(header.active_most, running),
        most_reached=header.most_reached,
        slow_requests=header.slow_requests,
        restarts=header.restarts,
        workers=seen,
    )


def view_of_slot(slot: SlotState, now: Moment) -> WorkerView:
    """Say what a worker has written; of one that has not, nothing is known."""
    if not slot.pid:
        return WorkerView(max_requests=slot.max_requests)
    running = None
    if slot.active and slot.request_started:
        running = _time(now.monotonic - slot.request_started)
    return WorkerView(
        pid=slot.pid,
        state=slot.state,
        requests=slot.requests,
        active=slot.active,
        threads=slot.threads,
        max_requests=slot.max_requests,
        request_seconds=running,
        last_seconds=_time(slot.last_duration) if slot.requests else None,
        method=slot.method,
        uri=slot.uri,
        script=slot.script,
        remote=slot.remote,
        content_length=slot.content_length if slot.content_length >= 0 else None,
    )


def _time(seconds: float) -> float:
    """Return seconds that are a number, from 0 on."""
    return seconds if 0 <= seconds < _ENDLESS else 0.0


def _with_process(worker: WorkerView) -> WorkerView:
    """Add what the system tells of it."""
    process = read_process(worker.pid)
    if process is None:
        return worker
    return replace(worker, **process._asdict())
