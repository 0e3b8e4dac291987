"""Two acceptors, one in C and one in Python, that get the same bytes.

`play` takes a trace, what web servers do step by step, and gives all that can be seen
of it from outside: requests, bytes on the wire, ends of connections, lines of the log.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from fcgi_app.acceptor import Acceptor
from fcgi_app.request import Request
from fcgi_app.settings import Settings

__all__ = ["CLIENTS", "DO", "Seen", "Step", "play", "respond"]

CLIENTS = 3
DO = b"HTTP_DO"
"""The param that says what the program does, letter by letter."""
_TURNS = 4
HEAD = b"Content-Type: text/plain\r\n\r\n"

Step = tuple[str, int, bytes]
"""``connect``, ``send``, ``shut``, ``close``, ``reset``, ``serve`` or ``retire``; the
number of a client; what it sends."""


class Seen(NamedTuple):
    """What came of a trace."""

    requests: list[object]
    wires: dict[int, list[bytes]]
    """What each connection of a client has received, and how that ended."""
    log: list[str]


def _facts(request: Request) -> tuple[object, ...]:
    return (
        request.role,
        request.request_id,
        [*request.params_map.items()],
        request.raw_params,
        request.is_head,
        request.content_length,
    )


def respond(request: Request) -> object:
    """Be the program: do what the request says, and answer with what it was."""
    facts = _facts(request)
    try:
        body = _write_page(request, facts)
    except (OSError, ValueError) as error:
        facts += (type(error), str(error))
        body = None
    request.finish()
    return facts, body, request.aborted


def _write_page(request: Request, facts: object) -> bytes | None:
    body = None
    do = request.params_map.get(DO, b"r")
    out = request.stdout
    if b"r" in do:
        body = request.stdin.read()
    if b"n" not in do:
        out.write(HEAD)
    out.write(hashlib.sha256(repr((facts, body)).encode()).hexdigest().encode())
    for letter in do:
        _do(request, letter)
    return body


def _do(request: Request, letter: int) -> None:
    out = request.stdout
    match letter:
        case 0x66:  # f
            out.flush()
        case 0x65:  # e
            request.stderr.write(b"a line\n")
        case 0x73:  # s
            request.app_status = 0x01020304
        case 0x61:  # a
            out.write(b"%d" % request.aborted)
        case 0x62:  # b
            out.write(b"b" * 40_000)
        case 0x63:  # c
            out.close()
        case 0x78:  # x
            request.fail()
        case 0x6C:  # l
            out.write(b"l" * (65535 - len(HEAD) - 64))
        case 0x6D:  # m
            out.write(b"m" * (65536 - len(HEAD) - 64))
        case _:
            pass


class _Client:
    """A web server's end of its connections, one after the other."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._sock: socket.socket | None = None
        self.ends: list[bytes] = []
        self._received = bytearray()

    def connect(self) -> None:
        """Connect, unless it is connected."""
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.connect(self._where)
            self._sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send what goes; the application may have closed."""
        if self._sock is not None:
            try:
                self._sock.send(data)
            except OSError as error:
                self._received += b"<%s>" % type(error).__name__.encode()

    def receive(self) -> str:
        """Take all that has come; what there is to be said of the end."""
        while self._sock is not None:
            try:
                data = self._sock.recv(1 << 20)
            except OSError as error:
                return type(error).__name__  # BlockingIOError: it is open
            if not data:
                return "end"
            self._received += data
        return ""

    def shut(self) -> None:
        """Send no more."""
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._received += b"<%s>" % type(error).__name__.encode()

    def close(self) -> None:
        """Take what there is, and close."""
        if self._sock is not None:
            end = self.receive()
            self.ends.append(bytes(self._received) + b" " + end.encode())
            self._received.clear()
            self._sock.close()
            self._sock = None

    def reset(self) -> None:
        """Close without a look at what there is: the other end finds a reset."""
        if self._sock is not None:
            self.ends.append(bytes(self._received))
            self._received.clear()
            self._sock.close()
            self._sock = None


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def _serve(acceptor: Acceptor, clients: Iterable[_Client], seen: list[object]) -> None:
    """Answer until there is nothing more to be done."""
    turns = _TURNS
    while turns:
        try:
            request = acceptor.next_request(0)
        except TimeoutError:
            turns -= 1  # what comes behind what was there is for the next turn
            continue
        if request is None:
            return
        seen.append(respond(request))
        for client in clients:
            client.receive()
        turns = _TURNS


def _step(
    acceptor: Acceptor, clients: Sequence[_Client], step: Step, seen: list[object]
) -> None:
    what, number, data = step
    client = clients[number]
    match what:
        case "serve":
            _serve(acceptor, clients, seen)
        case "retire":
            acceptor.retire()
        case "send":
            client.send(data)
        case _:
            getattr(client, what)()


def play(
    make: Callable[[list[socket.socket], Settings], Acceptor],
    trace: Sequence[Step],
    **changes: Any,
) -> Seen:
    """Let an acceptor see the trace, and give what is seen of it."""
    lines = _Lines()
    logger = logging.getLogger("fcgi_app")
    level = logger.level
    seen: list[object] = []
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind("")  # Linux gives it a name of its own
        listener.listen(128)
        logger.addHandler(lines)
        stack.callback(logger.removeHandler, lines)
        logger.setLevel(logging.INFO)
        stack.callback(logger.setLevel, level)
        clients = [_Client(listener.getsockname()) for _ in range(CLIENTS)]
        for client in clients:
            stack.callback(client.close)
        acceptor = make([listener], Settings().changed(**changes))
        stack.callback(acceptor.close)
        for step in trace:
            _step(acceptor, clients, step, seen)
        _serve(acceptor, clients, seen)
        for client in clients:
            client.close()
        _serve(acceptor, clients, seen)
    wires: dict[int, list[bytes]] = defaultdict(list)
    for number, client in enumerate(clients):
        wires[number] += client.ends
    return Seen(seen, wires, lines.lines)
