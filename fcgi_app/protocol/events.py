"""What a ``Connection`` reports of received bytes.

Every event carries the ``RequestState`` that it is about: request ids come again,
these objects do not.
"""

from __future__ import annotations

from .state import RequestState

__all__ = [
    "AbortReceived",
    "DataEnded",
    "DataReceived",
    "Event",
    "InputDiscarded",
    "ParamsReceived",
    "RequestRefused",
    "StdinEnded",
    "StdinReceived",
]


class _Event:
    """What all events have: a request, and that they can be compared and shown."""

    __slots__ = ("request",)

    def __init__(self, request: RequestState) -> None:
        self.request = request

    def _values(self) -> tuple[object, ...]:
        return (self.request,)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._values()!r}"


class _Bytes(_Event):
    """Some bytes of a stream; not aligned to records."""

    __slots__ = ("data",)

    def __init__(self, request: RequestState, data: bytes) -> None:
        self.request = request
        self.data = data

    def _values(self) -> tuple[object, ...]:
        return self.request, self.data


class ParamsReceived(_Event):
    """PARAMS have ended (§6.2): the request exists from here on.

    ``params`` maps each name to its value, to the last one of a repeated name.
    ``content`` is the whole stream, checked, for ``parse_params`` to give the pairs
    in wire order. For an authorizer no other input follows.
    """

    __slots__ = ("content", "params")

    def __init__(
        self, request: RequestState, params: dict[bytes, bytes], content: bytes
    ) -> None:
        self.request = request
        self.params = params
        self.content = content

    def _values(self) -> tuple[object, ...]:
        return self.request, self.params, self.content


class StdinReceived(_Bytes):
    """Some bytes of STDIN; not aligned to records."""

    __slots__ = ()


class StdinEnded(_Event):
    """The end of STDIN (the empty record, §3.3)."""

    __slots__ = ()


class DataReceived(_Bytes):
    """Some bytes of a filter's DATA (§6.4); not aligned to records."""

    __slots__ = ()


class DataEnded(_Event):
    """The end of a filter's DATA."""

    __slots__ = ()


class AbortReceived(_Event):
    """The web server sent abort-request (§5.4); we owe an end-request."""

    __slots__ = ()


class InputDiscarded(_Event):
    """The rest of the input of a request that was ended early has come, to its end."""

    __slots__ = ()


class RequestRefused(_Event):
    """A begin-request that must be answered with ``protocol_status``, and no more.

    Either its role is unknown (§6) or the connection has too many active requests.
    What else comes for it is discarded.
    """

    __slots__ = ("protocol_status",)

    def __init__(self, request: RequestState, protocol_status: int) -> None:
        self.request = request
        self.protocol_status = protocol_status

    def _values(self) -> tuple[object, ...]:
        return self.request, self.protocol_status


Event = (
    ParamsReceived
    | StdinReceived
    | StdinEnded
    | DataReceived
    | DataEnded
    | AbortReceived
    | InputDiscarded
    | RequestRefused
)
