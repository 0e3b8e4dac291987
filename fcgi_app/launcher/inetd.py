"""One process for each client that is handed over, as inetd(8) does it.

The client's socket is the standard input and output of the process. The launcher keeps
its copy until the process has ended, so that the connection gets an orderly end
whatever the program has left unread.
"""

from __future__ import annotations

import os
import resource
import selectors
import shlex
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from selectors import EVENT_READ
from time import monotonic

from .._log import log_info, log_warning
from ..errors import AppLoadError, ConfigError, WorkerError
from ..fdpass import Handover, Receiver
from ..fdpass.client import TLS_CAUSE, speaks_tls
from .command import find_command
from .lingering import Lingering
from .signals import SignalPipe
from .workers import STOP_GRACE, Worker, spawn

__all__ = ["Inetd", "InetdOptions", "find_program"]

_TICK = 1.0
"""Seconds: a receiver wants to be asked that often, see `Receiver.fileno`."""
_OWN_DESCRIPTORS = 64
"""Descriptors that are not left to waiting clients: files, pipes of spawn, senders."""


@dataclass(frozen=True)
class InetdOptions:
    """How an `Inetd` works.

    Attributes:
        command: program and arguments; see `find_program`.
        max_children: processes at a time; further clients wait.
        stop_timeout: seconds that the processes have after a stop signal.
        shared: others accept on the same listening socket: who has no process to
            spare leaves clients to them.
    """

    command: Sequence[str]
    max_children: int = 100
    stop_timeout: float = 30.0
    shared: bool = False

    def __post_init__(self) -> None:
        if not self.command:
            raise ConfigError("command", (), "must not be empty")
        if self.max_children < 1:
            raise ConfigError("max_children", self.max_children, "must be at least 1")
        if not self.stop_timeout >= 0:
            raise ConfigError("stop_timeout", self.stop_timeout, "must be from 0 on")


class _Stage(IntEnum):
    """How far the stop has come; each further signal goes one stage on."""

    SERVING = 0
    FINISHING = 1  # processes may finish, clients that wait get theirs
    TERMINATING = 2  # SIGTERM was sent
    KILLING = 3  # SIGKILL was sent


class Inetd:
    """Starts the command for every client; see the module's docstring.

    Args:
        receiver: owned; `run` closes it.
        lifeline: a descriptor, borrowed, that reaches its end when the parent of this
            worker is gone: the same as a stop signal.
    """

    def __init__(
        self, receiver: Receiver, options: InetdOptions, lifeline: int | None = None
    ) -> None:
        self._receiver: Receiver | None = receiver
        self._options = options
        self._lifeline = lifeline
        self._selector = selectors.DefaultSelector()
        self._lingering = Lingering(self._selector)
        self._waiting: deque[Handover] = deque()
        self._children: dict[Worker, socket.socket] = {}
        self._receiving = False
        self._stage = _Stage.SERVING
        self._deadline = inf
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FDPASS_PEER_PID", "REMOTE_ADDR", "REMOTE_PORT")
        }

    def run(self) -> int:
        """Serve until a stop signal; only in the main thread, whose signals this takes.

        Returns:
            0 when every process ended by itself after the signal; else the number of
            the last one, because processes had to be ended or clients were dropped.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(SignalPipe())
            stack.callback(self._close)
            self._last = 0
            self._selector.register(
                signals, EVENT_READ, lambda: self._handle_signals(signals)
            )
            if self._lifeline is not None:
                self._selector.register(self._lifeline, EVENT_READ, self._lose_parent)
            while not self._finished():
                self._turn()
            return self._last if self._stage > _Stage.FINISHING else 0

    # One turn

    def _finished(self) -> bool:
        busy = self._receiver or self._waiting or self._children or self._lingering
        return self._stage > _Stage.SERVING and not busy

    def _turn(self) -> None:
        """Wait for something to happen and do what there is to do."""
        self._listen(self._has_room())
        for key, _ in self._selector.select(self._time_to_wait()):
            key.data()
        self._lingering.close_late()
        if monotonic() >= self._deadline:
            self._go_on()
        if self._has_room():
            self._receive()
        while self._waiting and len(self._children) < self._options.max_children:
            self._start(self._waiting.popleft())

    def _time_to_wait(self) -> float | None:
        due = min(self._deadline, self._lingering.next_deadline())
        if self._receiving:
            due = min(due, monotonic() + _TICK)
        return None if due == inf else max(0.0, due - monotonic())

    def _listen(self, wanted: bool) -> None:
        """Wait for clients, or leave them where they are."""
        if wanted == self._receiving:
            return
        assert self._receiver is not None
        self._receiving = wanted
        if wanted:
            self._selector.register(self._receiver, EVENT_READ, lambda: None)
        else:
            self._selector.unregister(self._receiver)

    def _has_room(self) -> bool:
        """Tell whether more clients may be taken, be it to wait."""
        if self._receiver is None:
            return False
        clients = len(self._waiting) + len(self._children)
        if self._options.shared and self._stage is _Stage.SERVING:
            return clients < self._options.max_children
        return clients + len(self._lingering) < _descriptor_room()

    def _receive(self) -> None:
        """Take what has come, be it to wait; at the end, close the receiver."""
        assert self._receiver is not None
        while self._has_room():
            try:
                handover = self._receiver.accept(0)
            except TimeoutError:
                return
            if handover is None:
                self._close_receiver()
                return
            self._waiting.append(handover)

    # Processes

    def _start(self, handover: Handover) -> None:
        client = handover.detach()
        # The alert that tells it comes a moment later than the socket.
        if speaks_tls(client):
            log_warning("fdpass: client %s: %s; closed", handover.address, TLS_CAUSE)
            client.close()
            return
        try:
            worker = spawn(
                self._options.command,
                client,
                env=self._environment_for(handover),
                stdout=client.fileno(),
                new_session=True,
            )
        except WorkerError as error:
            log_warning("fdpass: %s; the client is closed", error)
            self._lingering.add(client)
        else:
            self._children[worker] = client

    def _environment_for(self, handover: Handover) -> dict[str, str]:
        environment = {
            **self._environment,
            "FDPASS_PEER_PID": str(handover.peer.pid),
        }
        if handover.address is not None:
            host, port = handover.address[:2]
            # As httpd itself writes the address of an IPv4 client on an IPv6 socket.
            environment["REMOTE_ADDR"] = host.removeprefix("::ffff:")
            environment["REMOTE_PORT"] = str(port)
        return environment

    def _reap(self) -> None:
        """End the connections of processes that have ended."""
        for worker in [w for w in self._children if w.poll() is not None]:
            self._lingering.add(self._children.pop(worker))
            self._report(worker)
        if self._stage > _Stage.FINISHING:  # nobody waits for clients any more
            self._lingering.close()

    def _report(self, worker: Worker) -> None:
        status = worker.poll()
        # A client that leaves early ends most programs by SIGPIPE.
        if not status or status == -signal.SIGPIPE or self._stage > _Stage.FINISHING:
            return
        what = f"signal {-status}" if status < 0 else f"exit status {status}"
        name = shlex.join(worker.command)
        log_warning("fdpass: %s (pid %d) ended with %s", name, worker.pid, what)

    # The end

    def _handle_signals(self, signals: SignalPipe) -> None:
        numbers = signals.read()
        if signal.SIGCHLD in numbers:
            self._reap()
        for number in numbers:
            if number != signal.SIGCHLD:
                self._last = number
                self._go_on()

    def _lose_parent(self) -> None:
        assert self._lifeline is not None
        self._selector.unregister(self._lifeline)
        if self._stage is _Stage.SERVING:
            log_warning("fdpass: the launcher has gone, its worker stops")
            self._last = int(signal.SIGTERM)
            self._go_on()

    def _go_on(self) -> None:
        """Enter the next stage of the stop."""
        self._deadline = inf
        if self._stage is _Stage.SERVING:
            self._stage = _Stage.FINISHING
            self._deadline = monotonic() + self._options.stop_timeout
            self._stop_receiving()
        elif self._stage is _Stage.FINISHING:
            self._stage = _Stage.TERMINATING
            self._deadline = monotonic() + STOP_GRACE
            self._drop_waiting()
            self._send(signal.SIGTERM)
        else:
            self._stage = _Stage.KILLING
            self._send(signal.SIGKILL)
        log_info("fdpass: %s", self._stage.name.lower())

    def _stop_receiving(self) -> None:
        """Take who has connected, nobody else."""
        if self._receiver is not None:
            if self._options.shared:
                # The socket file is the parent's, and removed: whom nobody takes from
                # the backlog now is lost.
                self._receive()
            if self._receiver is not None:
                self._receiver.stop()

    def _drop_waiting(self) -> None:
        self._close_receiver()
        if self._waiting:
            log_warning(
                "fdpass: %d clients closed that were still waiting", len(self._waiting)
            )
        while self._waiting:
            self._waiting.popleft().detach().close()
        self._lingering.close()

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to all processes, and to what they have started."""
        for worker in self._children:
            # It leads its process group, and is not reaped: the number is still its.
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, number)

    def _close_receiver(self) -> None:
        if self._receiver is not None:
            self._listen(False)
            self._receiver.close()
            self._receiver = None

    def _close(self) -> None:
        """Let go of everything; after an error of ours processes are left to run."""
        self._drop_waiting()
        for client in self._children.values():
            client.close()
        self._children.clear()
        self._selector.close()


def find_program(command: Sequence[str]) -> list[str]:
    """Return the command with the absolute path of its program.

    Raises:
        AppLoadError: there is no such program, or it is not executable.
    """
    words = [*find_command(shlex.quote(command[0])), *command[1:]]
    if not os.access(words[0], os.X_OK):
        raise AppLoadError(f"command {words[0]!r}: not executable")
    return words


def _descriptor_room() -> int:
    """How many clients leave this process descriptors for itself."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(limit - _OWN_DESCRIPTORS, limit // 2)
