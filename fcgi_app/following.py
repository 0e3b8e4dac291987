"""``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` where several requests are served.

Each handler finds its own request behind them, by the context that it runs in. What
is printed where there is no request goes to the process's own standard error, which is
the log: never into the response of a request that happens to be served.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from threading import Lock

from .request import serving
from .textio import TextIn, TextOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO


__all__ = ["install", "remove", "renew"]

_MEMBERS = ("stdin", "stdout", "stderr")


class _Following(io.TextIOBase):
    """Passes everything on to the stream of the request of the calling context."""

    def __init__(self, member: str, own: TextIO | None) -> None:
        self._member = member
        self._outside: Any = TextIn() if member == "stdin" else TextOut(member, own)

    @property
    def _text(self) -> Any:
        request = serving.get()
        if request is None or request.finished:
            return self._outside
        texts = request.texts
        if texts is None:
            texts = request.texts = {}  # which ends with the request
        text = texts.get(self._member)
        if text is None:
            text = TextIn() if self._member == "stdin" else TextOut(self._member, None)
            text.bind(request)
            text = texts.setdefault(self._member, text)
        return text

    @property
    def name(self) -> str:
        return f"<{self._member}>"

    @property
    def mode(self) -> str:
        return "r" if self._member == "stdin" else "w"

    @property
    def buffer(self) -> Any:
        return self._text.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._text.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        found: str | None = self._text.errors
        return found

    @property
    def closed(self) -> bool:
        return bool(self._text.closed)

    def write(self, text: str, /) -> int:
        return int(self._text.write(text))

    def flush(self) -> None:
        self._text.flush()

    def close(self) -> None:
        self._text.close()

    def detach(self) -> Any:
        return self._text.detach()

    def reconfigure(self, **changes: Any) -> None:
        self._text.reconfigure(**changes)

    def read(self, size: int | None = -1, /) -> str:
        return str(self._text.read(size))

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return str(self._text.readline(size))

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self._text)

    def __next__(self) -> str:  # type: ignore[override]
        return str(next(self._text))

    def readable(self) -> bool:
        return self._member == "stdin"

    def writable(self) -> bool:
        return self._member != "stdin"

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return int(self._text.fileno())

    def __del__(self) -> None:
        """Close nothing: whose stream that would be depends on who collects it."""


_changing = Lock()
_installed = 0
_originals: list[Any] = []
_ours: list[_Following] = []


def install(log: TextIO | None) -> None:
    """Put the following streams in place; may be called again before ``remove``.

    Args:
        log: takes what is printed where no request is; None: that is dropped.
    """
    global _installed
    with _changing:
        _installed += 1
        if _installed > 1:
            return
        _originals[:] = [sys.stdin, sys.stdout, sys.stderr]
        _ours[:] = [_Following(member, log) for member in _MEMBERS]
        sys.stdin, sys.stdout, sys.stderr = _ours


def renew() -> None:
    """Put them in place again, where somebody has set others since (pytest does)."""
    with _changing:
        if _installed:
            sys.stdin, sys.stdout, sys.stderr = _ours


def remove() -> None:
    """Put the process's own back, where ours are still in place."""
    global _installed
    with _changing:
        _installed -= 1
        if _installed:
            return
        for member, ours, own in zip(_MEMBERS, _ours, _originals, strict=True):
            if getattr(sys, member) is ours:
                setattr(sys, member, own)
