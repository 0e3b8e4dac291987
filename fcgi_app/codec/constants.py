"""The numbers and names of the FastCGI 1.0 specification (§8)."""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "FCGI_MAX_CONNS",
    "FCGI_MAX_REQS",
    "FCGI_MPXS_CONNS",
    "HEADER_LEN",
    "KEEP_CONN",
    "LISTENSOCK_FILENO",
    "MAX_CONTENT_LENGTH",
    "NULL_REQUEST_ID",
    "VERSION_1",
    "ProtocolStatus",
    "RecordType",
    "Role",
]

LISTENSOCK_FILENO = 0
VERSION_1 = 1
HEADER_LEN = 8
MAX_CONTENT_LENGTH = 65535
"""Greatest content length of one record, in bytes (FCGI_MAX_LENGTH)."""
NULL_REQUEST_ID = 0
KEEP_CONN = 1
"""Flag bit of begin-request: the web server keeps the connection (§5.1)."""

FCGI_MAX_CONNS = b"FCGI_MAX_CONNS"
FCGI_MAX_REQS = b"FCGI_MAX_REQS"
FCGI_MPXS_CONNS = b"FCGI_MPXS_CONNS"


class RecordType(IntEnum):
    """Record types (§8). Unknown numbers stay plain ``int`` everywhere."""

    BEGIN_REQUEST = 1
    ABORT_REQUEST = 2
    END_REQUEST = 3
    PARAMS = 4
    STDIN = 5
    STDOUT = 6
    STDERR = 7
    DATA = 8
    GET_VALUES = 9
    GET_VALUES_RESULT = 10
    UNKNOWN_TYPE = 11


class Role(IntEnum):
    """Roles of an application (§6)."""

    RESPONDER = 1
    AUTHORIZER = 2
    FILTER = 3


class ProtocolStatus(IntEnum):
    """``protocol_status`` of end-request (§5.5)."""

    REQUEST_COMPLETE = 0
    CANT_MPX_CONN = 1
    OVERLOADED = 2
    UNKNOWN_ROLE = 3
