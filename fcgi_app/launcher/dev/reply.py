"""The HTTP response that a gateway sends: head, framing, end."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

from .body import ClientGone

__all__ = ["BadAnswer", "Reply"]

_LENGTH = re.compile(r"[0-9]{1,18}")
_OURS = frozenset(
    {"connection", "content-length", "keep-alive", "transfer-encoding", "trailer"}
)
"""Headers of an answer that belong to the connection or to the framing."""


class BadAnswer(Exception):
    """What the application answered cannot be said in HTTP."""


class Reply:
    """One response on its way to an HTTP client; borrows the socket.

    Attributes:
        status: of the response; 0 before `start`.
        sent: bytes of the body that were sent, without framing.
        keep: the connection can take another request afterwards.
    """

    def __init__(
        self, connection: socket.socket, method: str, version: str, *, keep: bool
    ) -> None:
        self.status = 0
        self.sent = 0
        self.keep = keep and version != "HTTP/1.0"
        self._socket = connection
        self._version = version
        self._bodiless = method == "HEAD"
        self._chunked = False
        self._left: int | None = None

    def invite_body(self) -> None:
        """Send 100 Continue: the client waits for it before it sends its body."""
        if not self.status:  # else the final answer was faster
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def start(
        self, status: int, reason: str, headers: Iterable[tuple[str, str]]
    ) -> None:
        """Send the head; headers that frame the message are replaced by our own.

        Raises:
            BadAnswer: the status is not final, or Content-Length is malformed.
            ClientGone: the client takes nothing any more.
        """
        if status < 200:
            raise BadAnswer(f"its status {status} is not a final one")
        headers = list(headers)
        self._frame(status, _content_length(headers))
        lines = [f"HTTP/1.1 {status} {reason or _phrase(status)}"]
        lines += [f"{n}: {v}" for n, v in headers if n.lower() not in _OURS]
        if not any(name.lower() == "date" for name, _ in headers):
            lines.append(f"Date: {formatdate(usegmt=True)}")
        if self._left is not None:
            lines.append(f"Content-Length: {self._left}")
        if self._chunked:
            lines.append("Transfer-Encoding: chunked")
        if not self.keep:
            lines.append("Connection: close")
        self.status = status
        self._send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def write(self, data: bytes) -> None:
        """Send a piece of the body; dropped where the response has none.

        Raises:
            BadAnswer: it is longer than Content-Length says.
            ClientGone: the client takes nothing any more.
        """
        if self._bodiless or not data:
            return
        excess = 0 if self._left is None else max(0, len(data) - self._left)
        data = data[: len(data) - excess]
        if self._left is not None:
            self._left -= len(data)
        self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self.sent += len(data)
        if excess:
            self.keep = False
            raise BadAnswer("its body is longer than its Content-Length")

    def end(self) -> None:
        """End the body.

        Raises:
            BadAnswer: it is shorter than Content-Length says; the client sees that
                when the connection is closed.
            ClientGone: the client takes nothing any more.
        """
        if self._left and not self._bodiless:
            self.keep = False
            missing = f"{self._left} bytes short of its Content-Length"
            raise BadAnswer(f"its body is {missing}")
        if self._chunked:
            self._send(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Give up in mid-body, so that the client sees that it is not complete."""
        self.keep = False
        if self._left is None and not self._chunked:
            # Only the end of the connection ends this body: make it a reset.
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._socket.close()

    def page(self, status: int, text: str) -> None:
        """Send a page of our own: one line of text below the status."""
        body = f"{status} {_phrase(status)}\n\n{text}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        ]
        self.start(status, "", headers)
        self.write(body)

    def _frame(self, status: int, length: int | None) -> None:
        self._bodiless = self._bodiless or status in (204, 304)
        self._left = None if status == 204 else length
        if self._left is None and not self._bodiless:
            self._chunked = self._version != "HTTP/1.0"
            self.keep = self.keep and self._chunked

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            self.keep = False
            raise ClientGone("in the answer") from error


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _content_length(headers: list[tuple[str, str]]) -> int | None:
    values = {value for name, value in headers if name.lower() == "content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not _LENGTH.fullmatch(value):
        raise BadAnswer(
            f"its Content-Length {value!r} is malformed or not the only one"
        )
    return int(value)
