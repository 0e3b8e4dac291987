"""The sans-I/O connection: events, order, limits, and whatever bytes may come."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.codec.constants import ProtocolStatus, RecordType, Role
from fcgi_app.codec.params import build_params, parse_params
from fcgi_app.codec.records import STREAM_CHUNK, build_record, parse_end_request
from fcgi_app.errors import LimitError, LocalProtocolError, RemoteProtocolError
from fcgi_app.protocol import (
    AbortReceived,
    Connection,
    DataEnded,
    DataReceived,
    Event,
    InputDiscarded,
    Limits,
    ParamsReceived,
    RequestRefused,
    State,
    StdinEnded,
    StdinReceived,
)

from .webserver import (
    GET,
    abort_request,
    begin_request,
    data,
    params,
    parse_records,
    stdin,
    whole_request,
)

Flat = list[tuple[str, int, object]]


def flatten(events: list[Event]) -> Flat:
    """Events as plain values, neighbouring pieces of one stream joined."""
    flat: Flat = []
    for event in events:
        name, request_id = type(event).__name__, event.request.request_id
        value: object = None
        for further in ("params", "data", "protocol_status"):
            value = getattr(event, further, value)
        if flat and isinstance(value, bytes) and flat[-1][:2] == (name, request_id):
            last = flat.pop()[2]
            assert isinstance(last, bytes)
            value = last + value
        flat.append((name, request_id, value))
    return flat


def feed(pieces: list[bytes]) -> tuple[Flat, str | None, bytes]:
    """Feed a connection piece by piece: its events, its error, its replies."""
    connection = Connection()
    events: list[Event] = []
    replies = b""
    error = None
    for piece in pieces:
        try:
            events += connection.receive_data(piece)
            if connection.error is not None:
                raise connection.error
        except RemoteProtocolError as caught:
            error = str(caught)
            break
        finally:
            replies += connection.data_to_send()
    return flatten(events), error, replies


def only(connection: Connection, *parts: bytes) -> list[Event]:
    return connection.receive_data(b"".join(parts))


SAMPLES = [
    pytest.param(whole_request(), id="get"),
    pytest.param(whole_request(65535, [], b"x" * 70000), id="long-body"),
    pytest.param(
        begin_request(keep=True) + params(cut_at=[1, 3, 9]) + stdin(data=b"hello"),
        id="params-in-pieces",
    ),
    pytest.param(
        begin_request(1)
        + begin_request(3)
        + params(3)
        + params(1)
        + stdin(1, b"one", end=False)
        + stdin(3, b"three")
        + stdin(1, b"more"),
        id="interleaved",
    ),
    pytest.param(
        begin_request(role=Role.FILTER)
        + params()
        + stdin(data=b"in")
        + data(content=b"file"),
        id="filter",
    ),
    pytest.param(
        begin_request()
        + build_record(77, 0, b"12345678", 5)
        + params()
        + build_record(
            RecordType.GET_VALUES, 0, build_params([(b"FCGI_MAX_REQS", b"")])
        )
        + build_record(99, 1, b"skipped", 3)
        + stdin(data=b"x", end=False)
        + build_record(77, 0, b"in the body")
        + stdin(data=b"y"),
        id="management-between",
    ),
    pytest.param(
        build_record(RecordType.BEGIN_REQUEST, 1, b"\0\1\xfe\1\2\3\4\5", 255)
        + params()
        + build_record(RecordType.STDIN, 1, b"b" * 65535, 255)
        + stdin(),
        id="greatest-record",
    ),
    pytest.param(whole_request(keep=True) * 3, id="three-in-a-row"),
    pytest.param(
        whole_request(1, keep=True)
        + begin_request(2)
        + whole_request(3, keep=True)
        + params(2)
        + whole_request(4, [], keep=True)
        + whole_request(1, body=b"again")
        + stdin(2)
        + build_record(RecordType.BEGIN_REQUEST, 5, b"\0\1\1\0\0\0\0\0")
        + build_record(RecordType.PARAMS, 5, build_params(GET), 7)
        + build_record(RecordType.PARAMS, 5, b"")
        + build_record(RecordType.STDIN, 5, b""),
        id="whole-ones-side-by-side",
    ),
    pytest.param(
        whole_request(1)
        + begin_request(2)
        + build_record(RecordType.PARAMS, 2, b"\xff")
        + build_record(RecordType.PARAMS, 2, b"")
        + build_record(RecordType.STDIN, 2, b"")
        + whole_request(3),
        id="bad-params-among-whole-ones",
    ),
    pytest.param(
        whole_request(1)
        + begin_request(2)
        + build_record(RecordType.PARAMS, 2, build_params(GET))
        + build_record(RecordType.PARAMS, 2, b"")
        + build_record(RecordType.STDIN, 3, b"")
        + whole_request(4),
        id="end-of-another-id",
    ),
    pytest.param(whole_request() + b"\2garbage", id="garbage-behind"),
    pytest.param(begin_request() + params() + begin_request(), id="begin-twice"),
]


class TestFeeding:
    @pytest.mark.parametrize("sample", SAMPLES)
    def test_bytewise_gives_the_same(self, sample: bytes) -> None:
        """Byte by byte, the same events, errors and replies come (W29)."""
        pieces = [sample[i : i + 1] for i in range(len(sample))]
        assert feed(pieces) == feed([sample])

    @pytest.mark.parametrize("sample", SAMPLES)
    def test_cut_anywhere_gives_the_same(self, sample: bytes) -> None:
        """Cut in two at any place, the same comes (every place near the ends, W29)."""
        expected = feed([sample])
        ends = range(min(len(sample), 200))
        for cut in {*ends, *(len(sample) - end for end in ends)}:
            assert feed([sample[:cut], sample[cut:]]) == expected, cut

    @given(st.data())
    def test_any_cuts_give_the_same(self, draw: st.DataObject) -> None:
        """However a sample is cut, the same comes."""
        sample = draw.draw(st.sampled_from([p.values[0] for p in SAMPLES]))
        assert isinstance(sample, bytes)
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(sample)), max_size=9)))
        pieces = [
            sample[a:b] for a, b in zip([0, *cuts], [*cuts, len(sample)], strict=True)
        ]
        assert feed(pieces) == feed([sample])


RECORDS = st.builds(
    lambda kind, rid, content, pad, version: (
        bytes([version]) + build_record(kind, rid, content, pad)[1:]
    ),
    st.integers(0, 13),
    st.sampled_from([0, 1, 1, 2, 65535]),
    st.one_of(
        st.just(b""),
        st.binary(max_size=40),
        st.sampled_from([b"\0\1\0\0\0\0\0\0", b"\0\3\1\0\0\0\0\0", build_params(GET)]),
    ),
    st.sampled_from([0, 0, 1, 7, 255]),
    st.sampled_from([1, 1, 1, 1, 1, 1, 1, 0, 2]),
)


class TestWhateverBytes:
    @given(st.lists(st.binary(max_size=100), max_size=6))
    def test_raise_only_remote_protocol_error(self, pieces: list[bytes]) -> None:
        """No bytes raise anything but RemoteProtocolError."""
        feed(pieces)

    @given(st.lists(RECORDS, max_size=25), st.integers(1, 400))
    def test_records_raise_only_remote_protocol_error(
        self, records: list[bytes], step: int
    ) -> None:
        """No sequence of well-formed records raises anything else either."""
        sample = b"".join(records)
        pieces = [sample[i : i + step] for i in range(0, len(sample), step)]
        assert feed(pieces)[:2] == feed([sample])[:2]

    @given(st.lists(RECORDS, max_size=25))
    def test_requests_can_always_be_ended(self, records: list[bytes]) -> None:
        """Whatever comes afterwards, an active request can be answered and ended."""
        connection = Connection()
        seen = []
        for record in records:
            try:
                for event in connection.receive_data(record):
                    if event.request not in seen:
                        seen.append(event.request)
            except RemoteProtocolError:
                break
        for request in seen:
            assert parse_records(connection.end_request(request))[1] == b""

    def test_error_comes_again(self) -> None:
        """After a violation every call raises it, whatever comes."""
        connection = Connection()
        with pytest.raises(RemoteProtocolError, match="version 2"):
            connection.receive_data(b"\2" + bytes(7))
        with pytest.raises(RemoteProtocolError, match="version 2"):
            connection.receive_data(whole_request())

    def test_events_before_an_error_are_not_lost(self) -> None:
        """A whole request in front of garbage is returned; the error follows."""
        connection = Connection()
        events = connection.receive_data(whole_request() + b"\2" + bytes(7))
        assert [type(event) for event in events] == [ParamsReceived, StdinEnded]
        assert connection.error is not None
        with pytest.raises(RemoteProtocolError):
            connection.receive_data(b"")


STREAM_RECORDS = {
    "begin": begin_request(),
    "abort": abort_request(),
    "params": params(end=False),
    "params-end": params(pairs=[]),
    "stdin": stdin(data=b"s", end=False),
    "stdin-end": stdin(),
    "data": data(content=b"d", end=False),
    "data-end": data(),
    "end-request": build_record(RecordType.END_REQUEST, 1, bytes(8)),
    "stdout": build_record(RecordType.STDOUT, 1, b"o"),
    "stderr": build_record(RecordType.STDERR, 1, b"e"),
    "get-values": build_record(RecordType.GET_VALUES, 1),
    "unknown": build_record(200, 1, b"u"),
}
ALWAYS_SKIPPED = {"end-request", "stdout", "stderr", "get-values", "unknown"}
BEFORE = {
    State.INACTIVE: b"",
    State.PARAMS: begin_request(role=Role.FILTER),
    State.STDIN: begin_request(role=Role.FILTER) + params(),
    State.DATA: begin_request(role=Role.FILTER) + params() + stdin(),
    State.COMPLETE: begin_request(role=Role.FILTER) + params() + stdin() + data(),
    State.ENDED: begin_request(role=Role.FILTER) + params(),
}
# What is not an error, and the events it gives; the rest is out of order.
ACCEPTED: dict[State, dict[str, list[type]]] = {
    State.INACTIVE: {name: [] for name in STREAM_RECORDS},
    State.PARAMS: {
        "abort": [AbortReceived],
        "params": [],
        "params-end": [ParamsReceived],
    },
    State.STDIN: {
        "abort": [AbortReceived],
        "stdin": [StdinReceived],
        "stdin-end": [StdinEnded],
    },
    State.DATA: {
        "abort": [AbortReceived],
        "data": [DataReceived],
        "data-end": [DataEnded],
    },
    State.COMPLETE: {**{n: [] for n in STREAM_RECORDS}, "abort": [AbortReceived]},
    State.ENDED: {
        **{name: [] for name in STREAM_RECORDS},
        "begin": [InputDiscarded],
        "data-end": [InputDiscarded],
    },
}


@pytest.mark.parametrize("name", STREAM_RECORDS)
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_every_state_with_every_record(state: State, name: str) -> None:
    """Each record in each state gives its events, is skipped, or is a violation."""
    connection = Connection()
    before = only(connection, BEFORE[state])
    if state is State.ENDED:
        connection.end_request(before[0].request)
    if name in ALWAYS_SKIPPED:
        expected: list[type] | None = []
    else:
        expected = ACCEPTED[state].get(name)
    if expected is None:
        with pytest.raises(RemoteProtocolError, match="is due"):
            only(connection, STREAM_RECORDS[name])
    else:
        events = only(connection, STREAM_RECORDS[name])
        assert [type(event) for event in events] == expected
    assert connection.data_to_send() == b""


class TestManagement:
    def values(self, connection: Connection, *names: bytes) -> bytes:
        query = build_params([(name, b"") for name in names])
        assert only(connection, build_record(RecordType.GET_VALUES, 0, query)) == []
        return connection.data_to_send()

    def test_get_values_as_in_libfcgi(self) -> None:
        """The names asked that are known, in order, in 51 bytes of pairs (W9)."""
        reply = self.values(
            Connection(),
            b"FCGI_MAX_CONNS",
            b"FCGI_MAX_REQS",
            b"BOGUS",
            b"FCGI_MPXS_CONNS",
        )
        assert reply == (
            b"\x01\x0a\x00\x00\x00\x33\x05\x00"
            b"\x0e\x01FCGI_MAX_CONNS1\x0d\x01FCGI_MAX_REQS1\x0f\x01FCGI_MPXS_CONNS0"
            b"\x00\x00\x00\x00\x00"
        )

    def test_get_values_of_nothing_known(self) -> None:
        """An empty result record answers a query for no known name."""
        assert self.values(Connection(), b"X") == b"\1\x0a\0\0\0\0\0\0"

    def test_get_values_repeated_name(self) -> None:
        """A name asked ten times is answered once (W12)."""
        reply = self.values(Connection(), *[b"FCGI_MAX_REQS"] * 10)
        assert reply.count(b"FCGI_MAX_REQS") == 1

    def test_get_values_answers_are_ours(self) -> None:
        """The numbers are those that the application gave."""
        connection = Connection(values={b"FCGI_MAX_REQS": b"77"})
        assert b"\x0d\x02FCGI_MAX_REQS77" in self.values(connection, b"FCGI_MAX_REQS")

    def test_monit_probe(self) -> None:
        """The probe of monit, padding in place of a query, gets an empty result (W11)."""
        connection = Connection()
        assert only(connection, bytes.fromhex("0109000000000800"), bytes(8)) == []
        assert connection.data_to_send() == bytes.fromhex("010a000000000000")

    def test_malformed_get_values(self) -> None:
        """A query whose pair runs past the record is a violation."""
        with pytest.raises(RemoteProtocolError, match=r"3\.4"):
            only(Connection(), build_record(RecordType.GET_VALUES, 0, b"\x05\x00ab"))

    @pytest.mark.parametrize("record_type", [2, 4, 5, 6, 7, 8, 10, 12, 77, 255])
    def test_unknown_type(self, record_type: int) -> None:
        """Any other management record is answered with UNKNOWN_TYPE (§4.2, W13)."""
        connection = Connection()
        assert only(connection, build_record(record_type, 0, b"12345678")) == []
        assert connection.data_to_send() == (
            b"\x01\x0b\0\0\0\x08\0\0" + bytes([record_type]) + bytes(7)
        )

    def test_unknown_type_is_not_answered(self) -> None:
        """An UNKNOWN_TYPE from the other side is no question."""
        connection = Connection()
        only(connection, build_record(RecordType.UNKNOWN_TYPE, 0, bytes(8)))
        assert connection.data_to_send() == b""


class TestViolations:
    @pytest.mark.parametrize(
        ("sample", "what"),
        [
            pytest.param(b"\2" + bytes(7), "version 2", id="version"),
            pytest.param(begin_request(0), "null request id", id="begin-id-0"),
            pytest.param(
                build_record(RecordType.BEGIN_REQUEST, 1, b"\0\1\0\0"),
                "body of 4 bytes",
                id="begin-short",
            ),
            pytest.param(
                begin_request()
                + build_record(RecordType.PARAMS, 1, b"\5\1ab")
                + params(pairs=[]),
                "runs to byte",
                id="params-cut",
            ),
            pytest.param(
                begin_request()
                + build_record(4, 1, b"\5\1ab")
                + params(pairs=[])
                + stdin(),
                "runs to byte",
                id="params-cut-in-a-whole-request",
            ),
            pytest.param(
                begin_request()
                + build_record(RecordType.PARAMS, 1, b"\xff\xff")
                + params(pairs=[]),
                "runs past the end",
                id="params-length-cut",
            ),
        ],
    )
    def test_is_told(self, sample: bytes, what: str) -> None:
        """The message names what was wrong (W16)."""
        with pytest.raises(RemoteProtocolError, match=what):
            only(Connection(), sample)

    @pytest.mark.parametrize("length", [0xFFFFFFFF, 0xFFFFFFFE])
    @pytest.mark.parametrize("which", ["name", "value"])
    def test_absurd_length_is_refused_at_once(self, length: int, which: str) -> None:
        """A length of 2 GiB is refused before its stream goes on (W19)."""
        lengths = struct.pack("!I", length)
        lengths = lengths + b"\0" if which == "name" else b"\0" + lengths
        with pytest.raises(LimitError, match="announced"):
            only(
                Connection(),
                begin_request(),
                build_record(RecordType.PARAMS, 1, lengths),
            )

    def test_absurd_length_in_the_second_record(self) -> None:
        """The same, when the pair begins behind others and its length is cut."""
        connection = Connection()
        only(connection, begin_request(), params(end=False))
        only(connection, build_record(RecordType.PARAMS, 1, b"\1\1ab\xff\xff"))
        with pytest.raises(LimitError):
            only(connection, build_record(RecordType.PARAMS, 1, b"\xff\xff\1"))


class TestLimits:
    def test_params_bytes(self) -> None:
        """PARAMS beyond the limit are refused while they come."""
        connection = Connection(Limits(max_params_bytes=1000))
        only(connection, begin_request())
        with pytest.raises(LimitError, match="1000 bytes"):
            only(connection, params(pairs=[(b"N", b"v" * 100)] * 11))

    def test_params_count(self) -> None:
        """More pairs than the limit are refused; as many are not."""
        connection = Connection(Limits(max_params=3))
        pairs = [(name, b"") for name in (b"a", b"b", b"c", b"d")]
        assert only(connection, begin_request(), params(pairs=pairs[:3]))
        with pytest.raises(LimitError, match="4 params"):
            only(connection, begin_request(2), params(2, pairs))

    def test_requests(self) -> None:
        """A request beyond the limit is refused as OVERLOADED, the others go on."""
        connection = Connection(Limits(max_requests=2))
        events = only(connection, begin_request(1), begin_request(3), begin_request(5))
        assert events == [RequestRefused(events[0].request, ProtocolStatus.OVERLOADED)]
        connection.end_request(events[0].request)
        later = only(connection, params(5), stdin(5, b"x"), params(1), stdin(1))
        assert [(type(event), event.request.request_id) for event in later] == [
            (InputDiscarded, 5),
            (ParamsReceived, 1),
            (StdinEnded, 1),
        ]

    def test_ended_requests_do_not_count(self) -> None:
        """Ids that were answered early and then completed leave nothing behind."""
        connection = Connection(Limits(max_requests=2))
        for request_id in range(1, 2000, 2):
            events = only(connection, begin_request(request_id), params(request_id))
            connection.end_request(events[0].request)
            discarded = only(connection, stdin(request_id, b"late"))
            assert discarded == [InputDiscarded(events[0].request)]


class TestRequests:
    def test_unknown_role(self) -> None:
        """Role 9 is refused as UNKNOWN_ROLE and its input skipped (W15)."""
        connection = Connection()
        events = only(connection, whole_request(role=9, keep=True))
        refused = events[0].request
        assert events == [RequestRefused(refused, 3), InputDiscarded(refused)]
        end = parse_records(connection.end_request(events[0].request, 0, 3))[0]
        assert parse_end_request(end[-1].content) == (0, ProtocolStatus.UNKNOWN_ROLE)
        assert len(only(connection, whole_request(keep=True))) == 2

    def test_authorizer_is_complete_with_its_params(self) -> None:
        """No server sends STDIN to an authorizer; one that does is not heard."""
        connection = Connection()
        events = only(connection, begin_request(role=Role.AUTHORIZER), params())
        assert events[0].request.input_ended
        assert only(connection, stdin(data=b"x")) == []

    def test_repeated_names_are_kept_in_order(self) -> None:
        """Of a repeated name the last wins; the content gives all pairs in order."""
        pairs = [(b"A", b"1"), (b"B", b""), (b"A", b"2"), (b"", b"empty name")]
        event = only(Connection(), begin_request(), params(pairs=pairs))[0]
        assert isinstance(event, ParamsReceived)
        assert event.params == dict(pairs)
        assert parse_params(event.content) == pairs

    def test_flags_and_reserved_bytes(self) -> None:
        """Only bit 0 of the flags counts; 0xfe does not keep the connection (W6)."""
        body = b"\0\1\xfe\xff\xff\xff\xff\xff"
        connection = Connection()
        record = build_record(RecordType.BEGIN_REQUEST, 65535, body, 255)
        events = only(connection, record, params(65535))
        assert not events[0].request.keep_conn
        assert events[0].request.request_id == 65535

    def test_second_request_on_the_same_id(self) -> None:
        """A begin-request for a complete id is the next request; both end (W7)."""
        connection = Connection()
        events = only(connection, whole_request(keep=True) * 2)
        first, second = events[0].request, events[2].request
        assert first is not second
        for request in (first, second):
            assert connection.end_request(request).startswith(b"\1\6\0\1")
        assert len(only(connection, whole_request(keep=True))) == 2

    def test_forged_request_inside_a_body(self) -> None:
        """Records inside STDIN content are content, also after an early end (W8)."""
        connection = Connection()
        forged = whole_request(1, [(b"FORGED", b"1")]) * 40
        events = only(connection, begin_request(keep=True), params())
        connection.end_request(events[0].request)
        later = only(connection, stdin(data=forged), whole_request(keep=True))
        kinds = [InputDiscarded, ParamsReceived, StdinEnded]
        assert [type(event) for event in later] == kinds
        assert isinstance(later[1], ParamsReceived)
        assert b"FORGED" not in later[1].params

    def test_late_stdin_without_terminator(self) -> None:
        """mod_proxy_fcgi leaves STDIN of an ended id open and begins it anew."""
        connection = Connection()
        events = only(connection, begin_request(keep=True), params())
        connection.end_request(events[0].request)
        assert only(connection, stdin(data=b"late", end=False)) == []
        later = only(connection, whole_request(keep=True))
        assert later[0] == InputDiscarded(events[0].request)
        assert [type(event) for event in later[1:]] == [ParamsReceived, StdinEnded]

    def test_abort_of_an_unknown_id(self) -> None:
        """Records of inactive ids are skipped exactly (§3.3)."""
        connection = Connection()
        sample = (
            begin_request()
            + params()
            + stdin(data=b"body1", end=False)
            + abort_request(9)
            + stdin(data=b"body2")
        )
        assert flatten(only(connection, sample))[1:] == [
            ("StdinReceived", 1, b"body1body2"),
            ("StdinEnded", 1, None),
        ]

    def test_second_abort(self) -> None:
        """An abort of a request that has been aborted says nothing new."""
        connection = Connection()
        only(connection, begin_request(1), params(1))
        events = only(connection, abort_request(1) + abort_request(1))
        assert [type(event) for event in events] == [AbortReceived]

    def test_end_of_connection(self) -> None:
        """EOF cuts off the requests whose input is not complete, and no others (W18)."""
        connection = Connection()
        only(connection, whole_request(1), begin_request(3), params(3, end=False))
        only(connection, begin_request(5), params(5), stdin(5, b"x", end=False))
        assert [request.request_id for request in connection.receive_eof()] == [3, 5]


class TestSending:
    def request(self, connection: Connection) -> ParamsReceived:
        event = only(connection, whole_request())[0]
        assert isinstance(event, ParamsReceived)
        return event

    def test_empty_response(self) -> None:
        """Empty STDOUT and END_REQUEST, byte for byte as libfcgi (W2)."""
        connection = Connection()
        end = connection.end_request(self.request(connection).request)
        assert end == bytes.fromhex(
            "0106000100000000 0103000100080000 0000000000000000"
        )

    @pytest.mark.parametrize(
        ("status", "wire"),
        [(0x01020307, "01020307"), (-2, "fffffffe"), (1 << 40, "00000000")],
    )
    def test_app_status(self, status: int, wire: str) -> None:
        """app_status is a 32-bit number, negative ones too (W5)."""
        connection = Connection()
        end = connection.end_request(self.request(connection).request, status)
        assert end[-8:-4].hex() == wire

    def test_stderr_is_closed_when_used(self) -> None:
        """The end of STDERR comes before the end of STDOUT (W3)."""
        connection = Connection()
        request = self.request(connection).request
        records, _ = parse_records(connection.end_request(request, stderr_used=True))
        assert [record.type for record in records] == [7, 6, 3]

    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65528 * 2, 200_001])
    def test_stdout_of_any_size(self, size: int) -> None:
        """Any amount of output becomes whole records, never an empty one."""
        connection = Connection()
        content = bytes(i % 251 for i in range(size))
        sent = b"".join(connection.stdout(self.request(connection).request, [content]))
        records, rest = parse_records(sent)
        assert rest == b""
        assert b"".join(record.content for record in records) == content
        assert all(record.content for record in records)

    @given(
        st.lists(st.sampled_from([0, 1, 8, 9000, 65527, 65528, 65536, 200_001])),
        st.sampled_from([bytes, bytearray, memoryview]),
    )
    def test_stdout_in_pieces(self, sizes: list[int], kind: Callable[..., Any]) -> None:
        """All is cut as one stream, wherever pieces end, and nothing is copied."""
        connection = Connection()
        pieces = [kind(bytes([n % 251]) * size) for n, size in enumerate(sizes)]
        content = b"".join(pieces)
        buffers = connection.stdout(self.request(connection).request, pieces)
        records, rest = parse_records(b"".join(buffers))
        assert rest == b""
        assert b"".join(record.content for record in records) == content
        if len(content) <= 65535:
            assert len(records) == bool(content)
        else:
            lengths = [len(record.content) for record in records]
            assert set(lengths[:-1]) == {STREAM_CHUNK}
            assert 0 < lengths[-1] <= STREAM_CHUNK
        owners = {id(b.obj if isinstance(b, memoryview) else b) for b in buffers}
        kept = [p.obj if isinstance(p, memoryview) else p for p in pieces if len(p)]
        assert owners >= {id(owner) for owner in kept}

    @pytest.mark.parametrize("size", [1, 7, 8, 8192, 8193, 30000])
    def test_stderr_records_are_short_and_padded(self, size: int) -> None:
        """HAProxy 2.6 dies of STDERR records without padding, or longer than 16 KiB."""
        connection = Connection()
        sent = connection.stderr(self.request(connection).request, b"e" * size)
        at = 0
        while at < len(sent):
            length, padding = struct.unpack_from("!HB", sent, at + 4)
            assert 0 < length <= 8192
            assert 1 <= padding <= 8
            assert (length + padding) % 8 == 0
            at += 8 + length + padding
        assert b"".join(r.content for r in parse_records(sent)[0]) == b"e" * size

    def test_nothing_after_the_end(self) -> None:
        """Output after end-request, or a second end, is a bug of the caller."""
        connection = Connection()
        request = self.request(connection).request
        connection.end_request(request)
        with pytest.raises(LocalProtocolError, match="after end-request"):
            connection.stdout(request, [b"x"])
        with pytest.raises(LocalProtocolError, match="after end-request"):
            connection.stderr(request, b"x")
        with pytest.raises(LocalProtocolError, match="second end-request"):
            connection.end_request(request)
