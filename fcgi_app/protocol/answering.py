"""The answers to requests: what a response is, as bytes to send.

Neither STDERR records nor the end of a response are the same for all web servers: what
is special in the records here is what one of them cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from ..codec.constants import (
    VERSION_1,
    ProtocolStatus,
    RecordType,
)
from ..codec.records import (
    HEADER,
    Buffer,
    build_end_request,
    build_header,
    build_record,
    stream_buffers,
)
from ..errors import LocalProtocolError
from .state import RequestState, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = ["STDERR_CHUNK", "Answering"]

STDERR_CHUNK = 8192
"""Content bytes of a STDERR record: HAProxy's buffer has 16 KiB, httpd cuts at 8."""
_pack_header = HEADER.pack
# Looking a member up in its class is slow before Python 3.12.
_STDOUT = int(RecordType.STDOUT)
_REQUEST_COMPLETE = int(ProtocolStatus.REQUEST_COMPLETE)
_COMPLETE = State.COMPLETE


@lru_cache(maxsize=256)
def _build_end(request_id: int, app_status: int, protocol_status: int) -> bytes:
    """Build the end of STDOUT and end-request: nearly always the same bytes."""
    return build_header(RecordType.STDOUT, request_id, 0) + build_end_request(
        request_id, app_status, protocol_status
    )


class Answering:
    """The half of a connection that answers requests: calls → bytes to send."""

    __slots__ = ("_requests",)

    _requests: dict[int, RequestState]
    """By id, the latest request that had it; dropped when both sides are done."""

    def stdout(self, request: RequestState, pieces: Sequence[Buffer]) -> list[Any]:
        """Return the buffers of the STDOUT records that carry ``pieces``, uncopied."""
        return stream_buffers(_STDOUT, self._check_open(request), pieces)

    def stdout_header(self, request: RequestState) -> Callable[[int], bytes]:
        """Return what gives the header of a STDOUT record with so much content.

        For content that is not in memory; 1 to 65,535 bytes.
        """
        return partial(build_header, RecordType.STDOUT, self._check_open(request))

    def stderr(
        self, request: RequestState, data: bytes | bytearray | memoryview
    ) -> bytes:
        """Return the STDERR records that carry ``data``.

        They are short and always padded: HAProxy 2.6 dies of a STDERR record whose
        content is all that its buffer holds.
        """
        request_id = self._check_open(request)
        parts: list[bytes] = []
        for start in range(0, len(data), STDERR_CHUNK):
            piece = bytes(data[start : start + STDERR_CHUNK])
            padding = 8 - len(piece) % 8
            parts.append(build_record(RecordType.STDERR, request_id, piece, padding))
        return b"".join(parts)

    def short_response(
        self, request: RequestState, data: bytes, app_status: int
    ) -> bytes:
        """Return all that is left of a response in one piece: STDOUT and its end.

        The same as ``stdout`` and ``end_request`` for a request whose input has
        ended, that has written nothing on STDERR, and has at most 65,535 bytes left.
        """
        request_id = self._check_open(request)
        end = self.end_request(request, app_status)
        size = len(data)
        if not size:
            return end
        return _pack_header(VERSION_1, _STDOUT, request_id, size, 0) + data + end

    def _check_open(self, request: RequestState) -> int:
        if request.ended:
            raise LocalProtocolError(
                "output after end-request", request_id=request.request_id, section="5.5"
            )
        return request.request_id

    def end_request(
        self,
        request: RequestState,
        app_status: int = 0,
        protocol_status: int = _REQUEST_COMPLETE,
        *,
        stderr_used: bool = False,
    ) -> bytes:
        """Return the end of a response: streams' ends and end-request, in one piece.

        The order is empty STDERR (if anything went out on it: HAProxy dies without),
        empty STDOUT, END_REQUEST.

        Raises:
            LocalProtocolError: the request has been ended before.
        """
        if request.ended:
            raise LocalProtocolError(
                "second end-request", request_id=request.request_id, section="5.5"
            )
        request_id = request.request_id
        request.ended = True
        if request.state is _COMPLETE:
            if self._requests.get(request_id) is request:
                del self._requests[request_id]
        else:
            request.state = State.ENDED
        end = _build_end(request_id, app_status, protocol_status)
        if stderr_used:
            end = build_header(RecordType.STDERR, request_id, 0) + end
        return end
