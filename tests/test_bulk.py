"""Long bodies that C takes out of their records: the same events as without it."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Thread, get_ident
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app import _backend
from fcgi_app.codec.constants import HEADER_LEN, RecordType
from fcgi_app.codec.records import build_record
from fcgi_app.errors import LocalProtocolError, RemoteProtocolError
from fcgi_app.protocol import Connection, Event, RequestState, StdinReceived
from fcgi_app.request import Request
from fcgi_app.settings import Settings

from .webserver import (
    App,
    abort_request,
    begin_request,
    params,
    parse_records,
    stdin,
    whole_request,
)

if _backend.BACKEND == "native":
    from fcgi_app import bulk
    from fcgi_app._backend import lib
    from fcgi_app.lane import LaneAcceptor

pytestmark = pytest.mark.usefixtures("native_backend")

UNIX = socket.AF_UNIX
BEGUN = begin_request(1) + params(1) + begin_request(2) + params(2)
RECORDS = st.builds(
    build_record,
    st.sampled_from([RecordType.STDIN] * 6 + [RecordType.DATA, 77]),
    st.sampled_from([1, 1, 1, 1, 2, 9]),
    st.binary(max_size=40),
    st.sampled_from([0, 0, 3, 255]),
)
OTHERS = st.sampled_from(
    [
        build_record(RecordType.STDIN, 1, b""),
        build_record(RecordType.STDIN, 1, b"", 7),
        build_record(RecordType.STDIN, 1, b"x" * 65535, 255),
        build_record(RecordType.GET_VALUES, 0, b""),
        b"\2" + build_record(RecordType.STDIN, 1, b"version 2")[1:],
        abort_request(1),
        begin_request(1),
    ]
)


def seen(connection: Connection, pieces: Sequence[bytes]) -> tuple[list[Any], Any]:
    """What a connection makes of pieces: events, with neighbouring input joined."""
    found: list[Any] = []
    try:
        for piece in (BEGUN, *pieces):
            for event in received(connection, piece):
                add(found, event)
            if connection.error is not None:
                raise connection.error
    except RemoteProtocolError as caught:
        found.append(str(caught))
    return found, (connection.mid_record, connection.idle)


def add(found: list[Any], event: Event) -> None:
    """Append an event as something that can be compared."""
    request: RequestState = event.request
    last = found[-1] if found else None
    if type(event) is not StdinReceived:
        found.append((type(event), request.request_id))
    elif last is not None and last[:2] == (StdinReceived, request.request_id):
        found[-1] = (*last[:2], last[2] + event.data)
    else:
        found.append((StdinReceived, request.request_id, event.data))


def received(connection: Connection, piece: bytes) -> Iterator[Event]:
    """The events of a piece: through a socket where C is to receive it."""
    if not isinstance(connection, bulk.BulkConnection):
        yield from connection.receive_data(piece)
        return
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0)
        for start in range(0, len(piece), 1 << 16):
            far.send(piece[start : start + (1 << 16)])
            yield from _receive_all(connection, near)
            if connection.error is not None:
                return


def _receive_all(connection: bulk.BulkConnection, near: socket.socket) -> Iterator[Any]:
    while True:
        state = connection.bulk
        if state is None:
            try:
                behind = near.recv(bulk._SIZE)
            except BlockingIOError:
                return
        else:
            room = bulk.Room()
            came, content = connection.receive_body(near.fileno(), room)
            behind = b""
            if came < 0:
                assert -came == errno.EAGAIN
                return
            assert came > 0
            if content:
                yield StdinReceived(state, bytes(content))
        if behind or connection.is_behind:
            yield from connection.receive_data(behind)
            if connection.error is not None:
                return  # nobody receives on such a connection


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    """The pieces of a stream."""
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(bounds)]


STREAMS = st.lists(RECORDS | OTHERS, max_size=8).map(b"".join)
PLACES = st.lists(st.integers(0, 1 << 17), max_size=8)


@given(STREAMS, PLACES, st.sampled_from([HEADER_LEN + 1, 100, 70_000, 1 << 18]))
def test_same_events(stream: bytes, places: list[int], size: int) -> None:
    """However a stream is cut, C and Python take the same input out of it."""
    pieces = cut(stream, places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_SIZE", size)
        assert seen(bulk.BulkConnection(), pieces) == seen(Connection(), pieces)


def test_end_and_failure_of_the_connection() -> None:
    """They are told as recv(2) does, and nothing is changed by it."""
    connection = bulk.BulkConnection()
    connection.receive_data(BEGUN + build_record(RecordType.STDIN, 1, b"x" * 99)[:20])
    near, far = socket.socketpair()
    with near:
        far.close()
        came, content = connection.receive_body(near.fileno(), bulk.Room())
    assert (came, len(content)) == (0, 0)
    fd = os.open(os.devnull, os.O_RDONLY)
    came, content = connection.receive_body(fd, bulk.Room())
    os.close(fd)
    assert (came, len(content)) == (-errno.ENOTSOCK, 0)
    assert connection.mid_content


def test_room_is_used_again() -> None:
    """There is a room for each who receives, and one of them is kept."""
    room = bulk.borrow_room()
    other = bulk.borrow_room()  # in a signal handler, say
    assert other is not room
    bulk.return_room(room)
    bulk.return_room(other)
    assert bulk.borrow_room() is room
    bulk.return_room(room)


PIECES = st.lists(
    st.sampled_from([0, 1, 7, 8, 5000, 65527, 65528, 65535, 65536, 140_000]), max_size=9
).filter(lambda sizes: sum(sizes) <= bulk._MOST_OUTPUT)
KINDS = st.sampled_from([bytes, bytearray, memoryview])


def sending(sizes: Sequence[int], kind: Any) -> tuple[bulk.Output, bytes]:
    """Pieces of so many bytes for C, and what is to come of them."""
    noise = bytes(range(251)) * (max(sizes, default=0) // 251 + 2)
    pieces = [kind(noise[n : n + size]) for n, size in enumerate(sizes)]
    connection = Connection()
    expected = b"".join(connection.stdout(connection.resume(258, True), pieces))
    return bulk.Output(258, pieces), expected


@given(PIECES, KINDS)
def test_same_records(sizes: list[int], kind: Any) -> None:
    """C sends the bytes that Python would, and says how many it did not."""
    output, expected = sending(sizes, kind)
    received = b""
    near, far = socket.socketpair()
    with near, far:
        left = output.send_to(near)
        assert 0 <= left <= len(expected)
        while len(received) < len(expected) - left:
            received += far.recv(1 << 20)
        with pytest.raises(BlockingIOError):
            far.recv(1, socket.MSG_DONTWAIT)
    assert received == expected[: len(expected) - left]
    assert b"".join(output.buffers()) == expected


def test_most_pieces() -> None:
    """The most that there may be fits, and more is refused before anything is sent."""
    most = bulk._MOST_OUTPUT // bulk._MOST_PIECES
    for sizes, fits in [
        ([most] * bulk._MOST_PIECES, True),
        ([most] * (bulk._MOST_PIECES - 1) + [most + 1], False),
        ([*[1] * (bulk._MOST_PIECES - 1), bulk._MOST_OUTPUT - bulk._MOST_PIECES], True),
        ([0] * bulk._MOST_PIECES + [1], False),
    ]:
        output, expected = sending(sizes, bytes)
        near, far = socket.socketpair()
        with near, far:
            if fits:
                left = output.send_to(near)
                assert left < len(expected)
                sent = len(expected) - left
                assert far.recv(sent, socket.MSG_WAITALL) == expected[:sent]
            else:
                with pytest.raises(OSError, match="too long"):
                    output.send_to(near)
                with pytest.raises(BlockingIOError):
                    far.recv(1, socket.MSG_DONTWAIT)


def test_output_to_nobody() -> None:
    """Where nothing is taken all is left; where nobody is there that is an error."""
    output, expected = sending([20_000], bytes)
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        while near.send(bytes(1 << 20)) == 1 << 20:
            pass
        assert output.send_to(near) == len(expected)
        far.close()
        with pytest.raises(BrokenPipeError):
            output.send_to(near)


class Calls:
    """C's function, and how often it was called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *arguments: Any) -> int:
        """Count, and call it."""
        self.count += 1
        return lib.fcgi_send_stdout(*arguments)  # type: ignore[no-any-return]


class Served(NamedTuple):
    """A request whose connection is a ``BulkTransport``, and its web server's end."""

    request: Request
    channel: bulk.BulkTransport
    client: socket.socket
    calls: Calls

    def content(self, size: int) -> bytes:
        """What comes on STDOUT until there are so many bytes."""
        received, content = b"", b""
        while len(content) < size:
            received += self.client.recv(1 << 20)
            records, _ = parse_records(received)
            content = b"".join(record.content for record in records)
        return content


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Serve one request, whose head has gone out."""
    calls = Calls()
    monkeypatch.setattr(bulk, "_send_stdout", calls)
    with socket.socket(UNIX) as listener, socket.socket(UNIX) as client:
        listener.bind("")
        listener.listen(8)
        acceptor = LaneAcceptor([listener], Settings().changed(output_buffer=0))
        client.connect(listener.getsockname())
        client.settimeout(20)
        client.send(whole_request(keep=True))
        request = acceptor.next_request(20)
        assert request is not None
        request.stdout.write(b"Content-Type: text/plain\r\n\r\n")
        channel = request._channel
        assert isinstance(channel, bulk.BulkTransport)
        found = Served(request, channel, client, calls)
        assert found.content(28)
        yield found
        acceptor.close()


def test_c_sends_what_is_long(served: Served) -> None:
    """One call for a long piece, and none for a short one."""
    served.request.stdout.write(b"s" * 65535)
    assert served.calls.count == 0
    assert served.content(65535) == b"s" * 65535
    served.request.stdout.write(b"l" * 65536)
    assert served.calls.count == 1
    assert served.content(65536) == b"l" * 65536


def test_more_pieces_than_c_takes(served: Served) -> None:
    """Then Python sends them."""
    pieces: list[Any] = [bytes([n]) * 3000 for n in range(bulk._MOST_PIECES)]
    for _ in range(2):
        served.channel.send_stdout(served.request, pieces)
        assert served.calls.count == 1
        content = b"".join(pieces)
        assert served.content(len(content)) == content
        pieces.append(b"one more")


def test_nothing_is_sent_in_vain(served: Served) -> None:
    """Whoever has no more to say, or nobody who listens, is told, and C is not asked."""
    request, channel = served.request, served.channel
    pieces: list[Any] = [bytes(70_000)]
    request.unwanted = True
    with pytest.raises(ConnectionAbortedError):
        channel.send_stdout(request, pieces)
    request.unwanted = False
    request.state.ended = True
    with pytest.raises(LocalProtocolError, match="after end-request"):
        channel.send_stdout(request, pieces)
    request.state.ended = False
    channel.close()
    with pytest.raises(BrokenPipeError, match="is closed"):
        channel.send_stdout(request, pieces)
    assert served.calls.count == 0


def test_output_in_the_middle_of_receiving(served: Served) -> None:
    """A signal handler's is queued as far as it does not go, and never waits."""
    served.channel._receiver = get_ident()
    served.request.stdout.write(bytes(1 << 20))
    served.channel._receiver = 0
    assert served.calls.count == 0
    assert served.channel._outlet.pending
    Thread(target=served.request.stdout.write, args=[b"end"], daemon=True).start()
    assert served.content((1 << 20) + 3) == bytes(1 << 20) + b"end"


def test_output_to_a_web_server_that_has_gone(served: Served) -> None:
    """The connection is known to be lost at once."""
    served.client.close()
    with pytest.raises(BrokenPipeError):
        served.channel.send_stdout(served.request, [bytes(70_000)])
    assert served.calls.count == 1
    assert served.request._aborted


WRITES = """
import sys
from fcgi_app import accept, current_request
while accept():
    print("Content-Type: text/plain\\n")
    sizes = [int(size) for size in current_request().params["SIZES"].split(",")]
    for number, size in enumerate(sizes):
        sys.stdout.buffer.write(bytes([number]) * size)
"""


@pytest.mark.parametrize("buffer", ["0", "60000", "131072"])
def test_long_responses(tmp_path: Path, buffer: str) -> None:
    """Whatever is written comes, to a web server that reads slowly too."""
    sizes = [70_000, 300_000, 1_200_000, 5, 65536, 65536, 65536, 4_000_000, 17] * 2
    asked = [(b"SIZES", ",".join(map(str, sizes)).encode())]
    expected = b"".join(bytes([n]) * size for n, size in enumerate(sizes))
    env = {"FCGI_APP_OUTPUT_BUFFER": buffer}
    with App(tmp_path, WRITES, env=env) as app, app.connect() as wire:
        for number in (1, 2):
            wire.send(whole_request(number, asked, keep=True))
            assert wire.answer(number).body == expected


ECHO = """
import hashlib, sys
from fcgi_app import accept
while accept():
    body = sys.stdin.buffer.read()
    print("Content-Type: text/plain\\n")
    print(len(body), hashlib.sha256(body).hexdigest(), end="")
"""


@pytest.mark.parametrize("length", [8192, 65535])
def test_bodies_that_come_side_by_side(tmp_path: Path, length: int) -> None:
    """Each of two requests gets its own body, whichever piece came when."""
    bodies = [bytes([n]) * 700_000 for n in (1, 2, 3)]
    streams = []
    for body in bodies:
        records = [
            build_record(RecordType.STDIN, 1, body[at : at + length], at % 5)
            for at in range(0, len(body), length)
        ]
        streams.append(begin_request() + params(1) + b"".join([*records, stdin(1)]))
    with App(tmp_path, ECHO, env={"FCGI_APP_READ_AHEAD": "1000000"}) as app:
        wires = [app.connect() for _ in streams]
        for at in range(0, len(streams[0]), 50_000):
            for wire, stream in zip(wires, streams, strict=True):
                wire.send(stream[at : at + 50_000])
        answers = [wire.answer().body for wire in wires]
        for wire in wires:
            wire.close()
    assert answers == [
        b"700000 " + hashlib.sha256(body).hexdigest().encode() for body in bodies
    ]
