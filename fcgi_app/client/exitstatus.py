"""How a request ends, as an exit status of a program; no I/O."""

from __future__ import annotations

from enum import IntEnum

from ..codec.constants import ProtocolStatus
from ..errors import ConfigError, FcgiAppError
from .answer import AnswerError

__all__ = ["ExitStatus", "exit_status", "exit_status_of_error"]


class ExitStatus(IntEnum):
    """What a client ends with when it has no status of the application: curl's numbers.

    An application may end a request with one of these, too; only with one of ours
    there is a line on standard error.
    """

    USAGE = 2
    CANNOT_CONNECT = 7
    MALFORMED = 8
    REFUSED = 9
    CUT_OFF = 18
    HTTP_ERROR = 22
    CANNOT_WRITE = 23
    TIMEOUT = 28
    NO_ANSWER = 52
    NETWORK = 56


def exit_status(app_status: int, protocol_status: int) -> int:
    """Give the exit status that says how the application has ended a request.

    It is what ``exit(app_status)`` makes of it, the low eight bits; but never 0 for
    an ``app_status`` that is not 0.
    """
    if protocol_status != ProtocolStatus.REQUEST_COMPLETE:
        return ExitStatus.REFUSED
    return app_status & 0xFF or (1 if app_status else 0)


def exit_status_of_error(error: FcgiAppError | OSError) -> int:
    """Give the exit status for an error that a request has raised."""
    if isinstance(error, ConfigError):
        return ExitStatus.USAGE
    if isinstance(error, AnswerError):
        if not error.cut_off:
            return ExitStatus.MALFORMED
        return ExitStatus.CUT_OFF if error.head else ExitStatus.NO_ANSWER
    if isinstance(error, TimeoutError):
        return ExitStatus.TIMEOUT
    return ExitStatus.NETWORK
