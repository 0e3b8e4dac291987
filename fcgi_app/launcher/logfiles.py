"""The access logs that workers inherit; opened by the supervisor, who may.

A worker has the descriptor: it needs no permission for the file, nor has it to find it
inside its root directory. What it writes goes to the end of the file (O_APPEND).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["LogFiles", "open_log_file"]

MODE = 0o640
"""Permission bits of a file that is made."""


class LogFiles:
    """Files by path; each has one descriptor, which stays the same number."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    @property
    def paths(self) -> list[str]:
        """The files that are open."""
        return list(self._descriptors)

    def open(self, path: str) -> int:
        """Return the descriptor of a file; it stays ours.

        Raises:
            OSError: the file cannot be opened.
        """
        if path not in self._descriptors:
            self._descriptors[path] = open_log_file(path)
        return self._descriptors[path]

    def reopen(self) -> list[OSError]:
        """Open each again, after it was renamed; return what went wrong.

        What cannot be opened stays what it was.
        """
        errors = []
        for path, descriptor in self._descriptors.items():
            try:
                opened = open_log_file(path)
            except OSError as error:
                errors.append(error)
            else:
                os.dup2(opened, descriptor, inheritable=False)
                os.close(opened)
        return errors

    def keep_only(self, paths: Iterable[str]) -> None:
        """Close all others."""
        kept = set(paths)
        for path in [path for path in self._descriptors if path not in kept]:
            os.close(self._descriptors.pop(path))

    def close(self) -> None:
        """Close all."""
        self.keep_only(())


def open_log_file(path: str) -> int:
    """Open a file to append to; it is made if it is not there.

    Raises:
        OSError: it cannot be opened, or is a FIFO that nobody reads.
    """
    # Not a FIFO whose reader is waited for.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(path, flags, MODE)
