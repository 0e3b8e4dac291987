"""accept, finish and their family: what a script calls, on the loop of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import index

from .errors import CallSequenceError, ConfigError
from .loop import process_loop
from .request import Request, serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

__all__ = [
    "accept",
    "configure",
    "current_request",
    "finish",
    "is_cgi",
    "last_call",
    "listen",
    "requests",
    "run",
    "set_exit_status",
    "start_filter_data",
]


def accept(timeout: float | None = None, *, descriptors: bool | None = None) -> bool:
    """Finish the request before, and wait for the next (FCGI_Accept(3)).

    True: a request is current: ``sys.stdin``, ``sys.stdout``, ``sys.stderr`` and
    ``os.environ`` are its own until the next call. False: there will be no more; in
    CGI that is the second call, in FastCGI after SIGTERM, SIGUSR1 or ``last_call``.
    Errors of a connection are logged and never reach the caller.

    Args:
        timeout: seconds to wait; None: for ever.
        descriptors: at the first call, whether descriptors 0, 1 and 2 are the
            request's too, for children and C code; None: what FCGI_APP_DESCRIPTORS
            says.

    Raises:
        TimeoutError: no request came in time; call again whenever you like.
        ConfigError: a setting of the environment is invalid, or descriptor 0 is a
            socket that neither listens nor is connected (first call only).
    """
    if timeout is None and process_loop.step():
        return True
    return process_loop.accept(timeout, descriptors)


def finish() -> None:
    """End the current request now, before the next accept (FCGI_Finish(3)).

    Afterwards the streams and the environment are the process's own. Does nothing
    where there is no current request.
    """
    request = current_request()
    if request is not None:
        request.finish()


def requests(*, descriptors: bool | None = None) -> Iterator[Request]:
    """Iterate over the requests: ``accept``, with each request at hand."""
    while process_loop.accept(None, descriptors):
        assert process_loop.current is not None
        yield process_loop.current


def run(
    handler: Callable[[Request], object],
    *,
    descriptors: bool | None = None,
    threads: int | None = None,
) -> None:
    """Call ``handler(request)`` for each request until there are no more.

    Unlike the bare loop, it goes on after an exception: the traceback goes to the
    log and the web server gets a 500, if no head has gone out. Each call has a fresh
    ``contextvars`` context. Reading or writing after an abort raises
    ``RequestAborted`` inside the handler. ``sys.exit(n)`` ends the request with
    app_status ``n``, not the process. The handler's result is ignored.

    With ``threads``, so many requests are served side by side, those of one
    connection, too. ``current_request()``, ``sys.stdin``, ``sys.stdout`` and
    ``sys.stderr`` are each call's own then; ``os.environ`` is the process's: use
    ``request.params``. A thread that serves no request prints into the log.

    Raises:
        ConfigError: ``threads`` is less than 1, or given with ``descriptors``.
        CallSequenceError: ``threads`` is given after the first accept.
    """
    if threads is None:
        process_loop.run(handler, descriptors)
        return
    if threads < 1:
        raise ConfigError("threads", threads, "must be a number from 1 on")
    if descriptors:
        raise ConfigError("descriptors", True, "not possible with threads")
    process_loop.run_threads(handler, threads)


def is_cgi() -> bool:
    """Whether the process is a plain CGI program (FCGX_IsCGI).

    The first call decides, like the first ``accept``: by descriptor 0,
    FCGI_FORCE_CGI, and whether ``listen`` was called.
    """
    return process_loop.is_cgi


def set_exit_status(status: int) -> None:
    """Set what the current request reports as its exit status (FCGI_SetExitStatus(3)).

    The last call counts, and only for this request. In CGI it is the exit status of
    the process, unless that ends by ``sys.exit`` or an exception. Ignored where no
    request is current.

    Raises:
        TypeError: ``status`` is no integer.
    """
    number = index(status)
    request = current_request()
    if request is not None and request is not process_loop.current:
        request.app_status = number
    else:
        process_loop.set_exit_status(number)


def start_filter_data() -> None:
    """Let ``sys.stdin`` give the DATA stream of a filter (FCGI_StartFilterData(3)).

    Raises:
        CallSequenceError: no request is current, it is no filter, DATA has been
            started, or STDIN has not been read to its end. Nothing is lost then.
    """
    request = current_request()
    if request is None:
        raise CallSequenceError("start_filter_data: no request is current")
    request.start_filter_data()


def last_call() -> None:
    """Let the current request be the last: ``accept`` gives False after it.

    What SIGTERM does; may be called from a signal handler or another thread. Requests
    that web servers have already sent on open connections are still served.
    """
    process_loop.stop()


def current_request() -> Request | None:
    """Return the current request, None outside of one.

    With threads, the one of the handler that calls, by a ``contextvars`` variable.
    """
    return process_loop.current or serving.get()


def listen(
    address: str, *, backlog: int = 1024, mode: int | None = None
) -> socket.socket:
    """Open a listening socket and serve on it, whatever descriptor 0 is.

    To be called before the first ``accept``; once for each address. With
    FCGI_FORCE_CGI set nothing is opened, and a closed socket is returned.

    Args:
        address: ``unix:/path``, ``@abstract``, ``host:port``, ``[v6]:port``,
            ``fd:N``, ``systemd``: see ``open_socket``.
        backlog: connections that may wait to be accepted.
        mode: permission bits of a socket file; None: as the umask says.

    Raises:
        ConfigError: the address is malformed.
        OSError: it cannot be had; names it.
    """
    return process_loop.listen(address, backlog, mode)


def configure(**settings: Any) -> None:
    """Change settings by name before the first ``accept``; see ``Settings``.

    They win over the ``FCGI_APP_*`` variables.

    Raises:
        ConfigError: no such setting, or a value that is not of its kind.
        CallSequenceError: ``accept`` has been called already.
    """
    process_loop.configure(**settings)
