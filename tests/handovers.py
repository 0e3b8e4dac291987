"""Clients to hand over, and what else one may find in a message to a receiver."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fcgi_app.fdpass import Handover, Receiver
from fcgi_app.fdpass.ancillary import build_rights

TIMEOUT = 30
TLS_ALERT = b"\x15\x03\x03\x00\x13" + b"a" * 19
"""What a client answers httpd's close_notify with."""


class Connection(NamedTuple):
    """A TCP connection over loopback."""

    client: socket.socket
    """The browser's end; its calls end after ``TIMEOUT`` seconds."""
    server: socket.socket
    """The end that httpd hands over: non-blocking, TCP_NODELAY."""


@contextmanager
def tcp_connection() -> Iterator[Connection]:
    """A client that httpd has accepted."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = socket.create_connection(listener.getsockname(), timeout=TIMEOUT)
        stack.enter_context(client)
        server, _ = listener.accept()
        stack.enter_context(server)
        listener.close()
        server.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Connection(client, server)


def taken(receiver: Receiver) -> Handover:
    """The next handover, which has to come."""
    handover = receiver.accept(TIMEOUT)
    assert handover is not None
    return handover


def reset(client: socket.socket) -> None:
    """End a TCP connection by RST, as a client does that crashes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def connect_to(path: object) -> socket.socket:
    """A sender's connection, over which nothing has gone yet."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT)
    connection.connect(os.fspath(path) if isinstance(path, os.PathLike) else str(path))
    return connection


def send_raw(path: object, data: bytes, *descriptors: int) -> None:
    """Connect, send one message with any number of descriptors, disconnect."""
    with connect_to(path) as connection:
        connection.sendmsg([data], build_rights(descriptors))


def open_descriptors() -> list[str]:
    """What each descriptor of this process refers to; their numbers do not count."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return sorted(found)


def wait_for_input(sock: socket.socket) -> None:
    """Wait until there is something to read, or an error."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    assert poller.poll(TIMEOUT * 1000)


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    return b"".join(iter(lambda: client.recv(65536), b""))


@contextmanager
def no_descriptors(but: int = 0) -> Iterator[None]:
    """Leave this process without a free descriptor, ``but`` some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    taken = _take_all()
    try:
        for _ in range(but):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def _take_all() -> list[int]:
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            return taken
