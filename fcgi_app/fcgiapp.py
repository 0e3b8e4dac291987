r"""libfcgi's fcgiapp.h: its names and its results, for many threads.

::

    from threading import Thread
    from fcgi_app.fcgiapp import *

    def serve():
        request = FCGX_Request()
        FCGX_InitRequest(request, 0, 0)
        while FCGX_Accept_r(request) >= 0:
            address = FCGX_GetParam("REMOTE_ADDR", request.envp)
            FCGX_PutS("Content-Type: text/plain\r\n\r\n", request.out)
            FCGX_FPrintF(request.out, "Hello %s\n", address)

    FCGX_Init()
    threads = [Thread(target=serve) for _ in range(20)]
    for thread in threads:
        thread.start()

Nothing here changes ``sys`` or ``os.environ``. A ``FCGX_Request`` and its streams are
for one thread at a time; any number of threads may wait in ``FCGX_Accept_r`` on the
same socket, and what one web server is slow to send or take delays no other request.

Results are C's: 0 or a count for success, a negative number or None (``NULL``) for
failure. What only a mistake in the program can cause raises TypeError, ValueError or
CallSequenceError. ``str`` arguments are encoded as UTF-8 with surrogateescape, bytes
are taken as they are; what is read is bytes, params are ``str``. What C stores through
a pointer is returned:

===================================  ================================================
C                                    here
===================================  ================================================
``request.in``                       ``request.in_``
``FCGX_GetStr(buf, n, s)``           ``data = FCGX_GetStr(n, s)``
``FCGX_GetLine(buf, n, s)``          ``line = FCGX_GetLine(n, s)``; None: at EOF
``FCGX_Accept(&i, &o, &e, &envp)``   ``result, i, o, e, envp = FCGX_Accept()``
``FCGX_VFPrintF(s, format, ap)``     ``FCGX_VFPrintF(s, format, arguments)``
===================================  ================================================

Where a stream is wanted, None fails. A binary stream of a request will do as well:
``request.request.stdout``, and what ``FCGI_ToFcgiStream`` gives. fcgiapp(3)
tells what differs from libfcgi.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING

from ._fcgx_io import (
    EOF,
    FCGX_ClearError,
    FCGX_FClose,
    FCGX_FFlush,
    FCGX_FPrintF,
    FCGX_GetChar,
    FCGX_GetError,
    FCGX_GetLine,
    FCGX_GetStr,
    FCGX_HasSeenEOF,
    FCGX_PutChar,
    FCGX_PutS,
    FCGX_PutStr,
    FCGX_SetExitStatus,
    FCGX_StartFilterData,
    FCGX_UnGetChar,
    FCGX_VFPrintF,
)
from ._fcgx_process import process
from ._fcgx_request import FCGX_Accepted, FCGX_ParamArray, FCGX_Request
from ._fcgx_stream import (
    CALL_SEQ_ERROR,
    PARAMS_ERROR,
    PROTOCOL_ERROR,
    UNSUPPORTED_VERSION,
    FCGX_Stream,
)
from ._log import log_warning

if TYPE_CHECKING:
    import socket

__all__ = [
    "EOF",
    "FCGI_FAIL_ACCEPT_ON_INTR",
    "FCGX_CALL_SEQ_ERROR",
    "FCGX_PARAMS_ERROR",
    "FCGX_PROTOCOL_ERROR",
    "FCGX_UNSUPPORTED_VERSION",
    "FCGX_Accept",
    "FCGX_Accept_r",
    "FCGX_Accepted",
    "FCGX_Attach",
    "FCGX_ClearError",
    "FCGX_Detach",
    "FCGX_FClose",
    "FCGX_FFlush",
    "FCGX_FPrintF",
    "FCGX_Finish",
    "FCGX_Finish_r",
    "FCGX_Free",
    "FCGX_GetChar",
    "FCGX_GetError",
    "FCGX_GetLine",
    "FCGX_GetParam",
    "FCGX_GetStr",
    "FCGX_HasSeenEOF",
    "FCGX_Init",
    "FCGX_InitRequest",
    "FCGX_IsCGI",
    "FCGX_OpenSocket",
    "FCGX_ParamArray",
    "FCGX_PutChar",
    "FCGX_PutS",
    "FCGX_PutStr",
    "FCGX_Request",
    "FCGX_SetExitStatus",
    "FCGX_ShutdownPending",
    "FCGX_StartFilterData",
    "FCGX_Stream",
    "FCGX_UnGetChar",
    "FCGX_VFPrintF",
]

FCGX_UNSUPPORTED_VERSION = UNSUPPORTED_VERSION
FCGX_PROTOCOL_ERROR = PROTOCOL_ERROR
FCGX_PARAMS_ERROR = PARAMS_ERROR
FCGX_CALL_SEQ_ERROR = CALL_SEQ_ERROR

FCGI_FAIL_ACCEPT_ON_INTR = 1
"""Flag of ``FCGX_InitRequest``: a signal that is handled ends ``FCGX_Accept_r``."""

_NOT_INITIALIZED = -9998
_NO_MORE = -9999


_the_request = FCGX_Request()  # of FCGX_Accept and FCGX_Finish


# The process


def FCGX_Init() -> int:
    """Find out what the process is; take the listening socket from descriptor 0.

    To be called once, before ``FCGX_Accept_r``; more calls do nothing. In the main
    thread it has SIGTERM and SIGUSR1, where nobody handles them, do what
    ``FCGX_ShutdownPending`` does; a second one ends the process.

    Returns:
        0.

    Raises:
        ConfigError: a setting of the environment is invalid, or descriptor 0 is a
            socket that is neither listening nor connected.
    """
    process.initialize()
    return 0


def FCGX_IsCGI() -> bool:
    """Whether the process is a CGI program; calls ``FCGX_Init``.

    It is not when descriptor 0 is a listening socket, or ``FCGX_OpenSocket`` has
    opened one.

    Raises:
        ConfigError: as ``FCGX_Init``.
    """
    process.initialize()
    return process.is_cgi


def FCGX_OpenSocket(path: str, backlog: int) -> int:
    """Open a listening socket (``open_socket``), for ``FCGX_InitRequest``.

    Args:
        path: ``/path``, ``unix:path``, ``@abstract``, ``host:port``, ``:port``,
            ``[v6]:port``, ``fd:N``, ``systemd``; without any of ``/ : @`` it is a
            file in the current directory.
        backlog: connections that may wait to be accepted.

    Returns:
        Its descriptor, which belongs to the package; -1: it cannot be had, and the
        log says why; 0 with FCGI_FORCE_CGI, which is CGI's for ``FCGX_InitRequest``.

    Raises:
        ConfigError: the address, or the backlog, is malformed.
    """
    try:
        return process.open_socket(path, backlog)
    except OSError as error:
        log_warning("FCGX_OpenSocket: %s", error)
        return EOF


def FCGX_ShutdownPending() -> None:
    """Take no new request: ``FCGX_Accept_r`` fails when what was sent is served.

    May be called from any thread and from a signal handler.
    """
    process.stop()


# A request


def FCGX_InitRequest(
    request: FCGX_Request, sock: int | socket.socket, flags: int
) -> int:
    """Set where ``request`` comes from.

    Args:
        request: a new one, or one that has been finished.
        sock: a listening socket: the descriptor of ``FCGX_OpenSocket``, or any other
            one, which stays its owner's; 0: what the process was started with.
        flags: 0 or ``FCGI_FAIL_ACCEPT_ON_INTR``.

    Returns:
        0. Whether ``sock`` is of use, ``FCGX_Accept_r`` tells.

    Raises:
        TypeError: ``sock`` or ``flags`` is of another type.
    """
    if isinstance(sock, int):
        request.listen_sock = index(sock)
    elif hasattr(sock, "fileno"):
        request.listen_sock = sock
    else:
        raise TypeError(f"FCGX_InitRequest: {sock!r} is no descriptor and no socket")
    request.flags = index(flags)
    return 0


def FCGX_Accept_r(request: FCGX_Request) -> int:
    """Finish the request before, and wait for the next.

    Many threads may do so at a time, each with a ``FCGX_Request`` of its own. Errors
    of a connection are logged and never reach the caller.

    Returns:
        0: a request is there. Negative: there is none, and nothing to be finished:

        - -9999: there will be no more, after SIGTERM or ``FCGX_ShutdownPending``, or
          since it is CGI's second call;
        - -9998: ``FCGX_Init`` has not been called;
        - an errno with a minus sign: no listening socket (EBADF, ENOTSOCK, EINVAL),
          no descriptor (EMFILE) or thread (EAGAIN) for the work on it; EINTR with
          ``FCGI_FAIL_ACCEPT_ON_INTR``, in the main thread, after a signal.

    Raises:
        CallSequenceError: the socket is 0, and ``accept()`` has that already.
    """
    if not process.initialized:
        return _NOT_INITIALIZED
    FCGX_Finish_r(request)
    sock = request.listen_sock
    descriptor = sock if isinstance(sock, int) else sock.fileno()
    interruptible = bool(request.flags & FCGI_FAIL_ACCEPT_ON_INTR)
    try:
        found = process.next_request(descriptor, interruptible=interruptible)
    except InterruptedError:
        return -errno.EINTR
    except (OSError, RuntimeError) as error:
        log_warning("FCGX_Accept_r: socket %d: %s", descriptor, error)
        return -(getattr(error, "errno", None) or errno.EAGAIN)
    if found is None:
        return _NO_MORE
    request.take(found)
    return 0


def FCGX_Finish_r(request: FCGX_Request | None) -> None:
    """Send what is left and end the request; does nothing without one.

    Afterwards streams and params are None. Errors are ignored: ``FCGX_FClose`` tells.
    """
    if request is not None and request.request is not None:
        found = request.request
        request.let_go()
        try:
            found.finish()
        finally:
            process.ended(found)


def FCGX_Free(request: FCGX_Request | None, close: bool) -> None:
    """Give a request up; does nothing without one.

    Args:
        request: what was not sent yet is lost, and it is not ended properly.
        close: its connection is closed, and other requests on it are lost with it.
            Without that the web server is told the end, as it must be before its
            connection can bring another request: ``FCGX_Finish_r``.
    """
    if request is not None and request.request is not None:
        if close:
            request.request._detached = True  # what goes to nobody is not sent
        FCGX_Finish_r(request)


def FCGX_Accept() -> FCGX_Accepted:
    """``FCGX_Accept_r`` for programs with one thread; calls ``FCGX_Init``.

    The socket is what the process was started with. Streams and params are those of
    the request until the next call.

    Raises:
        ConfigError: as ``FCGX_Init``.
        CallSequenceError: as ``FCGX_Accept_r``.
    """
    process.initialize()
    result = FCGX_Accept_r(_the_request)
    return FCGX_Accepted(
        result,
        _the_request.in_,
        _the_request.out,
        _the_request.err,
        _the_request.envp,
    )


def FCGX_Finish() -> None:
    """``FCGX_Finish_r`` for the request of ``FCGX_Accept``."""
    FCGX_Finish_r(_the_request)


def FCGX_Detach(request: FCGX_Request) -> int:
    """Leave the answer to a child that will be forked (``Request.detach``).

    What has been written is sent. ``FCGX_Finish_r`` then sends nothing in this
    process; the child calls ``FCGX_Attach``, answers, and finishes.

    Returns:
        0; -1: there is no request.
    """
    if request.request is None:
        return EOF
    request.request.detach()
    return 0


def FCGX_Attach(request: FCGX_Request) -> int:
    """Take over, in a forked child, what the parent has detached. Returns 0."""
    found = request.request
    if found is not None and found._detached:
        found.attach()
        process.adopt(found)
    return 0


def FCGX_GetParam(
    name: str, envp: FCGX_ParamArray | Iterable[str] | None
) -> str | None:
    """Return a param of ``envp``; None if there is none of that name, or no ``envp``.

    Undecodable bytes are surrogates, as in ``os.environ``. Any list of
    ``"NAME=value"`` will do: the first of a name counts.
    """
    if envp is None:
        return None
    if isinstance(envp, FCGX_ParamArray):
        return envp.get(name)
    start = name + "="
    for string in envp:
        if string.startswith(start):
            return string[len(start) :]
    return None
