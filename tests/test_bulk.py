"""Long bodies that C takes out of their records: the same events as without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app import _backend
from fcgi_app.codec.constants import RecordType
from fcgi_app.codec.records import build_record
from fcgi_app.errors import RemoteProtocolError
from fcgi_app.protocol import Connection, RequestState, StdinReceived

from .webserver import abort_request, begin_request, params

if _backend.BACKEND == "native":
    from fcgi_app import bulk

pytestmark = pytest.mark.usefixtures("native_backend")

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


def seen(connection: Connection, pieces: Sequence[bytes]) -> tuple[list[Any], str, Any]:
    """What a connection makes of pieces: events, with neighbouring input joined."""
    found: list[Any] = []
    error = ""
    for piece in (BEGUN, *pieces):
        try:
            events = connection.receive_data(piece)
        except RemoteProtocolError as caught:
            error = str(caught)
            break
        for event in events:
            request: RequestState = event.request
            last = found[-1] if found else None
            if type(event) is not StdinReceived:
                found.append((type(event), request.request_id))
            elif last is not None and last[:2] == (StdinReceived, request.request_id):
                found[-1] = (*last[:2], last[2] + event.data)
            else:
                found.append((StdinReceived, request.request_id, event.data))
    return found, error, (connection.mid_record, connection.idle)


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    """The pieces of a stream."""
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(bounds)]


@pytest.fixture(autouse=True, scope="module")
def _everything_is_long() -> Iterator[None]:
    """C is asked for the shortest piece, too."""
    with pytest.MonkeyPatch.context() as patch:
        if _backend.BACKEND == "native":
            patch.setattr(bulk, "_LEAST", 1)
        yield


@given(
    st.lists(RECORDS | OTHERS, max_size=8).map(b"".join),
    st.lists(st.integers(0, 1 << 17), max_size=8),
)
def test_same_events(stream: bytes, places: list[int]) -> None:
    """However a stream is cut, C and Python take the same input out of it."""
    pieces = cut(stream, places)
    assert seen(bulk.BulkConnection(), pieces) == seen(Connection(), pieces)


def test_larger_than_the_room_that_is_kept() -> None:
    """A piece of any size is taken in one visit."""
    record = build_record(RecordType.STDIN, 1, b"x" * 65528)
    pieces = [
        record[:9],
        record[9:] + record * 9 + build_record(RecordType.STDIN, 1, b""),
    ]
    connection = bulk.BulkConnection()
    assert seen(connection, pieces) == seen(Connection(), pieces)
    assert connection.receive_data(build_record(RecordType.STDIN, 2, b"")) != []


def test_room_is_used_again() -> None:
    """Two bodies, one after the other, share the memory for their content."""
    for _ in range(3):
        bulk.gather_body(b"a" * 5000, 1, 5000, 0)
    assert len(bulk._rooms) == 1
