"""One transport connection from a web server, as bytes in and events out.

The parser belongs to the connection and never to a request: every record is
consumed to its last byte of padding, whoever it is for and whether or not anybody
wants its content. That one rule is the cure for most of what libfcgi is known to
get wrong on kept connections. What goes out is built in ``answering``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..codec.constants import (
    FCGI_MAX_CONNS,
    FCGI_MAX_REQS,
    FCGI_MPXS_CONNS,
    HEADER_LEN,
    KEEP_CONN,
    NULL_REQUEST_ID,
    VERSION_1,
    ProtocolStatus,
    RecordType,
    Role,
)
from ..codec.params import check_params
from ..codec.records import HEADER, parse_begin_request
from ..errors import LimitError, RemoteProtocolError
from .answering import Answering
from .events import (
    AbortReceived,
    DataEnded,
    DataReceived,
    Event,
    InputDiscarded,
    ParamsReceived,
    RequestRefused,
    StdinEnded,
    StdinReceived,
)
from .limits import Limits
from .management import answer_management
from .recurring import RecurringParams, Varied
from .state import IGNORE, TABLE, RequestState, State
from .whole import scan_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


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

# A method of Connection that takes (request, request_id, record_type, content, events).
_Handler = Callable[..., None]


class Connection(Answering):
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
        "_recurring",
        "_replies",
        "_skip",
        "_stream",
        "error",
        "limits",
        "values",
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
        self._stream: RequestState | None = None  # whose content is coming in pieces
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
            request, params, content, _ = whole
            return [ParamsReceived(request, params, content), StdinEnded(request)]
        return self.receive_part(data)

    def receive_whole(
        self, data: bytes
    ) -> tuple[RequestState, dict[bytes, bytes], bytes, Varied | None] | None:
        """Take ``data`` if that is a whole request and nothing else is under way.

        The short way of ``receive_data`` for a request without a body: the end of its
        STDIN is in ``data``, too.

        Returns:
            What is in ``ParamsReceived``, and how the params vary from the usual ones
            if they do. None: nothing was taken; use ``receive_part``.
        """
        if self._requests or self._pending or self._left or self._skip or self.error:
            return None
        found = scan_whole(data)
        if found is None or found[3] != len(data):
            return None
        return self._take_whole(*found)

    def _take_whole(
        self, request_id: int, keep_conn: int, content: bytes, end: int
    ) -> tuple[RequestState, dict[bytes, bytes], bytes, Varied | None] | None:
        """Begin what `scan_whole` has found; None: let the state machine do it."""
        limits = self.limits
        try:
            params, varied = self._recurring.parse(content)
        except RemoteProtocolError:
            return None  # to be found again where errors are dealt with
        if len(content) > limits.max_params_bytes or len(params) > limits.max_params:
            return None
        request = self.resume(request_id, keep_conn != 0)
        return request, params, content, varied

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
        request, params, content, _ = whole
        events.append(ParamsReceived(request, params, content))
        events.append(StdinEnded(request))
        return found[3]

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
            self._stream = None
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

    def _record(
        self,
        record_type: int,
        request_id: int,
        request: RequestState | None,
        content: bytes,
        events: list[Event],
    ) -> None:
        if request_id == NULL_REQUEST_ID:
            answer = answer_management(record_type, content, self.values)
            if answer:
                self._replies.append(answer)
            return
        state = State.INACTIVE if request is None else request.state
        handler = _DISPATCH[state].get(record_type)
        if handler is not None:
            handler(self, request, request_id, record_type, content, events)
        elif TABLE[state].get(record_type, IGNORE) is not IGNORE:
            assert request is not None
            self._out_of_order(record_type, request)

    def _out_of_order(self, record_type: int, request: RequestState) -> NoReturn:
        raise RemoteProtocolError(
            f"{RecordType(record_type).name} record while"
            f" {State(request.state).name} is due",
            request_id=request.request_id,
            section="6.1",
        )

    def _begin(
        self,
        before: RequestState | None,
        request_id: int,
        record_type: int,
        content: bytes,
        events: list[Event],
    ) -> None:
        role, flags = parse_begin_request(content)
        if before is not None and before.ended:
            events.append(InputDiscarded(before))  # nothing more will come of it
        request = RequestState(request_id, role, bool(flags & KEEP_CONN))
        if not Role.RESPONDER <= role <= Role.FILTER:
            status = ProtocolStatus.UNKNOWN_ROLE
        elif self._active() >= self.limits.max_requests:
            status = ProtocolStatus.OVERLOADED
        else:
            self._requests[request_id] = request
            return
        request.state = State.ENDED
        self._requests[request_id] = request
        events.append(RequestRefused(request, status))

    def _active(self) -> int:
        """Count the requests that have not been ended; if many have, forget those.

        Their late records are skipped as those of any inactive id.
        """
        requests = self._requests
        if len(requests) >= self.limits.max_requests:
            for request_id in [i for i, r in requests.items() if r.ended]:
                del requests[request_id]
        return len(requests)

    def _abort(
        self,
        request: RequestState,
        request_id: int,
        record_type: int,
        content: bytes,
        events: list[Event],
    ) -> None:
        if request.aborted:
            return  # it has been said
        request.aborted = True
        # Nothing more is owed: what still comes for the id is late, and so skipped.
        request.state = State.COMPLETE
        request.params_parts.clear()
        events.append(AbortReceived(request))

    def _params(
        self,
        request: RequestState,
        request_id: int,
        record_type: int,
        content: bytes,
        events: list[Event],
    ) -> None:
        if content:
            request.params_parts.append(content)
            request.params_size += len(content)
            if request.params_size > self.limits.max_params_bytes:
                raise LimitError(
                    f"more than {self.limits.max_params_bytes} bytes of PARAMS",
                    request_id=request_id,
                    section="6.2",
                )
            return
        content, found = self._parse_params(request)
        if request.role == Role.AUTHORIZER:
            request.state = State.COMPLETE  # no server sends it any STDIN
        else:
            request.state = State.STDIN
        events.append(ParamsReceived(request, found, content))

    def _parse_params(self, request: RequestState) -> tuple[bytes, dict[bytes, bytes]]:
        parts = request.params_parts
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        try:
            return content, self._param_map(content)
        except RemoteProtocolError as error:
            error.request_id = request.request_id
            raise

    def _param_map(self, content: bytes) -> dict[bytes, bytes]:
        found, _ = self._recurring.parse(content)
        if len(found) > self.limits.max_params:
            raise LimitError(
                f"{len(found)} params, the limit is {self.limits.max_params}",
                section="6.2",
            )
        return found

    def _check_unfinished_params(self) -> None:
        """Refuse a length that can never be kept before its bytes come (W19)."""
        for request in self._requests.values():
            if request.params_parts and request.state == State.PARAMS:
                content = b"".join(request.params_parts)
                request.params_parts[:] = [content]
                try:
                    request.params_checked = check_params(
                        content, request.params_checked, self.limits.max_params_bytes
                    )
                except LimitError as error:
                    error.request_id = request.request_id
                    raise

    def _stdin(
        self,
        request: RequestState,
        request_id: int,
        record_type: int,
        content: bytes,
        events: list[Event],
    ) -> None:
        if content:
            events.append(StdinReceived(request, content))
            return
        if request.role == Role.FILTER:
            request.state = State.DATA
        else:
            request.state = State.COMPLETE
        events.append(StdinEnded(request))

    def _data(
        self,
        request: RequestState,
        request_id: int,
        record_type: int,
        content: bytes,
        events: list[Event],
    ) -> None:
        if content:
            events.append(DataReceived(request, content))
        else:
            request.state = State.COMPLETE
            events.append(DataEnded(request))

    def _discard(
        self,
        request: RequestState,
        request_id: int,
        record_type: int,
        content: bytes,
        events: list[Event],
    ) -> None:
        """Forget an id that we have ended once its input has ended as well."""
        last = RecordType.DATA if request.role == Role.FILTER else RecordType.STDIN
        if not content and record_type == last:
            del self._requests[request_id]
            events.append(InputDiscarded(request))


_ACTIONS: dict[str, _Handler] = {
    "begin": Connection._begin,
    "abort": Connection._abort,
    "params": Connection._params,
    "stdin": Connection._stdin,
    "data": Connection._data,
    "discard": Connection._discard,
}
_DISPATCH: list[dict[int, _Handler]] = [
    {
        int(record_type): _ACTIONS[action]
        for record_type, action in TABLE[state].items()
        if action in _ACTIONS
    }
    for state in State
]
