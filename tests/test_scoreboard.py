"""The scoreboard: what is written is read whole, by whoever reads it at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.scoreboard import (
    ENDING,
    IDLE,
    RUNNING,
    Header,
    Scoreboard,
    SlotWriter,
)

from .webserver import PACKAGE_PARENT

SIGNAL = signal.SIGRTMAX - 2


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    found = Scoreboard.create("www", 4)
    yield found
    found.close()


def taken(board: Scoreboard) -> SlotWriter:
    """A slot that a supervisor has taken, ready to be written."""
    number = board.take_slot()
    assert number is not None
    return board.slot(number)


def write(slot: SlotWriter, **changes: Any) -> None:
    """Write a request, like any but for the changes."""
    values = {
        "state": RUNNING,
        "active": 1,
        "requests": 7,
        "started": 12.5,
        "duration": 0.25,
        "since": 3.0,
        "length": 42,
        "method": b"POST",
        "uri": b"/a/b?c",
        "script": b"/srv/app.py",
        "remote": b"192.0.2.1",
    }
    slot.write_current(**{**values, **changes})


class TestHeader:
    def test_defaults(self, board: Scoreboard) -> None:
        """A new scoreboard knows its pool's name and nothing else."""
        assert board.header == Header(name="www")

    def test_changes(self, board: Scoreboard) -> None:
        """What is changed is changed, and the rest stays."""
        values: dict[str, Any] = {
            name: index + 1.5 if name == "started" else index + 1
            for index, name in enumerate(vars(Header()))
            if name not in ("name", "manager", "status_path", "ping_path")
        }
        board.write_header(manager="dynamic", **values)
        board.write_header(status_path="/status", ping_path="/\udcff/ä")
        board.write_header(restarts=99)
        values["restarts"] = 99
        expected = Header(
            name="www",
            manager="dynamic",
            status_path="/status",
            ping_path="/\udcff/ä",
            **values,
        )
        assert board.header == expected

    def test_longest_path(self, board: Scoreboard) -> None:
        """A path of 256 bytes fits; a longer one is refused, not cut."""
        board.write_header(status_path="/" * 256)
        assert board.header.status_path == "/" * 256
        with pytest.raises(ValueError, match="257 bytes"):
            board.write_header(ping_path="/" * 257)
        assert board.header.ping_path == ""

    def test_unknown_name(self, board: Scoreboard) -> None:
        """A misspelt name is an error."""
        with pytest.raises(TypeError, match="restart"):
            board.write_header(restart=1)


class TestSlots:
    def test_all_are_taken_once(self, board: Scoreboard) -> None:
        """Each slot is given to one worker; then there is none; a freed one again."""
        assert [board.take_slot() for _ in range(5)] == [0, 1, 2, 3, None]
        board.free_slot(2)
        assert [state.slot for state in board.read_all()] == [0, 1, 3]
        assert [board.take_slot(), board.take_slot()] == [2, None]

    def test_taken(self, board: Scoreboard) -> None:
        """A slot that was taken is of a worker that starts, and of no process yet."""
        board.take_slot()
        board.configure_slot(0, max_requests=5)
        state = board.read(0)
        assert state is not None
        assert (state.state, state.pid, state.max_requests) == ("starting", 0, 5)
        assert (state.content_length, state.uri, state.since) == (-1, "", 0.0)
        assert board.slot(0).max_requests == 5

    def test_nothing_is_left_of_the_one_before(self, board: Scoreboard) -> None:
        """Who takes a freed slot finds nothing of the worker before him."""
        write(taken(board))
        board.slot(0).claim(77, 3, SIGNAL)
        board.free_slot(0)
        board.take_slot()
        state = board.read(0)
        assert state is not None
        assert (state.pid, state.threads, state.traceback_signal) == (0, 0, 0)
        assert (state.uri, state.requests, state.max_requests) == ("", 0, 0)

    def test_freed(self, board: Scoreboard) -> None:
        """A freed slot is read as none, whatever was last seen in it."""
        slot = taken(board)
        write(slot)
        other = Scoreboard.open_fd(os.dup(board.fileno()))
        assert other.read(0) == board.read(0) is not None
        board.free_slot(0)
        assert board.read(0) is None
        board._words[4096 // 4] += 1  # what cannot be read now was free before
        assert board.read(0) is None
        board._words[4096 // 4] += 1
        assert other.read(0) is None
        other.close()

    @pytest.mark.parametrize("number", [-1, 1, 4])
    def test_nobodys(self, board: Scoreboard, number: int) -> None:
        """There is nothing to write a slot with that is not, or not taken."""
        board.take_slot()
        with pytest.raises(ValueError, match="slot"):
            board.slot(number)

    def test_claim(self, board: Scoreboard) -> None:
        """The first process to claim a slot has it, and may say so again."""
        slot = taken(board)
        board.configure_slot(0, max_requests=9)
        assert slot.claim(100, 8, SIGNAL)
        assert not slot.claim(101, 1, 0)
        assert slot.claim(100, 2, SIGNAL)
        slot.write_threads(6)
        state = board.read(0)
        assert state is not None
        assert (state.pid, state.threads, state.max_requests) == (100, 6, 9)
        assert state.traceback_signal == SIGNAL

    @pytest.mark.parametrize("number", [9, 15, 64 + 1, 2**31])
    def test_signal_that_would_kill(self, board: Scoreboard, number: int) -> None:
        """A worker cannot have its supervisor send any but a real-time signal."""
        taken(board).claim(1, 1, number)
        state = board.read(0)
        assert state is not None
        assert state.traceback_signal == 0


class TestRequests:
    def test_current(self, board: Scoreboard) -> None:
        """What a worker writes is what is read."""
        write(taken(board))
        state = board.read(0)
        assert state is not None
        counts = state.state, state.active, state.requests
        assert counts == ("running", 1, 7)
        times = state.request_started, state.last_duration, state.since
        assert times == (12.5, 0.25, 3.0)
        request = state.method, state.uri, state.script, state.remote
        assert request == ("POST", "/a/b?c", "/srv/app.py", "192.0.2.1")
        assert state.content_length == 42
        assert board.read_all() == [state]

    @pytest.mark.parametrize(("number", "name"), [(IDLE, "idle"), (ENDING, "ending")])
    def test_counts(self, board: Scoreboard, number: int, name: str) -> None:
        """The counts are written without touching what the request was."""
        slot = taken(board)
        write(slot)
        slot.write_counts(number, 0, 8, 0.0, 0.5, 13.0)
        state = board.read(0)
        assert state is not None
        assert (state.state, state.active, state.requests) == (name, 0, 8)
        assert (state.request_started, state.last_duration) == (0.0, 0.5)
        assert (state.since, state.uri, state.content_length) == (13.0, "/a/b?c", 42)

    def test_cut(self, board: Scoreboard) -> None:
        """Long texts are cut: a script at its beginning, the others at their end."""
        long = bytes(range(97, 123)) * 40
        slot = taken(board)
        write(slot, method=long, uri=long, script=long, remote=long)
        neighbour = taken(board)
        write(neighbour, uri=b"/neighbour")
        state = board.read(0)
        assert state is not None
        text = long.decode()
        assert (state.method, state.uri) == (text[:16], text[:256])
        assert (state.script, state.remote) == (text[-96:], text[:48])
        assert board.read(1) is not None

    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            (b"/\xc3\xa4", "/ä"),
            (b"/\xff", "/\ufffd"),
            (b"/" + b"\xc3\xa4" * 200, "/" + "ä" * 127 + "\ufffd"),
            (b"/a\0b", "/a"),
        ],
    )
    def test_any_bytes(self, board: Scoreboard, uri: bytes, shown: str) -> None:
        """Bytes that are no UTF-8, or cut in the middle, are text all the same."""
        write(taken(board), uri=uri)
        state = board.read(0)
        assert state is not None
        assert state.uri == shown

    def test_a_million_million(self, board: Scoreboard) -> None:
        """Numbers of requests and lengths need more than 32 bits."""
        write(taken(board), requests=2**40, length=2**50)
        state = board.read(0)
        assert state is not None
        assert (state.requests, state.content_length) == (2**40, 2**50)


class TestReadingWhileWriting:
    def test_torn(self, board: Scoreboard) -> None:
        """What is being written is not read: the last that was whole is."""
        slot = taken(board)
        write(slot, uri=b"/whole")
        whole = board.read(0)
        word = (4096 + 0) // 4
        board._words[word] += 1  # killed in the middle
        board._view[4096 + 24 + 8] ^= 0xFF
        assert board.read(0) == whole
        other = Scoreboard.open_fd(os.dup(board.fileno()))
        assert other.read(0) is None  # has never seen a whole one
        other.close()
        write(slot, uri=b"/next")
        state = board.read(0)
        assert state is not None
        assert (state.uri, state.requests) == ("/next", 7)

    def test_torn_at_once(self, board: Scoreboard) -> None:
        """A worker that is killed in its first write is not taken for the one before."""
        write(taken(board))
        assert board.read(0) is not None
        board.free_slot(0)
        board.take_slot()
        board._words[4096 // 4] += 1
        assert board.read(0) is None

    def test_torn_header(self, board: Scoreboard) -> None:
        """The same of the header."""
        board.write_header(restarts=1)
        whole = board.header
        board._words[20 // 4] += 1
        board._view[24 + 16] ^= 0xFF
        assert board.header == whole
        board.write_header(slow_requests=2)
        assert (board.header.restarts, board.header.slow_requests) == (1, 2)

    def test_sequence_wraps(self, board: Scoreboard) -> None:
        """After 2**31 writes the sequence number begins anew."""
        slot = taken(board)
        board._words[4096 // 4] = 0xFFFFFFFE
        write(slot, uri=b"/wrapped")
        assert board._words[4096 // 4] == 0
        state = board.read(0)
        assert state is not None
        assert state.uri == "/wrapped"

    @pytest.mark.slow
    def test_never_a_mixture(self, board: Scoreboard) -> None:
        """While another process writes as fast as it can, each look is of one write."""
        slot = taken(board)
        write(slot, active=0, requests=0, started=0.0, uri=b"0" * 200, remote=b"0")
        source = f"""
import itertools
from fcgi_app.scoreboard import RUNNING, Scoreboard
slot = Scoreboard.open_fd({board.fileno()}).slot(0)
for n in itertools.count():
    digit = b"%d" % (n % 10)
    slot.write_current(
        RUNNING, n, n, n + 0.0, n + 0.0, 0.0, n, digit, digit * 200, b"", digit
    )
"""
        writer = subprocess.Popen(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
            pass_fds=[board.fileno()],
        )
        seen: set[int] = set()
        until = time.monotonic() + 30
        try:
            while len(seen) < 1000:
                assert writer.poll() is None
                assert time.monotonic() < until
                state = board.read(0)
                assert state is not None
                number = state.requests
                assert (state.active, state.request_started) == (number, number)
                digit = str(number % 10)
                assert (state.uri, state.remote) == (digit * 200, digit)
                seen.add(number)
        finally:
            writer.kill()
            writer.wait()

    @given(st.binary(min_size=2100, max_size=2100), st.integers(0, 6143))
    def test_nonsense(self, content: bytes, at: int) -> None:
        """Whatever a worker writes into the memory, the supervisor reads on."""
        board = Scoreboard.create("www", 4)
        try:
            taken(board)
            board._view[at : at + 2100] = content[: len(board._view) - at].ljust(
                min(2100, len(board._view) - at), b"\0"
            )
            assert board.capacity == 4
            assert isinstance(board.header, Header)
            board.write_header(restarts=3)
            assert board.header.restarts == 3
            for state in board.read_all():
                assert state.state in ("starting", "idle", "running", "ending")
            board.free_slot(0)
            board.take_slot()
        finally:
            board.close()


class TestDescriptor:
    def test_another_process(self, board: Scoreboard) -> None:
        """Who opens the descriptor has the same memory."""
        other = Scoreboard.open_fd(os.dup(board.fileno()))
        write(taken(board))
        assert other.capacity == 4
        assert other.read(0) == board.read(0)
        assert other.header == board.header
        other.close()

    def test_read_only(self, board: Scoreboard) -> None:
        """A descriptor for reading gives a scoreboard that cannot be written."""
        write(taken(board))
        number = os.open(f"/proc/self/fd/{board.fileno()}", os.O_RDONLY)
        reader = Scoreboard.open_fd(number)
        assert reader.read(0) == board.read(0)
        with pytest.raises(TypeError, match="read-only"):
            reader.write_header(restarts=1)
        reader.close()

    def test_without_descriptor(self, board: Scoreboard) -> None:
        """The memory stays when the descriptor has been closed."""
        slot = taken(board)
        number = board.fileno()
        board.close_descriptor()
        assert board.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        write(slot)
        assert board.read(0) is not None

    def test_closed(self) -> None:
        """Closing twice is closing once, and a slot does not keep it open."""
        board = Scoreboard.create("www", 2)
        taken(board)
        board.close()
        board.close()
        assert board.fileno() == -1

    def test_not_inherited(self, board: Scoreboard) -> None:
        """Only the programs get the descriptor that it is given to."""
        assert not os.get_inheritable(board.fileno())

    def test_size_is_sealed(self, board: Scoreboard) -> None:
        """No worker can cut the memory off under the feet of the others."""
        for size in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(board.fileno(), size)

    def test_no_scoreboard(self, tmp_path: Path) -> None:
        """Another file is told, and left alone."""
        path = tmp_path / "file"
        for content in (b"", b"fcgi", bytes(8192)):
            path.write_bytes(content)
            number = os.open(path, os.O_RDWR)
            with pytest.raises(ValueError, match="no scoreboard"):
                Scoreboard.open_fd(number)
            os.close(number)
            assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("at", "value", "reason"),
        [(8, 2, "another version"), (16, 256, "another version"), (12, 5, "size")],
    )
    def test_another_layout(self, at: int, value: int, reason: str) -> None:
        """What another version of the package has made is not read."""
        board = Scoreboard.create("www", 4)
        number = os.dup(board.fileno())
        board._words[at // 4] = value
        with pytest.raises(ValueError, match=reason):
            Scoreboard.open_fd(number)
        os.close(number)
        board.close()

    def test_not_open(self) -> None:
        """A descriptor that is closed is the caller's error."""
        with suppress(OSError):
            os.close(999)
        with pytest.raises(OSError, match="Bad file descriptor"):
            Scoreboard.open_fd(999)

    def test_closes_nothing_on_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When there is no memory for it no descriptor is left open."""

        def refuse(*_: object, **__: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        before = os.listdir("/proc/self/fd")
        monkeypatch.setattr("fcgi_app.scoreboard.mmap.mmap", refuse)
        with pytest.raises(OSError, match="allocate memory: 'scoreboard of pool www'"):
            Scoreboard.create("www", 4)
        assert len(os.listdir("/proc/self/fd")) == len(before)
