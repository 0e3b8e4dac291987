"""The package's logger, loaded only when there is something to say.

``logging`` costs a program that never logs 8 ms and a mebibyte at start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = [
    "flush_log",
    "log_exception",
    "log_in_background",
    "log_in_foreground",
    "log_info",
    "log_to",
    "log_warning",
]

_WARNING = 30
_INFO = 20
_ERROR = 40
_FLUSH_SECONDS = 5.0
_MOST_WAITING = 1000
"""Lines that wait to be logged; who floods the log gets no memory for it."""
_lost = 0
_sink: Callable[[str], object] | None = None
"""What takes the lines in place of ``logging``; None: nothing does."""
_queue: Any = None
"""What a thread of its own is to log; None: everybody logs for himself."""


def log_warning(message: str, *args: object) -> None:
    """Log at level WARNING through the logger ``fcgi_app``."""
    _log(_WARNING, message, args)


def log_info(message: str, *args: object) -> None:
    """Log at level INFO, if the application has set logging up at all."""
    # Else nobody could have asked for INFO.
    if _sink is not None or "logging" in sys.modules:
        _log(_INFO, message, args)


def log_exception(message: str, *args: object) -> None:
    """Log at level ERROR with the traceback of the exception being handled."""
    _log(_ERROR, message, args, sys.exc_info())


def log_to(sink: Callable[[str], object] | None) -> None:
    """Give every message of level INFO and above to ``sink``, and none to ``logging``.

    A launcher does it, whose log is its own, and which lives too long to hold in memory
    what it does without.

    Args:
        sink: takes a message, which may have several lines, without newline at its end;
            None: from now on ``logging`` gets them again.
    """
    global _sink
    _sink = sink


def _log(
    level: int,
    message: str,
    args: tuple[object, ...],
    error: tuple[Any, Any, Any] | None = None,
) -> None:
    global _lost
    if _queue is None:
        _emit(level, message, args, error)
    elif _queue.qsize() < _MOST_WAITING:
        _queue.put((level, message, args, error))
    else:
        _lost += 1


def _emit(
    level: int,
    message: str,
    args: tuple[object, ...],
    error: tuple[Any, Any, Any] | None = None,
) -> None:
    if _sink is not None:
        _sink((message % args if args else message) + _describe(error))
        return
    try:
        from logging import getLogger
    except (ImportError, OSError):  # no descriptor is left to load it with
        # What logging does where nobody has set it up.
        if level >= _WARNING and sys.stderr is not None:
            sys.stderr.write(message % args + "\n")
        return
    try:
        getLogger("fcgi_app").log(level, message, *args, exc_info=error)
    except ValueError:  # sys.stderr is closed, and logging wants to say so there
        os.write(2, f"{message % args}{_describe(error)}\n".encode("utf-8", "replace"))


def _describe(error: tuple[Any, Any, Any] | None) -> str:
    """Return the lines of a traceback, each after a newline."""
    if error is None:
        return ""
    from traceback import format_exception

    return "\n" + "".join(format_exception(*error)).rstrip("\n")


# With threads


def log_in_background() -> None:
    """Have everything logged by a thread of its own from now on.

    Who logs may hold the lock of the connections. A logging handler of the
    application has a lock as well, which a thread may hold that writes to a request's
    STDERR, and so waits for the connections.

    Raises:
        RuntimeError: there can be no thread.
    """
    global _queue
    if _queue is not None:
        return
    from atexit import register
    from queue import SimpleQueue
    from threading import Thread

    queue: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_emit_all, args=(queue,), name="fcgi_app log", daemon=True).start()
    register(flush_log)
    _queue = queue


def log_in_foreground() -> None:
    """Have everybody log for himself again; that thread ends when it has caught up."""
    global _queue
    if _queue is None:
        return
    from atexit import unregister

    flush_log()
    unregister(flush_log)
    queue, _queue = _queue, None
    queue.put(None)


def _emit_all(queue: Any) -> None:
    while (entry := queue.get()) is not None:
        if not isinstance(entry, tuple):
            entry.set()  # of flush_log
        else:
            try:
                _emit(*entry)
                _tell_lost(queue)
            except Exception:  # noqa: BLE001 - of a filter; logging has no other way
                sys.excepthook(*sys.exc_info())
        del entry


def _tell_lost(queue: Any) -> None:
    """Say how many lines there was no room for, once there is some again."""
    global _lost
    if _lost and queue.empty():
        lost, _lost = _lost, 0
        _emit(_WARNING, "%d lines were not logged: too many at once", (lost,))


def flush_log() -> None:
    """Wait until what was logged before has been written, or for 5 s."""
    from threading import Event, current_thread

    if _queue is not None and current_thread().name != "fcgi_app log":
        written = Event()
        _queue.put(written)
        written.wait(_FLUSH_SECONDS)


def _after_fork_in_child() -> None:
    global _queue
    _queue = None  # the thread has stayed behind


os.register_at_fork(after_in_child=_after_fork_in_child)
