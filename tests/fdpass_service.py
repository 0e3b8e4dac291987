"""``fcgi-app fdpass`` as a process of the tests, and clients that are handed to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from fcgi_app.fdpass import Sender

from .handovers import TIMEOUT, read_all, tcp_connection
from .servers import wait_until
from .webserver import PACKAGE_PARENT

__all__ = ["Client", "Service", "run_command"]

WORDS = [sys.executable, "-m", "fcgi_app", "fdpass"]


def environment(**extra: str) -> dict[str, str]:
    """The environment of the command."""
    return {**os.environ, "PYTHONPATH": PACKAGE_PARENT, **extra}


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``fcgi-app fdpass`` with options that it refuses."""
    return subprocess.run(
        [*WORDS, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


class Client:
    """The browser's end of a connection that was handed over."""

    def __init__(self, path: str) -> None:
        with tcp_connection() as (client, server):
            self.port = client.getsockname()[1]
            self.socket = client.dup()
            self.socket.settimeout(TIMEOUT)
            try:
                Sender(path).send(server)
            except OSError:
                self.socket.close()
                raise

    def line(self) -> str:
        """Read one line of the answer."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self.socket.recv(1)
            assert byte, f"the connection ends in a line: {line!r}"
            line += byte
        return line.decode().rstrip("\n")

    def say(self, text: str) -> None:
        """Send something."""
        self.socket.sendall(text.encode())

    def rest(self) -> str:
        """Read up to the end of the connection."""
        return read_all(self.socket).decode()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()


class Service:
    """A running ``fcgi-app fdpass``, in a session of its own.

    Must have left by itself, and nothing of it may be left, unless a test kills it.

    Args:
        options: of the command, up to "--"; ``--bind`` is added.
        command: what it runs for each client; a string is a script for sh.
    """

    def __init__(
        self,
        *options: str,
        command: str | list[str],
        launcher: tuple[str, ...] = (),
        **environ: str,
    ) -> None:
        # A short path: a Unix socket's has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
        self.path = str(self.folder / "socket")
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(*launcher, *WORDS, "--bind", f"unix:{self.path}"),
                    *(*options, "--", *words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(FDPASS_TEST=self.path, **environ),
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        try:
            wait_until(
                lambda: self.listens() or self.process.poll() is not None,
                "the service listens",
                seconds=TIMEOUT,
            )
            assert self.process.poll() is None, self.log()
            self.wait_for_log("; closed")  # the probe was seen: its loop runs
        except BaseException:
            self.kill()
            raise

    def listens(self) -> bool:
        """Whether one can connect; leaves a line in the log."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.path) == 0

    def client(self) -> Client:
        """One more client, handed over."""
        return Client(self.path)

    def log(self) -> str:
        """What the service and its commands have written to standard error."""
        return (self.folder / "log").read_text(errors="replace")

    def wait_for_log(self, text: str) -> None:
        """Wait until the log has this text."""
        wait_until(lambda: text in self.log(), f"{text!r} in the log", seconds=TIMEOUT)

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the service alone."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(TIMEOUT)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.send(number)
        return self.wait()

    def processes(self) -> dict[int, str]:
        """The processes of the service and of its commands: pid → command line."""
        mark = f"FDPASS_TEST={self.path}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = line.decode().strip()
            except OSError:
                continue  # gone in the meantime, or somebody else's
        return found

    def workers(self) -> set[int]:
        """The pids of the launcher's forked copies."""
        pids = set()
        for pid, line in self.processes().items():
            if "fcgi_app fdpass" in line and pid != self.process.pid:
                pids.add(pid)
        return pids

    def kill(self) -> None:
        """End everything at once."""
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                sys.stderr.write(f"log of the service:\n{self.log()}\n")
                return
            if self.process.poll() is None:
                assert self.stop() == 0, self.log()
            wait_until(lambda: not self.processes(), f"no process of {self.path}")
        finally:
            self.kill()
            shutil.rmtree(self.folder)
