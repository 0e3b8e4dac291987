"""The native backend gives what pure Python gives: equal results and equal errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app import _backend
from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.codec.params import build_params, parse_param_map, parse_params
from fcgi_app.codec.records import build_begin_request, build_record
from fcgi_app.errors import RemoteProtocolError
from fcgi_app.protocol.whole import scan_whole

if _backend.BACKEND == "native":
    from fcgi_app._backend import ffi, lib
    from fcgi_app.paramlist import parse_list

pytestmark = pytest.mark.usefixtures("native_backend")

NAMES = st.sampled_from([b"", b"A", b"B", b"REQUEST_METHOD", b"a\0", b"N" * 128])
TEXTS = st.sampled_from([b"", b"1", b"a\0b", b"v" * 127, b"v" * 128]) | st.binary(
    max_size=8
)
LISTS = st.lists(st.tuples(NAMES, TEXTS), max_size=8).map(build_params)


@st.composite
def spoilt(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Something well-formed, with bytes changed, cut out, put in, or repeated."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["set", "cut", "put", "end", "twice"])):
            case "set" if at < len(content):
                content[at] = draw(st.sampled_from([0, 1, 2, 5, 127, 128, 255]))
            case "cut":
                del content[at : at + draw(st.integers(1, 4))]
            case "put":
                content[at:at] = draw(st.binary(max_size=4))
            case "end":
                del content[at:]
            case _:
                content += content[at:]
    return bytes(content)


def outcome(function: Callable[[bytes], Any], content: bytes) -> object:
    """What the function gives, in its order, or the class and the text of its error."""
    try:
        result = function(content)
    except RemoteProtocolError as error:
        return type(error), str(error)
    return [*result.items()] if isinstance(result, dict) else result


# --- Name-value lists ------------------------------------------------------------------


class TestParams:
    @given(st.binary(max_size=60) | spoilt(LISTS))
    def test_parse_list(self, content: bytes) -> None:
        """parse_list gives the dict of parse_param_map, in its order, or its error."""
        assert outcome(parse_list, content) == outcome(parse_param_map, content)

    @given(LISTS)
    def test_every_truncation(self, content: bytes) -> None:
        """Cut after any byte, a list has the same content or the same error."""
        for end in range(len(content) + 1):
            cut = content[:end]
            assert outcome(parse_list, cut) == outcome(parse_param_map, cut)

    @given(LISTS, st.integers(0, 2000))
    def test_join_params(self, content: bytes, room: int) -> None:
        """fcgi_join_params joins by NUL what has none, where there is room enough."""
        pairs = parse_params(content)
        joined = b"".join([name + b"\0" + value + b"\0" for name, value in pairs])
        usual = joined.count(b"\0") == 2 * len(pairs) != 0 and len(joined) <= room
        out = ffi.new("uint8_t[]", room or 1)
        size = lib.fcgi_join_params(content, len(content), out, room)
        assert size == (len(joined) - 1 if usual else -1)
        if usual:
            assert ffi.buffer(out)[:size] == joined[:-1]

    @pytest.mark.parametrize("size", [65533, 65534, 65535, 65536, 70000])
    def test_long_lists(self, size: int) -> None:
        """Around what C has room for, the result is the same."""
        value = b"v" * (size - 11)
        content = build_params([(b"A", value), (b"B", b"")])
        assert parse_list(content) == parse_param_map(content)


# --- Whole requests --------------------------------------------------------------------


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request in one piece, in the form that has the short way or nearly."""
    request_id = draw(st.sampled_from([1, 2, 256, 65535, 0]))
    content = draw(LISTS)
    padding = draw(st.sampled_from([0, 0, 1, 7, 255]))
    head = build_record(RecordType.PARAMS, request_id, content)[:6]
    return b"".join(
        (
            build_begin_request(
                request_id,
                draw(st.sampled_from([Role.RESPONDER, Role.RESPONDER, Role.FILTER])),
                keep_conn=draw(st.booleans()),
            ),
            head + bytes((padding, 0)) + content + bytes(padding),
            build_record(RecordType.PARAMS, request_id),
            draw(
                st.sampled_from(
                    [
                        b"",
                        b"",
                        build_record(RecordType.STDIN, request_id, b"body"),
                        build_record(RecordType.STDIN, request_id, b"b" * 300, 200),
                        build_record(RecordType.STDIN, request_id, b"", 8),
                        build_record(RecordType.STDIN, 7, b"another one's"),
                    ]
                )
            ),
            build_record(RecordType.STDIN, request_id),
        )
    )


def scan_in_c(content: bytes) -> tuple[int, int, bytes, bytes, int] | None:
    whole = ffi.new("struct fcgi_whole *")
    if not lib.fcgi_scan_whole(content, len(content), whole):
        return None
    stop = whole.content + whole.content_length
    return (
        whole.request_id,
        whole.keep,
        content[whole.content : stop],
        content[whole.body : whole.body + whole.body_length],
        whole.end,
    )


class TestWhole:
    @given(st.binary(max_size=60) | spoilt(requests()))
    def test_any_bytes(self, content: bytes) -> None:
        """fcgi_scan_whole finds what scan_whole finds, and nothing else."""
        assert scan_in_c(content) == scan_whole(content)

    @given(requests(), st.binary(max_size=3))
    def test_every_truncation(self, content: bytes, more: bytes) -> None:
        """Cut after any byte, or with more behind it, a request is the same to both."""
        for end in range(len(content) + 1):
            assert scan_in_c(content[:end]) == scan_whole(content[:end])
        assert scan_in_c(content + more) == scan_whole(content + more)

    @given(requests(), st.data())
    def test_each_byte_of_the_headers(
        self, content: bytes, data: st.DataObject
    ) -> None:
        """A header that differs in one byte makes the same difference to both."""
        content = content[:24] + content[-16:]
        for at in range(len(content)):
            changed = bytearray(content)
            changed[at] ^= data.draw(st.sampled_from([1, 2, 128, 255]))
            assert scan_in_c(bytes(changed)) == scan_whole(bytes(changed))
