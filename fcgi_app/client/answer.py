"""The records of an answer (§3.3), sorted by stream; bytes in, no I/O."""

from __future__ import annotations

from ..codec.constants import HEADER_LEN, NULL_REQUEST_ID, VERSION_1, RecordType
from ..codec.params import parse_params
from ..codec.records import EndRequest, Header, parse_end_request, parse_header
from ..errors import RemoteProtocolError
from .upload import REQUEST_ID

__all__ = ["Answer", "AnswerError"]


class AnswerError(RemoteProtocolError):
    """The application's answer is malformed, or was cut off before its end.

    Attributes:
        head: the response head, complete or not.
        body: body bytes that came and were not yet handed out.
        stderr: FCGI_STDERR bytes that came and were not yet handed out.
        cut_off: the connection ended before END_REQUEST; else the answer is malformed.
    """

    head: bytes = b""
    body: bytes = b""
    stderr: bytes = b""
    cut_off: bool = False


class Answer:
    """The records of an answer, sorted by stream; bytes in, no I/O.

    Attributes:
        stdout: bytes of FCGI_STDOUT that nobody has taken.
        end: the body of END_REQUEST, once it is there.
        values: the pairs of GET_VALUES_RESULT; empty after UNKNOWN_TYPE.
    """

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.end: EndRequest | None = None
        self.values: dict[bytes, bytes] | None = None
        self._stderr = bytearray()
        self._ended: set[int] = set()
        self._buffer = bytearray()

    @property
    def surplus(self) -> bool:
        """Whether bytes came after the end of the answer."""
        return bool(self._buffer)

    def feed(self, received: bytes) -> None:
        """Take bytes of the connection.

        Raises:
            RemoteProtocolError: they are no answer to request 1.
        """
        self._buffer += received
        start = 0
        while self.end is None and len(self._buffer) - start >= HEADER_LEN:
            header = parse_header(self._buffer, start)
            self._check(header)
            content = start + HEADER_LEN
            padding = content + header.content_length
            if padding + header.padding_length > len(self._buffer):
                break
            start = padding + header.padding_length
            self._record(header, bytes(self._buffer[content:padding]))
        del self._buffer[:start]

    def take_stdout(self) -> bytes:
        """Give the bytes of FCGI_STDOUT since the last call."""
        taken = bytes(self.stdout)
        self.stdout.clear()
        return taken

    def take_stderr(self) -> bytes:
        """Give the bytes of FCGI_STDERR since the last call."""
        taken = bytes(self._stderr)
        self._stderr.clear()
        return taken

    @staticmethod
    def _check(header: Header) -> None:
        if header.version != VERSION_1:
            raise RemoteProtocolError(
                f"record of version {header.version}, not 1", section="3.3"
            )
        if header.request_id not in (REQUEST_ID, NULL_REQUEST_ID):
            raise RemoteProtocolError(
                f"record of type {header.record_type} for a request that was not made",
                request_id=header.request_id,
                section="3.3",
            )

    def _record(self, header: Header, content: bytes) -> None:
        kind = header.record_type
        if header.request_id == NULL_REQUEST_ID:
            self._management(kind, content)
        elif kind in (RecordType.STDOUT, RecordType.STDERR):
            self._stream(kind, content)
        elif kind == RecordType.END_REQUEST:
            self.end = parse_end_request(content)
        else:
            raise RemoteProtocolError(
                f"record of type {kind} in an answer",
                request_id=header.request_id,
                section="3.3",
            )

    def _management(self, kind: int, content: bytes) -> None:
        if kind == RecordType.GET_VALUES_RESULT:
            self.values = dict(parse_params(content))
        elif kind == RecordType.UNKNOWN_TYPE:
            self.values = {}
        else:
            raise RemoteProtocolError(
                f"record of type {kind} without a request id",
                request_id=NULL_REQUEST_ID,
                section="4",
            )

    def _stream(self, kind: int, content: bytes) -> None:
        if not content:
            self._ended.add(kind)
        elif kind in self._ended:
            raise RemoteProtocolError(
                f"{RecordType(kind).name} goes on after its end",
                request_id=REQUEST_ID,
                section="3.3",
            )
        elif kind == RecordType.STDOUT:
            self.stdout += content
        else:
            self._stderr += content
