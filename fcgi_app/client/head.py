"""The response head of a CGI program (RFC 3875 §6): bytes in, status out."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import RemoteProtocolError

__all__ = ["MAX_HEAD", "Head", "find_head_end", "find_header", "parse_head"]

MAX_HEAD = 65536
"""Bytes of a response head: eight times httpd's LimitRequestFieldSize."""

_END = re.compile(rb"\r?\n\r?\n")
_HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:(.*)")
_STATUS = re.compile(r"([1-9][0-9][0-9])(?:[ \t]+(.*))?")
_STATUS_LINE = re.compile(r"HTTP/[0-9.]+[ \t]+(.*)")


class Head(NamedTuple):
    """A CGI response head (RFC 3875 §6.3).

    Attributes:
        status: 200 without ``Status``, 302 where ``Location`` stands without it.
        reason: the text after the number; empty if there is none.
        headers: in their order, text is latin-1; ``Status`` is not among them.
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]


def parse_head(head: bytes) -> Head:
    """Parse a CGI response head; lines end with LF or CRLF.

    A first line ``HTTP/1.x 404 Not Found`` counts as ``Status``, as in lighttpd.

    Args:
        head: the header lines; the blank line at the end may be missing.

    Raises:
        RemoteProtocolError: a line is not ``name: value``, a status is no number from
            100 to 999, or there is no line at all.
    """
    lines = _unfold(head.decode("latin-1").rstrip("\r\n"))
    status: str | None = None
    if lines and (match := _STATUS_LINE.fullmatch(lines[0])):
        status = match[1]
        del lines[0]
    headers = [_parse_header_line(line) for line in lines]
    status = next((v for n, v in headers if n.lower() == "status"), status)
    if not headers and status is None:
        raise RemoteProtocolError("the response head has no header line")
    headers = [(n, v) for n, v in headers if n.lower() != "status"]
    if status is None:
        redirect = any(name.lower() == "location" for name, _ in headers)
        return Head(302 if redirect else 200, "", headers)
    match = _STATUS.fullmatch(status)
    if match is None:
        raise RemoteProtocolError(f"Status: {status!r} is no number from 100 to 999")
    return Head(int(match[1]), match[2] or "", headers)


def _unfold(text: str) -> list[str]:
    """Split into lines; a line that begins with white space continues the last one."""
    lines: list[str] = []
    for line in text.split("\n") if text else ():
        line = line.removesuffix("\r")
        if line[:1] in (" ", "\t") and lines:
            lines[-1] += " " + line.strip(" \t")
        else:
            lines.append(line)
    return lines


def _parse_header_line(line: str) -> tuple[str, str]:
    match = _HEADER_LINE.fullmatch(line)
    if match is None or "\0" in line or "\r" in line:
        raise RemoteProtocolError(f"{line[:100]!r} is not a response header line")
    # A pattern would take quadratic time for white space within a long value.
    return match[1], match[2].strip(" \t")


def find_head_end(output: bytearray, start: int = 0) -> int | None:
    """Find where the body begins, after the blank line.

    Args:
        output: everything since the first byte.
        start: bytes that an earlier call has seen.

    Returns:
        The offset of the body; None if the blank line is not there.
    """
    match = _END.search(output, max(0, start - 3))
    return match.end() if match else None


def find_header(headers: list[tuple[str, str]], name: str) -> str | None:
    """Give the value of the first header of that name, in any case, or None."""
    wanted = name.lower()
    return next((value for n, value in headers if n.lower() == wanted), None)
