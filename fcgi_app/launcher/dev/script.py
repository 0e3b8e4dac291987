"""The script's process, on a private listening socket that outlives it."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...errors import AppLoadError, WorkerError
from ...sockets import open_socket
from ..workers import STOP_GRACE, Worker, spawn, stop

__all__ = ["Script", "find_script_command", "script_environment"]

RELOAD_GRACE = 30.0
"""Seconds that a process may take for its last request after a reload."""
ANSWER_GRACE = 0.1
"""Seconds in which a thread notices the answer of a process that has just ended."""
_MAX_SOCKET_PATH = 100
"""Bytes, a little less than sockaddr_un holds on any system (unix(7): 108)."""
_UNWANTED = ("FCGI_FORCE_CGI", "FCGI_WEB_SERVER_ADDRS")
"""Settings for a real server that would lock the script away from this one."""


def find_script_command(target: str, args: Sequence[str]) -> tuple[list[str], bool]:
    """Give the command that runs ``target``, and whether it is Python.

    A file whose name ends with ``.py``, or that is not executable and whose ``#!`` line
    names Python, is run by this interpreter; it needs no execute bit. Any other must be
    executable.

    Raises:
        AppLoadError: there is no such file, or it cannot be run.
    """
    if os.path.isdir(target):
        raise AppLoadError(f"{target}: is a directory, not a script")
    if not os.path.exists(target):
        raise AppLoadError(f"{target}: no such file")
    executable = os.access(target, os.X_OK)
    if target.endswith(".py") or (not executable and _names_python(target)):
        if not os.access(target, os.R_OK):
            raise AppLoadError(f"{target}: cannot be read: permission denied")
        return [sys.executable, target, *args], True
    if not executable:
        raise AppLoadError(f"{target}: neither a Python script (*.py) nor executable")
    return [os.path.abspath(target), *args], False


def _names_python(path: str) -> bool:
    try:
        with open(path, "rb") as script:
            line = script.readline(200)
    except OSError:
        return False
    return line.startswith(b"#!") and b"python" in line


def script_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment for a script that this process starts.

    A copy of the package that is not installed, such as a checkout, is put on
    PYTHONPATH, so that the script imports the same `fcgi_app` that serves it.
    """
    env = {name: value for name, value in environ.items() if name not in _UNWANTED}
    home = Path(__file__).resolve().parents[3]
    if not {"site-packages", "dist-packages"} & set(home.parts):
        others = env.get("PYTHONPATH")
        env["PYTHONPATH"] = str(home) + (os.pathsep + others if others else "")
    return env


class Script:
    """Starts, restarts and stops the one process of a script.

    A process that ends is not started again until `start` is called, unless it had
    answered something and requests are waiting. For the main thread alone, but for
    `note_answer`: the process gets SIGTERM when the thread that started it ends.

    Args:
        command: what to run.
        name: of the script, for messages.
        report: takes a line for the terminal.
    """

    def __init__(
        self, command: Sequence[str], name: str, report: Callable[[str], object]
    ) -> None:
        self._command = command
        self._name = name
        self._report = report
        self._worker: Worker | None = None
        self._leaving: list[tuple[Worker, float]] = []
        self._answered = threading.Event()
        self._folder = tempfile.TemporaryDirectory(
            prefix="fcgi-app-", dir=_socket_folder()
        )
        self.address = f"unix:{self._folder.name}/script.sock"
        self._listener = open_socket(self.address, mode=0o600)

    @property
    def running(self) -> bool:
        """Whether a process is there that takes requests."""
        return self._worker is not None

    @property
    def next_deadline(self) -> float | None:
        """When `reap` has something to do, by `time.monotonic`; None: no time known."""
        return min((until for _, until in self._leaving), default=None)

    def note_answer(self) -> None:
        """Tell, from any thread, that the process has answered a request."""
        self._answered.set()

    def start(self) -> None:
        """Start the process, if none is there.

        Raises:
            WorkerError: it cannot be executed.
        """
        if self._worker is None:
            self._answered.clear()
            self._worker = spawn(
                self._command,
                self._listener,
                env=script_environment(os.environ),
                new_session=True,
                die_with_parent=True,
            )

    def restart(self) -> None:
        """Let the process finish its request and go; start the next one at once."""
        if self._worker is not None:
            self._worker.terminate()
            self._leaving.append((self._worker, time.monotonic() + RELOAD_GRACE))
            self._worker = None
        self.try_start()

    def try_start(self) -> None:
        """Start the process; a failure is reported, and waiting requests are let go."""
        try:
            self.start()
        except WorkerError as error:
            self._report(f"{error}")
            self._dismiss_waiting()

    def reap(self) -> None:
        """Notice processes that have ended; kill those that outstay a reload."""
        for worker, until in self._leaving:
            if time.monotonic() > until:
                worker.kill()
        self._leaving = [entry for entry in self._leaving if entry[0].poll() is None]
        status = None if self._worker is None else self._worker.poll()
        if status is not None:
            self._worker = None
            self._ended(status)

    def _ended(self, status: int) -> None:
        how = f"{self._name} ended with {describe_status(status)}"
        waiting = self._has_waiting()
        if waiting and self._answered.wait(ANSWER_GRACE):
            self._report(f"{how}; starting it again for the request that waits")
            self.try_start()
        else:
            self._report(f"{how}; the next request or change starts it again")
            self._dismiss_waiting()

    def _has_waiting(self) -> bool:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        return bool(poller.poll(0))

    def _dismiss_waiting(self) -> None:
        """Close the connections that no process has accepted: nobody will."""
        self._listener.setblocking(False)
        try:
            while True:
                self._listener.accept()[0].close()
        except BlockingIOError:
            # Back to what a process expects that is started on it.
            self._listener.setblocking(True)

    def kill(self) -> None:
        """Kill every process at once; `close` still has to be called."""
        for worker in self._workers():
            worker.kill()

    def close(self, grace: float = STOP_GRACE) -> None:
        """Stop every process, the hard way after ``grace`` seconds; remove the socket.

        Connections that wait are closed.
        """
        try:
            stop(self._workers(), grace=grace)
        finally:
            self._listener.close()
            self._folder.cleanup()

    def _workers(self) -> list[Worker]:
        leaving = [worker for worker, _ in self._leaving]
        return leaving if self._worker is None else [self._worker, *leaving]


def describe_status(status: int) -> str:
    """Say how a process ended; ``-n`` is a death by signal n."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _socket_folder() -> str | None:
    """Give where the socket's folder goes; None for the usual place."""
    usual = os.fsencode(tempfile.gettempdir())
    return None if len(usual) + 40 < _MAX_SOCKET_PATH else "/tmp"
