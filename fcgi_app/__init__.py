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
from .inherited import is_started_by_web_server

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .request import Request
    from .server import Server
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

if is_started_by_web_server():
    # Now, so that streams which the application takes hold of early are ours.
    from . import stdio as _stdio  # noqa: F401

_ELSEWHERE = {"Request": "request", "Server": "server", "open_socket": "sockets"}
"""Where a name is; those that are neither here nor there are in ``stdio``."""


def __getattr__(name: str) -> object:
    """Load what is asked for: a launcher has no use for requests, CGI none for threads.

    What has been loaded is here the next time.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # As "from .stdio import name" does; importlib would be a module more to load.
    module = __import__(_ELSEWHERE.get(name, "stdio"), globals(), None, [name], 1)
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Name what can be asked for, loaded or not."""
    return sorted({*globals(), *__all__})
