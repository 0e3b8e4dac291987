"""Connecting to a pool, which is started in the background if nobody listens."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep

from .. import sockets
from ..addresses import AddressKind, parse_address
from ..errors import WorkerError

__all__ = ["PoolOnDemand"]

_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)
"""What connect(2) says where nobody listens: no file, or nobody behind it."""
_LOCKS = "/tmp"
"""Where the lock is for an address without a directory of its own."""
_TICK = 0.02
"""Seconds between two looks at a lock that somebody else holds: flock(2) knows no
limit of time."""
_STOP_GRACE = 5.0
"""Seconds that a start may take to clean up when it took too long."""


@dataclass(frozen=True)
class PoolOnDemand:
    """A pool that is started by whoever needs it first.

    Attributes:
        address: where it listens.
        words: options and command for ``fcgi-app start``, which runs as a daemon.
        environ: the environment that it gets.
        timeout: seconds for a connection; None: no limit.
        start_timeout: seconds in which it has to be ready.
    """

    address: str
    words: Sequence[str]
    environ: Mapping[str, str]
    timeout: float | None
    start_timeout: float

    def connect(self) -> socket.socket:
        """Connect, after a start if need be; only one process starts it at a time.

        Raises:
            ConfigError: the address is malformed.
            WorkerError: the pool does not start; it has said why on standard error.
            TimeoutError: nor does it fail, within ``start_timeout``.
            OSError: the pool cannot be reached, or the lock not be had.
        """
        connection = self._try_to_connect()
        if connection is not None:
            return connection
        until = monotonic() + self.start_timeout
        with _locked(_lock_path(self.address), until):
            connection = self._try_to_connect()  # somebody else was faster
            if connection is not None:
                return connection
            try:
                self._start(until)
            except WorkerError:
                # A start whose caller was killed goes on without the lock.
                connection = self._try_to_connect()
                if connection is None:
                    raise
                return connection
            return sockets.connect(self.address, timeout=self.timeout)

    def _try_to_connect(self) -> socket.socket | None:
        try:
            return sockets.connect(self.address, timeout=self.timeout)
        except OSError as error:
            if error.errno in _NOBODY:
                return None
            raise

    def _start(self, until: float) -> None:
        """Run ``fcgi-app start`` until the pool is ready."""
        words = [sys.executable, "-m", "fcgi_app", "start", "--daemon"]
        process = subprocess.Popen(
            [*words, "--bind", self.address, *self.words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # ours is the answer
            env=self.environ,
        )
        try:
            status = process.wait(max(0.0, until - monotonic()))
        except subprocess.TimeoutExpired:
            seconds = f"{self.start_timeout:g} seconds"
            raise TimeoutError(
                f"{self.address}: the pool was not ready after {seconds}"
            ) from None
        finally:
            _end(process)
        if status:
            raise WorkerError(
                f"{self.address}: the pool did not start: exit status {status}"
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that a start does not go on; it passes SIGINT on to the daemon."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_GRACE)
        process.kill()
        process.wait()


def _lock_path(address: str) -> str:
    """Give the path of a file that all have in common who need this address.

    Raises:
        PermissionError: somebody else was faster to make its directory.
    """
    where = parse_address(address)
    if where.kind is AddressKind.UNIX:
        return os.path.abspath(where.name) + ".lock"
    folder = f"{_LOCKS}/fcgi-app-{os.geteuid()}"
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        reason = "is for the lock, and is no directory of this user"
        raise PermissionError(errno.EPERM, reason, folder)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in where.name)
    return f"{folder}/{where.kind.value}-{name[:200]}-{where.number}.lock"


@contextmanager
def _locked(path: str, until: float) -> Iterator[None]:
    """Hold the lock of a file, which stays, with nobody's content in it.

    Raises:
        TimeoutError: somebody else has it until then.
        OSError: it cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > until:
                    raise TimeoutError(f"{path}: locked by somebody else") from None
                sleep(_TICK)
        yield
    finally:
        os.close(descriptor)
