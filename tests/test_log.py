"""Who writes the log: whoever logs, or with threads one that does nothing else."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from fcgi_app._log import log_in_background, log_in_foreground, log_warning

from .threads import eventually
from .webserver import App


class ByThread(logging.Handler):
    """Notes each line and the thread that brought it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, threading.Thread]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), threading.current_thread()))


def test_in_the_background_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is lost or overtaken on the way back, and the thread ends."""
    handler = ByThread()
    logger = logging.getLogger("fcgi_app")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    log_in_foreground()  # no change
    for turn in range(2):
        log_in_background()
        log_in_background()
        for n in range(100):
            log_warning("%d behind %d", turn, n)
        log_in_foreground()
        log_warning("%d in front", turn)
    expected: list[str] = []
    for turn in range(2):
        expected += [f"{turn} behind {n}" for n in range(100)] + [f"{turn} in front"]
    assert [line for line, _ in handler.lines] == expected
    here = threading.current_thread()
    assert all((by is here) == line.endswith("front") for line, by in handler.lines)
    others = {by for _, by in handler.lines if by is not here}
    assert len(others) == 2
    eventually(lambda: not any(by.is_alive() for by in others), "both end")


def test_closed_stderr(tmp_path: Path) -> None:
    """A program that has closed its sys.stderr is served on; the log is descriptor 2."""
    source = """
    import sys
    from fcgi_app import accept
    while accept():
        sys.stderr = sys.stdout
        print("no head")
        sys.stdout.close()
    """
    with App(tmp_path, source) as app:
        for _ in range(2):
            assert app.ask().body == b"500 Internal Server Error\n"
        assert app.stop() == 0
        assert app.log.count("answered 500") == 2
