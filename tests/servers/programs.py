"""The application's side: external FastCGI processes, wrapper scripts, gates."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import sysconfig
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import fcgi_app

from .process import Foreground, wait_until

__all__ = ["APPS", "EXAMPLES", "ExternalProgram", "Gate", "wrapper_script"]

TESTS = Path(__file__).resolve().parent.parent
APPS = TESTS / "apps"
EXAMPLES = TESTS.parent / "examples"
MARKER = "E2E_RUN"


def package_path() -> str | None:
    """Directory to add to the search path so that programs use our fcgi_app, if any.

    None when the package under test is installed into this Python: then the programs
    find it by themselves, as a user's programs do.
    """
    root = Path(fcgi_app.__file__).resolve().parent.parent
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return None if root in {path.resolve() for path in installed} else str(root)


def program_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The settings that every program of the tests gets, besides the web server's."""
    environment = {"PYTHONDONTWRITEBYTECODE": "1", **extra}
    path = package_path()
    if path is not None:
        environment["PYTHONPATH"] = path
    return environment


def wrapper_script(path: Path, script: Path, environment: Mapping[str, str]) -> Path:
    """Write an executable that runs the script, unchanged, with the tests' Python.

    Web servers start programs with a nearly empty environment; what the tests need to
    set travels in the wrapper.
    """
    settings = program_environment(environment)
    exports = [f"export {k}={shlex.quote(v)}" for k, v in settings.items()]
    run = shlex.join([sys.executable, str(script)])
    path.write_text("\n".join(["#!/bin/sh", *exports, f"exec {run}", ""]))
    path.chmod(0o755)
    return path


class ExternalProgram:
    """A FastCGI program that runs before the web server asks: listener on fd 0.

    The listener stays open here. A process that ends is replaced by another on the
    same listener, as a supervisor would do, and requests wait in between.

    Args:
        listener: listening socket, borrowed until ``stop``.
        console: file for what the processes print.

    Attributes:
        statuses: exit statuses of the processes that have ended and been replaced.
    """

    def __init__(
        self,
        script: Path,
        listener: socket.socket,
        console: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.console = console
        self._script = script
        self._listener = listener
        self._environment = environment
        self._stopping = False
        self._changed = threading.Condition()
        self._process = self.start()
        self.statuses: list[int] = []
        self._supervisor = threading.Thread(target=self._replace_the_dead, daemon=True)
        self._supervisor.start()

    @property
    def pid(self) -> int:
        """The pid of the current process."""
        return self._process.pid

    def send(self, number: int) -> None:
        """Send a signal to the current process."""
        self._process.send(number)

    def start(self) -> Foreground:
        """One more process on the same listener; the caller stops it."""
        return Foreground(
            [sys.executable, str(self._script)],
            self.console,
            stdin=self._listener.fileno(),
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                **program_environment(self._environment),
            },
        )

    def wait_for_end(self, number: int, *, seconds: float = 15.0) -> None:
        """Return when so many processes have ended and been replaced."""
        with self._changed:
            in_time = self._changed.wait_for(
                lambda: len(self.statuses) >= number, seconds
            )
        assert in_time, f"{self._script.name} (pid {self.pid}) does not end"

    def kill(self) -> None:
        """End it at once, without a word."""
        with self._changed:
            self._stopping = True
        self._process.kill()
        self._supervisor.join()

    def stop(self) -> None:
        """Ask it to stop; it must leave with exit status 0."""
        with self._changed:
            self._stopping = True
        # Right after its start SIGTERM would find a process without a handler.
        wait_until(
            lambda: self._process.catches(signal.SIGTERM) or not self._process.alive(),
            f"{self._script.name} catches SIGTERM",
        )
        status = self._process.stop()
        self._supervisor.join()
        assert status == 0, (
            f"{self._script.name} left with {status} after SIGTERM:\n"
            + self.console.read_text(errors="replace")[-4000:]
        )

    def _replace_the_dead(self) -> None:
        while True:
            status = self._process.wait_for_ever()
            with self._changed:
                if self._stopping:
                    return
                self._process = self.start()
                self.statuses.append(status)
                self._changed.notify_all()


class Gate:
    """A point at which a request waits for the test, in whatever process it runs.

    The program connects to ``path`` when it arrives and waits for one byte.
    """

    def __init__(self, path: Path, *, seconds: float = 20.0) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._listener.settimeout(seconds)
        self._waiting: list[socket.socket] = []

    def wait_for_arrival(self) -> None:
        """Return when one more request has arrived at the gate."""
        connection, _ = self._listener.accept()
        self._waiting.append(connection)

    def open(self) -> None:
        """Let every request go that has arrived."""
        for connection in self._waiting:
            connection.sendall(b"!")

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connection in self._waiting:
            connection.close()
        self._listener.close()
        self.path.unlink()
