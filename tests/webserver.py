"""The other end, for tests: a web server's bytes by hand, and the programs they go to.

``begin_request``, ``params``, ``stdin`` … give the records of the specification, so
that a test reads like the wire. ``App`` runs a script as a FastCGI process of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import fcgi_app
from fcgi_app.codec.constants import HEADER_LEN, RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import (
    build_abort_request,
    build_begin_request,
    build_record,
    build_stream,
    parse_end_request,
    parse_header,
)

PACKAGE_PARENT = str(Path(fcgi_app.__file__).resolve().parent.parent)
GET = [(b"REQUEST_METHOD", b"GET"), (b"REMOTE_ADDR", b"192.0.2.1")]

Pairs = Iterable[tuple[bytes, bytes]]


def begin_request(
    request_id: int = 1, role: int = Role.RESPONDER, *, keep: bool = False
) -> bytes:
    """A begin-request record (§5.1)."""
    return build_begin_request(request_id, role, keep_conn=keep)


def params(
    request_id: int = 1,
    pairs: Pairs = GET,
    *,
    cut_at: Sequence[int] = (),
    end: bool = True,
) -> bytes:
    """PARAMS records, cut at the given offsets of the stream, and its end."""
    content = build_params(pairs)
    cuts = [0, *cut_at, len(content)]
    records = [
        build_record(RecordType.PARAMS, request_id, content[start:stop])
        for start, stop in pairwise(cuts)
        if stop > start
    ]
    if end:
        records.append(build_record(RecordType.PARAMS, request_id))
    return b"".join(records)


def stdin(request_id: int = 1, data: bytes = b"", *, end: bool = True) -> bytes:
    """STDIN records (§5.3) and, unless told, the end of the stream."""
    return build_stream(RecordType.STDIN, request_id, data, end=end)


def data(request_id: int = 1, content: bytes = b"", *, end: bool = True) -> bytes:
    """A filter's DATA records and, unless told, the end of the stream."""
    return build_stream(RecordType.DATA, request_id, content, end=end)


def abort_request(request_id: int = 1) -> bytes:
    """An abort-request record (§5.4)."""
    return build_abort_request(request_id)


def whole_request(
    request_id: int = 1,
    pairs: Pairs = (),
    body: bytes = b"",
    *,
    role: int = Role.RESPONDER,
    keep: bool = False,
) -> bytes:
    """A request with its params (GET and REMOTE_ADDR in front) and its whole body."""
    return (
        begin_request(request_id, role, keep=keep)
        + params(request_id, [*GET, *pairs])
        + stdin(request_id, body)
    )


class Record(NamedTuple):
    """One record that came back."""

    type: int
    request_id: int
    content: bytes


class Answer(NamedTuple):
    """What came back for one request id."""

    stdout: bytes
    stderr: bytes
    app_status: int
    protocol_status: int

    @property
    def head(self) -> bytes:
        return self.stdout.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.stdout.partition(b"\r\n\r\n")[2]


def parse_records(received: bytes) -> tuple[list[Record], bytes]:
    """Split what was received into whole records and the rest."""
    records = []
    while len(received) >= HEADER_LEN:
        header = parse_header(received)
        start, size = HEADER_LEN, header.content_length
        whole = start + size + header.padding_length
        if len(received) < whole:
            break
        content = received[start : start + size]
        records.append(Record(header.record_type, header.request_id, content))
        received = received[whole:]
    return records, received


def collect(records: Iterable[Record], request_id: int = 1) -> Answer:
    """Put the records of one request together; they must end with its end-request."""
    streams: dict[int, bytes] = {RecordType.STDOUT: b"", RecordType.STDERR: b""}
    for record in records:
        if record.request_id != request_id:
            continue
        if record.type == RecordType.END_REQUEST:
            return Answer(
                streams[RecordType.STDOUT],
                streams[RecordType.STDERR],
                *parse_end_request(record.content),
            )
        streams[record.type] += record.content
    raise AssertionError(f"no end-request for id {request_id}")


class Wire:
    """A connection to an application; every wait is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        sock.settimeout(20)

    def send(self, *parts: bytes) -> None:
        """Send everything at once."""
        self.sock.sendall(b"".join(parts))

    def record(self) -> Record | None:
        """The next record; None at the end of the connection."""
        while True:
            records, _ = parse_records(self.received)
            if records:
                first = records[0]
                header = parse_header(self.received)
                size = HEADER_LEN + header.content_length + header.padding_length
                self.received = self.received[size:]
                return first
            try:
                more = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                assert not self.received, f"cut in a record: {self.received[:40]!r}"
                return None
            self.received += more

    def records(self, ends: int = 1) -> list[Record]:
        """Records up to the end-request number ``ends``, or to the connection's end."""
        found: list[Record] = []
        while ends and (record := self.record()) is not None:
            found.append(record)
            ends -= record.type == RecordType.END_REQUEST
        return found

    def answer(self, request_id: int = 1) -> Answer:
        """The answer to one request, the next to come."""
        return collect(self.records(), request_id)

    def is_closed(self) -> bool:
        """Whether the application closes the connection, with nothing more to say."""
        return self.record() is None

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class App:
    """A script run as a FastCGI process, with a listening socket on descriptor 0.

    ``source`` is the script's text (dedented). Its stderr, which is the process's own
    log, goes to ``log``. It must be gone at the end, and by itself unless killed.
    """

    def __init__(
        self,
        directory: Path,
        source: str,
        *,
        env: Mapping[str, str] | None = None,
        family: int = socket.AF_UNIX,
        host: str = "127.0.0.1",
        blocking: bool = True,
        **popen: Any,
    ) -> None:
        self.listener = socket.socket(family)
        if family == socket.AF_UNIX:
            self.listener.bind(str(directory / "app.sock"))
        else:
            self.listener.bind((host, 0))
        self.listener.listen(128)
        self.listener.setblocking(blocking)
        script = directory / "app.py"
        script.write_text(textwrap.dedent(source))
        self.log_path = directory / "log"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FCGI_")}
        environ |= {"PYTHONPATH": PACKAGE_PARENT, **(env or {})}
        with self.log_path.open("wb") as log:
            start: Any = subprocess.Popen  # whose overloads know no **popen
            self.process: subprocess.Popen[bytes] = start(
                [sys.executable, str(script)],
                stdin=self.listener,
                stdout=popen.pop("stdout", log),
                stderr=log,
                env=environ,
                cwd=directory,
                **popen,
            )

    def connect(self) -> Wire:
        """A new connection."""
        sock = socket.socket(self.listener.family)
        sock.connect(self.listener.getsockname())
        return Wire(sock)

    def ask(self, *pairs: tuple[str, str], body: bytes = b"", role: int = 1) -> Answer:
        """One request on a connection of its own."""
        encoded = [(name.encode(), value.encode()) for name, value in pairs]
        with self.connect() as wire:
            wire.send(whole_request(1, encoded, body, role=role))
            return wire.answer()

    @property
    def log(self) -> str:
        """What the process has written to its own stderr so far."""
        return self.log_path.read_text(errors="replace")

    def logged(self, text: str, start: int = 0) -> bool:
        """Whether the text stands in the log from ``start`` on, or soon will.

        With threads, another one writes the log.
        """
        until = time.monotonic() + 10
        while text not in self.log[start:]:
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the process's own end; returns the exit status."""
        return self.process.wait(20)

    def __enter__(self) -> App:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.listener.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        if error is not None:
            sys.stderr.write(f"log of the application:\n{self.log}\n")
