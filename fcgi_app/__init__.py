"""FastCGI for Python, the way of libfcgi's fcgi_stdio: one script, three lives.

::

    import os
    from fcgi_app import accept

    while accept():
        print("Content-Type: text/plain", end="\\r\\n\\r\\n")
        print("Hello", os.environ.get("REMOTE_ADDR", "world"))

The script is a FastCGI application when a web server or a launcher starts it with a
listening socket on descriptor 0, a CGI program otherwise, and serves on a socket of
its own after ``listen(address)``.

Not supported: Windows, HTTP itself (``fcgi-app dev`` is for development), TLS, form
parsing (use ``multipart``).
"""

from typing import TYPE_CHECKING

from ._version import __version__
from .errors import (
    AppLoadError,
    CallSequenceError,
    ConfigError,
    FcgiAppError,
    IncompleteData,
    LimitError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RequestAborted,
    WorkerError,
)
from .request import Request
from .sockets import open_socket
from .stdio import (
    accept,
    configure,
    current_request,
    finish,
    is_cgi,
    last_call,
    listen,
    requests,
    run,
    set_exit_status,
    start_filter_data,
)

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
    "Request",
    "RequestAborted",
    "Server",
    "WorkerError",
    "__version__",
    "accept",
    "configure",
    "current_request",
    "finish",
    "is_cgi",
    "last_call",
    "listen",
    "open_socket",
    "requests",
    "run",
    "set_exit_status",
    "start_filter_data",
]

if TYPE_CHECKING:
    from .server import Server


def __getattr__(name: str) -> object:
    """Load ``Server`` when it is asked for: a CGI program has no use for threads."""
    if name == "Server":
        from .server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
