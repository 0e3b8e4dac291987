"""The process that keeps pools of workers at work: ``fcgi-app start``.

It is one process without threads that sleeps until a signal comes, a worker ends or
prints, a watched socket becomes readable, or a time is due. It never touches a request.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import inf
from time import monotonic

from .._log import log_info, log_warning
from ..errors import FcgiAppError, WorkerError
from ..sockets import bound_address, plug_standard_descriptors
from .generation import Generation
from .handover import Handover, take_handover
from .listeners import Listener
from .pidfile import PidFile
from .pool import ServiceConfig
from .relay import Outlet, Relay
from .roster import Ended
from .signals import SignalPipe

__all__ = ["SIGNALS", "Supervisor"]

SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""What a supervisor obeys, besides SIGCHLD."""

_QUICK = (signal.SIGINT, signal.SIGQUIT)
_LONGEST_WAIT = 1_000_000.0  # seconds; poll(2) takes 24 days at most


class Supervisor:
    """Runs the pools of a service until a stop signal.

    Args:
        service: what to run. ``daemon`` is the caller's affair, see `fork_daemon`.
        load: gives the service anew, for SIGHUP; None: it stays the same.
        command: what SIGUSR2 executes in this process, program first, found in PATH:
            this program, with its arguments; empty: SIGUSR2 is refused.
        directory: where it is executed, absolute; None: where we are.
        on_ready: called once, when all pools have started, not after an exec.
        outlet: takes what the workers print; None: our standard error.
    """

    def __init__(
        self,
        service: ServiceConfig,
        *,
        load: Callable[[], ServiceConfig] | None = None,
        command: Sequence[str] = (),
        directory: str | None = None,
        on_ready: Callable[[], object] = lambda: None,
        outlet: Outlet | None = None,
    ) -> None:
        self._service = service
        self._load = load
        self._command = list(command)
        self._directory = directory
        self._on_ready = on_ready
        self._outlet = outlet or Outlet()
        self._current: Generation | None = None
        self._coming: Generation | None = None
        self._leaving: list[Generation] = []
        self._strays: list[Relay] = []
        self._pid_file: PidFile | None = None
        self._reload_again = False
        self._stop_signal = 0
        self._quick = False
        self._cut_short = False

    def run(self) -> int:
        """Serve until a stop signal; only in the main thread, whose signals this takes.

        Descriptors 0, 1 and 2 that are closed become /dev/null; 1 and 2 become the log
        file, if there is one.

        Returns:
            0 when all workers have ended in time after the signal; else the number of
            the signal, because workers had to be killed.

        Raises:
            ConfigError: an address, a user or a group is not usable, or the pid file is
                that of a living process.
            OSError: the system refuses a socket or a file.
            WorkerError: a worker could not be started, or ended at once; the last lines
                that it has printed follow in the message, each on a line. Nothing is
                left running.
        """
        plug_standard_descriptors()
        with ExitStack() as stack:
            handover = take_handover()
            signals = stack.enter_context(SignalPipe(SIGNALS))
            stack.callback(self._close)
            self._begin(handover)
            if handover is not None:  # they have waited since before the exec
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._work()  # a pool without workers is ready at once
            while self._is_busy():
                self._turn(signals)
            return self._stop_signal if self._cut_short else 0

    def _is_busy(self) -> bool:
        return any(True for _ in self._generations())

    def _generations(self) -> list[Generation]:
        return [g for g in (self._coming, self._current, *self._leaving) if g]

    # The start

    def _begin(self, handover: Handover | None) -> None:
        """Open what is needed, and start the first workers or take them over."""
        if self._service.pid_file is not None:
            held = None if handover is None else handover.pid_file
            self._pid_file = PidFile(self._service.pid_file, held)
        self._open_log()
        if handover is None:
            self._coming = Generation(self._service, self._outlet, ())
            self._coming.start()
            return
        try:
            generation = Generation(
                self._service, self._outlet, handover.listeners, most=handover.most
            )
        except BaseException:  # the workers end with this process
            for listener in handover.listeners:
                listener.close()
            raise
        generation.adopt(handover.workers)
        self._current = generation
        generation.drop_unused(handover.listeners)
        log_info("executed again, pid %d", os.getpid())

    def _open_log(self) -> None:
        """Make the log file our standard output and error, again if they are already.

        Raises:
            OSError: it cannot be opened; all stays as it is.
        """
        path = self._service.log_file
        if path is not None:
            opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            os.close(opened)

    # One turn

    def _turn(self, signals: SignalPipe) -> None:
        """Wait for something to happen, and do what there is to do."""
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        relays = self._relays()
        if self._outlet.is_blocked:  # who prints has to wait until others have read
            poller.register(self._outlet.descriptor, select.POLLOUT)
        else:
            for descriptor in relays:
                poller.register(descriptor, select.POLLIN)
        watched = {}
        if self._current is not None and not self._stop_signal:
            watched = {r.watched: r for r in self._current.rosters if r.watched >= 0}
        for descriptor in watched:
            poller.register(descriptor, select.POLLIN)
        for descriptor, _ in poller.poll(self._time_to_wait()):
            if descriptor in relays:
                relays[descriptor].pump()
            elif descriptor in watched:
                watched[descriptor].note_client()
            elif descriptor == self._outlet.descriptor:
                self._outlet.flush()
        for number in signals.read():
            self._obey(number)
        self._reap()
        self._work()

    def _relays(self) -> dict[int, Relay]:
        """Return the open pipes, by descriptor."""
        self._strays = [relay for relay in self._strays if relay.descriptor >= 0]
        relays = list(self._strays)
        for generation in self._generations():
            relays += [member.relay for member in generation.members]
        return {relay.descriptor: relay for relay in relays if relay.descriptor >= 0}

    def _time_to_wait(self) -> float | None:
        """Return milliseconds until something is due; None: nothing is."""
        due = min((g.due() for g in self._generations()), default=inf)
        if due == inf:
            return None
        return min(_LONGEST_WAIT, max(0.0, due - monotonic())) * 1000

    def _reap(self) -> None:
        """Take note of the workers that have ended."""
        for generation in self._generations():
            ended = generation.reap()
            self._strays += [each.member.relay for each in ended]
            self._cut_short |= any(each.member.was_killed for each in ended)
            if generation is self._coming and not self._stop_signal:
                if ended:
                    self._give_up(generation, ended[0])
            else:
                generation.note_ends()

    def _work(self) -> None:
        """Let every generation do what is due."""
        for generation in self._generations():
            generation.turn()
        if self._coming is not None and self._coming.is_ready():
            self._take_over(self._coming)
        self._leaving = [g for g in self._leaving if g.members]
        if self._reload_again and self._coming is None:
            self._reload_again = False
            self._reload()

    # From one generation to the next

    def _take_over(self, coming: Generation) -> None:
        """Let the workers that have started take the place of those before them."""
        before, self._current, self._coming = self._current, coming, None
        coming.commit()
        if self._stop_signal:
            return
        if before is None:
            for listener in coming.listeners:
                where = bound_address(listener.socket)
                log_info("listening on %s, pid %d", where, os.getpid())
            self._on_ready()
            return
        before.leave()
        self._leaving.append(before)
        coming.drop_unused(before.listeners)
        log_info("reloaded")

    def _give_up(self, coming: Generation, ended: Ended) -> None:
        """Take back a start that has failed, because a worker has ended.

        Raises:
            WorkerError: it was the first start.
        """
        name, worker = coming.pool_of(ended.member), ended.member
        what = f"worker {worker.pid} ended with {ended.describe()} right at its start"
        message = "\n".join([f"pool {name}: {what}", *worker.relay.lines])
        if self._current is None:
            raise WorkerError(message)
        self._abandon(coming, message)

    def _abandon(self, coming: Generation, reason: object) -> None:
        assert self._current is not None
        log_warning("reload failed, the workers stay as they are: %s", reason)
        self._coming = None
        coming.leave(quick=True)
        coming.close_but(self._current.listeners)
        self._leaving.append(coming)

    def _reload(self) -> None:
        """Start the workers anew, beside those that serve."""
        if self._current is None or self._coming is not None:
            self._reload_again = True
            return
        coming: Generation | None = None
        try:
            service = self._service if self._load is None else self._load()
            coming = Generation(service, self._outlet, self._current.listeners)
            self._coming = coming
            coming.start()
        except (FcgiAppError, OSError) as error:
            if coming is None:
                log_warning("reload failed, the workers stay as they are: %s", error)
            else:
                self._abandon(coming, error)

    # Signals

    def _obey(self, number: int) -> None:
        """Do what a signal asks for."""
        if number in (signal.SIGTERM, *_QUICK):
            self._stop(number)
        elif self._stop_signal:
            return
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            self._reopen_log()
        elif number == signal.SIGUSR2:
            self._execute_again()
        elif number in (signal.SIGTTIN, signal.SIGTTOU) and self._current is not None:
            for roster in self._current.rosters:
                roster.change_most(1 if number == signal.SIGTTIN else -1)

    def _stop(self, number: int) -> None:
        """Begin the stop; a second signal makes it quick, a third one kills."""
        if self._quick:
            self._cut_short = True
            for generation in self._generations():
                generation.kill()
        self._quick = number in _QUICK or bool(self._stop_signal)
        self._stop_signal = number
        log_info("stopping%s", " quickly" if self._quick else "")
        for generation in self._generations():
            generation.leave(quick=self._quick)
        for listener in self._listeners():
            listener.close()
        self._leaving = self._generations()
        self._coming = self._current = None

    def _reopen_log(self) -> None:
        try:
            self._open_log()
        except OSError as error:
            log_warning("cannot open %s: %s", self._service.log_file, error.strerror)
        else:
            log_info("log opened again")

    def _execute_again(self) -> None:
        """Execute the command in this process, which keeps its sockets and workers."""
        if self._current is None or self._coming is not None or not self._command:
            log_warning("SIGUSR2 is refused: %s", self._why_no_exec())
            return
        try:
            if self._load is not None:
                self._load()  # a file that is wrong would end the new supervisor
            handover = Handover(
                listeners=self._current.listeners,
                pid_file=self._pid_file.descriptor if self._pid_file else None,
                most=self._current.most,
            )
            for generation in self._generations():
                handover.workers += generation.records()
            self._outlet.flush()
            log_info("executing %s", self._command[0])
            handover.exec(self._command, self._directory)
        except (FcgiAppError, OSError) as error:
            log_warning("cannot execute %s again: %s", self._command[0], error)

    def _why_no_exec(self) -> str:
        return "not while workers start" if self._command else "no command is known"

    # The end

    def _listeners(self) -> list[Listener]:
        """Return all sockets that are open."""
        found: dict[int, Listener] = {}
        for generation in self._generations():
            found |= {id(listener): listener for listener in generation.listeners}
        return list(found.values())

    def _close(self) -> None:
        """Leave nothing behind, however this ends."""
        listeners = self._listeners()
        for generation in self._generations():
            generation.kill_all()
        for listener in listeners:
            listener.close()
        for relay in self._strays:
            relay.close()
        self._outlet.flush()
        if self._pid_file is not None:
            self._pid_file.remove()
            self._pid_file = None
