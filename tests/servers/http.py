"""A small HTTP client: reads while it still writes, keeps headers as they came."""

from __future__ import annotations

import http.client
import io
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

__all__ = [
    "Answer",
    "ask",
    "connect",
    "established",
    "open_request",
    "parse_answer",
]

CHUNK = 256 * 1024


@dataclass(frozen=True)
class Answer:
    """One whole answer: status, headers in wire order, body without its framing."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, case ignored."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """The values of every header of that name, in wire order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8", "surrogateescape")


class _Recording(socket.socket):
    """What http.client needs of a socket, over bytes that are here already."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.close()
        self._raw = raw

    def makefile(  # type: ignore[override]
        self, *_args: object, **_kwargs: object
    ) -> io.BytesIO:
        return io.BytesIO(self._raw)


def parse_answer(raw: bytes, method: str = "GET") -> Answer:
    """The one answer in these bytes; an unfinished body is a failure.

    Raises:
        http.client.HTTPException: no answer, or one cut short.
    """
    with http.client.HTTPResponse(_Recording(raw), method=method) as response:
        response.begin()
        body = response.read()
        message: Message = response.msg
        return Answer(response.status, tuple(message.items()), body)


def build_request(
    method: str, target: str, headers: Mapping[str, str], body: bytes
) -> bytes:
    """An HTTP/1.1 request that asks for the connection to be closed.

    A header whose value is empty is left out, also one that would be there otherwise.
    """
    lines = {"Host": "localhost", "Connection": "close"}
    if body or method in ("POST", "PUT"):
        lines["Content-Length"] = str(len(body))
    lines.update(headers)
    fields = [f"{name}: {value}" for name, value in lines.items() if value]
    head = [f"{method} {target} HTTP/1.1", *fields]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def open_request(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout: float = 20.0,
) -> socket.socket:
    """Send a request whole and leave the answer unread; the caller closes."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    try:
        connection.sendall(build_request(method, target, headers or {}, body))
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def connect(
    port: int, *, timeout: float = 20.0
) -> Iterator[http.client.HTTPConnection]:
    """A client that keeps its connection for one request after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with closing(connection):
        connection.connect()
        yield connection


def established(port: int) -> int:
    """How many connections to this loopback port are open."""
    local = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(row[1] == local and row[3] == "01" for row in rows[1:])


def ask(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout: float = 20.0,
) -> Answer:
    """One request on a connection of its own, and the whole answer.

    Args:
        timeout: seconds from now until the answer must be complete.

    Raises:
        OSError, http.client.HTTPException: no answer, or one cut short.
    """
    request = build_request(method, target, headers or {}, body)
    deadline = time.monotonic() + timeout
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        raw = b"".join(_converse(connection, memoryview(request), deadline))
    return parse_answer(raw, method)


def _converse(
    connection: socket.socket, unsent: memoryview, deadline: float
) -> Iterable[bytes]:
    """Write and read at once, as browsers do: an early answer must not be missed."""
    connection.setblocking(False)
    while True:
        writers = [connection] if unsent else []
        left = deadline - time.monotonic()
        readable, writable, _ = select.select([connection], writers, [], max(left, 0))
        if not readable and not writable:
            raise TimeoutError("the answer did not come in time")
        if readable:
            data = connection.recv(CHUNK)
            if not data:
                return
            yield data
        if writable:
            unsent = _send_some(connection, unsent)


def _send_some(connection: socket.socket, unsent: memoryview) -> memoryview:
    """Write what fits; a server that stops listening may still have answered."""
    try:
        return unsent[connection.send(unsent[:CHUNK]) :]
    except BlockingIOError:
        return unsent
    except (BrokenPipeError, ConnectionResetError):
        return unsent[:0]
