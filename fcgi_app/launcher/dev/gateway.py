"""HTTP/1.1 on one side, FastCGI on the other; for development only.

Each HTTP connection has a thread (`http.server`), each request a connection to the
application: those that it has no time for wait in the backlog of its socket.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.errors import (
    FirstHeaderLineIsContinuationDefect,
    InvalidHeaderDefect,
    MisplacedEnvelopeHeaderDefect,
    MissingHeaderBodySeparatorDefect,
)
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from ...client import AnswerError, Client, StreamedResponse
from .body import ClientGone, Incoming, RequestBody, open_body
from .params import BadRequest, HttpRequest, Site, build_meta_variables
from .reply import BadAnswer, Reply

__all__ = ["Backend", "Gateway"]

CLIENT_TIMEOUT = 60.0
"""Seconds that an HTTP client may take for its head, or leave its connection idle;
nginx's client_header_timeout and about its keepalive_timeout."""
LINGER = 5.0
"""Seconds for the rest of a body that nobody wants: nginx's lingering_timeout."""
_HEAD_DEFECTS = (
    FirstHeaderLineIsContinuationDefect,
    InvalidHeaderDefect,
    MisplacedEnvelopeHeaderDefect,
    MissingHeaderBodySeparatorDefect,
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNPRINTABLE = re.compile(r"[^!-~]")


@dataclass(frozen=True)
class Backend:
    """The application behind a gateway.

    Attributes:
        address: where it listens, as `fcgi_app.client.Client` takes it.
        site: what its params say of the server.
        timeout: seconds that it may take without any progress; None: no limit.
        report: takes a line for the terminal, from any thread.
        on_request: is called when a request waits for the application.
        on_answer: is called when the head of an answer has come.
    """

    address: str
    site: Site
    timeout: float | None
    report: Callable[[str], object]
    on_request: Callable[[], object]
    on_answer: Callable[[], object]


class Gateway(ThreadingHTTPServer):
    """Listens from the start; call `handle_request` whenever it is readable.

    Set `backend` before the first of these calls.

    Args:
        host: name or address to listen on.
        port: 0 takes a free one.

    Raises:
        OSError: the address cannot be listened on.
    """

    backend: Backend
    daemon_threads = False  # close() ends every one of them
    request_queue_size = 128
    timeout = 0

    def __init__(self, host: str, port: int) -> None:
        self._connections: set[socket.socket] = set()
        self._running = 0
        self._changed = threading.Condition()
        try:
            self.address_family, where = _resolve(host, port)
            super().__init__(where, _Handler)
        except OSError as error:
            name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise type(error)(error.errno, error.strerror, name) from error

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    @contextmanager
    def request_running(self) -> Iterator[None]:
        """Count a request, for `wait_idle`."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no request runs; tell whether that was within ``timeout``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        """Stop listening, end every connection, and wait for their threads."""
        self.socket.close()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    # ---- what socketserver calls ----

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the DNS for our name

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._connections.discard(request)
        super().shutdown_request(request)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # IPv4 first: that is what "localhost" means to most clients.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return found[0][0], found[0][4]


class _Handler(BaseHTTPRequestHandler):
    """One connection of an HTTP client."""

    server: Gateway
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_TIMEOUT
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = self.incoming = Incoming(self.connection)

    def handle_one_request(self) -> None:
        self.command = ""
        self.requestline = ""
        self.request_version = self.protocol_version
        self.expects_continue = False
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True  # while the request was read: no request

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Serve every method: which of them it knows, the application decides."""
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def handle_expect_100(self) -> bool:
        self.expects_continue = True  # answered once the application is there
        return True

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Refuse what http.server cannot parse."""

        def refuse(reply: Reply) -> str:
            reply.keep = False
            reply.page(code, f"{message or HTTPStatus(code).phrase}.")
            return ""

        self._answer(refuse)
        _linger(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Drop what http.server prints: a request is reported at its end."""

    # ---- one request ----

    def _serve(self) -> None:
        exchange = _Exchange(self.server.backend, self.incoming)
        self._answer(lambda reply: exchange.run(self, reply))
        if exchange.has_unread:
            self.close_connection = True
            _linger(self.connection)

    def _answer(self, answer: Callable[[Reply], str]) -> None:
        started = time.monotonic()
        reply = Reply(
            self.connection,
            self.command,
            self.request_version,
            keep=not self.close_connection,
        )
        with self.server.request_running():
            try:
                note = answer(reply)
            except ClientGone as error:
                reply.keep = False
                note = f"the client is gone {error}"
            self.close_connection = not reply.keep
            milliseconds = (time.monotonic() - started) * 1000
            self.server.backend.report(
                f"{_printable(self.requestline)} {reply.status or '-'} "
                f"{reply.sent} bytes {milliseconds:.1f} ms" + (note and f" ({note})")
            )

    def _is_malformed(self) -> bool:
        """Whether the lines of the head are no header fields.

        Other defects are none: the parser behind http.server is one for mail, and of
        a multipart Content-Type it says that no parts follow the head.
        """
        return any(isinstance(defect, _HEAD_DEFECTS) for defect in self.headers.defects)

    def parsed(self) -> HttpRequest:
        """Give the request, or raise `BadRequest` for what http.server lets pass."""
        if self.incoming.ended:
            raise ClientGone("in its request")
        headers = [(str(name), str(value)) for name, value in self.headers.items()]
        names = (self.command, *(name for name, _ in headers))
        if self._is_malformed() or not all(map(_TOKEN.fullmatch, names)):
            raise BadRequest("The head of the request is malformed.")
        if any(bad in value for _, value in headers for bad in "\0\r\n"):
            raise BadRequest("A header has a control character or goes over lines.")
        if self.request_version == "HTTP/0.9":
            raise BadRequest("HTTP/0.9 is not spoken here.", 505)
        return HttpRequest(
            self.command,
            self.path,
            self.request_version,
            headers,
            self.client_address[:2],
        )


class _Exchange:
    """One request on its way through the gateway."""

    def __init__(self, backend: Backend, incoming: Incoming) -> None:
        self._backend = backend
        self._incoming = incoming
        self._body: RequestBody | None = None
        self._malformed = False
        self._stderr = b""

    @property
    def has_unread(self) -> bool:
        """Whether bytes may follow that belong to this request."""
        return self._malformed or (self._body is not None and not self._body.ended)

    def run(self, handler: _Handler, reply: Reply) -> str:
        """Pass the request on and the answer back.

        Returns:
            What went wrong, for the terminal; empty if all is well.

        Raises:
            ClientGone: the client reads or sends no more.
        """
        try:
            request = handler.parsed()
            self._body = open_body(request, self._incoming)
            length = None if self._body is None else self._body.length
            params = build_meta_variables(request, self._backend.site, length)
            if self._body is not None and handler.expects_continue:
                self._body.invite = reply.invite_body
            self._forward(params, reply)
        except BadRequest as error:
            self._malformed = True
            return self._fail(reply, error.status, str(error))
        except (AnswerError, BadAnswer) as error:
            return self._fail(reply, 502, self._describe(error))
        except TimeoutError:
            if self._body is not None and self._body.awaited:
                status, who = 408, "The body of the request"
            else:
                status, who = 504, "The script"
            seconds = f"{self._backend.timeout:g} seconds"
            return self._fail(reply, status, f"{who} did not go on for {seconds}.")
        except OSError as error:
            return self._fail(reply, 502, f"The script cannot be reached: {error}.")
        finally:
            self._show_stderr(b"\n" if self._stderr else b"")
        return ""

    def _forward(self, params: list[tuple[bytes, bytes]], reply: Reply) -> None:
        with Client(self._backend.address, timeout=self._backend.timeout) as client:
            client.connect()
            self._backend.on_request()
            stdin = b"" if self._body is None else self._body
            with client.stream(
                params, stdin=stdin, on_stderr=self._show_stderr
            ) as answer:
                self._backend.on_answer()
                self._pass_back(answer, reply)

    def _pass_back(self, answer: StreamedResponse, reply: Reply) -> None:
        reply.keep = reply.keep and not self.has_unread
        reply.start(answer.status, answer.reason, answer.headers)
        try:
            for piece in answer:
                reply.write(piece)
        except AnswerError as error:
            reply.write(error.body)
            raise
        reply.end()

    def _fail(self, reply: Reply, status: int, reason: str) -> str:
        """Say so to the client, with a page if there is still room for one."""
        if reply.status:
            reply.break_off()
        else:
            reply.keep = reply.keep and not self.has_unread
            reply.page(status, reason)
        return reason

    def _describe(self, error: AnswerError | BadAnswer) -> str:
        if isinstance(error, AnswerError) and error.cut_off:
            return (
                "The script ended, or closed the connection, before its answer was "
                "complete; the terminal of fcgi-app dev shows what it printed."
            )
        told = str(error).removeprefix(f"{self._backend.address}: ")
        return f"The script gave no valid answer: {told}."

    def _show_stderr(self, received: bytes) -> None:
        """Report whole lines: several requests may write at once."""
        *lines, self._stderr = (self._stderr + received).split(b"\n")
        for line in lines:
            self._backend.report(line.decode("utf-8", "surrogateescape"))


def _linger(connection: socket.socket) -> None:
    """Let the client read the answer before the unread body resets the connection."""
    deadline = time.monotonic() + LINGER
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break


def _printable(requestline: str) -> str:
    """Give method and target of a request line for the terminal, as one word each."""
    words = requestline.split()[:2]
    return " ".join(
        _UNPRINTABLE.sub(lambda match: f"%{ord(match[0]):02X}", word) for word in words
    )
