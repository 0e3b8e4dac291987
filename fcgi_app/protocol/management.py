"""Management records (§4): what a web server asks of the application as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from ..codec.constants import NULL_REQUEST_ID, RecordType
from ..codec.params import build_params, parse_params
from ..codec.records import build_record, build_unknown_type
from ..errors import RemoteProtocolError

__all__ = ["answer_management"]


def answer_management(
    record_type: int, content: bytes, values: Mapping[bytes, bytes]
) -> bytes:
    """Return the answer to a record of the null request id; empty: there is none.

    Args:
        record_type: of the record.
        content: all of it, without padding.
        values: what GET_VALUES may ask for.

    Raises:
        RemoteProtocolError: it is no management record, or its content is malformed.
    """
    if record_type == RecordType.GET_VALUES:
        return _tell_values(content, values)
    if record_type == RecordType.BEGIN_REQUEST:
        raise RemoteProtocolError(
            "begin-request with the null request id", section="3.3"
        )
    if record_type == RecordType.UNKNOWN_TYPE:
        return b""  # §4.2; in answer to an answer two peers could go on for ever
    return build_unknown_type(record_type)


def _tell_values(content: bytes, values: Mapping[bytes, bytes]) -> bytes:
    """Answer each known name once, in the order asked (§4.1, W9, W12)."""
    asked = dict.fromkeys(name for name, _ in parse_params(content))
    answer = build_params([(name, values[name]) for name in asked if name in values])
    padding = -len(answer) % 8
    return build_record(RecordType.GET_VALUES_RESULT, NULL_REQUEST_ID, answer, padding)
