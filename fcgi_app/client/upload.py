"""What a request sends (§5, §6): params and bodies become records, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from ..codec.constants import NULL_REQUEST_ID, RecordType, Role
from ..codec.params import build_params
from ..codec.records import (
    STREAM_CHUNK,
    build_abort_request,
    build_begin_request,
    build_record,
    build_stream,
)

__all__ = ["REQUEST_ID", "Body", "BodySource", "Params", "Upload", "encode_params"]

REQUEST_ID = 1
"""The only id in use, as with httpd, nginx and lighttpd."""
_PIECE = STREAM_CHUNK
"""Bytes of a body that are taken at once: one record full."""

Params = (
    Mapping[str, str]
    | Mapping[bytes, bytes]
    | Iterable[tuple[str | bytes, str | bytes]]
)
"""Names and values; text is sent as UTF-8, surrogate escapes as the bytes they hold."""


@runtime_checkable
class BodySource(Protocol):
    """A body that comes by and by, such as an upload that a gateway passes on."""

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when more may be there."""

    def read_some(self) -> bytes | None:
        """Give what is there without waiting; None: nothing yet; empty: the end."""


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


Body = bytes | bytearray | memoryview | BodySource | _Readable | Iterable[bytes]
"""A body: bytes, a binary file, an iterable of bytes, or a `BodySource`.

An iterable or a file that blocks holds up the reading of the answer; a `BodySource`
does not.
"""


class _Pieces:
    """A `BodySource` that always has something, until its end."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def fileno(self) -> int:
        raise AssertionError("never waited for")

    def read_some(self) -> bytes:
        return next((piece for piece in self._pieces if piece), b"")


def _source(body: Body) -> BodySource:
    if isinstance(body, BodySource):
        return body
    if isinstance(body, (bytes, bytearray, memoryview)):
        view = memoryview(body).cast("B")
        starts = range(0, len(view), _PIECE)
        return _Pieces(bytes(view[start : start + _PIECE]) for start in starts)
    if isinstance(body, str):
        raise TypeError(f"a body is bytes, not text: encode {body[:30]!r}")
    if isinstance(body, _Readable):
        return _Pieces(iter(lambda: body.read(_PIECE), b""))
    return _Pieces(body)


def _is_short(body: Body) -> bool:
    if not isinstance(body, (bytes, bytearray, memoryview)):
        return False
    return memoryview(body).nbytes <= _PIECE


class Upload:
    """What is still to be sent of a request.

    Attributes:
        pending: bytes of whole records, less what was sent of the first.
        given_up: the rest will never be sent.
    """

    def __init__(self, first: bytes) -> None:
        self.pending = memoryview(first)
        self.given_up = False
        self._sources: list[tuple[RecordType, BodySource]] = []

    @classmethod
    def of_request(
        cls,
        role: int,
        params: Params,
        stdin: Body,
        data: Body | None,
        *,
        keep_conn: bool,
    ) -> Upload:
        """Make the upload of a request; see `fcgi_app.client.request`."""
        upload = cls(
            build_begin_request(REQUEST_ID, role, keep_conn=keep_conn)
            + _stream(RecordType.PARAMS, build_params(encode_params(params)))
        )
        if role != Role.AUTHORIZER or not isinstance(stdin, bytes) or stdin:
            upload._add(RecordType.STDIN, stdin)
        if data is not None:
            upload._add(RecordType.DATA, data)
        return upload

    @classmethod
    def of_query(cls, names: Iterable[bytes]) -> Upload:
        """Make the upload of GET_VALUES (§4.1)."""
        query = build_params((name, b"") for name in names)
        # libfcgi keeps its answer back until something follows the content.
        padding = 8 + -len(query) % 8
        record = build_record(RecordType.GET_VALUES, NULL_REQUEST_ID, query, padding)
        return cls(record)

    def _add(self, kind: RecordType, body: Body) -> None:
        if self._sources or not _is_short(body):
            self._sources.append((kind, _source(body)))
        else:  # leaves together with the params, in one segment
            records = _stream(kind, _source(body).read_some() or b"")
            self.pending = memoryview(bytes(self.pending) + records)

    @property
    def done(self) -> bool:
        """Whether every record of the request has been sent."""
        return not (self.pending or self._sources or self.given_up)

    def refill(self) -> BodySource | None:
        """Fill ``pending`` if it is empty; the source that has nothing yet, if any."""
        while self._sources and not self.pending:
            kind, source = self._sources[0]
            some = source.read_some()
            if some is None:
                return source
            if not some:
                del self._sources[0]
            records = build_stream(kind, REQUEST_ID, some, end=not some)
            self.pending = memoryview(records)
        return None

    def sent(self, count: int) -> None:
        """Forget the first bytes of ``pending``."""
        self.pending = self.pending[count:]

    def abort(self) -> None:
        """Finish the record that is on its way, then ABORT_REQUEST, then nothing."""
        self._sources.clear()
        abort = build_abort_request(REQUEST_ID)
        self.pending = memoryview(bytes(self.pending) + abort)

    def give_up(self) -> None:
        """Send nothing more: the other side does not read."""
        self._sources.clear()
        self.pending = memoryview(b"")
        self.given_up = True


def _stream(kind: RecordType, content: bytes) -> bytes:
    return build_stream(kind, REQUEST_ID, content, end=True)


def encode_params(params: Params) -> Iterator[tuple[bytes, bytes]]:
    """Give the params as bytes, in their order."""
    pairs: Iterable[tuple[str | bytes, str | bytes]]
    pairs = params.items() if isinstance(params, Mapping) else params
    for name, value in pairs:
        yield _bytes(name), _bytes(value)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
