"""Ways to deal with connections and with bytes, for the levers of ``levers.py``."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle

from fcgi_app._backend import ffi, lib
from fcgi_app.accepting import accept_plain, kind_of
from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.codec.records import (
    build_begin_request,
    build_end_request,
    build_header,
    build_record,
    build_stream,
)
from fcgi_app.protocol import Connection

from .ways import LINE, Way, build_list, native
from .wire import NGINX_PARAMS, build_request

__all__ = ["STEP"]

STEP = 128 << 10
"""Bytes of a long body that are dealt with at once; a socket's buffer has room for it."""
_NOW = socket.MSG_DONTWAIT
_READ = 65536
_READ_LONG = 4 * _READ


@contextmanager
def _pair(
    kind: int = socket.SOCK_STREAM,
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected sockets; with SOCK_SEQPACKET one read gives one write."""
    near, far = socket.socketpair(type=kind)
    with near, far:
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * STEP)
        yield near, far


def _drain(end: socket.socket, _runs: int = 0) -> None:
    with suppress(BlockingIOError):
        while end.recv(_READ_LONG, _NOW):
            pass


@contextmanager
def descriptors() -> Iterator[list[Way]]:
    """Connections that wait already are accepted and closed."""
    clients: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # Linux finds a name
        listener.listen(128)
        kind = kind_of(listener)
        address = listener.getsockname()

        def queue(runs: int) -> None:
            while clients:
                clients.pop().close()
            for _ in range(runs):
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].connect(address)

        def plain() -> None:
            connection, _ = listener.accept()
            connection.close()

        def cheap() -> None:
            connection, _ = accept_plain(listener, kind)
            connection.close()

        accept = listener._accept  # type: ignore[attr-defined]

        def raw() -> None:
            fd, _ = accept()
            os.close(fd)

        yield [
            Way("socket.accept, close", plain, prepare=queue),
            Way("accept_plain, close", cheap, prepare=queue),
            Way("_accept, os.close: no object", raw, prepare=queue),
        ]
        queue(0)


@contextmanager
def reading() -> Iterator[list[Way]]:
    """To read again before polling."""
    data = build_request(keep=True)
    with _pair(socket.SOCK_SEQPACKET) as (near, far), select.epoll() as poller:
        poller.register(near, select.EPOLLIN)
        receive, poll = near.recv, poller.poll

        def fill(runs: int) -> None:
            _drain(near)
            for _ in range(runs):
                far.send(data, _NOW)

        def wait_first() -> None:
            poll()
            receive(_READ, _NOW)

        def find_nothing() -> None:
            try:
                receive(_READ, _NOW)
            except BlockingIOError:
                pass

        yield [
            Way("epoll_wait, recv", wait_first, prepare=fill),
            Way("recv at once", partial(receive, _READ, _NOW), prepare=fill),
            Way("recv in vain: EAGAIN", find_nothing, prepare=partial(_drain, near)),
        ]


@contextmanager
def writing() -> Iterator[list[Way]]:
    """A short response: a header, the content, the ends."""
    content = LINE.encode()
    end = build_header(RecordType.STDOUT, 1, 0) + build_end_request(1)
    parts = (build_header(RecordType.STDOUT, 1, len(content)), content, end)
    with _pair() as (near, far):
        send, send_parts = near.send, near.sendmsg

        def send_each() -> None:
            for part in parts:
                send(part, _NOW)

        drain = partial(_drain, far)
        yield [
            Way("3 sends", send_each, prepare=drain),
            Way("sendmsg of 3", lambda: send_parts(parts, (), _NOW), prepare=drain),
            Way("join, one send", lambda: send(b"".join(parts), _NOW), prepare=drain),
        ]


@contextmanager
def records() -> Iterator[list[Way]]:
    """A long response as records, in steps, each into an empty socket."""
    view = memoryview(bytes(1 << 20))
    pieces = cycle([view[at : at + STEP] for at in range(0, len(view), STEP)])
    protocol = Connection()
    request = protocol.resume(1, True)
    build = protocol.stdout
    size = sum(map(len, build(request, [view[:STEP]])))
    with _pair() as (near, far):

        def join() -> None:
            assert near.send(b"".join(build(request, [next(pieces)])), _NOW) == size

        def refer() -> None:
            assert near.sendmsg(build(request, [next(pieces)]), (), _NOW) == size

        def send_by_c() -> Callable[[], object]:
            from fcgi_app.bulk import Output

            def send() -> None:
                assert not Output(1, [next(pieces)]).send_to(near)

            return send

        drain = partial(_drain, far)
        by_c = native("fcgi_send_stdout", send_by_c)
        yield [
            Way("joined, send", join, prepare=drain),
            Way("memoryviews, sendmsg", refer, prepare=drain),
            by_c._replace(prepare=drain),
        ]


def _receiving(data: bytes, kind: int) -> Iterator[list[Way]]:
    with _pair(kind) as (near, far):
        permanent = bytearray(_READ)
        view = memoryview(permanent)
        reads = range(-(-len(data) // _READ))

        def fill(runs: int) -> None:
            _drain(near)
            for _ in range(runs):
                assert far.send(data, _NOW) == len(data)

        def receive() -> None:
            for _ in reads:
                near.recv(_READ, _NOW)

        def receive_into() -> None:
            for _ in reads:
                bytes(view[: near.recv_into(permanent, _READ, _NOW)])

        yield [
            Way("recv(65536)", receive, prepare=fill),
            Way("recv_into(65536), slice", receive_into, prepare=fill),
            Way("recv(262144)", lambda: near.recv(_READ_LONG, _NOW), prepare=fill),
        ]


@contextmanager
def receiving_request() -> Iterator[list[Way]]:
    """A whole request."""
    yield from _receiving(build_request(keep=True), socket.SOCK_SEQPACKET)


@contextmanager
def receiving_body() -> Iterator[list[Way]]:
    """A piece of a long body."""
    yield from _receiving(bytes(STEP), socket.SOCK_STREAM)


@contextmanager
def body(size: int) -> Iterator[list[Way]]:
    """A body of 1 MiB in records of ``size``, in pieces as `Transport` receives them.

    C gives no events, and none are needed: what that saves behind it is not in it.
    """
    begin = build_begin_request(1, Role.RESPONDER)
    begin += build_stream(RecordType.PARAMS, 1, build_list(NGINX_PARAMS), end=True)
    data = build_record(RecordType.STDIN, 1, bytes(size)) * ((1 << 20) // size)
    starts = range(_READ, len(data), _READ_LONG)
    pieces = [data[:_READ], *(data[at : at + _READ_LONG] for at in starts)]

    def receive_in(connection: Connection) -> Callable[[], object]:
        connection.receive_data(begin)

        def receive() -> None:
            for piece in pieces:
                connection.receive_data(piece)

        return receive

    def gather_in_c() -> Callable[[], object]:
        out = ffi.new("uint8_t[]", _READ_LONG)
        found = ffi.new("struct fcgi_body *")
        start = ffi.from_buffer("uint8_t[]", data)

        def gather() -> None:
            found.left = found.skip = at = 0
            while at < len(data):
                size = min(_READ_LONG, len(data) - at)
                lib.fcgi_gather_body(start + at, size, 1, out, found)
                at += found.consumed

        return gather

    yield [
        Way("Connection.receive_data", receive_in(Connection())),
        native("fcgi_gather_body", gather_in_c),
    ]
