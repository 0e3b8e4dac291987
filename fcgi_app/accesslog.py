"""The access log: a line for each request, with what was sent and how long it took.

A line is one write(2) to a descriptor that appends, so that many processes may share
a file. Nobody waits for a disk that is full: the line is lost, and the process's own
log says so once. A file that was renamed or removed is opened anew within a second.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ._log import log_warning
from .errors import ConfigError

if TYPE_CHECKING:
    from .codec.records import Buffer

__all__ = ["AccessLog", "Entry", "Sent", "parse_format"]

_COMMON = '%h %l %u %t "%r" %>s %b'
FORMATS = {
    "common": _COMMON + " %D",
    "combined": _COMMON + ' "%{Referer}i" "%{User-Agent}i" %D',
}
"""Formats that have a name, besides ``json``; all end in microseconds."""

_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_DIRECTIVE = re.compile(r"%([<>]?)(?:\{([^}]*)\})?([A-Za-z%])")
_NEEDS_ESCAPE = re.compile(rb"[^ !#-\[\]-~]")
_ESCAPES = {b'"': b'\\"', b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"^(?:HTTP/\S+|Status:)[ \t]*(\d{3})", re.I | re.M)
_LOCATION = re.compile(rb"^Location:", re.I | re.M)
_LONGEST_HEAD = 65536
_LOOK_SECONDS = 1.0  # between two looks whether the file is still the one of its name


class Entry(NamedTuple):
    """What there is to say of a request.

    Attributes:
        params: its params.
        status: HTTP status that was sent; None: no response head was.
        size: bytes of the response's body that were sent.
        started: when the application got it, seconds since 1970.
        duration: seconds from then until its end had been sent.
        aborted: the web server did not want it to its end.
    """

    params: Mapping[bytes, bytes]
    status: int | None
    size: int
    started: float
    duration: float
    aborted: bool


_Field = Callable[[Entry], bytes]


class Sent:
    """Looks at a response as it leaves, for the status and the size of its body.

    Attributes:
        status: of the head that was sent; None: there was none.
        size: bytes behind the head.
    """

    __slots__ = ("_head", "size", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.size = 0
        self._head: bytes | None = b""  # what has come of it; None: it is over

    def add(self, pieces: Iterable[Buffer]) -> None:
        """Take what has been sent of STDOUT."""
        if self._head is None:
            self.size += sum(map(len, pieces))
            return
        self._head += b"".join(pieces)
        end = _HEAD_END.search(self._head)
        if end is not None:
            self.status = _status_of(self._head[: end.start()])
            self.size = len(self._head) - end.end()
            self._head = None
        elif len(self._head) > _LONGEST_HEAD:  # under passthrough only
            self.size = len(self._head)
            self._head = None

    def add_file(self, size: int) -> None:
        """Take ``size`` bytes that have been sent unseen; no head ends in them."""
        if self._head is not None:  # under passthrough only
            self.size = len(self._head)
            self._head = None
        self.size += size


def _status_of(head: bytes) -> int:
    found = _STATUS.search(head)
    if found is not None:
        return int(found[1])
    return 302 if _LOCATION.search(head) else 200


class AccessLog:
    """Writes the lines.

    Args:
        target: path of a file, ``-`` for descriptor 2, or ``fd:N`` for a descriptor,
            which stays the caller's.
        format: ``common``, ``combined``, ``json``, or a format of Apache's
            ``LogFormat``; `parse_format` tells which directives there are.

    Raises:
        ConfigError: the format has a directive that there is not, or the descriptor
            is none to write to.
        OSError: the file cannot be opened.
    """

    def __init__(self, target: str, format: str) -> None:
        self._line = parse_format(format)
        self._target = target
        self._path = ""
        self._in_trouble = False
        self._torn = False
        self._next_look = 0.0
        if target == "-" or target.startswith("fd:"):
            self._fd = _duplicate(target)
        else:
            self._path = os.path.abspath(target)  # the program may change directory
            self._fd = _open(self._path)

    def sent(self) -> Sent:
        """Return what counts the response of a request that begins."""
        return Sent()

    def write(self, entry: Entry) -> None:
        """Write the line of a request; never raises ``OSError``."""
        line = self._line(entry)
        try:
            if self._path:
                self._look()
            # The rest of a line that the disk had no room for ends here.
            self._write(b"\n" + line if self._torn else line)
            self._in_trouble = False
        except OSError as error:
            if not self._in_trouble:  # once for each time that it begins
                self._in_trouble = True
                log_warning("access log %s: %s; lines are lost", self._target, error)

    def _write(self, line: bytes) -> None:
        written = os.write(self._fd, line)
        self._torn = 0 < written < len(line)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _look(self) -> None:
        """Open the file anew if its name belongs to another one, or to none."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self._path)
            if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        fresh = _open(self._path)
        # The same number: another thread may be about to write to it.
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)
        self._torn = False

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(path: str) -> int:
    # Not a FIFO whose reader is waited for.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(path, flags, 0o644)


def _duplicate(target: str) -> int:
    """Return a descriptor of our own for ``-`` and ``fd:N``."""
    from fcntl import F_DUPFD_CLOEXEC, F_GETFL, fcntl

    number = target.removeprefix("fd:")
    if target != "-" and not (number.isascii() and number.isdigit()):
        raise ConfigError("access_log", target, "must be fd: and a number")
    descriptor = 2 if target == "-" else int(number)
    try:
        writable = fcntl(descriptor, F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if writable:
            return fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
    except (OSError, OverflowError) as error:
        raise ConfigError("access_log", target, str(error)) from None
    raise ConfigError("access_log", target, "the descriptor is open for reading only")


# Formats


def parse_format(format: str) -> Callable[[Entry], bytes]:
    r"""Return what makes the line of a request, with the LF at its end.

    The directives are Apache's (mod_log_config)::

        %%  a percent sign                  %a %h  REMOTE_ADDR
        %b  bytes of the body, - for 0      %B  the same, 0 for 0
        %D  microseconds                    %T  seconds; also %{s,ms,us}T
        %H  SERVER_PROTOCOL                 %l  -
        %m  REQUEST_METHOD                  %P  process id
        %p  SERVER_PORT                     %q  ? and QUERY_STRING, or nothing
        %r  method, URI and protocol        %s %>s %<s  HTTP status
        %t  [22/Nov/2026:22:02:00 +0000]    %u  REMOTE_USER
        %U  URI without the query           %v  SERVER_NAME
        %{Name}i  a header of the request   %{NAME}e  a param

    What is empty is ``-``. Quotes, backslashes and all but printable ASCII stand as
    ``\"``, ``\\``, ``\n``, ``\r``, ``\t`` or ``\xhh``.

    Raises:
        ConfigError: another directive, or no format of that name.
    """
    if format == "json":
        return _json_line()
    text = FORMATS.get(format, format)
    if "%" not in text:
        known = ", ".join((*FORMATS, "json"))
        raise ConfigError("access_format", format, f"must be {known} or have a %")
    pieces: list[bytes | _Field] = []
    at = 0
    while (percent := text.find("%", at)) >= 0:
        pieces.append(os.fsencode(text[at:percent]))
        found = _DIRECTIVE.match(text, percent)
        field = None if found is None else _field(found[1], found[2], found[3])
        if found is None or field is None:
            shown = found[0] if found is not None else text[percent : percent + 10]
            raise ConfigError("access_format", format, f"no directive {shown!r}")
        pieces.append(field)
        at = found.end()
    pieces.append(os.fsencode(text[at:]) + b"\n")

    def line(entry: Entry) -> bytes:
        return b"".join([p if type(p) is bytes else p(entry) for p in pieces])  # type: ignore[operator]

    return line


def _field(sign: str, name: str | None, letter: str) -> bytes | _Field | None:
    """Return what a directive gives; None: there is no such."""
    if sign and letter != "s":
        return None
    if letter == "i" and name:
        header = name.upper().replace("-", "_")
        known = header in ("CONTENT_TYPE", "CONTENT_LENGTH")
        return _param(header if known else "HTTP_" + header)
    if letter == "e" and name:
        return _param(name)
    if letter == "T" and name is not None:
        factor = {"s": 1, "ms": 1_000, "us": 1_000_000}.get(name)
        return None if factor is None else _times(factor)
    return _FIELDS.get(letter) if name is None else None


def _param(name: str) -> _Field:
    key = os.fsencode(name)
    return lambda entry: _escape(entry.params.get(key, b""))


def _times(factor: int) -> _Field:
    return lambda entry: b"%d" % (entry.duration * factor)


def _escape(value: bytes) -> bytes:
    if not value:
        return b"-"
    if _NEEDS_ESCAPE.search(value) is None:
        return value
    return _NEEDS_ESCAPE.sub(
        lambda found: _ESCAPES.get(found[0]) or b"\\x%02x" % ord(found[0]), value
    )


def _uri(entry: Entry) -> bytes:
    return entry.params.get(b"REQUEST_URI") or entry.params.get(b"SCRIPT_NAME", b"")


def _path(entry: Entry) -> bytes:
    return _escape(_uri(entry).partition(b"?")[0])


def _query(entry: Entry) -> bytes:
    query = entry.params.get(b"QUERY_STRING")
    return b"?" + _escape(query) if query else b""


def _request_line(entry: Entry) -> bytes:
    method = entry.params.get(b"REQUEST_METHOD", b"")
    protocol = entry.params.get(b"SERVER_PROTOCOL", b"")
    return (
        b" ".join(map(_escape, filter(None, (method, _uri(entry), protocol)))) or b"-"
    )


def _status(entry: Entry) -> bytes:
    return b"-" if entry.status is None else b"%d" % entry.status


_last_time = (-1, b"")


def _time(entry: Entry) -> bytes:
    """Return ``%t``; names of months are not the locale's."""
    global _last_time
    second, text = _last_time
    if second != int(entry.started):
        second = int(entry.started)
        then = time.localtime(second)
        minutes = then.tm_gmtoff // 60
        text = b"[%02d/%b/%d:%02d:%02d:%02d %c%02d%02d]" % (
            then.tm_mday,
            _MONTHS[then.tm_mon - 1],
            then.tm_year,
            then.tm_hour,
            then.tm_min,
            then.tm_sec,
            b"-" if minutes < 0 else b"+",
            abs(minutes) // 60,
            abs(minutes) % 60,
        )
        _last_time = second, text
    return text


_FIELDS: dict[str, bytes | _Field] = {
    "%": b"%",
    "a": _param("REMOTE_ADDR"),
    "b": lambda entry: b"%d" % entry.size if entry.size else b"-",
    "B": lambda entry: b"%d" % entry.size,
    "D": _times(1_000_000),
    "h": _param("REMOTE_ADDR"),
    "H": _param("SERVER_PROTOCOL"),
    "l": b"-",
    "m": _param("REQUEST_METHOD"),
    "P": lambda entry: b"%d" % os.getpid(),
    "p": _param("SERVER_PORT"),
    "q": _query,
    "r": _request_line,
    "s": _status,
    "t": _time,
    "T": _times(1),
    "u": _param("REMOTE_USER"),
    "U": _path,
    "v": _param("SERVER_NAME"),
}


def _json_line() -> Callable[[Entry], bytes]:
    """Return what makes an object for each request; absent values are null."""
    from datetime import datetime
    from json import dumps

    def text(entry: Entry, name: bytes) -> str | None:
        value = entry.params.get(name)
        # All the bytes, and nothing that a strict reader would refuse.
        return value.decode("utf-8", "backslashreplace") if value else None

    def line(entry: Entry) -> bytes:
        started = datetime.fromtimestamp(entry.started).astimezone()
        fields = {
            "time": started.isoformat(timespec="microseconds"),
            "remote_addr": text(entry, b"REMOTE_ADDR"),
            "remote_user": text(entry, b"REMOTE_USER"),
            "method": text(entry, b"REQUEST_METHOD"),
            "uri": text(entry, b"REQUEST_URI") or text(entry, b"SCRIPT_NAME"),
            "protocol": text(entry, b"SERVER_PROTOCOL"),
            "host": text(entry, b"HTTP_HOST"),
            "status": entry.status,
            "bytes": entry.size,
            "duration_us": int(entry.duration * 1_000_000),
            "referer": text(entry, b"HTTP_REFERER"),
            "user_agent": text(entry, b"HTTP_USER_AGENT"),
            "aborted": entry.aborted,
            "pid": os.getpid(),
        }
        return dumps(fields, separators=(",", ":")).encode() + b"\n"

    return line
