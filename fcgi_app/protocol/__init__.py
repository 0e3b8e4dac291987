"""FastCGI 1.0 for an application, without I/O: bytes in, events out.

``Connection`` is the whole interface; ``events`` lists what it reports, ``state``
holds the table that decides, ``limits`` what it refuses. No sockets, clocks or
threads in here (the import contract checks it).
"""

from .connection import Connection
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
from .recurring import RecurringParams, Varied
from .state import RequestState, State

__all__ = [
    "AbortReceived",
    "Connection",
    "DataEnded",
    "DataReceived",
    "Event",
    "InputDiscarded",
    "Limits",
    "ParamsReceived",
    "RecurringParams",
    "RequestRefused",
    "RequestState",
    "State",
    "StdinEnded",
    "StdinReceived",
    "Varied",
]
