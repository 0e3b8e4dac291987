"""A program that has a slot of a scoreboard, as a worker of a pool does."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcgi_app.scoreboard import VARIABLE, Scoreboard, SlotState

from .threads import eventually
from .webserver import App

__all__ = ["HANDLE", "Worker", "open_board"]

HANDLE = """
    import fcgi_app, os, sys

    def handle(write, read, params):
        text = params.get("TEXT") or "ok"
        if params.get("WAIT"):
            text = read()
        write("A: b\\r\\n\\r\\n" + text)
"""


@contextmanager
def open_board() -> Iterator[Scoreboard]:
    """Room for four workers."""
    found = Scoreboard.create("www", 4)
    try:
        yield found
    finally:
        found.close()


class Worker(App):
    """A program that has a slot of a scoreboard."""

    def __init__(
        self,
        directory: Path,
        board: Scoreboard,
        source: str,
        *,
        max_requests: int = 0,
        slot: int | None = None,
        env: dict[str, str] | None = None,
        **popen: Any,
    ) -> None:
        self.board = board
        if slot is None:
            slot = board.take_slot()
            assert slot is not None
            board.configure_slot(slot, max_requests=max_requests)
        self.number = slot
        super().__init__(
            directory,
            textwrap.dedent(HANDLE) + textwrap.dedent(source),
            env={
                VARIABLE: f"{board.fileno()}:{slot}",
                "FCGI_APP_READ_AHEAD": "0",
                **(env or {}),
            },
            pass_fds=[board.fileno()],
            **popen,
        )

    @property
    def slot(self) -> SlotState:
        state = self.board.read(self.number)
        assert state is not None
        return state

    def wait_for(self, **values: object) -> SlotState:
        """Wait until the slot has these values, and return all of it."""

        def has_them() -> bool:
            state = self.slot
            return all(getattr(state, name) == v for name, v in values.items())

        eventually(has_them, f"{values}")
        return self.slot

    def __enter__(self) -> Worker:
        return self
