"""The CGI response head (RFC 3875 §6) on its way out; refusals and the error page.

The servers differ in what they make of a head, so it is brought to the form that
all of them take alike. Nothing behind the head is looked at. What is done, and why:

- ``Location`` without ``Status`` gets ``Status: 302``: mod_proxy_fcgi, h2o and Caddy
  would send 200.
- ``Connection``, ``Keep-Alive`` and ``Transfer-Encoding`` go: httpd passes them on.
- A needless ``Status: 200`` goes: it switches httpd's conditional answers off.
- A first line ``HTTP/1.x 404 …`` becomes ``Status: 404 …``.
- ``Status`` stands last: in HAProxy the last of ``Status`` and ``Location`` decides.
  An authorizer's stands first: lighttpd drops what comes in front of a refusal.
- A head that never ends, or is none, becomes a 500: mod_proxy_fcgi would make a page
  of it, and HAProxy 2.6 dies of it.
"""

from __future__ import annotations

from .errors import FcgiAppError

__all__ = [
    "MAX_HEAD_BYTES",
    "MalformedHead",
    "ResponseHead",
    "build_error",
    "known_head",
]

MAX_HEAD_BYTES = 65536
"""Longest head, in bytes: nginx (fastcgi_buffer_size) takes 4 or 8 KiB by default,
httpd's LimitRequestFieldSize is 8,190 a field."""

_TOKEN = (
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding"))

# Heads as printed to heads as sent. Most programs print few different ones; whoever
# prints unique ones (cookies) pays for the parse and for a flush of this now and then.
_rewritten: dict[bytes, bytes] = {}
_MAX_REWRITTEN = 64
_MAX_REMEMBERED = 512


class MalformedHead(FcgiAppError):
    """What the application wrote is no CGI response head; the text says why."""


def build_error(status: int, text: str = "") -> bytes:
    """Build a whole response whose page is ``text``, or the status and its reason.

    It has no Content-Length: lighttpd and HAProxy are done with a response when that
    much has come, and drop what its traceback says on STDERR afterwards.
    """
    from http import HTTPStatus  # most programs need no page of ours

    reason = HTTPStatus(status).phrase
    page = (text or f"{status} {reason}").encode() + b"\n"
    head = (
        f"Status: {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    )
    return head.encode() + page


class ResponseHead:
    """Holds a response back until its head is whole, then lets it through, mended.

    Args:
        authorizer: the head belongs to an authorizer, whose ``Status: 200`` is the
            answer itself and stays.
    """

    __slots__ = ("_authorizer", "_line_seen", "_parts", "_size", "_tail")

    def __init__(self, *, authorizer: bool = False) -> None:
        self._authorizer = authorizer
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""  # the last three bytes: where a blank line may straddle
        self._line_seen = False  # the first line is in, and has been looked at

    @property
    def started(self) -> bool:
        """Whether anything has been written."""
        return bool(self._parts)

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take more of the response; return ``(head, body so far)`` once it is whole.

        Raises:
            MalformedHead: it can never become a head.
        """
        if not self._parts:
            end = _head_end(data)
            whole = data
        else:
            found = _head_end(self._tail + data)
            end = -1
            if found >= 0:
                end = self._size - len(self._tail) + found
            whole = b""
        if end < 0:
            self._keep(data)
            return None
        if end > MAX_HEAD_BYTES:
            raise _too_long()
        if self._parts:
            whole = b"".join((*self._parts, data))
        return self._mend(whole[:end]), whole[end:]

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._tail = (self._tail + data)[-3:]
        if self._size > MAX_HEAD_BYTES:
            raise _too_long()
        if not self._line_seen and b"\n" in data:
            # A page without a head is told at once, not when it has ended.
            self._line_seen = True
            line = b"".join(self._parts).partition(b"\n")[0]
            _parse_line(_content(line), first=True)

    def held(self) -> bytes:
        """Return what has been held back so far."""
        return b"".join(self._parts)

    def unfinished(self) -> MalformedHead:
        """Describe the head that was not whole when the response ended."""
        if not self._size:
            return MalformedHead("the response is empty: not even a head was written")
        start = b"".join(self._parts)[:80]
        return MalformedHead(f"no blank line ends the response head {start!r}")

    def _mend(self, head: bytes) -> bytes:
        if self._authorizer:
            return _rewrite(head, keep_200=True)
        mended = _rewritten.get(head)
        if mended is None:
            mended = _rewrite(head)
            if len(head) <= _MAX_REMEMBERED:
                if len(_rewritten) >= _MAX_REWRITTEN:
                    _rewritten.clear()
                _rewritten[head] = mended
        return mended


def known_head(data: bytes) -> tuple[bytes, bytes] | None:
    """Return ``(mended head, body)`` if a responder's head seen before begins ``data``.

    The short way of ``ResponseHead`` for a response that comes in one piece.
    """
    end = _head_end(data)
    mended = _rewritten.get(data[:end]) if end > 0 else None
    return None if mended is None else (mended, data[end:])


def _head_end(data: bytes) -> int:
    """Where the body begins: behind the first blank line; -1 without one."""
    bare = data.find(b"\n\n")
    crlf = data.find(b"\n\r\n", 0, bare + 1 if bare >= 0 else len(data))
    if crlf >= 0:
        return crlf + 3
    if bare >= 0:
        return bare + 2
    return -1


def _too_long() -> MalformedHead:
    return MalformedHead(
        f"no blank line in the first {MAX_HEAD_BYTES} bytes of the response"
    )


def _content(line: bytes) -> bytes:
    """Return a line, of which the LF is off already, without its CR."""
    return line[:-1] if line.endswith(b"\r") else line


def _parse_line(line: bytes, *, first: bool = False) -> tuple[bytes, bytes]:
    """Split one header line, without its end, into lower-case name and value."""
    if first and line.startswith(b"HTTP/"):
        _check_text(line)
        return b"status", line.partition(b" ")[2].strip()
    name, colon, value = line.partition(b":")
    if not colon or not name or name.strip(_TOKEN):
        what = "is empty" if not line else f"is no header field: {line[:80]!r}"
        raise MalformedHead(f"a line of the response head {what}")
    _check_text(line)
    return name.lower(), value.strip()


def _check_text(line: bytes) -> None:
    if b"\r" in line or b"\0" in line:
        raise MalformedHead(f"control character in the header field {line[:80]!r}")


def _parse_head(head: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return ``(lower-case name, value, line)`` for each header field of a head."""
    fields: list[tuple[bytes, bytes, bytes]] = []
    blank = 3 if head.endswith(b"\n\r\n") else 2
    for ended in head[:-blank].split(b"\n"):
        line = _content(ended)
        if line[:1] in (b" ", b"\t") and fields:  # a folded field, made one line
            _check_text(line)
            name, value, before = fields[-1]
            folded = line.strip()
            value = (value + b" " + folded).strip()
            fields[-1] = (name, value, before + b" " + folded)
        else:
            fields.append((*_parse_line(line, first=not fields), line))
    return fields


def _check_status(value: bytes) -> None:
    code = value[:3]
    if not (code.isdigit() and len(code) == 3 and value[3:4] in (b"", b" ")):
        raise MalformedHead(f"Status is no HTTP status: {value[:80]!r}")
    if not b"100" <= code <= b"999":
        raise MalformedHead(f"Status is out of range: {value[:80]!r}")


def _rewrite(head: bytes, *, keep_200: bool = False) -> bytes:
    fields = _parse_head(head)
    names = {name for name, _, _ in fields}
    lines: list[bytes] = []
    status = b"Status: 302 Found" if b"location" in names else b""
    needless = False
    for name, value, line in fields:
        if name in _HOP_BY_HOP:
            continue
        if name == b"status":
            _check_status(value)
            status = b"Status: " + value
            needless = value[:3] == b"200" and b"location" not in names
            continue
        lines.append(line)
    if status and (keep_200 or not (needless and lines)):
        lines.insert(0 if keep_200 else len(lines), status)
    if not lines:
        raise MalformedHead("the response head has no field that could be passed on")
    return b"\r\n".join(lines) + b"\r\n\r\n"
