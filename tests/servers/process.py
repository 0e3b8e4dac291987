"""A foreground program of the tests: started, watched, stopped by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = [
    "Foreground",
    "as_web_user",
    "free_port",
    "require",
    "wait_until",
    "web_user",
]

START_SECONDS = 20.0
STOP_SECONDS = 15.0
WEB_USER = "www-data"


def require(*names: str) -> str:
    """The path of the first of these commands that is installed; a failure if none.

    A missing server is a failure, never a skip: a suite that skips what it is for
    proves nothing.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return found
    raise AssertionError(
        f"{' or '.join(names)} is not installed, but these tests need it"
        " (tests/run.sh installs the servers)"
    )


def as_web_user() -> list[str]:
    """Options of setpriv that turn root into the tests' web-server account."""
    if os.geteuid() != 0:
        return []
    return [
        f"--reuid={WEB_USER}",
        f"--regid={WEB_USER}",
        "--init-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]


def web_user() -> str:
    """The account that the web servers run under."""
    if os.geteuid() == 0:
        return WEB_USER
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def free_port() -> int:
    """A loopback TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def wait_until(
    condition: Callable[[], bool], what: str, *, seconds: float = 10.0
) -> None:
    """Poll for something that gives no event; fails with ``what`` when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.01)


class Foreground:
    """A program in its own process group, its output in a file.

    Args:
        command: program and arguments.
        console: file that takes its stdout and stderr; appended to.
        stdin: descriptor for fd 0, borrowed during the call; /dev/null when None.
        env: its whole environment.
        privileges: options of setpriv.
    """

    def __init__(
        self,
        command: Sequence[str],
        console: Path,
        *,
        stdin: int | None = None,
        env: dict[str, str],
        privileges: Sequence[str] = (),
    ) -> None:
        self.command = list(command)
        self.console = console
        with console.open("ab") as output:
            self._process = subprocess.Popen(
                # A run of the tests that is killed takes its programs with it.
                [require("setpriv"), "--pdeathsig=TERM", *privileges, *self.command],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=output,
                stderr=output,
                env=env,
                # Apache signals its whole process group when it stops: it must not
                # be the group of the tests.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The pid, also after the end."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def catches(self, number: int) -> bool:
        """Whether it has a handler for this signal."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = next(x for x in status.splitlines() if x.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

    def send(self, number: int) -> None:
        """Send a signal to this one process."""
        self._process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.command[0]} (pid {self.pid}) still runs after {seconds:g} s"
            ) from None

    def wait_for_ever(self) -> int:
        """Wait for the end however long it takes; for a thread that does just that."""
        return self._process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it, wait, and see that its process group is empty.

        What does not stop is killed, and that is a failure.
        """
        if self.alive():
            self.send(number)
        try:
            status = self.wait()
            wait_until(
                lambda: not self._group_alive(),
                f"children of {self.command[0]} (pid {self.pid}) outlive it",
            )
        finally:
            self._kill_group()
        return status

    def kill(self) -> None:
        """End it and its children at once."""
        self._kill_group()
        self.wait()

    def _group_alive(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _kill_group(self) -> None:
        # Only while a member lives: the number could belong to somebody else later.
        if self._group_alive():
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)
