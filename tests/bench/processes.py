"""Servers under load: started on one CPU with the listening socket on fd 0, and what
they use of CPU time and memory."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

__all__ = [
    "LOAD_CPU",
    "SERVER_CPU",
    "BareInterpreter",
    "Server",
    "cpu_seconds",
    "end",
    "pinned",
    "read_line",
    "resident_kib",
]

_CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU = _CPUS[0]
LOAD_CPU = _CPUS[-1]
"""The same CPU as the server's where there is only one."""


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Let the processes that are started meanwhile run on ``cpu``, they and theirs.

    Pinned afterwards, a process may have forked on another CPU already.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _family(pid: int) -> list[int]:
    """Give ``pid`` and all its living descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Give the CPU time, user and system, of ``pid`` and its living descendants.

    The process CPU clock of clock_getcpuclockid(3): nanoseconds, with the threads
    that have ended; /proc/PID/stat counts in hundredths of a second.
    """
    # the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)
    return sum(time.clock_gettime((~member << 3) | 2) for member in _family(pid))


def resident_kib(pid: int) -> int:
    """Give the resident memory of ``pid`` and its descendants, in KiB.

    From smaps_rollup, which counts pages: VmRSS in /proc/PID/status lags behind.
    """
    total = 0
    for member in _family(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1])
    return total


def read_line(pipe: IO[bytes], seconds: float, what: str) -> bytes:
    """Read a line that is written at once, waiting at most ``seconds`` for it.

    Raises:
        TimeoutError: nothing came; ``what`` says from whom.
        EOFError: the other end closed the pipe.
    """
    if not select.select([pipe], [], [], seconds)[0]:
        raise TimeoutError(f"{what}: no answer within {seconds:g} s")
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError(f"{what} ended")
    return line


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask ``process`` to end, and kill it if it does not."""
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """A FastCGI program that serves a Unix socket of its own, on ``SERVER_CPU``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start ``command``; it inherits the listening socket as descriptor 0."""
        self._folder = tempfile.TemporaryDirectory(prefix="fcgi_app-bench-")
        self.path = str(Path(self._folder.name, "socket"))
        self._errors = Path(self._folder.name, "stderr")
        with (
            socket.socket(socket.AF_UNIX) as listener,
            self._errors.open("wb") as errors,
            pinned(SERVER_CPU),
        ):
            listener.bind(self.path)
            listener.listen(1024)
            self.started = time.perf_counter()
            self._process = subprocess.Popen(
                command,
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
            )
        self.pid = self._process.pid

    def errors(self) -> str:
        """Give the last lines that the program wrote to stderr."""
        text = self._errors.read_text(errors="replace")
        return "\n".join(text.splitlines()[-12:])

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        members = _family(self.pid) if self._process.poll() is None else []
        end(self._process)
        for member in members[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        if error is not None and (said := self.errors()):
            error.args = (*error.args, f"the server's stderr: {said}")
        self._folder.cleanup()


class BareInterpreter:
    """A process that has imported some modules and waits."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start ``command`` and wait for the line that it prints when ready."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        read_line(self._process.stdout, 20, "the bare interpreter")

    def __enter__(self) -> BareInterpreter:
        return self

    def __exit__(self, *exception: object) -> None:
        end(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
