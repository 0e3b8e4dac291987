"""Exit statuses of ``fcgi-app``, and its errors in one line; imports no click."""

from __future__ import annotations

import os
import sys

from ..errors import ConfigError, FcgiAppError, describe_error

__all__ = [
    "EXIT_COMMAND",
    "EXIT_ERROR",
    "EXIT_SIGNAL",
    "EXIT_USAGE",
    "fail",
    "report_error",
    "working_directory",
]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_COMMAND = 3
"""The command cannot be run, or its workers end at once."""
EXIT_SIGNAL = 128


def fail(error: FcgiAppError | OSError) -> int:
    """Report an error that ends the program, and return the exit status for it."""
    report_error(" ".join(describe_error(error).split("\n")))
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR


def working_directory() -> str:
    """Return the current directory; an OSError says that it is what is missing."""
    try:
        return os.getcwd()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "current directory") from None


def report_error(message: str) -> None:
    """Print a message on standard error, if there is one."""
    if sys.stderr is not None:  # or print() would take standard output
        print(f"fcgi-app: error: {message}", file=sys.stderr, flush=True)
