"""Who is told when a request begins and ends: the scoreboard, and the access log.

Whoever serves takes his requests from what `watched` returns. That is the acceptor
itself where nobody wants to know, so that nothing is lost by it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from ._log import log_exception
from .codec.constants import Role
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .acceptor import Acceptor
    from .accesslog import AccessLog, Sent
    from .codec.records import Buffer
    from .settings import Settings
    from .sight import Sight

    class Source(Protocol):
        """Where requests come from."""

        def next_request(self, timeout: float | None = None) -> Request | None:
            """Wait for the next; see ``Acceptor.next_request``."""


__all__ = ["Watcher", "forget_slot", "open_log", "watched"]

_VARIABLE = "_FCGI_APP_SCOREBOARD"
"""``scoreboard.VARIABLE``: most processes need not load that module."""

_sight: Sight | None = None  # of this process; several servers share it


def watched(
    acceptor: Acceptor,
    stop: Callable[[], object],
    log: AccessLog | None,
    *,
    threads: int = 1,
    owns_stderr: bool = True,
) -> Source:
    """Return what gives the requests of ``acceptor``.

    The slot that a supervisor has given to this process is taken when this is called
    for the first time. Its variable goes from the environment.

    Args:
        acceptor: where the requests come from.
        stop: what stops the server gracefully; called after so many requests as the
            supervisor has said. Must be safe in any thread.
        log: takes a line for each of them; see `open_log`.
        threads: how many requests are served at the same time.
        owns_stderr: descriptor 2 is the process's own while requests run.
    """
    sight = _take_slot(stop, threads, owns_stderr)
    if sight is None and log is None:
        return acceptor
    return Watcher(acceptor, sight, log, lambda: _leave(sight, stop, threads))


def _leave(sight: Sight | None, stop: Callable[[], object], threads: int) -> None:
    if sight is not None:
        sight.serve_no_more(stop, threads)


def open_log(settings: Settings) -> AccessLog | None:
    """Return the access log that the settings ask for; None: they do not.

    Raises:
        ConfigError: its target or its format is wrong.
        OSError: its file cannot be opened.
    """
    if not settings.access_log:
        return None
    from .accesslog import AccessLog

    return AccessLog(settings.access_log, settings.access_format)


def _take_slot(
    stop: Callable[[], object], threads: int, owns_stderr: bool
) -> Sight | None:
    global _sight
    text = os.environ.pop(_VARIABLE, None)
    if text is not None:
        from .sight import open_sight

        _sight = open_sight(text, owns_stderr=owns_stderr)
    if _sight is not None:
        _sight.serve(stop, threads)
    return _sight


def forget_slot() -> None:
    """In a forked child: the slot is the parent's."""
    global _sight
    _sight = None


class Watcher:
    """Passes the requests of an acceptor on, and notes when each begins and ends.

    Args:
        acceptor: where they come from.
        sight: takes note for the supervisor; None: nobody does.
        log: takes the lines; None: there is none.
        leave: called when there will be no more requests.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        sight: Sight | None,
        log: AccessLog | None,
        leave: Callable[[], object],
    ) -> None:
        self._acceptor = acceptor
        self.sight = sight
        self.log = log
        self._leave = leave

    def close(self) -> None:
        """Note that there will be no more requests; idempotent."""
        self._leave()

    def next_request(self, timeout: float | None = None) -> Request | None:
        """Wait for the next request that is the application's.

        Raises:
            TimeoutError: ``timeout`` seconds have passed without one.
        """
        if timeout is None:
            return self.take(self._acceptor.next_request)
        until = monotonic() + timeout
        return self.take(
            lambda: self._acceptor.next_request(max(0.0, until - monotonic()))
        )

    def take(self, wait: Callable[[], Request | None]) -> Request | None:
        """Wait for the next request that is the application's, by calling ``wait``."""
        sight = self.sight
        while True:
            if sight is not None:
                sight.waits(self._acceptor.stopping)
            request = None
            try:
                request = wait()
            finally:
                if request is None and sight is not None:
                    sight.waits_no_more(self._acceptor.stopping)
            if request is None or self._begins(request):
                return request

    def _begins(self, request: Request) -> bool:
        """Note that a request begins; False: it has been answered already."""
        sight = self.sight
        params = request.params_map
        if sight is None:
            request.observer = Watch(self, params)
        elif sight.paths and self._is_ours(request, sight):
            sight.waits_no_more(self._acceptor.stopping)
            self._answer(request, sight)
            return False
        else:
            request.observer = watch = Watch(self, params)
            sight.begins(watch, self._acceptor.stopping)
        return True

    def resume(self, request: Request, began: float) -> Watch:
        """Watch a request that has begun elsewhere, where that has been noted."""
        request.observer = watch = Watch(self, request.params_map)
        watch.began = began
        return watch

    def _is_ours(self, request: Request, sight: Sight) -> bool:
        """Whether a request asks for the status of the pool."""
        path = request.params_map.get(b"SCRIPT_NAME")
        return path in sight.paths and request.role == Role.RESPONDER

    def _answer(self, request: Request, sight: Sight) -> None:
        """Answer a request for the status of the pool, in place of the application."""
        from .status.page import answer

        try:
            try:
                answer(request, sight.board)
            except Exception:  # noqa: BLE001 - the application is to go on
                log_exception("%s: no status for it", request)
                request.fail()
            request.finish()
        except Exception:  # noqa: BLE001 - as above
            log_exception("%s: its end failed", request)

    def log_request(self, watch: Watch, request: Request, duration: float) -> None:
        """Write the line of a request that has ended."""
        # One that has been detached is answered, and logged, by another process.
        if self.log is None or watch.counted is None or request._detached:
            return
        from .accesslog import Entry

        sent = watch.counted
        started = time.time() - duration
        aborted = request._aborted
        self.log.write(
            Entry(watch.params, sent.status, sent.size, started, duration, aborted)
        )


class Watch:
    """One request, from its begin to its end: the request's ``observer``.

    Attributes:
        params: the request's, as bytes.
        began: when the application got it, CLOCK_MONOTONIC.
        counted: what was sent; None: nobody wants to know.
    """

    __slots__ = ("_watcher", "began", "counted", "params")

    def __init__(self, watcher: Watcher, params: Mapping[bytes, bytes]) -> None:
        self._watcher = watcher
        self.params = params
        self.counted: Sent | None = None
        if watcher.log is not None:
            self.counted = watcher.log.sent()
        self.began = monotonic()

    def sent(self, pieces: Sequence[Buffer]) -> None:
        """Take note of what has gone out of STDOUT."""
        if self.counted is not None:
            self.counted.add(pieces)

    def sent_file(self, size: int) -> None:
        """Take note of ``size`` bytes that have gone out of a file behind that."""
        if self.counted is not None:
            self.counted.add_file(size)

    def ended(self, request: Request) -> None:
        """Take note of the end."""
        watcher = self._watcher
        duration = monotonic() - self.began
        if watcher.log is not None:
            watcher.log_request(self, request, duration)
        if watcher.sight is not None:
            watcher.sight.ends(self, duration, watcher._acceptor.stopping)
