"""The loop of the process: one request at a time, in the process's own globals.

The only writer of ``sys.std*`` and the only caller of ``environ``. There is one
``Loop`` in a process, ``process_loop``; ``stdio`` and ``fcgi_stdio`` are its faces.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ._log import log_exception, log_warning
from .errors import CallSequenceError, ConfigError
from .hooks import ProcessHooks
from .inherited import (
    forces_cgi,
    inherited_listener,
    is_started_by_web_server,
    plug_standard_descriptors,
)
from .request import Request
from .settings import Settings
from .textio import TextIn, TextOut
from .watching import open_log, watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from .acceptor import Acceptor
    from .accesslog import AccessLog
    from .cgi import CgiEnviron
    from .environ import EnvironSwap
    from .shortcut import Shortcut
    from .watching import Source

__all__ = ["Loop", "process_loop"]


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
        self._source: Source | None = None
        self._log: AccessLog | None = None
        self._swap: EnvironSwap | CgiEnviron | None = None
        self._threaded = False
        self._stop_asked = False
        self._texts: tuple[TextIn, TextOut, TextOut] | None = None
        self._originals: tuple[Any, Any, Any] = (None, None, None)
        self.hooks = ProcessHooks(self)
        self._pid = os.getpid()
        self._listening_pid = 0  # of the process that opened our own sockets
        self._current: Request | None = None
        self._shortcut: Shortcut | None = None
        self.step: Callable[[], bool] = _no_step
        """Ends a request and begins the next, if both are usual (`Shortcut.step`)."""
        self._before_swap: list[Callable[[], object]] = []

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
            raise CallSequenceError("listen: accept has been called already, or is_cgi")
        from .sockets import open_socket, parse_address

        if forces_cgi(os.environ):
            parse_address(address)  # a malformed one is told all the same
            return _closed_socket()
        listener = open_socket(address, backlog=backlog, mode=mode)
        self._listeners.append(listener)
        self._listening_pid = os.getpid()
        self.install_streams()
        return listener

    def start(self) -> None:
        """Find out what the process is, once."""
        if self._started:
            return
        from . import _backend  # noqa: F401 - an impossible choice is told now

        plug_standard_descriptors()
        self._settings = Settings.from_environ(os.environ).changed(**self._changes)
        listeners = self._listeners
        if not listeners:
            inherited = inherited_listener()
            listeners = [inherited] if inherited is not None else []
        if listeners:
            self._start_fastcgi(listeners)
        else:
            self._start_cgi()
        self._pid = os.getpid()  # a fork may have come before
        self._started = True
        self.hooks.install()
        if self._stop_asked:
            self.stop()

    def _start_fastcgi(self, listeners: list[socket.socket]) -> None:
        assert self._settings is not None
        self._log = open_log(self._settings)
        admits = None
        if os.environ.get("FCGI_WEB_SERVER_ADDRS"):  # else the module is not loaded
            from .access import admission

            admits = admission(os.environ)
        release = self._release_own if self._listeners else None
        if self._threaded:
            from .threaded import ThreadedAcceptor

            if self._settings.descriptors:
                raise ConfigError("descriptors", True, "not possible with threads")
            self._acceptor = ThreadedAcceptor(
                listeners, self._settings, admits, release
            )
            return  # run_threads knows how many requests there may be
        from .twins import choose, open_shortcut

        acceptor_class, swap_class = choose()
        self._acceptor = acceptor_class(listeners, self._settings, admits, release)
        self._source = watched(
            self._acceptor,
            self.stop,
            self._log,
            owns_stderr=not self._settings.descriptors,
        )
        self._swap = swap_class(replace=self._settings.replace_environ)
        if not self._before_swap:
            self._shortcut = open_shortcut(
                self, self._acceptor, self._source, self._swap, self._settings
            )
            if self._shortcut is not None:
                self.step = self._shortcut.step

    def _start_cgi(self) -> None:
        from .cgi import CgiEnviron

        self._cgi = True
        self._swap = CgiEnviron()

    def _release_own(self, listener: socket.socket) -> None:
        """Close a socket that ``listen`` opened, and remove its file if it is ours."""
        from .sockets import remove_socket_file

        if self._listening_pid == os.getpid():
            remove_socket_file(listener)
        listener.close()

    @property
    def current(self) -> Request | None:
        """The current request; None outside of one."""
        if self._shortcut is not None:
            self._shortcut.promote()
        return self._current

    @current.setter
    def current(self, request: Request | None) -> None:
        self._current = request

    @property
    def is_busy(self) -> bool:
        """Whether a request is current that has got its ``Request``."""
        return self._current is not None

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
        while self.current is not None:  # a callback may have accepted another one
            self.finish()
        if timeout is None and self.step():
            return True
        if not self._started:
            if descriptors is not None and not self._over:
                self._changes["descriptors"] = descriptors
            self.start()
        while not self._over:
            request = self._next(timeout)
            if request is None:
                self._end()
            elif self._enter(request):
                return True
        return False

    def _next(self, timeout: float | None) -> Request | None:
        if self._source is not None:
            if self._shortcut is not None:
                self._shortcut.give_back()
            return self._source.next_request(timeout)
        if not self.owns_process():
            return None
        if not self._cgi or self._cgi_served:
            return None
        from .cgi import cgi_request

        assert self._settings is not None
        self._cgi_served = True
        return cgi_request(dict(os.environb), self._settings)

    def _enter(self, request: Request) -> bool:
        """Make the process's globals those of ``request``; False: it cannot be."""
        if self._texts is None:
            self.install_streams()
        assert self._texts is not None
        assert self._swap is not None
        for settle in self._before_swap:
            settle()
        self._current = request
        request.host = self
        self.hooks.leaving = None
        self._swap.enter_request(request)
        for text in self._texts:
            text.bind(request)
        sys.stdin, sys.stdout, sys.stderr = self._texts
        return not request.owns_descriptors or self._give_descriptors(request)

    def _give_descriptors(self, request: Request) -> bool:
        """Let descriptors 0 to 2 be the request's; answer 500 where they cannot."""
        from .descriptors import RequestDescriptors

        try:
            request.descriptors = RequestDescriptors(request)
        except (OSError, RuntimeError) as error:  # of files and pipes, of a thread
            log_warning("%s: no descriptors for it: %s", request, error)
            request.fail()
            self.finish()
            return False
        return True

    def finish(self) -> None:
        """End the current request, if there is one, and give the process back."""
        request = self.current
        if request is not None:
            request.finish()

    def request_ending(self, request: Request) -> None:
        """Take back the descriptors; close the listeners if this is the last request.

        A web server sends its next request to a process of its own as soon as it has
        the end of this one: it must not find one that is about to go.
        """
        for settle in self._before_swap:
            settle()
        assert self._texts is not None
        if sys.stdout is not self._texts[1] or sys.stderr is not self._texts[2]:
            self._flush_replaced()
        if request.descriptors is not None:
            owned, request.descriptors = request.descriptors, None
            owned.leave()
        if self._acceptor is not None and self._acceptor.stopping:
            self._acceptor.retire()

    def _flush_replaced(self) -> None:
        """Flush what the application has put in place of sys.stdout and sys.stderr.

        ``sys.stdout = io.TextIOWrapper(sys.stdout.buffer, ...)`` is common in CGI,
        where the end of the process flushes it.
        """
        assert self._texts is not None
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and stream not in self._texts:
                try:
                    stream.flush()
                except Exception:  # noqa: BLE001 - any object may stand there
                    log_exception("%r could not be flushed", stream)

    def request_ended(self, request: Request) -> None:
        """Give the process its own streams and environment back."""
        if self._current is request:
            self._current = None
        assert self._texts is not None
        assert self._swap is not None
        for text in self._texts:
            text.bind(None)
        self._swap.leave()
        if request.is_cgi:
            self.hooks.exit_status = request.app_status

    def start_filter_data(self) -> None:
        """Let ``sys.stdin``, and descriptor 0 if it is the request's, give DATA."""
        if self.current is None:
            raise CallSequenceError("start_filter_data: no request is current")
        self.current.start_filter_data()

    def set_exit_status(self, status: int) -> None:
        """Set the app_status; a ``sys.exit`` that somebody has caught is forgotten."""
        if self.current is not None:
            self.current.app_status = status
            self.hooks.leaving = None

    def run(
        self, handler: Callable[[Request], object], descriptors: bool | None
    ) -> None:
        """Call ``handler`` for each request, in a fresh context, until told to stop."""
        from .calling import call

        while self.accept(None, descriptors):
            request = self.current
            assert request is not None
            try:
                call(handler, request)
            except BaseException:
                self.finish()
                raise
            self.hooks.leaving = None
            self.finish()

    def run_threads(self, handler: Callable[[Request], object], threads: int) -> None:
        """Serve requests side by side, each in one of so many threads.

        In CGI there is only one request.
        """
        if self._started:
            raise CallSequenceError(
                "run with threads: accept has been called already, or is_cgi"
            )
        self._threaded = True
        self.start()
        if self._cgi:
            self.run(handler, None)
            return
        from .following import install, remove
        from .server import serve_threads
        from .threaded import ThreadedAcceptor

        assert isinstance(self._acceptor, ThreadedAcceptor)
        source = watched(self._acceptor, self.stop, self._log, threads=threads)
        self.remove_streams()
        early = self._texts[1:] if self._texts is not None else ()
        install(self._originals[2] if early else sys.stderr)
        for text, following in zip(early, (sys.stdout, sys.stderr), strict=False):
            text.fall_back(following)  # whoever took hold of it early, follows, too
        try:
            serve_threads(self._acceptor, source, handler, threads)
        finally:
            remove()
            for text, own in zip(early, self._originals[1:], strict=False):
                text.fall_back(own)
            self._end()
            if self.owns_process():
                self._acceptor.shut_down()

    def _end(self) -> None:
        """No request will come any more: put everything back."""
        self._over = True
        self.hooks.remove()
        self.remove_streams()

    # The standard streams

    def stream(self, descriptor: int) -> Any:
        """Return what ``sys.stdin`` (0), ``stdout`` (1) or ``stderr`` (2) follows.

        A binary stream of the current request; None outside of one.
        """
        if self.current is None:
            return None
        return getattr(self.current, ("stdin", "stdout", "stderr")[descriptor])

    @property
    def started(self) -> bool:
        """Whether it has been found out what the process is."""
        return self._started

    def settle_with(self, settle: Callable[[], object]) -> None:
        """Have ``settle`` called before the streams change hands, from now on.

        They do so when a request is to begin, and when it is to end.
        """
        self._before_swap.append(settle)
        self.step = _no_step  # which does not call it

    def take_long_way(self) -> None:
        """Let no request take the short way any more; for any thread."""
        self.step = _no_step
        if self._shortcut is not None:
            self._shortcut.promote()  # or give_back, when it has woken up
        if self._acceptor is not None:
            self._acceptor.wake()

    def install_streams(self) -> tuple[TextIn, TextOut, TextOut]:
        """Put the permanent streams in place of the process's own; return them."""
        if self._texts is not None:
            return self._texts
        self._originals = (sys.stdin, sys.stdout, sys.stderr)
        self._texts = (
            TextIn(),
            TextOut("stdout", sys.stdout),
            TextOut("stderr", sys.stderr),
        )
        sys.stdin, sys.stdout, sys.stderr = self._texts
        self.hooks.watch_exit()
        return self._texts

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
        self._stop_asked = True
        self.step = _no_step  # which does not look whether it is to stop
        if self._acceptor is not None:
            self._acceptor.stop()

    def at_exit(self, app_status: int | None) -> None:
        """End what is current and close every connection well: the process ends."""
        acceptor = self._acceptor
        if self._threaded:
            if acceptor is not None:
                acceptor.shut_down()
            return
        if acceptor is not None:
            acceptor.retire()
        if self.current is not None:
            if app_status is not None:
                self.current.app_status = app_status
            self.finish()
        if acceptor is not None:
            acceptor.refuse_waiting()
            acceptor.shut_down()
        else:
            for listener in self._listeners:
                self._release_own(listener)

    def after_fork(self) -> None:
        """In a forked child: the parent's request and connections are not ours."""
        if self._shortcut is not None:
            self._shortcut.forget()
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
        if self._acceptor is not None and not self._threaded:  # which sees to it itself
            self._acceptor.abandon((keep,) if keep is not None else ())


def _no_step() -> bool:
    """There is no short way."""
    return False


def _closed_socket() -> socket.socket:
    import socket

    with socket.socket(socket.AF_UNIX) as unused:
        return unused


process_loop = Loop()
if is_started_by_web_server():
    # Now, so that streams which the application takes hold of early are ours.
    process_loop.install_streams()
