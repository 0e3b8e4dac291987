"""The contrast: a FastCGI program that serves one connection until it is closed.

Most small FastCGI libraries work like this.  It is what the starvation test must find
out; nothing here is ours.
"""

from __future__ import annotations

import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Protocol

HEADER = struct.Struct(">BBHHBx")
BEGIN, END, STDIN, STDOUT = 1, 3, 5, 6
ANSWER = b"Content-Type: text/plain\r\n\r\none at a time\n"


class Stream(Protocol):
    """What a connection's file object can do."""

    def read(self, size: int, /) -> bytes: ...
    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


def build(record_type: int, content: bytes) -> bytes:
    """One record of request 1."""
    return HEADER.pack(1, record_type, 1, len(content), 0) + content


def serve(stream: Stream) -> None:
    """Every request of a connection, one after the other."""
    keep = False
    while header := stream.read(HEADER.size):
        _, record_type, _, length, padding = HEADER.unpack(header)
        content = stream.read(length)
        stream.read(padding)
        if record_type == BEGIN:
            keep = bool(content[2] & 1)
        elif record_type == STDIN and not content:
            end = build(END, bytes(8))
            stream.write(build(STDOUT, ANSWER) + build(STDOUT, b"") + end)
            stream.flush()
            if not keep:
                return


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with socket.socket(fileno=0) as listener:
    while True:
        connection, _ = listener.accept()
        # A web server that goes away in mid-request ends its own connection only.
        with (
            suppress(OSError),
            connection,
            connection.makefile("rwb") as connection_stream,
        ):
            serve(connection_stream)
