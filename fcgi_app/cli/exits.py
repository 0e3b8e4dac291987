"""Exit statuses of ``fcgi-app``, and its errors in one line; imports no click."""

from __future__ import annotations

import sys

from ..errors import ConfigError, FcgiAppError, describe_error

__all__ = [
    "EXIT_COMMAND",
    "EXIT_ERROR",
    "EXIT_SIGNAL",
    "EXIT_USAGE",
    "fail",
    "report_error",
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


def report_error(message: str) -> None:
    """Print a message on standard error, if there is one."""
    print(f"fcgi-app: error: {message}", file=sys.stderr, flush=True)
