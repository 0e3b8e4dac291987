"""Records and name-value pairs: the bytes of the specification, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.codec import constants
from fcgi_app.codec.constants import ProtocolStatus, RecordType, Role
from fcgi_app.codec.params import (
    MAX_LENGTH,
    build_params,
    check_params,
    parse_param_map,
    parse_params,
)
from fcgi_app.codec.records import (
    STREAM_CHUNK,
    BeginRequest,
    EndRequest,
    Header,
    build_abort_request,
    build_begin_request,
    build_end_request,
    build_header,
    build_record,
    build_stream,
    build_unknown_type,
    parse_begin_request,
    parse_end_request,
    parse_header,
)
from fcgi_app.errors import LimitError, RemoteProtocolError

from .webserver import parse_records

Pairs = list[tuple[bytes, bytes]]

BYTE = st.integers(0, 255)
TWO_BYTES = st.integers(0, 65535)
# Short strings around the border of the two length forms, where mistakes live.
STRINGS = st.one_of(
    st.binary(max_size=6),
    st.integers(125, 131).map(lambda size: b"x" * size),
)
PAIRS = st.lists(st.tuples(STRINGS, STRINGS), max_size=6)


def laid_out(*fields: str | bytes) -> bytes:
    """Bytes field by field: hexadecimal numbers, and strings as they are."""
    return b"".join(
        bytes.fromhex(field) if isinstance(field, str) else field for field in fields
    )


class TestNumbers:
    def test_record_types(self) -> None:
        """The record types are those of §8."""
        assert {member.name: member.value for member in RecordType} == {
            "BEGIN_REQUEST": 1,
            "ABORT_REQUEST": 2,
            "END_REQUEST": 3,
            "PARAMS": 4,
            "STDIN": 5,
            "STDOUT": 6,
            "STDERR": 7,
            "DATA": 8,
            "GET_VALUES": 9,
            "GET_VALUES_RESULT": 10,
            "UNKNOWN_TYPE": 11,
        }

    def test_roles_and_statuses(self) -> None:
        """Roles, protocol statuses and the other numbers are those of §8."""
        assert [(role.name, int(role)) for role in Role] == [
            ("RESPONDER", 1),
            ("AUTHORIZER", 2),
            ("FILTER", 3),
        ]
        assert [(status.name, int(status)) for status in ProtocolStatus] == [
            ("REQUEST_COMPLETE", 0),
            ("CANT_MPX_CONN", 1),
            ("OVERLOADED", 2),
            ("UNKNOWN_ROLE", 3),
        ]
        assert constants.HEADER_LEN == 8
        assert constants.MAX_CONTENT_LENGTH == 0xFFFF
        assert constants.KEEP_CONN == 1
        assert constants.LISTENSOCK_FILENO == 0

    def test_exports(self) -> None:
        """Each name in ``__all__`` is there."""
        assert all(hasattr(constants, name) for name in constants.__all__)


class TestRecords:
    def test_header(self) -> None:
        """§3.3: version, type, id and content length (high byte first), padding, 0."""
        wire = laid_out("01 06 1234 5678 9a 00")
        assert build_header(6, 0x1234, 0x5678, 0x9A) == wire
        assert parse_header(wire) == Header(1, 6, 0x1234, 0x5678, 0x9A)

    def test_header_at_an_offset(self) -> None:
        """A header may begin anywhere in what was received."""
        assert parse_header(b"skip" + build_header(5, 7, 9), 4) == (1, 5, 7, 9, 0)

    @pytest.mark.parametrize("size", range(8))
    def test_header_cut_off(self, size: int) -> None:
        """Fewer than eight bytes are no header; the message tells how many came."""
        wire = build_header(1, 1, 8)[:size]
        with pytest.raises(RemoteProtocolError, match=f"cut off after {size} bytes"):
            parse_header(wire)

    def test_header_leaves_judgement_to_the_connection(self) -> None:
        """Version, type and reserved byte are given as they came."""
        header = parse_header(b"\xff\xfe\x00\x00\x00\x00\x00\xff")
        assert header == Header(255, 254, 0, 0, 0)

    @given(BYTE, TWO_BYTES, TWO_BYTES, BYTE)
    def test_header_round_trip(self, kind: int, rid: int, size: int, pad: int) -> None:
        """parse_header undoes build_header."""
        built = build_header(kind, rid, size, pad)
        assert parse_header(built) == (1, kind, rid, size, pad)

    def test_record(self) -> None:
        """§3.3: header, content, padding of zeros."""
        wire = laid_out("01 05 0001 0003 05 00", b"abc", "0000000000")
        assert build_record(RecordType.STDIN, 1, b"abc", 5) == wire

    @given(BYTE, TWO_BYTES, st.binary(max_size=300), BYTE)
    def test_record_round_trip(
        self, kind: int, rid: int, content: bytes, pad: int
    ) -> None:
        """A record is its header, its content and its padding, and no byte more."""
        built = build_record(kind, rid, content, pad)
        assert len(built) == 8 + len(content) + pad
        assert parse_records(built + b"rest") == ([(kind, rid, content)], b"rest")

    def test_record_of_the_greatest_size(self) -> None:
        """65,535 bytes fit in a record, one more does not."""
        assert build_record(6, 1, bytes(65535))[4:6] == b"\xff\xff"
        with pytest.raises(ValueError, match="65536 bytes, a record holds 65535"):
            build_record(6, 1, bytes(65536))

    def test_begin_request(self) -> None:
        """§5.1: role (two bytes), flags, five reserved bytes."""
        wire = laid_out("01 01 0007 0008 00 00", "0003 01 0000000000")
        assert build_begin_request(7, Role.FILTER, keep_conn=True) == wire
        assert parse_begin_request(wire[8:]) == BeginRequest(3, 1)

    @pytest.mark.parametrize(("flags", "keep"), [(0, False), (1, True), (0xFE, False)])
    def test_keep_conn_is_one_bit(self, flags: int, keep: bool) -> None:
        """§5.1: only bit 0 of the flags says whether the connection is kept."""
        body = b"\x01\x02" + bytes((flags,)) + b"\xff" * 5
        assert parse_begin_request(body).keep_conn is keep
        assert parse_begin_request(body).role == 0x0102

    def test_end_request(self) -> None:
        """§5.5: app_status (four bytes), protocol_status, three reserved bytes."""
        wire = laid_out("01 03 ffff 0008 00 00", "01020307 02 000000")
        built = build_end_request(0xFFFF, 0x01020307, ProtocolStatus.OVERLOADED)
        assert built == wire
        assert parse_end_request(wire[8:]) == EndRequest(0x01020307, 2)

    @given(st.integers(), BYTE)
    def test_end_request_round_trip(self, app_status: int, status: int) -> None:
        """Any app_status is taken modulo 2**32, as a signed number."""
        parsed = parse_end_request(build_end_request(1, app_status, status)[8:])
        assert (parsed.app_status - app_status) % (1 << 32) == 0
        assert -(1 << 31) <= parsed.app_status < 1 << 31
        assert parsed.protocol_status == status

    @pytest.mark.parametrize("parse", [parse_begin_request, parse_end_request])
    @pytest.mark.parametrize("size", [*range(8), 9, 16])
    def test_bodies_of_another_size(
        self, parse: Callable[[bytes], Any], size: int
    ) -> None:
        """A begin-request or end-request body that is not 8 bytes long is refused."""
        with pytest.raises(RemoteProtocolError, match=f"body of {size} bytes, not 8"):
            parse(bytes(size))

    def test_abort_request(self) -> None:
        """§5.4: a header with the id, and no content."""
        assert build_abort_request(0x0102) == laid_out("01 02 0102 0000 00 00")

    def test_unknown_type(self) -> None:
        """§4.2: id 0, the type that was not known, seven reserved bytes."""
        wire = laid_out("01 0b 0000 0008 00 00", "4d 00000000000000")
        assert build_unknown_type(77) == wire

    @pytest.mark.parametrize(
        "size", [0, 1, STREAM_CHUNK - 1, STREAM_CHUNK, STREAM_CHUNK + 1, 200_000]
    )
    @pytest.mark.parametrize("end", [False, True])
    def test_stream(self, size: int, end: bool) -> None:
        """A stream is cut into records; only its end is an empty one."""
        content = bytes(i % 253 for i in range(size))
        records, rest = parse_records(build_stream(8, 2, content, end=end))
        assert rest == b""
        assert b"".join(record.content for record in records) == content
        assert {record[:2] for record in records} <= {(8, 2)}
        empty = [index for index, record in enumerate(records) if not record.content]
        assert empty == [len(records) - 1] * end

    def test_stream_chunk(self) -> None:
        """Full records of a stream are multiples of eight, as §3.3 recommends."""
        assert STREAM_CHUNK % 8 == 0
        assert STREAM_CHUNK <= constants.MAX_CONTENT_LENGTH


VECTORS = [
    pytest.param(b"", [], id="empty-list"),
    pytest.param(laid_out("00 00"), [(b"", b"")], id="both-empty"),
    pytest.param(laid_out("01 00", b"A"), [(b"A", b"")], id="empty-value"),
    pytest.param(laid_out("00 01", b"v"), [(b"", b"v")], id="empty-name"),
    pytest.param(
        laid_out("04 03", b"NAME", b"val"), [(b"NAME", b"val")], id="short-short"
    ),
    pytest.param(
        laid_out("7f 7f", b"n" * 127, b"v" * 127),
        [(b"n" * 127, b"v" * 127)],
        id="greatest-short",
    ),
    pytest.param(
        laid_out("01 80000080", b"N", b"v" * 128),
        [(b"N", b"v" * 128)],
        id="short-long",
    ),
    pytest.param(
        laid_out("80000080 01", b"n" * 128, b"v"),
        [(b"n" * 128, b"v")],
        id="long-short",
    ),
    pytest.param(
        laid_out("80000100 80010000", b"n" * 256, b"v" * 65536),
        [(b"n" * 256, b"v" * 65536)],
        id="long-long",
    ),
    pytest.param(
        laid_out("0101", b"A1", "0101", b"B2", "0101", b"A3"),
        [(b"A", b"1"), (b"B", b"2"), (b"A", b"3")],
        id="repeated-name",
    ),
    pytest.param(
        laid_out("03 03", b"\0=\n", b"\xff\0\r"), [(b"\0=\n", b"\xff\0\r")], id="any"
    ),
]


class TestParams:
    @pytest.mark.parametrize(("wire", "pairs"), VECTORS)
    def test_vector(self, wire: bytes, pairs: Pairs) -> None:
        """§3.4: lengths of one byte below 128, of four with the high bit set above."""
        assert build_params(pairs) == wire
        assert parse_params(wire) == pairs
        assert parse_param_map(wire) == dict(pairs)

    @pytest.mark.parametrize(
        "wire",
        [
            laid_out("80000001 01", b"A1"),
            laid_out("01 80000001", b"A1"),
            laid_out("80000001 80000001", b"A1"),
        ],
    )
    def test_long_form_of_a_short_length(self, wire: bytes) -> None:
        """The long form of a length below 128 is legal."""
        assert parse_params(wire) == [(b"A", b"1")]
        assert parse_param_map(wire) == {b"A": b"1"}

    @given(PAIRS)
    def test_round_trip(self, pairs: Pairs) -> None:
        """parse_params undoes build_params."""
        assert parse_params(build_params(pairs)) == pairs

    @given(st.binary(max_size=40))
    def test_build_undoes_parse(self, content: bytes) -> None:
        """What can be parsed is built again to no more bytes, and means the same."""
        try:
            pairs = parse_params(content)
        except RemoteProtocolError:
            return
        built = build_params(pairs)
        assert len(built) <= len(content)
        assert parse_params(built) == pairs

    @given(PAIRS, st.data())
    def test_truncated(self, pairs: Pairs, draw: st.DataObject) -> None:
        """A list cut anywhere but between two pairs is an error that says §3.4."""
        content = build_params(pairs)
        whole = {len(build_params(pairs[:count])) for count in range(len(pairs) + 1)}
        cut = draw.draw(st.integers(0, len(content)))
        if cut in whole:
            assert build_params(parse_params(content[:cut])) == content[:cut]
        else:
            with pytest.raises(RemoteProtocolError, match="§3\\.4"):
                parse_params(content[:cut])

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b"\x05", "runs past the end at byte 1 of 1"),
            (b"\x80", "runs past the end"),
            (b"\x80\x00\x00", "runs past the end"),
            (b"\x80\x00\x00\x01", "runs past the end at byte 4 of 4"),
            (b"\x01\x80\x00\x00", "runs past the end"),
            (b"\x05\x00abc", "runs to byte 7, the stream ends at 5"),
            (b"\x01\x01A", "runs to byte 4, the stream ends at 3"),
            (b"\xff\xff\xff\xff\x00", "runs to byte 2147483652"),
            (b"\x00\xff\xff\xff\xff", "runs to byte 2147483652"),
            (b"\x01\x01Ab\x01", "runs past the end at byte 5 of 5"),
        ],
    )
    def test_error(self, content: bytes, what: str) -> None:
        """The message tells where the list breaks off."""
        with pytest.raises(RemoteProtocolError, match=what):
            parse_params(content)

    @given(
        st.one_of(
            st.binary(max_size=60),
            st.tuples(PAIRS, st.integers(0, 40), st.binary(max_size=9)).map(
                lambda parts: build_params(parts[0])[: -parts[1] or None] + parts[2]
            ),
        )
    )
    def test_map_is_the_dict_of_the_pairs(self, content: bytes) -> None:
        """parse_param_map is dict(parse_params), also in what it refuses, and why."""
        try:
            expected: object = dict(parse_params(content))
        except RemoteProtocolError as error:
            expected = str(error)
        try:
            found: object = parse_param_map(content)
        except RemoteProtocolError as error:
            found = str(error)
        assert found == expected

    def test_order_of_a_map(self) -> None:
        """A repeated name keeps its first place and has its last value."""
        content = build_params([(b"A", b"1"), (b"B", b"2"), (b"A", b"3")])
        assert list(parse_param_map(content).items()) == [(b"A", b"3"), (b"B", b"2")]

    def test_build_what_cannot_be_expressed(self) -> None:
        """A string longer than §3.4 can say is a ValueError, not a wrong length."""

        class Huge(bytes):
            def __len__(self) -> int:
                return MAX_LENGTH + 1

        with pytest.raises(ValueError, match="2147483648 bytes does not fit"):
            build_params([(b"N", Huge())])


class TestCheckParams:
    def test_stops_at_the_pair_that_is_not_whole(self) -> None:
        """It returns where the first unfinished pair begins, to go on from there."""
        first, second = build_params([(b"AB", b"c")]), build_params([(b"D", b"e" * 9)])
        content = first + second
        for cut in range(len(first), len(content)):
            assert check_params(content[:cut], 0, 1000) == len(first)
        assert check_params(content, len(first), 1000) == len(content)

    @pytest.mark.parametrize("which", ["name", "value"])
    def test_names_the_length(self, which: str) -> None:
        """A length that can only end beyond the limit is told with its place."""
        length = b"\x80\x00\x10\x00"
        start = length if which == "name" else b"\x01" + length
        content = build_params([(b"A", b"1")]) + start
        message = "4096 bytes announced at byte 4 of PARAMS, the limit is 1000"
        with pytest.raises(LimitError, match=message):
            check_params(content, 0, 1000)

    def test_limit_itself_is_allowed(self) -> None:
        """A list of exactly the limit's size is none too many."""
        start = b"\x01\x80\x00\x00\x80A"  # ends at byte 6 + 128
        assert check_params(start, 0, 134) == 0
        with pytest.raises(LimitError):
            check_params(start, 0, 133)

    @given(PAIRS, st.integers(0, 300), st.lists(st.integers(0, 800), max_size=5))
    def test_never_refuses_a_list_within_the_limit(
        self, pairs: Pairs, slack: int, cuts: list[int]
    ) -> None:
        """However a list comes, it passes if the whole of it is within the limit."""
        content = build_params(pairs)
        position = 0
        for cut in [*sorted(cuts), len(content)]:
            position = check_params(content[:cut], position, len(content) + slack)
        assert position == len(content)

    @given(st.binary(max_size=60), st.integers(0, 80))
    def test_raises_nothing_else(self, content: bytes, limit: int) -> None:
        """No bytes raise anything but LimitError, and the place is in the content."""
        try:
            position = check_params(content, 0, limit)
        except LimitError:
            return
        assert 0 <= position <= len(content)
