"""What a ``Connection`` reports of received bytes.

Every event carries the ``RequestState`` that it is about: request ids come again,
these objects do not.
"""

from __future__ import annotations

from typing import NamedTuple

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


class ParamsReceived(NamedTuple):
    """PARAMS have ended (§6.2): the request exists from here on.

    ``params`` maps each name to its value, to the last one of a repeated name.
    ``content`` is the whole stream, checked, for ``parse_params`` to give the pairs
    in wire order. For an authorizer no other input follows.
    """

    request: RequestState
    params: dict[bytes, bytes]
    content: bytes


class StdinReceived(NamedTuple):
    """Some bytes of STDIN; not aligned to records."""

    request: RequestState
    data: bytes


class StdinEnded(NamedTuple):
    """The end of STDIN (the empty record, §3.3)."""

    request: RequestState


class DataReceived(NamedTuple):
    """Some bytes of a filter's DATA (§6.4); not aligned to records."""

    request: RequestState
    data: bytes


class DataEnded(NamedTuple):
    """The end of a filter's DATA."""

    request: RequestState


class AbortReceived(NamedTuple):
    """The web server sent abort-request (§5.4); we owe an end-request."""

    request: RequestState


class InputDiscarded(NamedTuple):
    """The rest of the input of a request that was ended early has come, to its end."""

    request: RequestState


class RequestRefused(NamedTuple):
    """A begin-request that must be answered with ``protocol_status``, and no more.

    Either its role is unknown (§6) or the connection has too many active requests.
    What else comes for it is discarded.
    """

    request: RequestState
    protocol_status: int


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
