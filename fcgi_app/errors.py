"""Every exception class of the package; imports nothing of it.

::

    FcgiAppError
    ├── ProtocolError(request_id | None, section)   never raised itself
    │   ├── RemoteProtocolError   the web server broke the specification
    │   │   └── LimitError        allowed by the specification, refused by our limits
    │   └── LocalProtocolError    our own caller broke it: a bug above us
    ├── CallSequenceError         an API call at a moment that has no meaning for it
    ├── RequestAborted            abort-request or lost connection (a ConnectionError)
    ├── IncompleteData            less of a filter's file than announced (an OSError)
    ├── AppLoadError              the script or program to run is missing or unusable
    ├── WorkerError               a worker process could not be started
    └── ConfigError               a setting is invalid; names the setting and the value

``OSError`` from the operating system passes through unwrapped.
"""

from __future__ import annotations

__all__ = [
    "AppLoadError",
    "CallSequenceError",
    "ConfigError",
    "FcgiAppError",
    "IncompleteData",
    "LimitError",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestAborted",
    "WorkerError",
    "describe_error",
]


class FcgiAppError(Exception):
    """Base of every error that this package defines."""


class ProtocolError(FcgiAppError):
    """Base of the two protocol errors; ``section`` is of the FastCGI 1.0 specification.

    Attributes:
        request_id: the request id that the offending record carried, or None.
        section: the section of the specification that was broken, such as ``"3.3"``.
    """

    def __init__(
        self, message: str, *, request_id: int | None = None, section: str = ""
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.section = section

    def __str__(self) -> str:
        text = super().__str__()
        if self.request_id is not None:
            text += f" (request id {self.request_id})"
        if self.section:
            text += f" [FastCGI §{self.section}]"
        return text


class RemoteProtocolError(ProtocolError):
    """The web server broke the specification; its connection must be closed."""


class LimitError(RemoteProtocolError):
    """Legal by the specification, but past one of our limits (see ``Limits``)."""


class LocalProtocolError(ProtocolError):
    """Our own caller broke the specification: a bug in the code above the protocol."""


class CallSequenceError(FcgiAppError):
    """A call came at a moment that has no meaning for it (FCGX_CALL_SEQ_ERROR)."""


class RequestAborted(FcgiAppError, ConnectionError):
    """The web server aborted the request or its connection went away."""


class IncompleteData(FcgiAppError, OSError):
    """A filter's DATA ended short of FCGI_DATA_LENGTH (FCGI_StartFilterData(3))."""


class AppLoadError(FcgiAppError):
    """The script or program to run is missing or cannot be run."""


class WorkerError(FcgiAppError):
    """A worker process could not be started, or died too early."""


class ConfigError(FcgiAppError, ValueError):
    """A setting is invalid; the message names the setting and the value."""

    def __init__(self, setting: str, value: object, reason: str) -> None:
        super().__init__(f"{setting}: {value!r}: {reason}")
        self.setting = setting
        self.value = value
        self.reason = reason


def describe_error(error: Exception) -> str:
    """Return the message of an error, without Python's way to write an OSError."""
    if isinstance(error, OSError) and error.strerror is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror
    return str(error)
