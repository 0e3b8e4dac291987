"""What systemd is told of a supervisor, sd_notify(3); no library of it is needed.

The service manager names a datagram socket in NOTIFY_SOCKET, and gets lines
``NAME=VALUE``. With a watchdog, WATCHDOG_USEC, it wants to hear from us in time: that
is the one thing here that wakes the process up by itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Mapping
from math import inf
from time import CLOCK_MONOTONIC, clock_gettime_ns, monotonic

from .._log import log_warning
from .attendant import Event, Supervision

__all__ = ["SystemdNotifier"]

_SHOWN = 500
"""Characters of a status line; systemctl shows one line of it."""

_MOST_WAITING = 16
"""Messages that a manager which does not read may keep waiting; the oldest go."""

_ABSENT = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN)


class SystemdNotifier:
    """Tells the service manager what a supervisor does; an `Attendant`.

    A manager that does not listen is a line in the log, and no reason to stop serving.

    Args:
        address: path of the socket, or ``@NAME`` of an abstract one.
        watchdog: seconds after which the manager takes silence for death; 0: never.
    """

    def __init__(self, address: str, watchdog: float = 0.0) -> None:
        self._address = address
        self._pause = watchdog / 2  # what sd_watchdog_enabled(3) recommends
        self._next_sign = inf
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._supervision: Supervision | None = None
        self._complained = False

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str] = os.environ
    ) -> SystemdNotifier | None:
        """Make what the environment asks for; it is not changed, for an exec needs it.

        Returns:
            None: nobody wants to be told, or not in a way that we know, which is
            logged.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if not address:
            return None
        if len(address) < 2 or address[0] not in "/@":
            log_warning("NOTIFY_SOCKET: %r is no Unix socket, nobody is told", address)
            return None
        return cls(address, _watchdog_seconds(environ))

    # Of an attendant

    def open(self, supervision: Supervision) -> None:
        """Begin, with a sign of life if a watchdog waits for one."""
        self._supervision = supervision
        if self._pause:
            self._next_sign = monotonic()
            self.turn(self._next_sign)

    def watched(self) -> Mapping[int, int]:
        """Wait until there is room, if there was none."""
        if self._socket is None or not self._waiting:
            return {}
        return {self._socket.fileno(): select.POLLOUT}

    def handle(self, descriptor: int, events: int) -> None:
        """Send what waits."""
        if self._socket is not None and descriptor == self._socket.fileno():
            self._flush()

    def due(self) -> float:
        """Return when the watchdog has to hear of us."""
        return self._next_sign

    def turn(self, now: float) -> None:
        """Give the watchdog its sign of life, when it is time."""
        if now >= self._next_sign:
            self._next_sign = now + self._pause
            self._tell("WATCHDOG=1")

    def note(self, event: Event, text: str) -> None:
        """Tell the manager about it.

        An exec is a reload to systemd: afterwards the same process is ready again.
        """
        match event:
            case "ready":
                self._tell_ready(self._describe())
            case "reloading" | "executing":
                # The time tells systemd this reload from one that it asks for later.
                stamp = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
                self._tell("RELOADING=1", f"MONOTONIC_USEC={stamp}", f"STATUS={event}")
            case "reloaded":
                self._tell_ready(self._describe())
            case "reload failed":
                self._tell_ready(f"{event}, serving as before: {text}")
            case "stopping":
                self._tell("STOPPING=1", f"STATUS={event}")

    def close(self) -> None:
        """Close the socket; what waits has no room there."""
        self._supervision = None
        self._next_sign = inf
        self._waiting.clear()
        self._disconnect()

    # Messages

    def _describe(self) -> str:
        """Say in one line what is served."""
        assert self._supervision is not None
        pools = self._supervision.report()["pools"]
        each = [f"{pool['name']}: {pool['manager']}, {pool['most']}" for pool in pools]
        return "serving " + "; ".join(each)

    def _tell_ready(self, status: str) -> None:
        # The process id because the manager may know that of a parent, or of none.
        line = " ".join(status.split())[:_SHOWN]
        self._tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={line}")

    def _tell(self, *lines: str) -> None:
        message = "\n".join(lines) + "\n"
        self._waiting.append(message.encode("utf-8", "backslashreplace"))
        self._flush()

    def _flush(self) -> None:
        """Send what waits, as far as there is room."""
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        retried = False
        while self._waiting:
            try:
                self._connected().send(self._waiting[0], flags)
            except BlockingIOError:
                return
            except OSError as error:
                self._disconnect()
                if error.errno in _ABSENT and not retried:
                    retried = True  # the manager may have made its socket anew
                    continue
                self._complain(error)
            else:
                self._complained = False
                self._waiting.popleft()

    def _connected(self) -> socket.socket:
        """Return the socket; one that is connected can be polled for room."""
        if self._socket is None:
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                opened.connect(_as_socket_address(self._address))
            except BaseException:
                opened.close()
                raise
            self._socket = opened
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _complain(self, error: OSError) -> None:
        """Log, once until it works again, that the manager is not to be reached."""
        self._waiting.clear()
        if not self._complained:
            self._complained = True
            reason = error.strerror or str(error)
            log_warning("NOTIFY_SOCKET %s: %s", self._address, reason)


def _as_socket_address(text: str) -> bytes:
    """Return the address for connect(2): a NUL in front is an abstract name."""
    encoded = os.fsencode(text)
    return b"\0" + encoded[1:] if text.startswith("@") else encoded


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """Return after how many seconds of silence we count as dead; 0: never.

    WATCHDOG_PID says whom it is meant for; what is meant for another has leaked.
    """
    text = environ.get("WATCHDOG_USEC", "")
    if not text or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 19):
        log_warning("WATCHDOG_USEC: %r is no number of microseconds", text)
        return 0.0
    return int(text) / 1e6
