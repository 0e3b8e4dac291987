"""The state of one request on a connection, and the table of what each record does.

Two rules for this file: it holds no bytes of any request's body, and whatever a
record does is to be read off ``TABLE``, not out of code.

A request id is *inactive* until a begin-request for it (§3.3). Then its input comes
in the order PARAMS, STDIN and, for a filter, DATA (§6). An authorizer gets neither
STDIN nor DATA. The application may end the request before its input has ended
(an early answer); what still comes for it is discarded, without an end of stream
in the case of Apache's mod_proxy_fcgi, until the id begins anew.
"""

from __future__ import annotations

from enum import IntEnum

from ..codec.constants import RecordType

__all__ = ["IGNORE", "TABLE", "RequestState", "State"]


class State(IntEnum):
    """What the web server may send next for a request id."""

    INACTIVE = 0
    """No request has this id."""
    PARAMS = 1
    """Begun; PARAMS records are coming."""
    STDIN = 2
    """PARAMS have ended; STDIN records are coming."""
    DATA = 3
    """A filter whose STDIN has ended; DATA records are coming."""
    COMPLETE = 4
    """All input is in; the application owes the end-request."""
    ENDED = 5
    """The application ended it before its input did; the rest is discarded."""


class RequestState:
    """One request of a connection, as the protocol sees it; the handle in events.

    Attributes:
        request_id: 1 to 65535, chosen by the web server.
        role: the role number as sent (§6), known or not.
        keep_conn: whether the web server wants the connection kept (§5.1).
        state: see ``State``.
        ended: whether our end-request has been built.
        aborted: whether the web server has aborted it.
    """

    __slots__ = (
        "aborted",
        "ended",
        "keep_conn",
        "params_checked",
        "params_parts",
        "params_size",
        "request_id",
        "role",
        "state",
    )

    def __init__(self, request_id: int, role: int, keep_conn: bool) -> None:
        self.request_id = request_id
        self.role = role
        self.keep_conn = keep_conn
        self.state = State.PARAMS
        self.ended = False
        self.aborted = False
        self.params_parts: list[bytes] = []
        self.params_size = 0
        # First byte of params_parts, joined, that no check for absurd lengths has seen.
        self.params_checked = 0

    @property
    def input_ended(self) -> bool:
        """Whether everything that the web server owes for this request is in."""
        return self.state == State.COMPLETE

    def __repr__(self) -> str:
        return (
            f"<request id {self.request_id} role {self.role} {State(self.state).name}>"
        )


IGNORE = "ignore"
_TOO_EARLY = "out_of_order"
"""The record breaks the order of streams (§6): a protocol error."""

# Columns: the application records that a web server may send (§8). Every other type
# with a request id, known or not, is skipped (W13, §3.3); those with request id zero
# are management records, which Connection answers by itself.
_B, _A, _P, _S, _D = (
    RecordType.BEGIN_REQUEST,
    RecordType.ABORT_REQUEST,
    RecordType.PARAMS,
    RecordType.STDIN,
    RecordType.DATA,
)
TABLE: dict[State, dict[int, str]] = {
    State.INACTIVE: {_B: "begin", _A: IGNORE, _P: IGNORE, _S: IGNORE, _D: IGNORE},
    State.PARAMS: {
        _B: _TOO_EARLY,
        _A: "abort",
        _P: "params",
        _S: _TOO_EARLY,
        _D: _TOO_EARLY,
    },
    State.STDIN: {
        _B: _TOO_EARLY,
        _A: "abort",
        _P: _TOO_EARLY,
        _S: "stdin",
        _D: _TOO_EARLY,
    },
    State.DATA: {
        _B: _TOO_EARLY,
        _A: "abort",
        _P: _TOO_EARLY,
        _S: _TOO_EARLY,
        _D: "data",
    },
    # A begin-request for an id whose input is complete is the web server's next
    # request (W7); anything else of that id is late and harmless.
    State.COMPLETE: {_B: "begin", _A: "abort", _P: IGNORE, _S: IGNORE, _D: IGNORE},
    State.ENDED: {_B: "begin", _A: IGNORE, _P: IGNORE, _S: "discard", _D: "discard"},
}
