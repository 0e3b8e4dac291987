"""Requests side by side: ``Server``, and the threads that ``run`` serves with."""

from __future__ import annotations

import os
import socket
import sys
from threading import Lock, Thread, current_thread
from types import TracebackType

from ._log import log_exception
from .access import admission
from .calling import Handler, call
from .errors import CallSequenceError, ConfigError
from .following import install, remove
from .inherited import inherited_listener
from .settings import Settings
from .sockets import bound_address, open_socket, remove_socket_file
from .threaded import ThreadedAcceptor
from .watching import Watcher, open_log, watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .watching import Source

__all__ = ["Server", "serve_threads"]


def serve_threads(
    acceptor: ThreadedAcceptor, source: Source, handler: Handler, threads: int
) -> None:
    """Call ``handler`` for the requests of ``source``, in so many threads.

    ``source`` gives those of ``acceptor``.
    Returns when the acceptor has been stopped and all is served. An exception of a
    signal handler stops it as well; running requests have ``linger_timeout`` then.

    Raises:
        RuntimeError: there can be no more threads; nothing is served.
    """
    workers = _start_threads(acceptor, source, handler, threads)
    try:
        acceptor.wait()
        for worker in workers:
            worker.join()
    except BaseException:  # Ctrl-C: what has begun is to end well
        acceptor.shut_down()
        raise


def _start_threads(
    acceptor: ThreadedAcceptor, source: Source, handler: Handler, threads: int
) -> list[Thread]:
    workers: list[Thread] = []
    acceptor.start()
    try:
        for number in range(threads):
            worker = Thread(
                target=_work,
                args=(source, handler),
                name=f"fcgi_app {number}",
                daemon=True,
            )
            worker.start()
            workers.append(worker)
    except BaseException:  # there can be no more threads, or Ctrl-C
        acceptor.shut_down()
        raise
    return workers


def _work(source: Source, handler: Handler) -> None:
    """Serve one request after the other; whatever happens in one, the next comes."""
    while (request := source.next_request()) is not None:
        try:
            call(handler, request)
        except BaseException:  # noqa: BLE001 - it has been logged with the request
            pass
        try:
            request.finish()
        except BaseException:  # noqa: BLE001 - of a callback; the thread goes on
            log_exception("%s: its end failed", request)
        del request  # while we wait for the next, nothing is to be left of it


class Server:
    """A FastCGI server inside a Python program: its own socket, many threads.

    ::

        def hello(request):
            request.stdout.write(b"Content-Type: text/plain\\r\\n\\r\\nHello\\n")

        with fcgi_app.Server("127.0.0.1:9000", hello, threads=8) as server:
            server.wait()

    Within ``handler``, ``current_request()``, ``sys.stdin``, ``sys.stdout`` and
    ``sys.stderr`` are those of its request; ``os.environ`` is the process's: use
    ``request.params``. Exceptions are dealt with as ``run`` does it. The process's
    signals are its own: call ``stop`` from a handler of yours.

    Args:
        address: where to listen: a form that ``open_socket`` takes, or a listening
            socket, which the server owns from then on; None: descriptor 0.
        handler: called with each ``Request``, in one of the threads.
        threads: requests that are served at the same time.
        backlog: connections that may wait to be accepted.
        mode: permission bits of a socket file; None: as the umask says.
        settings: see ``Settings``; they win over the ``FCGI_APP_*`` variables.

    Raises:
        ConfigError: the address or a setting is invalid, or there is no socket.
        OSError: the address cannot be had, or the access log.
    """

    def __init__(
        self,
        address: str | socket.socket | None,
        handler: Handler,
        *,
        threads: int = 8,
        backlog: int = 1024,
        mode: int | None = None,
        **settings: Any,
    ) -> None:
        if threads < 1:
            raise ConfigError("threads", threads, "must be a number from 1 on")
        chosen = Settings.from_environ(os.environ).changed(**settings)
        if chosen.descriptors:
            raise ConfigError("descriptors", True, "not possible with threads")
        admits = admission(os.environ)
        self._log = open_log(chosen)
        self._handler = handler
        self._threads = threads
        self._workers: list[Thread] = []
        self._pid = os.getpid()
        self._closed = False
        release = None
        if isinstance(address, socket.socket):
            listener = address
        elif address is not None:
            listener = open_socket(address, backlog=backlog, mode=mode)
            release = self._release
        else:
            inherited = inherited_listener()
            if inherited is None:
                raise ConfigError("address", None, "descriptor 0 is no socket")
            listener = inherited
        self.socket = listener
        """The listening socket."""
        try:
            self._acceptor = ThreadedAcceptor([listener], chosen, admits, release)
        except BaseException:
            (release or socket.socket.close)(listener)
            raise
        self._source = watched(self._acceptor, self.stop, self._log, threads=threads)
        self._closing = Lock()

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system has chosen."""
        return bound_address(self.socket)

    def start(self) -> None:
        """Start the threads; returns at once.

        Raises:
            CallSequenceError: it has been started before.
            RuntimeError: there can be no more threads.
        """
        if self._workers or self._closed:
            raise CallSequenceError("start: the server has been started before")
        install(sys.stderr)
        try:
            self._workers = _start_threads(
                self._acceptor, self._source, self._handler, self._threads
            )
        except BaseException:
            remove()
            raise

    def wait(self) -> None:
        """Wait until the server has been stopped and all is served."""
        for worker in self._workers:
            worker.join()

    def serve_forever(self) -> None:
        """Start, and wait until ``stop`` is called."""
        with self:
            self.wait()

    def stop(self) -> None:
        """Take no new connection; let what has been asked be served. Signal-safe."""
        self._acceptor.stop()

    def close(self) -> None:
        """Stop, wait until all is served, and close; idempotent.

        Raises:
            CallSequenceError: a handler calls it, which would wait for itself.
        """
        if current_thread() in self._workers:
            raise CallSequenceError("close: called by a handler; call stop there")
        self._acceptor.stop()
        self.wait()
        self._acceptor.shut_down()
        with self._closing:  # by one thread only
            if self._workers and not self._closed:
                remove()
            if isinstance(self._source, Watcher):
                self._source.close()
            if self._log is not None:
                self._log.close()
            self._closed = True

    def _release(self, listener: socket.socket) -> None:
        if self._pid == os.getpid():
            remove_socket_file(listener)
        listener.close()

    def __enter__(self) -> Server:
        if not self._workers:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
