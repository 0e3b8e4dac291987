"""The CGI life of a request (RFC 3875): the process's own standard descriptors."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic

from ._log import log_warning
from .body import InputBuffer
from .codec.constants import Role
from .codec.records import Buffer
from .request import Request
from .settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .filepart import FileSource

__all__ = ["CgiChannel", "CgiEnviron", "cgi_request"]

_READ_SIZE = 65536
_LONGEST_WAIT = 1_000_000.0
"""Seconds: poll(2) takes 24 days at most."""


class CgiChannel:
    """Carries the one request of a CGI program over descriptors 0, 1 and 2."""

    def __init__(self) -> None:
        self._left: int | None = None  # bytes of the body to come; None: to the end
        self.stdout = 1
        """Where the response goes; ``descriptors`` changes it."""
        self.stderr = 2

    def expect(self, content_length: int | None) -> None:
        """Set how much of descriptor 0 is the body (RFC 3875 §4.2: no byte more)."""
        self._left = content_length

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Read more of the body; without ``wait`` nothing is known of a CGI request."""
        body: InputBuffer = request._body
        if body.ended or not wait:
            return False
        size = _READ_SIZE if self._left is None else min(_READ_SIZE, self._left)
        data = os.read(0, size) if size else b""
        if self._left is not None:
            self._left -= len(data)
        if data:
            body.append(data, request._settings.spool)
        if not data or self._left == 0:
            request._input_ended()
        return True

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Write to descriptor 1."""
        _write(request, self.stdout, pieces)

    def send_file(
        self, request: Request, pieces: list[Buffer], source: FileSource
    ) -> None:
        """Write to descriptor 1, the file by sendfile(2) where that can be done."""
        _write(request, self.stdout, pieces)
        while source.left and source.error is None:
            if source.by_kernel:
                _write_by_kernel(self.stdout, source)
                continue
            try:
                data = source.read(_READ_SIZE)
            except OSError as error:
                source.fail(error)
            else:
                _write(request, self.stdout, [data])
                source.sent += len(data)

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Write to descriptor 2."""
        _write(request, self.stderr, pieces)

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Write what is left; the end of the process is the end of the request."""
        for descriptor, rest in ((self.stderr, stderr), (self.stdout, stdout)):
            if rest:
                try:
                    _write(request, descriptor, [rest])
                except OSError:
                    request._aborted = True
        self._discard_body(request)

    def _discard_body(self, request: Request) -> None:
        """Read what the application has left of the body, within the linger times.

        A web server that finds nobody reading (mod_cgid) forgets the answer.
        """
        settings = request._settings
        until = monotonic() + (settings.linger_timeout or inf)
        idle = settings.linger_idle * 1000 or None
        poller = select.poll()
        poller.register(0, select.POLLIN)
        while self._left and not request._body.ended and monotonic() < until:
            if not poller.poll(idle):
                return
            try:
                data = os.read(0, min(_READ_SIZE, self._left))
            except OSError:
                return
            if not data:
                return
            self._left -= len(data)

    def refuse(self, request: Request) -> None:
        """Never called: a CGI request does not wait."""

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Wait until nobody reads descriptor 1 any more, where that can be seen."""
        poller = select.poll()
        poller.register(self.stdout, 0)
        wait = None if timeout is None else min(timeout, _LONGEST_WAIT) * 1000
        if poller.poll(wait):
            request.abort()

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called once nobody reads descriptor 1 any more."""
        from .abortwatch import AbortWatch  # and with it threading

        return AbortWatch(self.stdout, 0, callback)

    def detach(self, request: Request) -> None:
        """Nothing to do: the other process has the same descriptors."""

    def hand_over(self, request: Request) -> None:
        """Nothing to do: the other process has the same descriptors."""

    def fileno(self, request: Request, descriptor: int) -> int:
        """Return the descriptor of a standard stream, written up to date."""
        if descriptor == 1:
            request.stdout.flush()
        return descriptor


class CgiEnviron:
    """The environment of a CGI program: it is the request's already, nearly.

    In place of ``environ.EnvironSwap``, which costs each start of a CGI program the
    10 ms of loading ctypes.
    """

    def enter_request(self, request: Request) -> None:
        """Set FCGI_ROLE, and drop HTTP_PROXY, which a client's header has made."""
        os.environ["FCGI_ROLE"] = os.fsdecode(request.params_map[b"FCGI_ROLE"])
        os.environ.pop("HTTP_PROXY", None)

    def leave(self) -> None:
        """Leave it: the process ends with its request."""
        os.environ.pop("FCGI_ROLE", None)


def cgi_request(environ: Mapping[bytes, bytes], settings: Settings) -> Request:
    """Return the request that the environment of a CGI program describes."""
    params = {n: v for n, v in environ.items() if n != b"HTTP_PROXY"}
    channel = CgiChannel()
    request = Request(channel, settings, Role.RESPONDER, 0, params)
    request.dispatched = request.running = True
    channel.expect(request.content_length)
    return request


def _write_by_kernel(descriptor: int, source: FileSource) -> None:
    """Write what ``descriptor`` takes of a file; once it cannot be, not any more."""
    try:
        sent = os.sendfile(descriptor, source.fd, source.position, source.left)
    except BlockingIOError:
        _wait_writable(descriptor)
    except OSError:
        source.by_kernel = False  # reading and writing will tell whose error it is
    else:
        source.left -= sent
        source.sent += sent
        if not sent:
            source.fail_at(source.position)


def _wait_writable(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    poller.poll()


def _write(request: Request, descriptor: int, pieces: list[Buffer]) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                _wait_writable(descriptor)
            except BrokenPipeError:
                request._aborted = True
                raise
            except OSError as error:
                request.app_status = request.app_status or 1
                if descriptor != 2:
                    log_warning("%s: output was lost: %s", request, error)
                raise
