"""The slot of the scoreboard that is our own: what the supervisor sees of us."""

from __future__ import annotations

import faulthandler
import os
import signal
from _thread import RLock  # threading has the same one, and loads more
from collections.abc import Callable, Mapping
from time import monotonic

from ._log import log_warning
from .scoreboard import VARIABLE, Scoreboard, SlotWriter
from .slots import ENDING, IDLE, RUNNING
from .watching import forget_slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Running(Protocol):
        """A request that is being served."""

        @property
        def params(self) -> Mapping[bytes, bytes]:
            """Its params."""

        @property
        def began(self) -> float:
            """When it began, CLOCK_MONOTONIC."""

    class Lender(Protocol):
        """Who has let somebody else write the slot."""

        is_lent: bool


__all__ = ["Sight", "open_sight"]


class Sight:
    """Keeps the slot up to date; its methods may be called by any thread.

    Args:
        slot: this process's, claimed.

    Attributes:
        board: the scoreboard.
        paths: SCRIPT_NAMEs of the requests that the runtime answers itself.
        most: requests that the process may begin; 0: any number.
        memory: of the slot.
    """

    def __init__(self, slot: SlotWriter) -> None:
        self.board = slot.board
        header = slot.board.header
        paths = (header.status_path, header.ping_path)
        self.paths = frozenset(os.fsencode(path) for path in paths if path)
        self._slot: SlotWriter | None = slot
        # By one thread at a time, and by a signal handler of the same thread.
        self._lock = RLock()
        self.most = slot.max_requests
        self.memory = slot.memory
        self._stops: list[Callable[[], object]] = []
        self._shares: list[Callable[[], object]] = []
        self._threads = 0
        self._running: dict[Running, None] = {}  # the oldest first
        self._shown: Running | None = None  # whose texts the slot has
        self._waiting = 0  # threads that wait for a request
        self._begun = 0
        self._ended = 0
        self._started = 0.0  # when the oldest that runs began
        self._duration = 0.0
        self._since = 0.0

    def serve(self, stop: Callable[[], object], threads: int) -> None:
        """Note that there is one more server, with so many threads.

        Args:
            stop: is called when the process has had its number of requests.
            threads: requests that the server serves at the same time.
        """
        with self._lock:
            self._stops.append(stop)
            self._threads += threads
            self._write_threads()
        for share in self._shares:
            share()

    def serve_no_more(self, stop: Callable[[], object], threads: int) -> None:
        """Note that a server, of which ``serve`` has told, is closed."""
        with self._lock:
            if stop in self._stops:
                self._stops.remove(stop)
                self._threads -= threads
                self._write_threads()

    # While somebody else writes the slot of a process that serves one at a time

    def on_share(self, share: Callable[[], object]) -> None:
        """Have ``share`` called when another server begins to use the slot.

        Whoever it is lent to gives it back then: at once while a request runs, else as
        soon as it has woken up. What both write in between may hide one of them.
        """
        self._shares.append(share)

    def lend(self) -> tuple[int, int, float, float] | None:
        """Note that the process waits, and let another one write what it does.

        Returns:
            How many requests have begun and have ended, how long the last one has
            taken, and since when the process is idle; None: more than one server
            uses the slot, or it is nobody's any more.
        """
        with self._lock:
            if self._slot is None or self._threads != 1 or self._running:
                return None
            self._since = monotonic()
            self._write(IDLE)
            return self._begun, self._ended, self._duration, self._since

    def take_back(
        self,
        lender: Lender,
        begun: int,
        ended: int,
        duration: float,
        since: float,
        running: Running | None,
    ) -> None:
        """Write the slot again, and note that it is lent no more.

        Args:
            lender: has had it.
            begun: requests that have begun since it was lent.
            ended: those that have ended.
            duration: of the last of these, seconds.
            since: when the process has become idle.
            running: the one that is running, which the slot shows.
        """
        with self._lock:
            if lender.is_lent:  # and all of this, or nothing: there is no call
                lender.is_lent = False
                self._begun += begun
                self._ended += ended
                self._duration = duration
                self._since = since
                if running is not None:
                    self._running[running] = None
                    self._shown = running
                    self._started = running.began
            self._write(RUNNING if self._running else IDLE)

    # Called for every request, so there is no more to them than need be.

    def waits(self, stopping: bool) -> None:
        """Note that a thread is going to wait for a request.

        Args:
            stopping: the process takes no new connections any more.
        """
        with self._lock:
            running = self._running
            self._waiting += 1
            if self._waiting + len(running) > self._threads:  # of FCGX_Accept_r
                self._threads += 1
                self._write_threads()
            if not running:
                self._since = monotonic()
                self._write(ENDING if stopping else IDLE)

    def waits_no_more(self, stopping: bool) -> None:
        """Note that a thread that waited has got no request of the application's."""
        with self._lock:
            self._waiting -= 1
            if stopping:
                self._write(ENDING)

    def begins(self, request: Running, stopping: bool) -> None:
        """Note that a thread that waited has got a request."""
        with self._lock:
            running = self._running
            self._waiting -= 1
            self._begun += 1
            last = self._begun == self.most
            running[request] = None
            state = ENDING if stopping or last else RUNNING
            if len(running) == 1:
                self._show(request, state)
            else:
                self._write(state)
        if last:
            for stop in self._stops:
                stop()

    def ends(self, request: Running, duration: float, stopping: bool) -> None:
        """Note that a request has ended that has taken ``duration`` seconds.

        The process is idle again when it waits for the next one: the application may
        have work to do that no web server waits for.
        """
        with self._lock:
            running = self._running
            running.pop(request, None)
            self._ended += 1
            self._duration = duration
            state = ENDING if stopping else RUNNING
            if not running:
                self._shown = None
                self._started = 0.0
                self._since = monotonic()
                if self._waiting and not stopping:
                    state = IDLE
                self._write(state)
                return
            oldest = next(iter(running))
            if oldest is self._shown:
                self._write(state)
            else:
                self._show(oldest, state)

    def _show(self, request: Running, state: int) -> None:
        """Write which request is the oldest that runs, with the counts."""
        self._shown = request
        self._started = request.began
        get = request.params.get
        if self._slot is None:
            return
        script = get(b"SCRIPT_NAME", b"")
        self._slot.write_current(
            state,
            len(self._running),
            self._ended,
            self._started,
            self._duration,
            self._since,
            _length(get(b"CONTENT_LENGTH")),
            get(b"REQUEST_METHOD", b""),
            get(b"REQUEST_URI") or script,
            get(b"SCRIPT_FILENAME") or script,
            get(b"REMOTE_ADDR", b""),
        )

    def _write(self, state: int) -> None:
        if self._slot is not None:
            self._slot.write_counts(
                state,
                len(self._running),
                self._ended,
                self._started,
                self._duration,
                self._since,
            )

    def _write_threads(self) -> None:
        if self._slot is not None:
            self._slot.write_threads(self._threads)

    def forget(self) -> None:
        """In a forked child: write nothing more, the slot is the parent's."""
        self._lock = RLock()  # another thread may have held it
        self._slot = None
        self._stops = []
        self._shares = []


_living: list[Sight] = []


def open_sight(text: str, *, owns_stderr: bool) -> Sight | None:
    """Take the slot that the supervisor has given to this process.

    Args:
        text: value of the variable: descriptor and slot. The descriptor is closed.
        owns_stderr: descriptor 2 stays the process's own.

    Returns:
        None: there is none to be had. Where the value is wrong, the log says so;
        where another process has taken the slot, all is as it should be.
    """
    try:
        descriptor, number = _parse(text)
        board = Scoreboard.open_fd(descriptor)
    except (ValueError, OSError) as error:
        log_warning("%s=%s: %s; ignored", VARIABLE, text, error)
        return None
    try:
        slot = board.slot(number)
        registered = _register_traceback(owns_stderr)
        if slot.claim(os.getpid(), 0, registered):
            board.close_descriptor()
            sight = Sight(slot)
            _living.append(sight)
            return sight
        if registered:
            faulthandler.unregister(registered)
    except (ValueError, OSError) as error:
        log_warning("%s=%s: %s; ignored", VARIABLE, text, error)
    board.close()
    return None


def _parse(text: str) -> tuple[int, int]:
    descriptor, colon, number = text.partition(":")
    if not (colon and _is_number(descriptor) and _is_number(number)):
        raise ValueError("not of the form FD:SLOT")
    if int(descriptor) <= 2:
        raise ValueError("a standard descriptor is no scoreboard")
    return int(descriptor), int(number)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _length(text: bytes | None) -> int:
    if not text or not text.isdigit() or len(text) > 18:
        return -1
    return int(text)


def _register_traceback(owns_stderr: bool) -> int:
    """Have a signal write the traceback of all threads; return its number, or 0.

    A real-time signal that nobody has taken: the usual ones are the application's.
    """
    taken = _taken_signals()
    for number in range(signal.SIGRTMAX - 2, signal.SIGRTMIN, -1):
        if not taken >> (number - 1) & 1:
            file = 2 if owns_stderr else os.dup(2)
            faulthandler.register(number, file=file, all_threads=True, chain=False)
            return number
    return 0


def _taken_signals() -> int:
    """Return the signals that are caught or ignored, by C code, too, as a bit mask.

    Signal 1 is the lowest bit. Where there is no /proc, none counts as taken.
    """
    taken = 0
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(("SigIgn:", "SigCgt:")):
                    taken |= int(line.split()[1], 16)
    except (OSError, ValueError, IndexError):
        pass
    return taken


def _after_fork_in_child() -> None:
    while _living:
        _living.pop().forget()
    forget_slot()


os.register_at_fork(after_in_child=_after_fork_in_child)
