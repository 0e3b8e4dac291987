"""The socket through which people and programs ask a supervisor: one line in, one out.

A line is a JSON object that ends with a newline, in ASCII or UTF-8. The answer has
``"ok"``: true, with what was asked for, or false, with ``"error"``, a text. Then the
connection is closed. What can be asked, by ``"command"``:

==========  =============================  =========================================
command     further keys                   answer
==========  =============================  =========================================
status                                     ``status``, see `describe_service`
reload      ``wait`` (true)                when it is done, with ``text``
stop        ``wait`` (true), ``quick``     when all workers have ended
            (false)
scale       ``workers``, ``relative``      ``pool``, ``workers``: the new number
            (false), ``pool`` (the only)
==========  =============================  =========================================

The file of the socket is its owner's alone (mode 0600): who may connect may do all of
it. No caller can hold the supervisor up. There are few at a time, a line is short, who
is slow is cut off, and nothing here waits.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._log import log_info, log_warning
from ..errors import FcgiAppError
from ..sockets import open_socket, remove_socket_file

if TYPE_CHECKING:
    from .attendant import Event, Supervision

__all__ = ["LONGEST_LINE", "MOST_CALLERS", "ControlServer"]

MOST_CALLERS = 32
"""Connections at a time; further ones wait in the socket's queue."""

MOST_WAITING = 16
"""Of these, how many may wait for the end of a reload or of the supervisor, which can
take long: the rest is for those who are answered at once."""

LONGEST_LINE = 4096
"""Bytes of a question."""

LINE_SECONDS = 5.0
"""For a question to arrive, from the connection on."""

ANSWER_SECONDS = 10.0
"""For an answer to be taken."""

PAUSE_SECONDS = 1.0
"""Without accepting, where the system has no descriptor left."""

_READ_BYTES = 65536
_BACKLOG = 16
_KEYS: dict[str, dict[str, type]] = {
    "status": {},
    "reload": {"wait": bool},
    "stop": {"wait": bool, "quick": bool},
    "scale": {"workers": int, "relative": bool, "pool": str},
}


class _Refused(Exception):
    """A question that is answered with an error; the text says why."""


@dataclass(eq=False)
class _Caller:
    """One connection.

    Attributes:
        connection: owned; does not block.
        deadline: when it is cut off, of the monotonic clock.
        who: for the log.
        line: what has come of the question.
        answer: what is still to be sent.
        awaits: ``reload`` or ``stop``, while it waits for the end of that.
        begun: the reload that it waits for goes on; before, an earlier one may.
    """

    connection: socket.socket
    deadline: float
    who: str
    line: bytes = b""
    answer: bytes = b""
    awaits: str = ""
    begun: bool = False

    @property
    def events(self) -> int:
        """What to wait for; the other side's end is always told."""
        if self.answer:
            return select.POLLOUT
        return 0 if self.awaits else select.POLLIN


class ControlServer:
    """The control socket of a supervisor: an `Attendant`.

    Args:
        path: absolute; of the socket file, which is made by `open` and removed by
            `close`. One that nobody listens on is replaced.
        clock: seconds of the monotonic clock.
    """

    def __init__(self, path: str, *, clock: Callable[[], float] = monotonic) -> None:
        self.path = path
        self._clock = clock
        self._supervision: Supervision | None = None
        self._listener: socket.socket | None = None
        self._callers: dict[int, _Caller] = {}
        self._paused_until = -inf
        self._stopping = False

    # What a supervisor calls

    def open(self, supervision: Supervision) -> None:
        """Listen; raises what `open_socket` raises, such as for a live socket."""
        address = f"unix:{self.path}"
        self._listener = open_socket(address, backlog=_BACKLOG, mode=0o600)
        self._listener.setblocking(False)
        self._supervision = supervision

    def watched(self) -> Mapping[int, int]:
        """Return what to wait for: new callers, questions, room for answers."""
        found = {d: caller.events for d, caller in self._callers.items()}
        has_room = len(found) < MOST_CALLERS and self._paused_until == -inf
        if self._listener is not None and has_room:
            found[self._listener.fileno()] = select.POLLIN
        return found

    def handle(self, descriptor: int, events: int) -> None:
        """Take, read, answer or forget a caller."""
        if self._listener is not None and descriptor == self._listener.fileno():
            self._accept()
            return
        caller = self._callers.get(descriptor)
        if caller is None:
            return
        if caller.answer:
            self._send(caller)
        elif not caller.awaits:
            self._receive(caller)
        elif _has_hung_up(caller.connection):  # the event may be of one before it
            self._forget(caller)

    def due(self) -> float:
        """Return when somebody is to be cut off, or may be accepted again."""
        found = [caller.deadline for caller in self._callers.values()]
        if self._paused_until > -inf:
            found.append(self._paused_until)
        return min(found, default=inf)

    def turn(self, now: float) -> None:
        """Cut off who was too slow."""
        if now >= self._paused_until:
            self._paused_until = -inf
        for caller in list(self._callers.values()):
            if now >= caller.deadline:
                what = "take the answer" if caller.answer else "ask"
                log_warning("control: %s was too slow to %s", caller.who, what)
                self._forget(caller)

    def note(self, event: Event, text: str) -> None:
        """Tell those who wait how their reload has ended."""
        waiting = list(self._waiting_for("reload"))
        if event == "reloading":
            for caller in waiting:
                caller.begun = True
        elif event in ("reloaded", "reload failed"):
            good = event == "reloaded"
            outcome = {"ok": True, "text": text} if good else _error(text)
            for caller in waiting:
                if caller.begun:
                    self._answer(caller, outcome)
        elif event == "stopping":
            self._stopping = True
            for caller in waiting:
                self._answer(caller, _error("the supervisor has been stopped"))

    def close(self) -> None:
        """Answer who waits for the end, and remove the socket."""
        for caller in list(self._waiting_for("stop")):
            self._answer(caller, {"ok": True})
        for caller in list(self._waiting_for("reload")):
            self._answer(caller, _error("the supervisor ends or is executed again"))
        for caller in list(self._callers.values()):
            self._forget(caller)
        if self._listener is not None:
            try:
                remove_socket_file(self._listener)
            except OSError as error:
                log_warning("cannot remove %s: %s", self.path, error.strerror)
            self._listener.close()
            self._listener = None

    # Callers

    def _waiting_for(self, what: str) -> Iterator[_Caller]:
        return (caller for caller in self._callers.values() if caller.awaits == what)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # it stays readable: do not spin
            log_warning("control: %s", error.strerror)
            self._paused_until = self._clock() + PAUSE_SECONDS
            return
        connection.setblocking(False)
        deadline = self._clock() + LINE_SECONDS
        caller = _Caller(connection, deadline, _who_is(connection))
        self._callers[connection.fileno()] = caller

    def _forget(self, caller: _Caller) -> None:
        self._callers.pop(caller.connection.fileno(), None)
        caller.connection.close()

    def _receive(self, caller: _Caller) -> None:
        try:
            piece = caller.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        line, newline, _ = (caller.line + piece).partition(b"\n")
        if len(line) > LONGEST_LINE:
            text = f"a line of more than {LONGEST_LINE} bytes"
            self._answer(caller, _error(text))
        elif newline:
            self._obey(caller, line)
        elif piece:
            caller.line = line
        else:  # somebody who only looked whether we are here
            self._forget(caller)

    def _answer(self, caller: _Caller, answer: dict[str, Any]) -> None:
        import json

        caller.awaits = ""
        caller.answer = json.dumps(answer).encode() + b"\n"
        caller.deadline = self._clock() + ANSWER_SECONDS
        self._send(caller)

    def _send(self, caller: _Caller) -> None:
        try:
            sent = caller.connection.send(caller.answer, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:  # gone
            sent = len(caller.answer)
        caller.answer = caller.answer[sent:]
        if not caller.answer:
            self._forget(caller)

    # Questions

    def _obey(self, caller: _Caller, line: bytes) -> None:
        """Do what a line asks for, and answer now or later."""
        try:
            question = _parse_question(line)
            answer = self._do(caller, question)
        except (_Refused, FcgiAppError) as error:
            answer = _error(str(error))
        except Exception as error:  # noqa: BLE001 - the workers need a supervisor
            log_warning("control: %s: %r", caller.who, error)
            answer = _error(f"internal error: {error!r}")
        if answer is not None:
            self._answer(caller, answer)

    def _do(self, caller: _Caller, question: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer; None if it comes later, or has gone already."""
        assert self._supervision is not None
        command = question["command"]
        if command == "status":
            from .overview import describe_service

            return {"ok": True, "status": describe_service(self._supervision)}
        details = "".join(
            f", {name} {value!r}"
            for name, value in question.items()
            if name != "command"
        )
        log_info("control: %s asks for %s%s", caller.who, command, details)
        if command == "reload":
            return self._reload(caller, question)
        if command == "stop":
            return self._stop(caller, question)
        return self._scale(question)

    def _reload(
        self, caller: _Caller, question: dict[str, Any]
    ) -> dict[str, Any] | None:
        if self._stopping:
            raise _Refused("the supervisor is stopping")
        assert self._supervision is not None
        waits = self._wait_if_wanted(caller, "reload", question)
        self._supervision.reload()  # may have ended when it returns
        return None if waits else {"ok": True, "text": "asked for"}

    def _stop(self, caller: _Caller, question: dict[str, Any]) -> dict[str, Any] | None:
        assert self._supervision is not None
        waits = self._wait_if_wanted(caller, "stop", question)
        quick = question.get("quick", False)
        # To the supervisor a second stop is a quick one; who says this says "quick".
        if quick or not self._stopping:
            self._stopping = True
            self._supervision.stop(quick=quick)
        return None if waits else {"ok": True}

    def _wait_if_wanted(
        self, caller: _Caller, what: str, question: dict[str, Any]
    ) -> bool:
        if not question.get("wait", True):
            return False
        if sum(bool(each.awaits) for each in self._callers.values()) >= MOST_WAITING:
            raise _Refused(f"{MOST_WAITING} others wait for a reload or the end")
        caller.awaits = what
        caller.deadline = inf
        return True

    def _scale(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._supervision is not None
        if self._stopping:
            raise _Refused("the supervisor is stopping")
        if "workers" not in question:
            raise _Refused("workers: a number is needed")
        name = question.get("pool")
        if name is None:
            # The status service is a pool, too, and has none.
            boards = self._supervision.scoreboards
            pools = self._supervision.report()["pools"]
            names = [pool["name"] for pool in pools if pool["name"] in boards]
            if len(names) != 1:
                raise _Refused(f"pool: which of {', '.join(names)}?")
            (name,) = names
        relative = question.get("relative", False)
        number = self._supervision.scale(name, question["workers"], relative=relative)
        return {"ok": True, "pool": name, "workers": number}


def _parse_question(line: bytes) -> dict[str, Any]:
    """Parse a line, and check that every key is known and of its type."""
    import json

    try:
        question = json.loads(line)
    except (ValueError, RecursionError):
        raise _Refused("not a line of JSON") from None
    if not isinstance(question, dict):
        raise _Refused("not a JSON object")
    command = question.get("command")
    if not isinstance(command, str) or command not in _KEYS:
        raise _Refused(f"command: {command!r}: must be one of {', '.join(_KEYS)}")
    kinds = _KEYS[command]
    for name, value in question.items():
        if name == "command":
            continue
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise _Refused(f"{name}: no such key of {command} (there are {known})")
        if type(value) is not kinds[name]:
            raise _Refused(f"{name}: {value!r}: must be {_KIND_NAMES[kinds[name]]}")
    return question


_KIND_NAMES = {bool: "true or false", int: "a whole number", str: "a text"}


def _error(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text or "no reason was given"}


def _has_hung_up(connection: socket.socket) -> bool:
    """Tell whether the caller has gone; one who only writes no more has not."""
    poller = select.poll()
    poller.register(connection, 0)
    return bool(poller.poll(0))


def _who_is(connection: socket.socket) -> str:
    """Name a caller, as far as the system tells (SO_PEERCRED, unix(7))."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return "a caller"
    size = struct.calcsize("iII")
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, option, size)
    except OSError:
        return "a caller"
    pid, uid, _ = struct.unpack("iII", found)
    return f"process {pid} of user {uid}"
