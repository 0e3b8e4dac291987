"""A connection to an application, for one request after the other."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic

from .. import sockets
from ..codec.constants import Role
from ..errors import CallSequenceError
from .answer import AnswerError
from .exchange import Exchange
from .response import Response, StreamedResponse
from .upload import Body, Params, Upload, encode_params

__all__ = ["DEFAULT_TIMEOUT", "Client", "request"]

DEFAULT_TIMEOUT = 60.0
"""Seconds without any progress: nginx's fastcgi_read_timeout, httpd's Timeout."""

_IDEMPOTENT = frozenset((b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"TRACE"))
"""Methods of requests that may be sent again (RFC 9110 §9.2.2)."""


def request(
    address: str,
    params: Params,
    *,
    stdin: Body = b"",
    role: int = Role.RESPONDER,
    data: Body | None = None,
    keep_conn: bool = False,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> Response:
    """Send one request on a connection of its own and give the whole answer.

    Args:
        address: of the application, as `fcgi_app.sockets.connect` takes it.
        params: the request's params, CGI meta-variables as a rule.
        stdin: the body. An authorizer gets no STDIN records if it is ``b""``, as from
            every web server.
        role: a `Role`, or any other number.
        data: DATA of a filter, sent after the body; None sends no DATA record.
        keep_conn: sets FCGI_KEEP_CONN; the connection is closed after the answer.
        timeout: seconds that may pass without progress in either direction; None
            waits for ever.

    Raises:
        AnswerError: the answer is malformed or cut off.
        TimeoutError: the application does not go on.
        ConnectionError: or another OSError: it cannot be reached.
        ConfigError: the address is malformed.
    """
    with Client(address, keep_conn=keep_conn, timeout=timeout) as client:
        return client.request(params, stdin=stdin, role=role, data=data)


class Client:
    """A connection to an application: made when needed, kept or not.

    Not for several threads at once. As a context manager it is closed at the end.

    Args:
        address: of the application, as `fcgi_app.sockets.connect` takes it.
        keep_conn: ask the application to keep the connection (§5.1) and use it for
            the next request. One that it closed in the meantime is replaced. If that
            is seen only after a request was sent, this is sent once more, provided
            that its method is idempotent, and that its bodies are bytes.
        timeout: seconds without progress; None waits for ever.

    Attributes:
        connected_at: when the last connection was made, in seconds of
            `time.monotonic`; 0 before the first.
    """

    def __init__(
        self,
        address: str,
        *,
        keep_conn: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> None:
        self.address = address
        self.keep_conn = keep_conn
        self.timeout = timeout
        self.connected_at = 0.0
        self._socket: socket.socket | None = None
        self._busy = False
        self._kept = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return self._socket is not None

    def close(self) -> None:
        """Close the connection; the application takes that as an abort."""
        self._busy = self._kept = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def connect(self) -> bool:
        """Connect now instead of at the next request; nothing if it is connected.

        Returns:
            Whether a connection was made. One that was kept, and that the application
            has closed in the meantime, is replaced.
        """
        if not self._busy:
            self._drop_if_lost()
        made = self._socket is None
        if self._socket is None:
            connection = sockets.connect(self.address, timeout=self.timeout)
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                # A body follows the params in segments of its own.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = connection
            self.connected_at = monotonic()
        return made

    def request(
        self,
        params: Params,
        *,
        stdin: Body = b"",
        role: int = Role.RESPONDER,
        data: Body | None = None,
    ) -> Response:
        """Send a request and give the whole answer; arguments and errors: `request`."""
        with self.stream(params, stdin=stdin, role=role, data=data) as answer:
            return answer.complete()

    def stream(
        self,
        params: Params,
        *,
        stdin: Body = b"",
        role: int = Role.RESPONDER,
        data: Body | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
    ) -> StreamedResponse:
        """Send a request and return as soon as the head of the answer is there.

        The rest of the body is sent while the answer is read.

        Args:
            params: this one, the next three and the other errors: see `request`.
            stdin: the body.
            role: a `Role`, or any other number.
            data: DATA of a filter.
            on_stderr: gets the bytes of FCGI_STDERR as they come; without it they are
                collected in the answer.

        Raises:
            CallSequenceError: the answer before has neither ended nor been closed.
        """
        if not isinstance(params, Mapping):
            params = list(params)
        while True:
            keep = self.keep_conn
            upload = Upload.of_request(role, params, stdin, data, keep_conn=keep)
            exchange = self._begin(upload, on_stderr)
            used_before = self._kept
            try:
                head = exchange.read_head()
            except BaseException as error:
                self.close()
                # It was about to be closed when we used it: nginx and curl go on, too.
                lost = isinstance(error, AnswerError) and error.cut_off
                if not (used_before and lost and not exchange.answered):
                    raise
                if not _is_repeatable(params, stdin, data):
                    raise
            else:
                release = partial(self._release, self._socket)
                return StreamedResponse(head, exchange, release)

    def get_values(self, *names: bytes) -> dict[bytes, bytes]:
        """Ask the application for its limits (GET_VALUES, §4.1).

        Args:
            names: such as ``FCGI_MAX_CONNS``.

        Returns:
            What it knows of them; nothing if it answers with UNKNOWN_TYPE.
        """
        exchange = self._begin(Upload.of_query(names))
        try:
            while exchange.answer.values is None:
                exchange.pump()
        except BaseException:
            self.close()
            raise
        self._release(self._socket, exchange.reusable)
        return exchange.answer.values

    def _begin(
        self, upload: Upload, on_stderr: Callable[[bytes], object] | None = None
    ) -> Exchange:
        if self._busy:
            raise CallSequenceError(f"{self.address}: the answer before has not ended")
        self.connect()
        assert self._socket is not None
        self._busy = True
        return Exchange(
            self.address,
            self._socket,
            upload,
            timeout=self.timeout,
            on_stderr=on_stderr,
        )

    def _drop_if_lost(self) -> None:
        """Close a kept connection that the application has closed in the meantime."""
        if self._socket is None or not self._kept:
            return
        try:
            surplus = self._socket.recv(64, socket.MSG_PEEK)
        except BlockingIOError:
            return  # as it should be: open and silent
        except ConnectionError:
            surplus = b""
        self.close()
        if surplus:
            raise AnswerError(f"{self.address}: {surplus!r} came after END_REQUEST")

    def _release(self, connection: socket.socket | None, reusable: bool) -> None:
        """Be done with an answer."""
        if connection is not self._socket:
            return  # it was closed under the answer; this one is another's
        self._busy = False
        self._kept = self.keep_conn and reusable
        if not self._kept:
            self.close()


def _is_repeatable(params: Params, stdin: Body, data: Body | None) -> bool:
    """Whether a request can, and may, be sent a second time."""
    methods = {v for name, v in encode_params(params) if name == b"REQUEST_METHOD"}
    bodies = (stdin, b"" if data is None else data)
    kept = all(isinstance(body, (bytes, bytearray, memoryview)) for body in bodies)
    return kept and bool(methods) and methods <= _IDEMPOTENT
