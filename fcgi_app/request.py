"""One request: its params, its streams, its answer, and its resource pool.

A ``Request`` knows nothing of sockets or of ``sys``: a ``Channel`` carries its
bytes, which is a FastCGI connection (``transport``) or the process's own standard
descriptors (``cgi``). What it was asked is in ``asked``; here are its streams, how it
goes and how it ends.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from os import getpid, register_at_fork

from ._log import log_exception, log_warning
from .asked import Asked
from .body import NO_INPUT, InputBuffer
from .codec.constants import Role
from .errors import CallSequenceError, RequestAborted
from .streams import BodyReader, StderrStream, StdoutStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, BinaryIO, TypeVar

    from .channel import Channel, DescriptorStreams, Host, Observer
    from .codec.records import Buffer
    from .filepart import FileSource
    from .pool import Pool
    from .roles import Headers
    from .sendfile import HasFileno
    from .settings import Settings

    _T = TypeVar("_T")

__all__ = ["Request", "serving"]

serving: ContextVar[Request | None] = ContextVar("fcgi_app request", default=None)
"""The request that a handler is being called for, in the context of that call."""
_ROLE_NAMES = {int(role): role.name.encode() for role in Role}


_pid = getpid()


def _after_fork() -> None:
    global _pid
    _pid = getpid()


register_at_fork(after_in_child=_after_fork)


class Request(Asked):
    """One request, from its params to its end.

    Attributes:
        role: a ``Role`` number (specification §6).
        request_id: 1 to 65535; 0 for CGI.
        params_map: the params as a mapping of bytes, where the last of a repeated
            name has won; FCGI_ROLE is always set.
        app_status: goes to the web server with the end of the request (§5.5); for
            CGI it becomes the exit status.
        aborted: the web server aborted the request, or its connection has gone.
        passthrough: set it to send the response head as it is written.
        strict: output and input after an abort raise ``RequestAborted``.
        unwanted: the web server aborted the request; its output is dropped.
    """

    # The defaults of what most requests never change stand here, and not in the call
    # that makes one: there is one for each request.
    varied: tuple[object, Mapping[bytes, bytes]] | None = None
    """How ``params_map`` varies from that of other requests (``environ``)."""
    app_status = 0
    strict = False
    unwanted = False
    state: Any = None
    """The channel's own handle for this request."""
    dispatched = False  # handed to the queue of those that may run
    running = False  # the application has it
    host: Host | None = None
    observer: Observer | None = None
    descriptors: DescriptorStreams | None = None
    """Its descriptors 0, 1 and 2, while it has them."""
    texts: dict[str, Any] | None = None
    """The text streams that threads have made for it (``following``)."""
    watchful = False  # the application waits for its abort
    _failed = 0
    _aborted = False
    _filtering = False
    _finished = False
    _detached = False
    _stdin: BinaryIO | None = None
    _stdout: StdoutStream | None = None
    _stderr: StderrStream | None = None
    _pool: Pool | None = None

    def __init__(
        self,
        channel: Channel,
        settings: Settings,
        role: int,
        request_id: int,
        params: dict[bytes, bytes] | None,
        body: InputBuffer | None = None,
    ) -> None:
        # All here, and not by super(): one is made for each request.
        self._channel = channel
        self._settings = settings
        self.role = role
        self.request_id = request_id
        if params is not None:
            # A FCGI_ROLE on the wire must not win over the role that was asked for.
            params[b"FCGI_ROLE"] = _ROLE_NAMES[role]
            self.is_head = params.get(b"REQUEST_METHOD") == b"HEAD"
        self._params_map = params
        self.passthrough = settings.passthrough
        self._body = InputBuffer() if body is None else body
        self._pid = _pid

    # Streams

    @property
    def stdin(self) -> BinaryIO:
        """The body, an ``io.BufferedReader``; a filter's DATA once that is started."""
        if self.descriptors is not None:
            return self.descriptors.stdin
        if self._stdin is None:
            self._stdin = io.BufferedReader(BodyReader(self, self.reading))
            if self._finished:
                self._stdin.close()
        return self._stdin

    @property
    def stdout(self) -> io.BufferedIOBase:
        """The response, CGI head first; bytes."""
        if self.descriptors is not None:
            return self.descriptors.stdout
        return self.response

    @property
    def stderr(self) -> io.BufferedIOBase:
        """The web server's log; bytes."""
        if self.descriptors is not None:
            return self.descriptors.stderr
        return self.log

    @property
    def response(self) -> StdoutStream:
        """What ``stdout`` is where descriptor 1 is not the request's."""
        if self._stdout is None:
            self._stdout = StdoutStream(self)
            self._stdout.closed = self._finished
        return self._stdout

    @property
    def log(self) -> StderrStream:
        """What ``stderr`` is where descriptor 2 is not the request's."""
        if self._stderr is None:
            self._stderr = StderrStream(self)
            self._stderr.closed = self._finished
        return self._stderr

    @property
    def reading(self) -> InputBuffer:
        """What ``stdin`` reads."""
        return self._filter_input() if self._filtering else self._body

    def start_filter_data(self) -> None:
        """Let ``stdin`` give a filter's DATA (§6.4, FCGI_StartFilterData(3)).

        Raises:
            CallSequenceError: the role is not FILTER, DATA has been started, or the
                end of STDIN has not come. Nothing is lost then.
            RequestAborted, IncompleteData: descriptor 0 is the request's, and not all
                of DATA has come. Elsewhere reading it raises them.
        """
        if self.role != Role.FILTER:
            raise CallSequenceError("start_filter_data: the role is not FILTER")
        if self._filtering:
            raise CallSequenceError("start_filter_data: DATA has been started already")
        body = self._body
        while not body.ended and not body.size:
            # All that came has been read; the end may be waiting in the socket.
            if not self._channel.fill(self, wait=False):
                break
        if not body.ended:
            raise CallSequenceError(
                "start_filter_data: STDIN has not been read to its end"
            )
        self._filtering = True
        self._stdin = None
        if self.descriptors is not None:
            self.descriptors.start_filter_data()

    def _wait_input(self, source: InputBuffer) -> None:
        """Wait until ``source`` has bytes or has ended."""
        while not source.size and not source.ended:
            if self._finished or self._detached:
                source.ended = True
            else:
                self._channel.fill(self, wait=True)
        if source.size or self._finished:
            return
        if source is self._data:
            self.check_data()
        elif source.cut and self.strict:
            raise RequestAborted("the rest of the body will never come")

    def _send_stdout(self, pieces: list[Buffer]) -> None:
        self._channel.send_stdout(self, pieces)
        if self.observer is not None:
            self.observer.sent(pieces)

    def send_file(
        self, file: HasFileno | int, offset: int = 0, count: int | None = None
    ) -> int:
        """Write a file, or a piece of it, to ``stdout``.

        The kernel takes a longer one from the file itself (sendfile(2)). It goes out
        behind what was written before; otherwise this is ``stdout.write``, for aborts
        and HEAD requests, too. Returns when the file is not needed any more. It must
        not be changed in place before the web server has read it.

        Args:
            file: a binary file that is open for reading, or a descriptor; of a regular
                file. It stays open, and its position is neither used nor changed. What
                counts is what its descriptor gives, without buffers or decompression.
            offset: bytes from the beginning of the file; nothing is sent if they are
                more than it has.
            count: bytes to send, or as many as there are; None: to the end of the file
                as it is now.

        Returns:
            How many bytes that is.

        Raises:
            TypeError: ``file`` has no ``fileno``, or a number is none.
            ValueError: a number is negative; ``file`` is closed, open as text or not
                for reading, or no regular file; ``stdout`` is closed.
            OSError: there is no such descriptor, or none is left for a copy of it. The
                file could not be read, or became shorter meanwhile: of the last record
                that was begun, what is missing has gone out as NUL.
            RequestAborted: under ``run`` only, as for ``stdout.write``.
        """
        from .sendfile import send_file

        return send_file(self, file, offset, count)

    def _send_file(self, pieces: list[Buffer], source: FileSource) -> None:
        size = source.left
        whole = False
        try:
            self._channel.send_file(self, pieces, source)
            whole = source.error is None
        finally:
            if self.observer is not None and (whole or source.sent):
                self.observer.sent(pieces)
                self.observer.sent_file(size if whole else source.sent)

    def _send_stderr(self, pieces: list[Buffer]) -> None:
        self._channel.send_stderr(self, pieces)

    # How it goes

    @property
    def aborted(self) -> bool:
        """Whether the web server aborted the request or its connection has gone.

        Looks at the connection, without waiting.
        """
        if not (self._aborted or self._finished or self._settings.descriptors):
            self._channel.fill(self, wait=False)
        return self._aborted

    def wait_aborted(self, timeout: float | None = None) -> bool:
        """Wait until the web server has aborted the request, or its connection went.

        Args:
            timeout: seconds to wait at most; None: for ever.

        Returns:
            Whether it is aborted.
        """
        if not (self._aborted or self._finished or self._settings.descriptors):
            self._channel.wait_aborted(self, timeout)
        return self._aborted

    def on_abort(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once if the request is aborted before it has ended.

        It is called while the application computes, in another thread: it may set an
        event, cancel a query, or kill a child; it must not use the request's streams.
        Called at once if the request is aborted already. What it raises is logged.
        """
        if self._aborted:
            self._run_callback(callback)
        elif not self._finished:
            self.enter_context(
                self._channel.watch(self, lambda: self._run_callback(callback))
            )

    def _run_callback(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - a thread of ours must go on
            log_exception("%s: the abort callback %r failed", self, callback)

    def abort(self) -> None:
        """Note that the web server does not want it any more, or is lost to it."""
        self._aborted = True
        self._body.cut_off()
        if self.role == Role.FILTER:
            self._filter_input().cut_off()

    @property
    def finished(self) -> bool:
        """Whether the request has been ended (or given to another process)."""
        return self._finished

    # What an authorizer answers

    def allow(self, variables: Mapping[str, str] | None = None) -> None:
        """Let the request pass (``roles.allow``, which tells arguments and errors)."""
        from .roles import allow

        allow(self, variables)

    def deny(self, status: int = 401, headers: Headers = (), text: str = "") -> None:
        """Refuse the request (``roles.deny``, which tells arguments and errors)."""
        from .roles import deny

        deny(self, status, headers, text)

    def challenge(self, scheme: str, realm: str, **parameters: str) -> None:
        """Refuse it and ask for credentials (``roles.challenge``)."""
        from .roles import challenge

        challenge(self, scheme, realm, **parameters)

    # Its end

    def refuse(self) -> None:
        """Answer 503 in place of the application, which has not seen it."""
        self._channel.refuse(self)

    def drop(self) -> None:
        """Forget a request that no application has seen; nothing is sent."""
        self._finished = True
        self._body.clear()
        if self._data is not None:
            self._data.clear()

    def finish(self) -> None:
        """Send what is left, end the request, release its resources; idempotent.

        Does nothing in a process that was forked off while the request ran.
        """
        if self._finished or self._pid != _pid:
            return
        host, self.host = self.host, None
        try:
            if host is not None:
                host.request_ending(self)
        finally:
            try:
                self._end(host)
            finally:
                if self._pool is not None or self.observer is not None:
                    self._release()

    def _release(self) -> None:
        """Release the resources; whoever watches the request knows it has ended."""
        try:
            if self._pool is not None:
                self._pool.release()
        finally:
            observer, self.observer = self.observer, None
            if observer is not None:
                observer.ended(self)

    def _end(self, host: Host | None) -> None:
        """Close the streams, give the process back, then send the end.

        Whoever still holds a stream has a closed file. In between the process gets
        its own streams back, so that what is logged about the end does not go there.
        """
        stdout = stderr = b""
        try:
            if self._detached:
                self.forget_output()
            else:
                if self._failed:
                    self.response._fail(self._failed)
                stdout = self.response._finish()
                if self._stderr is not None:
                    stderr = self._stderr._finish()
        finally:
            self._finished = True
            if host is not None:
                host.request_ended(self)
            self._answer(stdout, stderr)

    def _answer(self, stdout: bytes, stderr: bytes) -> None:
        try:
            if self._detached:
                self._channel.hand_over(self)
            else:
                self._channel.end(self, stderr, stdout)
                if self.observer is not None and not self._aborted:
                    self.observer.sent((stdout,))
        finally:
            if self._body is not NO_INPUT:
                self._body.clear()
            if self._data is not None:
                self._data.clear()
            if self._stdin is not None:
                self._stdin.close()
            if self.texts is not None:
                for text in self.texts.values():
                    text.bind(None)
            # Each stream holds the request: without the way back there is no cycle,
            # and nothing of a request is left for the garbage collector.
            self._stdin = self._stdout = self._stderr = self.texts = None

    def forget_output(self) -> None:
        """In a forked child: drop what the parent has written and will send itself."""
        for stream in (self._stdout, self._stderr):
            if stream is not None:
                stream._finish_silently()

    def fail(self, status: int = 500, app_status: int = 1) -> None:
        """Note that the application failed: an error page, if no head has gone out."""
        self.app_status = app_status
        if self.descriptors is not None:
            self._failed = status  # when all that was written has come
        elif not self._finished:
            self.response._fail(status)

    def tell(self, text: str) -> None:
        """Write to the request's log what must be told, or else to the process's."""
        try:
            self.log.write(text.encode("utf-8", "surrogateescape"))
        except (OSError, ValueError):
            log_warning("%s: %s", self, text.rstrip())

    def detach(self) -> None:
        """Leave the answer to another process, which has been or will be forked.

        What has been written is sent. From then on ``finish`` in this process sends
        nothing and only closes its copy of the connection; the child calls ``attach``
        and goes on. (Perl's meaning of FCGX_Detach.)
        """
        self.response.flush()
        self._channel.detach(self)
        self._detached = True

    def attach(self) -> None:
        """Take over, in a forked child, a request that the parent detached."""
        if not self._detached:
            raise CallSequenceError("attach: the request has not been detached")
        self._detached = False
        self._pid = _pid

    # Resources

    def enter_context(self, manager: AbstractContextManager[_T]) -> _T:
        """Enter ``manager``; it is left when the request has ended, however it ends."""
        return self.pool.enter_context(manager)

    def callback(self, function: Callable[..., object], *args: Any, **kw: Any) -> None:
        """Call ``function(*args, **kw)`` when the request has ended."""
        self.pool.callback(function, *args, **kw)

    def make_subpool(self) -> Pool:
        """Return a pool inside the request's own, to be released earlier or with it."""
        return self.pool.make_subpool()

    @property
    def pool(self) -> Pool:
        """The request's resource pool."""
        if self._pool is None:
            from .pool import Pool

            self._pool = Pool()
        return self._pool
