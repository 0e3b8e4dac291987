"""A control server that is turned by hand, with a supervisor that only remembers."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fcgi_app.errors import ConfigError
from fcgi_app.launcher.attendant import Attendant
from fcgi_app.launcher.control import ControlServer
from fcgi_app.scoreboard import Scoreboard

__all__ = ["Desk", "Recorder", "has_answer", "is_cut", "read"]

WORKER = {
    "pid": os.getpid(),
    "address": "@x",
    "slot": None,
    "state": "starting",
    "started": 5.0,
    "leaving": False,
}


class Recorder:
    """A supervisor that does nothing but remember."""

    def __init__(self, *pools: str) -> None:
        self.pools = pools or ("main",)
        self.boards = {
            name: Scoreboard.create(name, 4) for name in self.pools if name != "status"
        }
        self.calls: list[object] = []
        self.workers = 1
        self.broken = False
        self.on_reload: Callable[[], object] = lambda: None

    @property
    def scoreboards(self) -> Mapping[str, Scoreboard]:
        return self.boards

    def reload(self) -> None:
        self.calls.append("reload")
        self.on_reload()

    def stop(self, *, quick: bool = False) -> None:
        self.calls.append("quick stop" if quick else "stop")

    def scale(self, pool: str, number: int, *, relative: bool = False) -> int:
        self.calls.append((pool, number, relative))
        if number > 100:
            raise ConfigError("workers", number, "must be from 1 to 100")
        return number

    def reopen_log(self) -> None:
        self.calls.append("reopen")

    def observe(self) -> bool:
        return False

    def report(self) -> dict[str, Any]:
        if self.broken:
            raise RuntimeError("no report")
        pools = [
            {"name": name, "manager": "static", "workers": [WORKER] * self.workers}
            for name in self.pools
        ]
        return {"version": "1", "pid": os.getpid(), "started": 0.0, "pools": pools}


class Desk:
    """A control server, turned by hand, with a clock that is set."""

    def __init__(self, folder: Path, *pools: str) -> None:
        self.path = str(folder / "control")
        self.now = 1000.0
        self.supervisor = Recorder(*pools)
        self.server = ControlServer(self.path, clock=lambda: self.now)
        attendant: Attendant = self.server  # mypy sees that it is one
        attendant.open(self.supervisor)
        self.callers: list[socket.socket] = []

    def turn(self) -> None:
        """Do all that there is to do now."""
        for _ in range(100):
            poller = select.poll()
            watched = self.server.watched()
            for descriptor, events in watched.items():
                poller.register(descriptor, events)
            ready = poller.poll(0)
            for descriptor, events in ready:
                self.server.handle(descriptor, events)
            self.server.turn(self.now)
            if not ready:
                return
        raise AssertionError("it never comes to rest")

    def call(self, question: object = None) -> socket.socket:
        """Connect, and ask."""
        caller = socket.socket(socket.AF_UNIX)
        self.callers.append(caller)
        caller.settimeout(5)
        caller.connect(self.path)
        if question is not None:
            caller.sendall(json.dumps(question).encode() + b"\n")
        self.turn()
        return caller

    def ask(self, question: object) -> dict[str, Any]:
        """Ask and return the answer."""
        return read(self.call(question))

    def close(self) -> None:
        self.server.close()
        for caller in self.callers:
            caller.close()
        for board in self.supervisor.boards.values():
            board.close()


def read(caller: socket.socket) -> dict[str, Any]:
    """The answer: one line, and the end."""
    with caller.makefile("rb") as lines:
        content = lines.read()
    assert content.count(b"\n") == 1
    answer = json.loads(content)
    assert isinstance(answer, dict)
    return answer


def has_answer(caller: socket.socket) -> bool:
    """Whether something has come, or the end."""
    return bool(select.select([caller], [], [], 0)[0])


def is_cut(caller: socket.socket) -> bool:
    """Whether the connection has ended without an answer."""
    return has_answer(caller) and caller.recv(1) == b""
