"""The process-wide loop: accept, swap the process's globals, finish.

The only writer of ``sys.std*`` and the only caller of ``environ`` are here, in the
one ``Loop`` of the process that the functions below work on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from operator import index
from stat import S_ISSOCK
from typing import TYPE_CHECKING, Any

from ._log import log_info
from .errors import CallSequenceError, RequestAborted
from .hooks import ProcessHooks
from .inherited import forces_cgi, inherited_listener, plug_standard_descriptors
from .request import Request
from .settings import Settings
from .textio import TextIn, TextOut

if TYPE_CHECKING:
    import socket

    from .acceptor import Acceptor
    from .cgi import CgiEnviron
    from .descriptors import RequestDescriptors
    from .environ import EnvironSwap

__all__ = [
    "Loop",
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


class Loop:
    """One request at a time, in the process's own standard streams and environment.

    Its life: nothing, until the first ``accept`` finds out whether the process is
    FastCGI or CGI; then requests; then the end, which puts everything back.
    """

    def __init__(self) -> None:
        self._listeners: list[socket.socket] = []
        self._changes: dict[str, Any] = {}
        self._settings: Settings | None = None
        self._started = False
        self._cgi = False
        self._cgi_served = False
        self._over = False
        self._acceptor: Acceptor | None = None
        self._swap: EnvironSwap | CgiEnviron | None = None
        self._descriptors: RequestDescriptors | None = None
        self._texts: tuple[TextIn, TextOut, TextOut] | None = None
        self._originals: tuple[Any, Any, Any] = (None, None, None)
        self._hooks = ProcessHooks(self)
        self._pid = os.getpid()
        self.current: Request | None = None
        self.before_swap: list[Callable[[], object]] = []
        """Called before the streams change hands: a request is to begin, or to end."""

    # What the life is

    def configure(self, **changes: Any) -> None:
        """Change settings before the first accept (``Settings.changed``)."""
        if self._started:
            raise CallSequenceError("configure: accept has been called already")
        Settings().changed(**changes)  # a wrong one is told here and now
        self._changes.update(changes)

    def listen(self, address: str, backlog: int, mode: int | None) -> socket.socket:
        """Serve on a socket of the script's own; there may be several."""
        if self._started:
            raise CallSequenceError("listen: accept has been called already")
        from .sockets import open_socket

        listener = open_socket(address, backlog=backlog, mode=mode)
        self._listeners.append(listener)
        self.install_streams()
        return listener

    def start(self) -> None:
        """Find out what the process is, once."""
        if self._started:
            return
        plug_standard_descriptors()
        self._settings = Settings.from_environ(os.environ).changed(**self._changes)
        forced = forces_cgi(os.environ)
        listeners = [] if forced else self._listeners
        if not listeners and not forced:
            inherited = inherited_listener()
            listeners = [inherited] if inherited is not None else []
        if listeners:
            self._start_fastcgi(listeners)
        else:
            for unused in self._listeners:
                unused.close()
            self._start_cgi()
        self._started = True
        self._hooks.install()

    def _start_fastcgi(self, listeners: list[socket.socket]) -> None:
        from .acceptor import Acceptor

        assert self._settings is not None
        admits = None
        if os.environ.get("FCGI_WEB_SERVER_ADDRS"):
            from .access import WebServerAddrs

            addresses = WebServerAddrs.parse(os.environ["FCGI_WEB_SERVER_ADDRS"])
            admits = addresses.allows if addresses is not None else None
        release = self._release_own if self._listeners else None
        self._acceptor = Acceptor(listeners, self._settings, admits, release)
        from .environ import EnvironSwap

        self._swap = EnvironSwap(replace=self._settings.replace_environ)

    def _start_cgi(self) -> None:
        from .cgi import CgiEnviron

        self._cgi = True
        self._swap = CgiEnviron()

    def _release_own(self, listener: socket.socket) -> None:
        """Close a socket that ``listen`` opened, and remove its file if it is ours."""
        from .sockets import remove_socket_file

        if self.owns_process():
            remove_socket_file(listener)
        listener.close()

    @property
    def is_cgi(self) -> bool:
        """Whether the process is a CGI program."""
        self.start()
        return self._cgi

    @property
    def acceptor(self) -> Acceptor | None:
        """The connections, if the process is FastCGI and has started."""
        return self._acceptor

    # The loop

    def accept(self, timeout: float | None, descriptors: bool | None) -> bool:
        """Finish the request before, wait for the next, make the process its own."""
        if self.current is not None:
            self.finish()
        if not self._started:
            if descriptors is not None and not self._over:
                self._changes["descriptors"] = descriptors
            self.start()
        if self._over:
            return False
        request = self._next(timeout)
        if request is None:
            self._end()
            return False
        self._enter(request)
        return True

    def _next(self, timeout: float | None) -> Request | None:
        if self._acceptor is not None:
            return self._acceptor.next_request(timeout)
        if not self.owns_process():
            return None
        if not self._cgi or self._cgi_served:
            return None
        from .cgi import cgi_request

        assert self._settings is not None
        self._cgi_served = True
        return cgi_request(dict(os.environb), self._settings)

    def _enter(self, request: Request) -> None:
        """Make the process's globals those of ``request``."""
        if self._texts is None:
            self.install_streams()
        assert self._texts is not None
        assert self._swap is not None
        for settle in self.before_swap:
            settle()
        self.current = request
        request.host = self
        self._swap.enter(request.params_map)
        streams: Request | RequestDescriptors = request
        if request.owns_descriptors:
            from .descriptors import RequestDescriptors

            streams = self._descriptors = RequestDescriptors(request)
        for text in self._texts:
            text.bind(streams)
        sys.stdin, sys.stdout, sys.stderr = self._texts

    def finish(self) -> None:
        """End the current request, if there is one, and give the process back."""
        if self.current is not None:
            self.current.finish()

    def request_ending(self, request: Request) -> None:
        """Take back the descriptors; close the listeners if this is the last request.

        A web server sends its next request to a process of its own as soon as it has
        the end of this one: it must not find one that is about to go.
        """
        for settle in self.before_swap:
            settle()
        if self._descriptors is not None:
            owned, self._descriptors = self._descriptors, None
            owned.leave()
        if self._acceptor is not None and self._acceptor.stopping:
            self._acceptor.retire()

    def request_ended(self, request: Request) -> None:
        """Give the process its own streams and environment back."""
        if self.current is request:
            self.current = None
        assert self._texts is not None
        assert self._swap is not None
        for text in self._texts:
            text.bind(None)
        self._swap.leave()
        if request.is_cgi:
            self._hooks.exit_status = request.app_status

    def start_filter_data(self) -> None:
        """Let ``sys.stdin``, and descriptor 0 if it is the request's, give DATA."""
        if self.current is None:
            raise CallSequenceError("start_filter_data: no request is current")
        self.current.start_filter_data()
        if self._descriptors is not None:
            self._descriptors.start_filter_data()

    def run(
        self, handler: Callable[[Request], object], descriptors: bool | None
    ) -> None:
        """Call ``handler`` for each request, in a fresh context, until told to stop."""
        from contextvars import copy_context

        while self.accept(None, descriptors):
            request = self.current
            assert request is not None
            request.strict = True
            try:
                copy_context().run(handler, request)
            except RequestAborted as reason:
                log_info("%s: %s", request, reason)
            except SystemExit as leaving:
                request.app_status = exit_status_of(leaving.code)
            except BaseException as error:
                self.failed(type(error), error, error.__traceback__)
                if not isinstance(error, Exception):
                    raise
            self.finish()

    def failed(self, kind: Any, error: Any, traceback: Any) -> None:
        """Tell the log of an exception in the current request, and answer 500."""
        request = self.current
        if request is None:
            return
        from traceback import format_exception

        request.strict = False
        request.fail()
        sys.stderr.write("".join(format_exception(kind, error, traceback)))

    def _end(self) -> None:
        """No request will come any more: put everything back."""
        self._over = True
        self._hooks.remove()
        self.remove_streams()

    # The standard streams

    def stream(self, descriptor: int) -> Any:
        """Return what ``sys.stdin`` (0), ``stdout`` (1) or ``stderr`` (2) follows.

        A binary stream of the current request; None outside of one.
        """
        if self.current is None:
            return None
        owner = self._descriptors or self.current
        return getattr(owner, ("stdin", "stdout", "stderr")[descriptor])

    @property
    def started(self) -> bool:
        """Whether it has been found out what the process is."""
        return self._started

    def install_streams(self) -> None:
        """Put the permanent streams in place of the process's own."""
        if self._texts is not None:
            return
        self._originals = (sys.stdin, sys.stdout, sys.stderr)
        self._texts = (
            TextIn(),
            TextOut("stdout", sys.stdout),
            TextOut("stderr", sys.stderr),
        )
        sys.stdin, sys.stdout, sys.stderr = self._texts

    def remove_streams(self) -> None:
        """Put the process's own streams back where ours are still in place."""
        if self._texts is None:
            return
        for name, ours, own in zip(
            ("stdin", "stdout", "stderr"), self._texts, self._originals, strict=True
        ):
            if getattr(sys, name) is ours:
                setattr(sys, name, own)

    # For the hooks

    def owns_process(self) -> bool:
        """Whether this is the process that the loop runs in, and no fork of it."""
        return self._pid == os.getpid()

    def stop(self) -> None:
        """Let the current request finish and take no new one; signal-safe."""
        if self._acceptor is not None:
            self._acceptor.stop()

    def at_exit(self, app_status: int | None) -> None:
        """End what is current and close every connection well: the process ends."""
        acceptor = self._acceptor
        if acceptor is not None:
            acceptor.retire()
        if self.current is not None:
            if app_status is not None:
                self.current.app_status = app_status
            self.finish()
        if acceptor is not None:
            acceptor.refuse_waiting()
            acceptor.shut_down()

    def after_fork(self) -> None:
        """In a forked child: the parent's request and connections are not ours."""
        request, self.current = self.current, None
        keep: Any = None
        if request is not None and request._detached:
            self.current = request
            self._pid = os.getpid()
            keep = request._channel
        elif request is not None:
            request.forget_output()
            if self._texts is not None:
                for text in self._texts:
                    text.bind(None)
        if self._acceptor is not None:
            self._acceptor.abandon(keep)


def exit_status_of(code: object) -> int:
    """Return the exit status that ``SystemExit(code)`` gives a process."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def _is_started_by_web_server() -> bool:
    """Whether this looks like the start of a CGI or FastCGI process."""
    try:
        return "GATEWAY_INTERFACE" in os.environ or S_ISSOCK(os.fstat(0).st_mode)
    except OSError:
        return False


_loop = Loop()
if _is_started_by_web_server():
    # Now, so that streams which the application takes hold of early are ours.
    _loop.install_streams()


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
    return _loop.accept(timeout, descriptors)


def finish() -> None:
    """End the current request now, before the next accept (FCGI_Finish(3)).

    Afterwards the streams and the environment are the process's own. Does nothing
    where there is no current request.
    """
    _loop.finish()


def requests(*, descriptors: bool | None = None) -> Iterator[Request]:
    """Iterate over the requests: ``accept``, with each request at hand."""
    while _loop.accept(None, descriptors):
        assert _loop.current is not None
        yield _loop.current


def run(
    handler: Callable[[Request], object], *, descriptors: bool | None = None
) -> None:
    """Call ``handler(request)`` for each request until there are no more.

    Unlike the bare loop, it goes on after an exception: the traceback goes to the
    log and the web server gets a 500, if no head has gone out. Each call has a fresh
    ``contextvars`` context. Reading or writing after an abort raises
    ``RequestAborted`` inside the handler. ``sys.exit(n)`` ends the request with
    app_status ``n``, not the process. The handler's result is ignored.
    """
    _loop.run(handler, descriptors)


def is_cgi() -> bool:
    """Whether the process is a plain CGI program (FCGX_IsCGI).

    The first call decides, like the first ``accept``: by descriptor 0,
    FCGI_FORCE_CGI, and whether ``listen`` was called.
    """
    return _loop.is_cgi


def set_exit_status(status: int) -> None:
    """Set what the current request reports as its exit status (FCGI_SetExitStatus(3)).

    The last call counts, and only for this request. In CGI it is the exit status of
    the process, unless that ends by ``sys.exit`` or an exception. Ignored where no
    request is current.

    Raises:
        TypeError: ``status`` is no integer.
    """
    number = index(status)
    if _loop.current is not None:
        _loop.current.app_status = number


def start_filter_data() -> None:
    """Let ``sys.stdin`` give the DATA stream of a filter (FCGI_StartFilterData(3)).

    Raises:
        CallSequenceError: no request is current, it is no filter, DATA has been
            started, or STDIN has not been read to its end. Nothing is lost then.
    """
    _loop.start_filter_data()


def last_call() -> None:
    """Let the current request be the last: ``accept`` gives False after it.

    What SIGTERM does; may be called from a signal handler or another thread. Requests
    that web servers have already sent on open connections are still served.
    """
    _loop.stop()


def current_request() -> Request | None:
    """Return the current request, None outside of one."""
    return _loop.current


def listen(
    address: str, *, backlog: int = 1024, mode: int | None = None
) -> socket.socket:
    """Open a listening socket and serve on it, whatever descriptor 0 is.

    To be called before the first ``accept``; once for each address. Ignored, and the
    socket closed, when FCGI_FORCE_CGI is set.

    Args:
        address: ``unix:/path``, ``@abstract``, ``host:port``, ``[v6]:port``,
            ``fd:N``, ``systemd``: see ``open_socket``.
        backlog: connections that may wait to be accepted.
        mode: permission bits of a socket file; None: as the umask says.

    Raises:
        ConfigError: the address is malformed.
        OSError: it cannot be had; names it.
    """
    return _loop.listen(address, backlog, mode)


def configure(**settings: Any) -> None:
    """Change settings by name before the first ``accept``; see ``Settings``.

    They win over the ``FCGI_APP_*`` variables.

    Raises:
        ConfigError: no such setting, or a value that is not of its kind.
        CallSequenceError: ``accept`` has been called already.
    """
    _loop.configure(**settings)
