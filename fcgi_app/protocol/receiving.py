"""What a whole record means: the state table's actions, record → events."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..codec.constants import (
    KEEP_CONN,
    NULL_REQUEST_ID,
    ProtocolStatus,
    RecordType,
    Role,
)
from ..codec.params import check_params
from ..codec.records import parse_begin_request
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
from .recurring import RecurringParams
from .state import IGNORE, TABLE, RequestState, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


__all__ = ["Receiving"]

# A method of Receiving that takes (request, request_id, record_type, content, events).
_Handler = Callable[..., None]


class Receiving(Answering):
    """The half of a connection that takes records, each of them whole or in pieces.

    Attributes:
        limits: what to refuse.
        values: the answers to GET_VALUES (§4.1), name to value.
    """

    __slots__ = ("_recurring", "_replies", "limits", "values")

    limits: Limits
    values: Mapping[bytes, bytes]
    _recurring: RecurringParams
    """Knows the params of earlier requests, of other connections, too."""
    _replies: list[bytes]
    """Answers to management records that have not been sent."""

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
    "begin": Receiving._begin,
    "abort": Receiving._abort,
    "params": Receiving._params,
    "stdin": Receiving._stdin,
    "data": Receiving._data,
    "discard": Receiving._discard,
}
_DISPATCH: list[dict[int, _Handler]] = [
    {
        int(record_type): _ACTIONS[action]
        for record_type, action in TABLE[state].items()
        if action in _ACTIONS
    }
    for state in State
]
