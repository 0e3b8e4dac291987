"""A file with the process id of a supervisor, held by a lock while it lives."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import suppress

from ..errors import ConfigError

__all__ = ["PidFile"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LONGEST = 20
"""Bytes; more than any process id has."""


class PidFile:
    """The pid file of this process.

    The lock (flock(2)) tells a living process's file from one that was left behind,
    even if the number belongs to somebody else by now.

    Args:
        path: absolute.
        descriptor: of the locked file, if this process held it before an exec.

    Raises:
        ConfigError: another process holds it; the message has its number. Or it is a
            file of another kind, which stays as it is.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self.path = path
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            self.descriptor = descriptor
            return
        self.descriptor = _open_locked(path)
        try:
            os.ftruncate(self.descriptor, 0)
            os.write(self.descriptor, b"%d\n" % os.getpid())
        except OSError as error:
            self.remove()
            raise OSError(error.errno, error.strerror, path) from None

    def remove(self) -> None:
        """Remove the file, if it is still ours, and let go of it."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                os.unlink(self.path)
        os.close(self.descriptor)


def _open_locked(path: str) -> int:
    while True:
        descriptor = os.open(path, _FLAGS, 0o644)
        try:
            _check_kind(path, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except BlockingIOError:
            pid = os.pread(descriptor, _LONGEST, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            reason = f"the process {pid or '(not known yet)'} runs and holds this file"
            raise ConfigError("pid_file", path, reason) from None
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder has removed it between our open and our lock.
        os.close(descriptor)


def _check_kind(path: str, descriptor: int) -> None:
    """Refuse a file that is no pid file: ours is overwritten now and removed later.

    Who names a device or a script by mistake shall not lose it.

    Raises:
        ConfigError: it is not a regular file, or has something else than a number.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ConfigError("pid_file", path, "is not a regular file")
    content = os.pread(descriptor, _LONGEST + 1, 0)
    if len(content) > _LONGEST or not re.fullmatch(rb"\s*[0-9]*\s*", content):
        reason = "a file that has no process id in it is in the way"
        raise ConfigError("pid_file", path, reason)
