"""One transport connection from a web server, as bytes in and events out.

The parser belongs to the connection and never to a request: every record is
consumed to its last byte of padding, whoever it is for and whether or not anybody
wants its content. That one rule is the cure for most of what libfcgi is known to
get wrong on kept connections. Here bytes become records; ``receiving`` knows what each
means, and ``answering`` builds what goes out.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..codec.constants import (
    FCGI_MAX_CONNS,
    FCGI_MAX_REQS,
    FCGI_MPXS_CONNS,
    HEADER_LEN,
    VERSION_1,
    RecordType,
    Role,
)
from ..codec.records import HEADER
from ..errors import RemoteProtocolError
from .events import DataReceived, Event, ParamsReceived, StdinEnded, StdinReceived
from .limits import Limits
from .receiving import Receiving
from .recurring import RecurringParams, Varied
from .state import TABLE, RequestState, State
from .whole import scan_whole

__all__ = ["DEFAULT_VALUES", "Connection"]

DEFAULT_VALUES: Mapping[bytes, bytes] = {
    FCGI_MAX_CONNS: b"1",
    FCGI_MAX_REQS: b"1",
    FCGI_MPXS_CONNS: b"0",
}
_DEFAULT_LIMITS = Limits()
_unpack_header = HEADER.unpack_from
# Looking a member up in its class is slow before Python 3.12.
_RESPONDER = int(Role.RESPONDER)
_COMPLETE = State.COMPLETE
_BEGIN = int(RecordType.BEGIN_REQUEST)

_Whole = tuple[RequestState, dict[bytes, bytes], bytes, Varied | None, bytes]


class Connection(Receiving):
    """The state of one connection; see the module's docstring.

    ``receive_data`` and ``receive_eof`` take what the socket gave and return events.
    ``data_to_send`` drains what those calls owe the web server at once (answers to
    management records). ``stdout``, ``stderr`` and ``end_request`` give the bytes of
    a response, for the caller to send in that order.

    Args:
        limits: what to refuse.
        values: the answers to GET_VALUES (§4.1), name to value; kept by reference.
        recurring: knows the params of earlier requests, of other connections, too.
    """

    __slots__ = (
        "_left",
        "_pending",
        "_skip",
        "_stream",
        "error",
    )

    def __init__(
        self,
        limits: Limits = _DEFAULT_LIMITS,
        values: Mapping[bytes, bytes] = DEFAULT_VALUES,
        recurring: RecurringParams | None = None,
    ) -> None:
        self.limits = limits
        self.values = values
        self.error: RemoteProtocolError | None = None
        """The violation that ended the connection's input, if one did."""
        self._requests = {}
        self._pending = b""  # a record of which not all content has come
        # Whose content is coming in pieces, or did last: more of it may come.
        self._stream: RequestState | None = None
        self._left = 0  # bytes of that content still to come
        self._skip = 0  # then so many bytes of padding
        self._replies: list[bytes] = []
        self._recurring = RecurringParams() if recurring is None else recurring

    # Receiving

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the web server, cut anywhere; return what they mean.

        Raises:
            RemoteProtocolError: the web server broke the specification or passed a
                limit. Nothing else is ever raised, whatever the bytes. Events before
                the violation are returned first: the error is then in ``error`` and
                is raised by the next call.
        """
        whole = self.receive_whole(data)
        if whole is not None:
            events: list[Event] = []
            self._append(whole, events)
            return events
        return self.receive_part(data)

    def receive_whole(self, data: bytes) -> _Whole | None:
        """Take ``data`` if that is a whole request and nothing else is under way.

        The short way of ``receive_data`` for a request without a body, or with a short
        one: the end of its STDIN is in ``data``, too.

        Returns:
            What is in ``ParamsReceived``, how the params vary from the usual ones if
            they do, and the body. None: nothing was taken; use ``receive_part``.
        """
        if self._requests or self._pending or self._left or self._skip or self.error:
            return None
        found = scan_whole(data)
        if found is None or found[4] != len(data):
            return None
        return self._take_whole(*found)

    def _take_whole(
        self, request_id: int, keep_conn: int, content: bytes, body: bytes, end: int
    ) -> _Whole | None:
        """Begin what `scan_whole` has found; None: let the state machine do it."""
        limits = self.limits
        try:
            params, varied = self._recurring.parse(content)
        except RemoteProtocolError:
            return None  # to be found again where errors are dealt with
        if len(content) > limits.max_params_bytes or len(params) > limits.max_params:
            return None
        request = self.resume(request_id, keep_conn != 0)
        return request, params, content, varied, body

    @staticmethod
    def _append(whole: _Whole, events: list[Event]) -> None:
        request, params, content, _, body = whole
        events.append(ParamsReceived(request, params, content))
        if body:
            events.append(StdinReceived(request, body))
        events.append(StdinEnded(request))

    def resume(self, request_id: int, keep_conn: bool) -> RequestState:
        """Go on with a responder's request that has come whole, elsewhere."""
        request = RequestState(request_id, _RESPONDER, keep_conn)
        request.state = _COMPLETE
        self._requests[request_id] = request
        return request

    def receive_part(self, data: bytes) -> list[Event]:
        """Take bytes as ``receive_data`` does, without a look for the short way."""
        if self.error is not None:
            raise self.error
        events: list[Event] = []
        try:
            self._receive(data, events)
        except RemoteProtocolError as error:
            self.error = error
            if not events:
                raise
        return events

    def receive_eof(self) -> list[RequestState]:
        """Take the end of the connection; return the requests whose input it cut off.

        The rest of the active requests have all their input and may still be answered.
        """
        cut = [r for r in self._requests.values() if not r.input_ended and not r.ended]
        for request in cut:
            request.state = State.ENDED
        return cut

    @property
    def idle(self) -> bool:
        """Whether no request, and no part of a record, is under way."""
        return not (self._requests or self._pending or self._left or self._skip)

    def data_to_send(self) -> bytes:
        """Return, once, the answers to management records that are due."""
        if not self._replies:
            return b""
        data = b"".join(self._replies)
        self._replies.clear()
        return data

    @property
    def mid_record(self) -> bool:
        """Whether the last byte received was inside a record."""
        return bool(self._pending or self._left or self._skip)

    @property
    def mid_content(self) -> bool:
        """Whether more of a body is sure to come."""
        return self._left > 0

    def receiving(self, but: RequestState | None = None) -> bool:
        """Whether a request, other than ``but``, has begun and its input not ended."""
        for request in self._requests.values():
            if not (request.input_ended or request.ended or request is but):
                return True
        return False

    # Records

    def _receive(self, data: bytes, events: list[Event]) -> None:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        end = len(data)
        position = self._continue(data, events) if self._left or self._skip else 0
        requests = self._requests
        while end - position >= HEADER_LEN:
            version, record_type, request_id, length, padding = _unpack_header(
                data, position
            )
            if version != VERSION_1:
                raise RemoteProtocolError(
                    f"record version {version}, not 1", section="3.3"
                )
            start = position + HEADER_LEN
            stop = start + length
            request = requests.get(request_id)
            if record_type == _BEGIN and request is None:
                after = self._receive_whole_at(data, position, events)
                if after:
                    position = after
                    continue
            if stop > end:
                if not self._begin_pieces(record_type, request, stop - end, padding):
                    break
                stop = end
                padding = 0
                if start == end:  # empty here is not the end of the stream
                    position = end
                    break
            self._record(record_type, request_id, request, data[start:stop], events)
            position = stop + padding
        if position > end:
            self._skip = position - end
        elif position < end:
            self._pending = data[position:]
        if requests:
            self._check_unfinished_params()

    def _receive_whole_at(self, data: bytes, position: int, events: list[Event]) -> int:
        """Take a whole request, one of many; return where it ends, 0: it is none."""
        found = scan_whole(data, position)
        if found is None or len(self._requests) >= self.limits.max_requests:
            return 0
        whole = self._take_whole(*found)
        if whole is None:
            return 0
        self._append(whole, events)
        return found[4]

    def _continue(self, data: bytes, events: list[Event]) -> int:
        """Go on with a record whose content came in pieces; return the position."""
        position = 0
        if self._left:
            piece = data[: self._left]
            position = len(piece)
            self._left -= position
            request = self._stream
            assert request is not None
            if not piece:
                pass
            elif request.state == State.STDIN:
                events.append(StdinReceived(request, piece))
            elif request.state == State.DATA:
                events.append(DataReceived(request, piece))
            if self._left:
                return position
        skipped = min(self._skip, len(data) - position)
        self._skip -= skipped
        return position + skipped

    def _begin_pieces(
        self, record_type: int, request: RequestState | None, missing: int, padding: int
    ) -> bool:
        """Whether the content of this unfinished record may be passed on in pieces."""
        if (
            request is not None
            and (record_type == RecordType.STDIN or record_type == RecordType.DATA)
            and TABLE[request.state][record_type] in ("stdin", "data")
        ):
            self._stream = request
            self._left = missing
            self._skip = padding
            return True
        return False
