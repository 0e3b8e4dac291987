"""The other side of the control socket: where it is, one question, one answer."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import ConfigError
from ..sockets import connect
from .config import DEFAULT_FILES
from .configfile import ConfigFile
from .pool import PREFIX

__all__ = ["ask", "find_control"]

CONNECT_SECONDS = 5.0
LONGEST_ANSWER = 1 << 26
"""Bytes; ten thousand workers need a tenth of that."""

_READ_BYTES = 65536


def find_control(
    path: str | None, config: str | None, environ: Mapping[str, str], directory: str
) -> str:
    """Return the absolute path of a supervisor's control socket.

    It is looked for where ``fcgi-app start`` takes it from: the command line, the
    environment, the file. Of the file nothing else counts, for one that is wrong by now
    must not keep anybody from stopping what runs.

    Args:
        path: of the command line; None: not said.
        config: the file of the command line; None: that of the environment, or the
            usual one of the directory.
        environ: for ``FCGI_APP_START_CONTROL`` and ``FCGI_APP_START_CONFIG``.
        directory: what relative paths are relative to.

    Raises:
        ConfigError: nobody says where it is, or the file is no TOML.
        OSError: the file cannot be read.
    """
    said = path if path is not None else environ.get(PREFIX + "CONTROL")
    if said:
        return os.path.join(directory, said)
    named = config if config is not None else environ.get(PREFIX + "CONFIG")
    names = [named] if named else DEFAULT_FILES
    for name in names:
        where = os.path.join(directory, name)
        if named or os.path.exists(where):
            file = ConfigFile.read(where)
            found = file.table.get("control")
            if isinstance(found, str) and found:
                return os.path.join(os.path.dirname(where), found)
            if found is not None:
                raise ConfigError(file.where("control"), found, "must be a path")
            if named or file.table or not file.top:  # the one that start reads
                break
    reason = f"not known: give --control, {PREFIX}CONTROL, or control in {names[0]}"
    raise ConfigError("control socket", path or "", reason)


def ask(
    path: str, question: Mapping[str, Any], *, timeout: float | None
) -> dict[str, Any]:
    """Ask a supervisor and return its answer; see `fcgi_app.launcher.control`.

    One that is asked to stop is gone when this returns, unless ``wait`` is false.

    Args:
        path: of the socket.
        question: ``command`` and what belongs to it.
        timeout: seconds until the answer has come, or the end; None: as long as it
            takes.

    Raises:
        ConfigError: the path is too long for a socket.
        OSError: nobody listens there, there is no whole answer, or (TimeoutError) it
            took too long.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with _connect(path) as connection:
        end = _watch_end(connection) if question["command"] == "stop" else -1
        try:
            connection.sendall(json.dumps(question).encode() + b"\n")
            answer = _read_answer(connection, path, deadline)
            if end >= 0 and answer["ok"] and question.get("wait", True):
                _wait_for(end, path, deadline)
        finally:
            if end >= 0:
                os.close(end)
    return answer


def _connect(path: str) -> socket.socket:
    try:
        return connect(f"unix:{path}", timeout=CONNECT_SECONDS)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise OSError(error.errno, "no supervisor listens there", path) from None


def _read_answer(
    connection: socket.socket, path: str, deadline: float | None
) -> dict[str, Any]:
    """Read the one line of the answer.

    Raises:
        OSError: as `ask`.
    """
    content = bytearray()
    while not content.endswith(b"\n") and len(content) < LONGEST_ANSWER:
        _wait_for(connection.fileno(), path, deadline)
        piece = connection.recv(_READ_BYTES)
        if not piece:
            reason = "the supervisor has closed the connection without an answer"
            raise OSError(errno.ECONNRESET, reason, path)
        content += piece
    try:
        answer = json.loads(content)
        if isinstance(answer["ok"], bool) and (answer["ok"] or answer["error"]):
            found: dict[str, Any] = answer
            return found
    except (ValueError, TypeError, LookupError):
        pass
    raise OSError(errno.EPROTO, "this is no supervisor's answer", path)


def _wait_for(descriptor: int, path: str, deadline: float | None) -> None:
    """Wait until a descriptor is readable; raises TimeoutError when time is up."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not poller.poll(None if left is None else left * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "no answer in time", path)


def _watch_end(connection: socket.socket) -> int:
    """Return a descriptor that is readable when who listens has ended; -1: cannot be.

    The supervisor answers right before its end. Whoever starts the next one needs its
    sockets and its pid file.
    """
    with suppress(OSError, AttributeError):  # not Linux, or not to be seen from here
        size = struct.calcsize("iII")
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, _, _ = struct.unpack("iII", found)
        if pid > 0:
            return os.pidfd_open(pid)
    return -1
