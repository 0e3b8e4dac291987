"""Records (§3.3): ``build_x`` gives bytes, ``parse_x`` takes exactly one body.

Nothing in here holds state or does I/O.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

from ..errors import RemoteProtocolError
from .constants import (
    HEADER_LEN,
    KEEP_CONN,
    MAX_CONTENT_LENGTH,
    NULL_REQUEST_ID,
    VERSION_1,
    ProtocolStatus,
    RecordType,
)

__all__ = [
    "END_REQUEST_LEN",
    "HEADER",
    "BeginRequest",
    "Buffer",
    "EndRequest",
    "Header",
    "build_abort_request",
    "build_begin_request",
    "build_end_request",
    "build_header",
    "build_record",
    "build_stream",
    "build_unknown_type",
    "cut_stream",
    "parse_begin_request",
    "parse_end_request",
    "parse_header",
    "stream_buffers",
]

Buffer = bytes | bytearray | memoryview
"""What the content of a record may be; a memoryview of single bytes."""

HEADER = Struct("!BBHHBx")
"""version, record type, request id, content length, padding length, reserved."""
_BEGIN = Struct("!HB5x")
_END = Struct("!iB3x")
_END_RECORD = Struct("!BBHHBxiB3x")

END_REQUEST_LEN = _END_RECORD.size
"""Bytes of a whole end-request record."""
STREAM_CHUNK = 65528
"""Content bytes a record of a long stream: the greatest multiple of eight."""


# Tuples with names, and types for those who check them: typing.NamedTuple loads typing.


class Header(
    namedtuple("Header", "version record_type request_id content_length padding_length")
):
    """A record header (§3.3)."""

    __slots__ = ()

    version: int
    record_type: int
    request_id: int
    content_length: int
    padding_length: int


class BeginRequest(namedtuple("BeginRequest", "role flags")):
    """Body of a begin-request record (§5.1)."""

    __slots__ = ()

    role: int
    flags: int

    @property
    def keep_conn(self) -> bool:
        """Whether the web server wants the connection kept after the end."""
        return bool(self.flags & KEEP_CONN)


class EndRequest(namedtuple("EndRequest", "app_status protocol_status")):
    """Body of an end-request record (§5.5)."""

    __slots__ = ()

    app_status: int
    protocol_status: int


def build_header(
    record_type: int, request_id: int, content_length: int, padding_length: int = 0
) -> bytes:
    """Build the eight bytes of a record header."""
    return HEADER.pack(
        VERSION_1, record_type, request_id, content_length, padding_length
    )


def parse_header(data: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """Parse eight bytes at ``offset``.

    Raises:
        RemoteProtocolError: fewer than eight bytes are there. The version is not
            checked: the connection does that, which knows what to do then.
    """
    if len(data) - offset < HEADER_LEN:
        raise RemoteProtocolError(
            f"record header cut off after {len(data) - offset} bytes", section="3.3"
        )
    return Header(*HEADER.unpack_from(data, offset))


def build_record(
    record_type: int, request_id: int, content: bytes = b"", padding_length: int = 0
) -> bytes:
    """Build one whole record; ``content`` is at most 65,535 bytes."""
    if len(content) > MAX_CONTENT_LENGTH:
        raise ValueError(
            f"content of {len(content)} bytes, a record holds {MAX_CONTENT_LENGTH}"
        )
    return (
        HEADER.pack(VERSION_1, record_type, request_id, len(content), padding_length)
        + content
        + bytes(padding_length)
    )


def build_stream(
    record_type: int, request_id: int, data: bytes, *, end: bool = False
) -> bytes:
    """Build the stream records (§3.3) that carry ``data``, and the empty one."""
    parts: list[Buffer] = []
    for (piece,) in cut_stream((data,)):
        header = HEADER.pack(VERSION_1, record_type, request_id, len(piece), 0)
        parts += (header, piece)
    if end:
        parts.append(HEADER.pack(VERSION_1, record_type, request_id, 0, 0))
    return b"".join(parts)


def cut_stream(pieces: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    """Cut what is to go out on a stream into the contents of its records, uncopied.

    All but the last have ``STREAM_CHUNK`` bytes, and none is empty: that would be the
    end of the stream (§3.3).
    """
    content: list[Buffer] = []
    room = STREAM_CHUNK
    for piece in pieces:
        size = len(piece)
        if size < room:
            if size:
                content.append(piece)
                room -= size
            continue
        rest = memoryview(piece)
        at = 0
        while size - at >= room:
            content.append(rest[at : at + room])
            yield content
            at += room
            content, room = [], STREAM_CHUNK
        if at < size:
            content.append(rest[at:])
            room -= size - at
    if content:
        yield content


def stream_buffers(
    record_type: int, request_id: int, pieces: Sequence[Buffer]
) -> list[Buffer]:
    """Return the buffers of the stream records that carry ``pieces``, uncopied.

    It is one record if all fits into it; otherwise it is cut by ``cut_stream``. Where
    pieces begin and end is not seen in it.
    """
    size = sum(map(len, pieces))
    if size <= MAX_CONTENT_LENGTH:
        if not size:  # an empty record would be the end of the stream (§3.3)
            return []
        return [HEADER.pack(VERSION_1, record_type, request_id, size, 0), *pieces]
    header = HEADER.pack(VERSION_1, record_type, request_id, STREAM_CHUNK, 0)
    buffers: list[Buffer] = []
    for content in cut_stream(pieces):
        if size < STREAM_CHUNK:
            header = HEADER.pack(VERSION_1, record_type, request_id, size, 0)
        size -= STREAM_CHUNK
        buffers += (header, *content)
    return buffers


def build_begin_request(
    request_id: int, role: int, *, keep_conn: bool = False
) -> bytes:
    """Build a begin-request record (§5.1); the web server's side."""
    body = _BEGIN.pack(role, KEEP_CONN if keep_conn else 0)
    return build_record(RecordType.BEGIN_REQUEST, request_id, body)


def parse_begin_request(content: bytes) -> BeginRequest:
    """Parse the eight bytes of a begin-request body (§5.1).

    Raises:
        RemoteProtocolError: the body is not eight bytes long.
    """
    if len(content) != _BEGIN.size:
        raise RemoteProtocolError(
            f"begin-request body of {len(content)} bytes, not 8", section="5.1"
        )
    return BeginRequest(*_BEGIN.unpack(content))


def build_abort_request(request_id: int) -> bytes:
    """Build an abort-request record (§5.4); the web server's side."""
    return build_record(RecordType.ABORT_REQUEST, request_id)


def build_end_request(
    request_id: int,
    app_status: int = 0,
    protocol_status: int = ProtocolStatus.REQUEST_COMPLETE,
) -> bytes:
    """Build an end-request record (§5.5).

    ``app_status`` is taken modulo 2**32, as the exit status of a C program that is
    stored in the record's 32-bit field.
    """
    signed = (app_status + 0x80000000) % 0x100000000 - 0x80000000
    return _END_RECORD.pack(
        VERSION_1,
        RecordType.END_REQUEST,
        request_id,
        _END.size,
        0,
        signed,
        protocol_status,
    )


def parse_end_request(content: bytes) -> EndRequest:
    """Parse the eight bytes of an end-request body (§5.5).

    Raises:
        RemoteProtocolError: the body is not eight bytes long.
    """
    if len(content) != _END.size:
        raise RemoteProtocolError(
            f"end-request body of {len(content)} bytes, not 8", section="5.5"
        )
    return EndRequest(*_END.unpack(content))


def build_unknown_type(record_type: int) -> bytes:
    """Build the answer to a management record that we do not know (§4.2)."""
    body = bytes([record_type]) + bytes(7)
    return build_record(RecordType.UNKNOWN_TYPE, NULL_REQUEST_ID, body)
