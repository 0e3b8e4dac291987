"""What tests of attendants need: a supervision that is not to be asked, and systemd."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from fcgi_app.scoreboard import Scoreboard

from .pools import TIMEOUT

__all__ = ["Manager", "Unasked"]


class Unasked:
    """A supervision; tests give it what may be asked for."""

    scoreboards: Mapping[str, Scoreboard] = {}

    def report(self) -> dict[str, Any]:
        raise AssertionError

    def reload(self) -> None:
        raise AssertionError

    def stop(self, *, quick: bool = False) -> None:
        raise AssertionError

    def scale(self, pool: str, number: int, *, relative: bool = False) -> int:
        raise AssertionError

    def reopen_log(self) -> None:
        raise AssertionError

    def observe(self) -> bool:
        raise AssertionError


class Manager:
    """The service manager's end: a datagram socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = "\0" + address[1:] if address[0] == "@" else address
        self.socket.bind(name)
        self.socket.settimeout(TIMEOUT)

    def receive(self) -> dict[str, str]:
        """The next message: name → value."""
        text = self.socket.recv(4096).decode()
        assert text.endswith("\n")
        return dict(line.split("=", 1) for line in text.splitlines())

    def receive_all(self) -> list[dict[str, str]]:
        """All messages that wait."""
        found = []
        self.socket.setblocking(False)
        try:
            while True:
                found.append(self.receive())
        except BlockingIOError:
            return found
        finally:
            self.socket.settimeout(TIMEOUT)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()
