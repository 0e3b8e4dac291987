"""The process that keeps pools of workers at work: ``fcgi-app start``.

It is one process without threads that sleeps until a signal comes, a worker ends or
prints, a watched socket becomes readable, or a time is due. It never touches a request.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import inf
from time import monotonic
from typing import Any

from .._log import log_info, log_warning
from ..errors import ConfigError, FcgiAppError, describe_error
from ..scoreboard import Scoreboard
from ..sockets import plug_standard_descriptors
from .attendant import Attendant
from .attending import Attendants
from .census import build_report
from .handover import Handover, take_handover
from .logfiles import open_log_file
from .pidfile import PidFile
from .pool import MAX_WORKERS, ServiceConfig
from .relay import Outlet
from .roster import Roster
from .signals import SignalPipe
from .succession import Succession

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
        attendants: what else is looked after; opened before the first worker.
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
        attendants: Iterable[Attendant] = (),
    ) -> None:
        self._service = service
        self._load = load or (lambda: service)
        self._command = list(command)
        self._directory = directory
        self._on_ready = on_ready
        self._outlet = outlet or Outlet()
        self._attendants = Attendants(attendants)
        self._succession = Succession(self._outlet, self._attendants.note)
        self._pid_file: PidFile | None = None
        self._started = time.time()
        self._stop_signal = 0
        self._quick = False

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
            while not self._succession.is_over:
                self._turn(signals)
            return self._stop_signal if self._succession.has_killed else 0

    # The start

    def _begin(self, handover: Handover | None) -> None:
        """Open what is needed, and start the first workers or take them over."""
        if self._service.pid_file is not None:
            held = None if handover is None else handover.pid_file
            self._pid_file = PidFile(self._service.pid_file, held)
        if handover is None:
            self._open_log()
            self._attendants.open(self)
            self._succession.start(self._service)
            return
        try:
            self._open_log()
        except OSError as error:  # no reason to stop serving; we have the one before
            log_warning("cannot open %s", describe_error(error))
        self._attendants.open_again(self)
        self._started = handover.started or self._started
        self._succession.adopt(self._service, handover)
        log_info("executed again, pid %d", os.getpid())
        self._attendants.note("ready")

    def _open_log(self) -> None:
        """Make the log file our standard output and error, again if they are already.

        Raises:
            OSError: it cannot be opened; all stays as it is.
        """
        path = self._service.log_file
        if path is not None:
            opened = open_log_file(path)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            os.close(opened)

    # One turn

    def _turn(self, signals: SignalPipe) -> None:
        """Wait for something to happen, and do what there is to do."""
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        relays = self._succession.relays()
        if self._outlet.is_blocked:  # who prints has to wait until others have read
            poller.register(self._outlet.descriptor, select.POLLOUT)
        else:
            for descriptor in relays:
                poller.register(descriptor, select.POLLIN)
        watched: dict[int, Roster] = {}
        for generation in self._succession:
            watched |= generation.watched
        for descriptor in watched:
            poller.register(descriptor, select.POLLIN)
        for descriptor, events in self._attendants.watched().items():
            poller.register(descriptor, events)
        for descriptor, events in poller.poll(self._time_to_wait()):
            if descriptor in relays:
                relays[descriptor].pump()
            elif descriptor in watched:
                watched[descriptor].note_client()
            elif descriptor == self._outlet.descriptor:
                self._outlet.flush()
            else:
                self._attendants.handle(descriptor, events)
        for number in signals.read():
            self._obey(number)
        self._attendants.turn(monotonic())
        self._succession.reap()
        self._work()

    def _time_to_wait(self) -> float | None:
        """Return milliseconds until something is due; None: nothing is."""
        due = min(self._succession.due(), self._attendants.due())
        if due == inf:
            return None
        return min(_LONGEST_WAIT, max(0.0, due - monotonic())) * 1000

    def _work(self) -> None:
        """Let the workers' managers do what is due; tell if all have started."""
        was_ready = self._succession.current is not None
        self._succession.work()
        if not was_ready and self._succession.current is not None:
            self._on_ready()

    # Signals

    def _obey(self, number: int) -> None:
        """Do what a signal asks for."""
        if number in (signal.SIGTERM, *_QUICK):
            self._stop(number)
        elif self._stop_signal:
            return
        elif number == signal.SIGHUP:
            self.reload()
        elif number == signal.SIGUSR1:
            self.reopen_log()
        elif number == signal.SIGUSR2:
            self._execute_again()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._change_all(1 if number == signal.SIGTTIN else -1)

    def _change_all(self, difference: int) -> None:
        """Run one worker more or fewer for each address."""
        if self._succession.current is not None:
            for name, most in self._succession.current.most.items():
                self._succession.scale(
                    name, min(max(most + difference, 1), MAX_WORKERS)
                )

    def _stop(self, number: int) -> None:
        """Begin the stop; a second signal makes it quick, a third one kills."""
        first = not self._stop_signal
        if self._quick:
            self._succession.kill()
        self._quick = number in _QUICK or not first
        self._stop_signal = number
        log_info("stopping%s", " quickly" if self._quick else "")
        if first:
            self._attendants.note("stopping")
        self._succession.stop(quick=self._quick)

    def _execute_again(self) -> None:
        """Execute the command in this process, which keeps its sockets and workers."""
        if not self._succession.can_hand_over or not self._command:
            log_warning("SIGUSR2 is refused: %s", self._why_no_exec())
            return
        try:
            # What is wrong would end the new supervisor, and all workers with it.
            self._succession.try_sockets(self._load())
        except (FcgiAppError, OSError) as error:
            self._report_no_exec(error)
            return
        self._attendants.note("executing")
        self._attendants.close()
        handover = self._succession.hand_over()
        handover.pid_file = self._pid_file.descriptor if self._pid_file else None
        handover.started = self._started
        self._outlet.flush()
        log_info("executing %s", self._command[0])
        try:
            handover.exec(self._command, self._directory)
        except OSError as error:
            self._report_no_exec(error)
            self._attendants.open_again(self)
            self._attendants.note("reload failed", describe_error(error))

    def _report_no_exec(self, error: Exception) -> None:
        reason = describe_error(error)
        log_warning("cannot execute %s again: %s", self._command[0], reason)

    def _why_no_exec(self) -> str:
        if not self._command:
            return "no command is known"
        if not self._succession.is_steady:
            return "not while workers start"
        return "not while clients wait at a socket that is given up"

    # What attendants may ask for, see `Supervision`

    @property
    def scoreboards(self) -> Mapping[str, Scoreboard]:
        """What the workers tell, by the name of the pool; borrowed."""
        return self._succession.equipper.boards.current

    def reload(self) -> None:
        """Start the workers anew, as SIGHUP asks for."""
        self._succession.renew(self._load)

    def stop(self, *, quick: bool = False) -> None:
        """Stop, as SIGTERM asks for, or ``quick`` as SIGINT does."""
        self._stop(signal.SIGINT if quick else signal.SIGTERM)

    def scale(self, pool: str, number: int, *, relative: bool = False) -> int:
        """Change how many workers each address of a pool has, or may have.

        Raises:
            ConfigError: there is no such pool, or the number is out of range.
        """
        current = self._succession.current
        found = {} if current is None else current.most
        if pool not in found:
            reason = f"there is no such pool now (there are {', '.join(found)})"
            if current is None:
                reason = "the pools have not started yet, or are being stopped"
            raise ConfigError("pool", pool, reason)
        wanted = max(1, found[pool] + number) if relative else number
        if not 1 <= wanted <= MAX_WORKERS:
            raise ConfigError("workers", wanted, f"must be from 1 to {MAX_WORKERS}")
        self._succession.scale(pool, wanted)
        return wanted

    def reopen_log(self) -> None:
        """Open the log files again, as SIGUSR1 asks for.

        Workers that have an access log get the new one in that they are started anew.
        """
        errors = self._succession.equipper.files.reopen()
        try:
            self._open_log()
        except OSError as error:
            errors.append(error)
        for each in errors:
            log_warning("cannot open %s", describe_error(each))
        if not errors:
            log_info("log opened again")
        if self._succession.equipper.files.paths:
            self._succession.renew()

    def observe(self) -> bool:
        """Note in the scoreboards how many clients wait, and how many are served."""
        return self._succession.observe()

    def report(self) -> dict[str, Any]:
        """Describe supervisor, pools and workers in values that JSON has."""
        self._succession.observe()
        return build_report(self._succession, self._started, bool(self._stop_signal))

    # The end

    def _close(self) -> None:
        """Leave nothing behind, however this ends."""
        self._succession.close()
        self._attendants.close()
        self._outlet.flush()
        if self._pid_file is not None:
            self._pid_file.remove()
            self._pid_file = None
