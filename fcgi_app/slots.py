"""What a scoreboard says of a pool and of its workers, and where that stands in it."""

from __future__ import annotations

import signal
from struct import Struct

from .frozen import Frozen

__all__ = [
    "ENDING",
    "FREE",
    "IDLE",
    "RUNNING",
    "STARTING",
    "STATES",
    "Header",
    "SlotState",
    "is_real_time",
    "text_of",
]

FREE, STARTING, IDLE, RUNNING, ENDING = range(5)
STATES = ("free", "starting", "idle", "running", "ending")
"""Their names, as ``SlotState.state`` has them."""

MAGIC = b"fcgi_app"
VERSION = 1
HEADER_SIZE = 4096
SLOT_SIZE = 512
WORD_SIZE = 4  # bytes of a sequence number; memoryview writes one in one piece

# The header: what never changes, then what is written under the sequence number.
FIXED = Struct("=8sIII")  # magic, version, capacity, size of a slot
HEADER_SEQUENCE = 20
HEADER = Struct("=dIIQQQQIIII128s16s256s256s")
HEADER_AT = 24
# A slot: sequence number; what is written once; what every request changes.
ONCE = Struct("=IIIQ")  # pid, threads, signal, most requests
ONCE_AT = 4
COUNTS = Struct("=IIQddd")  # state, active, requests, started, duration, since
COUNTS_AT = 24
CURRENT = Struct("=IIQdddq16s256s96s48s")  # the same, and which request
SLOT = Struct("=IIIIQIIQdddq16s256s96s48s")
assert SLOT.size <= SLOT_SIZE
assert HEADER_AT + HEADER.size <= HEADER_SIZE

SCRIPT_SIZE = 96


class Header(Frozen):
    """What the supervisor says of a pool.

    Attributes:
        name: of the pool.
        manager: ``static``, ``dynamic`` or ``ondemand``.
        started: when the pool was first started, seconds since 1970.
        most: workers that there may be.
        in_use: slots that are taken.
        most_reached: how often the pool has been at ``most`` with work waiting.
        ended_requests: requests of workers that have ended.
        slow_requests: requests that took longer than ``slow_log``.
        restarts: workers that died and were replaced.
        queue, queue_most, queue_size: connections that wait to be accepted, the most
            that did, and how many may (``listen``'s backlog).
        active_most: the most workers that were seen running a request at a time.
        status_path, ping_path: SCRIPT_NAME of the requests that the runtime answers
            itself; empty: none.
    """

    name: str = ""
    manager: str = ""
    started: float = 0.0
    most: int = 0
    in_use: int = 0
    most_reached: int = 0
    ended_requests: int = 0
    slow_requests: int = 0
    restarts: int = 0
    queue: int = 0
    queue_most: int = 0
    queue_size: int = 0
    active_most: int = 0
    status_path: str = ""
    ping_path: str = ""


class SlotState(Frozen):
    """What one worker does.

    The texts came from the web server: they may hold control characters.

    Attributes:
        slot: its number.
        pid: of the process that has taken the slot; 0: none has yet.
        state: ``starting``, ``idle``, ``running`` or ``ending``.
        threads: requests that it can serve at the same time.
        active: requests that it serves now.
        requests: those that it has finished.
        request_started: when the oldest that is running began, 0.0: none is.
        last_duration: seconds that the last one took that ended.
        since: when the worker became idle; 0.0: it never was.
        method, uri, script, remote: of the oldest request that is running, or of the
            last that was; at most 16, 256, 96 and 48 bytes. A URI is cut at its end,
            a script (SCRIPT_FILENAME or SCRIPT_NAME) at its beginning.
        content_length: of the same request, bytes; -1: not said.
        traceback_signal: a signal that makes the process write the traceback of all
            its threads to its descriptor 2; 0: none does.
        max_requests: after so many the worker ends; 0: never.
    """

    slot: int
    pid: int
    state: str
    threads: int
    active: int
    requests: int
    request_started: float
    last_duration: float
    since: float
    method: str
    uri: str
    script: str
    remote: str
    content_length: int
    traceback_signal: int
    max_requests: int


def text_of(data: bytes) -> str:
    """Return a text that stands in its room with zeros behind it."""
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def is_real_time(number: int) -> bool:
    """Whether a number that a worker has written may be sent to it: it does no harm."""
    return signal.SIGRTMIN <= number <= signal.SIGRTMAX
