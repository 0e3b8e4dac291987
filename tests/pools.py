"""``fcgi-app start`` as a process of the tests, and clients of its workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from .servers import wait_until
from .servers.process import require
from .webserver import PACKAGE_PARENT

__all__ = ["RAW", "WORDS", "Client", "Pool", "environment", "find_processes"]
__all__ += ["assert_refused", "nobodys_folder", "run_start", "unprivileged"]

TIMEOUT = 20.0
WORDS = [sys.executable, "-m", "fcgi_app", "start"]

RAW = """
import os, socket, sys
print("worker", os.getpid(), "runs", *sys.argv[1:], file=sys.stderr, flush=True)
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d\\n" % os.getpid())
        connection.recv(1)  # the client decides how long this worker is busy
"""
"""A worker that dies of SIGTERM at once: what keeps its clients is the supervisor."""


def environment(**extra: str) -> dict[str, str]:
    """The environment of the command."""
    kept = {k: v for k, v in os.environ.items() if k != "WEB_CONCURRENCY"}
    return {**kept, "PYTHONPATH": PACKAGE_PARENT, **extra}


def unprivileged() -> tuple[list[str], int]:
    """Who is nobody on this machine: words that run a command so, and the user's number.

    Root becomes a user of whom there are no other processes, who may read everything,
    for Python may be in a closed directory, and write and run what others may. Anybody
    else stays who he is.
    """
    if os.geteuid() != 0:
        return [], os.geteuid()
    number = 61000 + os.getpid() % 4000
    who = [f"--reuid={number}", f"--regid={number}", "--clear-groups"]
    may = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [require("setpriv"), *who, *may], number


@contextmanager
def nobodys_folder() -> Iterator[Path]:
    """A folder of a short name that belongs to who is nobody, see `unprivileged`."""
    path = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    path.chmod(0o755)
    os.chown(path, unprivileged()[1], -1)
    try:
        yield path
    finally:
        for each in path.iterdir():
            if each.is_dir() and not each.is_symlink():
                each.chmod(0o700)
        shutil.rmtree(path)


def assert_refused(
    done: subprocess.CompletedProcess[str], status: int, reason: str
) -> None:
    """Assert that this start has failed with this status, and says why in words."""
    assert done.returncode == status, done.stderr
    assert done.stdout == "", done.stdout
    assert "fcgi-app: error: " in done.stderr, done.stderr
    assert reason in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def run_start(
    *words: str, cwd: Path, prefix: Sequence[str] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run ``fcgi-app start`` to its end; all its processes must be gone then.

    Args:
        words: its command line.
        cwd: where.
        prefix: words in front of it, of a command that runs it.
        environ: more variables.
    """
    mark = f"{cwd} {os.getpid()}"
    try:
        done = subprocess.run(
            [*prefix, *WORDS, *words],
            cwd=cwd,
            env=environment(POOL_TEST=mark, **environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
        assert not find_processes(mark), "something is left running"
    finally:
        for pid in find_processes(mark):
            os.kill(pid, signal.SIGKILL)
    return done


def find_processes(mark: str) -> dict[int, int]:
    """The processes with ``POOL_TEST=mark`` in their environment: pid → parent."""
    wanted = f"POOL_TEST={mark}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                stat = (entry / "stat").read_text().rpartition(") ")[2].split()
                if stat[0] != "Z":
                    found[int(entry.name)] = int(stat[1])
        except OSError:
            continue  # gone in the meantime, or somebody else's
    return found


class Client:
    """A connection that a worker has accepted; it is busy until this is closed."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)

    def pid(self) -> int:
        """Who has accepted; waits for it. 0: the connection was closed instead."""
        with self.socket.makefile() as lines:
            return int(lines.readline() or 0)

    def is_cut(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Pool:
    """A running ``fcgi-app start``, in a session of its own.

    It must leave with status 0, and nothing of it may be left, unless a test has
    stopped it otherwise.

    Args:
        options: of the command, up to "--"; ``--bind`` of `path` is added.
        source: text of the worker's script; it is in the file `script`.
        command: what to run in place of the script.
        config: text of a file for ``--config``; then no command and no ``--bind`` is
            given. ``@PATH@`` and ``@SCRIPT@`` stand for both.
        ready: wait until it serves.
        prefix: words in front of the command, of one that executes it.
        owner: number of the user who owns the folder; None: who we are.
    """

    def __init__(
        self,
        *options: str,
        source: str = RAW,
        command: Sequence[str] = (),
        config: str = "",
        ready: bool = True,
        prefix: Sequence[str] = (),
        owner: int | None = None,
        **environ: str,
    ) -> None:
        # A short path: a Unix socket's has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
        self.folder.chmod(0o755)
        self.path = str(self.folder / "socket")
        self.script = self.folder / "worker.py"
        self.script.write_text(source)
        self.config = self.folder / "service.toml"
        words = ["--bind", f"unix:{self.path}", *options, "--"]
        words += command or [sys.executable, "-SE", str(self.script)]
        if config:
            self.write_config(config)
            words = ["--config", str(self.config), *options]
        if owner is not None:
            os.chown(self.folder, owner, -1)
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, *WORDS, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(POOL_TEST=self.path, **environ),
                cwd=self.folder,
                start_new_session=True,
            )
        if ready:
            try:
                self.wait_for_log("listening on")
            except BaseException:
                self.kill()
                shutil.rmtree(self.folder)
                raise

    def write_config(self, text: str) -> None:
        """Write the file anew."""
        text = text.replace("@PYTHON@", sys.executable)
        text = text.replace("@PATH@", self.path).replace("@SCRIPT@", str(self.script))
        self.config.write_text(text)

    def log(self) -> str:
        """What the supervisor and the workers have written to standard error."""
        return (self.folder / "log").read_text(errors="replace")

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the log has this text, so many times."""
        try:
            wait_until(
                lambda: self.log().count(text) >= times or self.has_ended(),
                f"{text!r} in the log",
                seconds=TIMEOUT,
            )
            assert self.log().count(text) >= times, f"no {text!r}"
        except AssertionError:
            sys.stderr.write(f"log of the pool:\n{self.log()}\n")
            raise

    def client(self) -> Client:
        """One more client."""
        return Client(self.path)

    def ask(self) -> int:
        """The pid of the worker that serves a client, who leaves at once."""
        with self.client() as client:
            return client.pid()

    def workers(self) -> set[int]:
        """The pids of the workers that run."""
        found = find_processes(self.path)
        return {pid for pid, parent in found.items() if parent == self.process.pid}

    def wait_for_workers(self, number: int) -> set[int]:
        """Wait until so many workers run, and return them."""
        found: set[int] = set()

        def are_there() -> bool:
            # One that is just being executed has no environment for a moment.
            nonlocal found
            found = self.workers()
            return len(found) == number

        wait_until(are_there, f"{number} workers", seconds=TIMEOUT)
        return found

    def wait_for_other_workers(self, before: set[int]) -> set[int]:
        """Wait until none of these runs, but as many others."""
        found: set[int] = set()

        def are_there() -> bool:
            nonlocal found
            found = self.workers()
            return len(found) == len(before) and not found & before

        wait_until(are_there, "other workers", seconds=TIMEOUT)
        return found

    def wait_for_end(self, worker: int) -> None:
        """Wait until this worker does not run any more."""
        wait_until(lambda: worker not in self.workers(), f"the end of {worker}")

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the supervisor alone."""
        self.process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether the supervisor has ended."""
        return self.process.poll() is not None

    def wait(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(TIMEOUT)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.send(number)
        return self.wait()

    def kill(self) -> None:
        """End everything at once."""
        self.process.kill()
        self.process.wait()
        for pid in find_processes(self.path):
            os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                sys.stderr.write(f"log of the pool:\n{self.log()}\n")
                return
            if not self.has_ended():
                assert self.stop() == 0, self.log()
            wait_until(
                lambda: not find_processes(self.path), f"no process of {self.path}"
            )
            assert not os.path.exists(self.path) or self.process.returncode < 0
        finally:
            self.kill()
            shutil.rmtree(self.folder)
