"""What the supervisor is made of, each part alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.launcher.handover import _VARIABLE as VARIABLE
from fcgi_app.launcher.handover import Handover, is_executed_again, take_handover
from fcgi_app.launcher.listeners import open_listener, places_of
from fcgi_app.launcher.outside import (
    read_activity,
    terminate_quietly,
    waits_for_clients,
)
from fcgi_app.launcher.pidfile import PidFile
from fcgi_app.launcher.pool import PoolConfig
from fcgi_app.launcher.relay import KEPT_LINES, Outlet, Relay

from .servers import wait_until

ACCEPTS = "import socket; socket.create_server(('127.0.0.1', 0)).accept()"
READS = "import os; os.read(0, 1)"
POLLS = (
    "import select, sys; p = select.poll(); p.register(0); p.modify(0, 1); p.poll({})"
)


@contextmanager
def program(source: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that waits in a system call."""
    started = subprocess.Popen(
        [sys.executable, "-SE", "-c", source], stdin=subprocess.PIPE
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def sleeps_in(process: subprocess.Popen[bytes], name: str) -> bool:
    """Whether the process sleeps in a place of the kernel with this in its name."""
    return name in Path(f"/proc/{process.pid}/wchan").read_text()


# ---- outside ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "place", "waits"),
    [
        (ACCEPTS, "accept", True),
        (POLLS.format(""), "poll", True),
        (POLLS.format("60000"), "poll", False),  # so libfcgi waits for first bytes
        (READS, "read", False),
        # So Python 3.10 sleeps, and a program that takes poll(2) for it.
        ("import select; select.select([], [], [], 60)", "poll", False),
        ("import select; select.poll().poll(60000)", "poll", False),
        ("import select; select.poll().poll()", "poll", False),
    ],
    ids=["accept", "poll", "poll-limited", "read", "sleep", "pause", "endless-pause"],
)
def test_terminate_quietly_spares_who_is_busy(
    source: str, place: str, waits: bool
) -> None:
    """Who waits for a client gets the signal, who reads a request goes on."""
    with program(source) as process:
        wait_until(lambda: sleeps_in(process, place), f"{place} in the kernel")
        assert waits_for_clients(process.pid) is waits
        assert terminate_quietly(process.pid) is waits
        if waits:
            assert process.wait(20) == -signal.SIGTERM
        else:
            assert process.poll() is None
            assert terminate_quietly(process.pid) is False  # and was not harmed


def test_terminate_quietly_of_an_ended_process() -> None:
    """Nothing happens; it is to be reaped."""
    process = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert terminate_quietly(process.pid) is False
    assert process.wait(20) == 0


def test_activity_stays_equal_while_a_process_sleeps() -> None:
    """It changes with each time that the process wakes up."""
    with program("import os\nwhile os.read(0, 1): pass") as process:
        wait_until(lambda: sleeps_in(process, "read"), "a read")
        before = read_activity(process.pid)
        assert before is not None
        assert read_activity(process.pid) == before
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        wait_until(lambda: read_activity(process.pid) != before, "activity")
    assert read_activity(process.pid) is None


# ---- output -----------------------------------------------------------------------


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_outlet_does_not_wait_for_its_reader() -> None:
    """What does not fit waits, and comes in order when somebody reads."""
    with pipe() as (reader, writer):
        outlet, text = Outlet(writer), b"".join(b"%07d\n" % n for n in range(20_000))
        outlet.write(text)
        assert outlet.is_blocked
        received = b""
        while len(received) < len(text):
            received += os.read(reader, 65536)
            outlet.flush()
        assert received == text


def test_outlet_loses_what_cannot_be_written() -> None:
    """A full disk does not stop anybody, nor does memory fill."""
    with open("/dev/full", "wb", buffering=0) as full:
        outlet = Outlet(full.fileno())
        outlet.write(b"x" * 10_000)
        assert not outlet.is_blocked
    with pipe() as (_, writer):
        outlet = Outlet(writer)
        for _ in range(100):
            outlet.write(b"x" * 100_000)
        assert len(outlet._waiting) <= (1 << 20) + 100_000


def test_relay_passes_on_whole_lines() -> None:
    """Two workers do not write into each other's lines; the last lines are kept."""
    with pipe() as (reader, writer):
        outlet = Outlet(writer)
        one, two = Relay(outlet), Relay(outlet)
        os.write(one.writer, b"a lin")
        one.pump()
        os.write(two.writer, b"another\n")
        two.pump()
        os.write(one.writer, b"e\nrest")
        one.close_writer()
        two.close_writer()
        one.drain()
        two.drain()
        assert (one.descriptor, two.descriptor) == (-1, -1)
        assert os.read(reader, 100) == b"another\na line\nrest\n"
        assert list(one.lines) == ["a line", "rest"]
        assert one.lines.maxlen == KEPT_LINES


def test_relay_drains_a_pipe_that_is_held_open() -> None:
    """A child of the worker may hold it: what is there is taken, nobody waits."""
    with pipe() as (reader, writer):
        relay = Relay(Outlet(writer))
        os.write(relay.writer, b"last words\n")
        relay.drain()
        assert list(relay.lines) == ["last words"]
        relay.close_writer()
        relay.close()
        assert os.read(reader, 100) == b"last words\n"


# ---- the pid file -----------------------------------------------------------------


def test_pid_file_is_held_by_one(tmp_path: Path) -> None:
    """Who comes second learns the number of the first; the third time is free again."""
    path = str(tmp_path / "pid")
    first = PidFile(path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} runs and holds"):
        PidFile(path)
    assert Path(path).read_text() == f"{os.getpid()}\n"
    first.remove()
    assert not os.path.exists(path)
    PidFile(path).remove()


def test_pid_file_of_somebody_else_stays(tmp_path: Path) -> None:
    """A file that has taken the place of ours is not removed."""
    path = tmp_path / "pid"
    held = PidFile(str(path))
    path.unlink()
    path.write_text("other\n")
    held.remove()
    assert path.read_text() == "other\n"


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"1" * 21, b"12 34\n"])
def test_pid_file_is_no_other_file(content: bytes, tmp_path: Path) -> None:
    """A file that somebody has named by mistake stays as it is."""
    path = tmp_path / "script"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no process id in it is in the way"):
        PidFile(str(path))
    assert path.read_bytes() == content


def test_pid_file_is_no_device(tmp_path: Path) -> None:
    """Neither is it removed, nor does a FIFO hold anybody up."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        PidFile(str(path))
    with pytest.raises(ConfigError, match="is not a regular file"):
        PidFile(os.devnull)
    assert path.is_fifo()
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("content", [b"", b"4711", b" 4711\n"])
def test_pid_file_that_was_left_is_taken(content: bytes, tmp_path: Path) -> None:
    """One of a process that was killed, by whichever program."""
    path = tmp_path / "pid"
    path.write_bytes(content)
    held = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    held.remove()


def test_pid_file_without_directory(tmp_path: Path) -> None:
    """The system's error names the path."""
    with pytest.raises(FileNotFoundError) as caught:
        PidFile(str(tmp_path / "none" / "pid"))
    assert caught.value.filename == str(tmp_path / "none" / "pid")


# ---- sockets and the exec ---------------------------------------------------------


def test_listener_removes_only_its_own_file(tmp_path: Path) -> None:
    """Not what has taken its place, and nothing when it is closed a second time."""
    pool = PoolConfig(bind=(f"unix:{tmp_path}/s",), command=("/x",))
    (place,) = places_of(pool, {})
    first = open_listener(place, pool)
    os.unlink(tmp_path / "s")
    second = open_listener(place, pool)
    first.close()
    assert (tmp_path / "s").exists()
    second.close()
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").touch()
    second.close()
    assert (tmp_path / "s").exists()


def test_places_tell_equal_addresses_apart() -> None:
    """Port 0 may be asked for twice."""
    pool = PoolConfig(bind=("127.0.0.1:0", "127.0.0.1:0", "@x"), command=("/x",))
    assert list(places_of(pool, {"@x": 2})) == [
        ("127.0.0.1:0", 0),
        ("127.0.0.1:0", 1),
        ("@x", 2),
    ]


def test_failed_exec_changes_nothing(tmp_path: Path) -> None:
    """Descriptors stay close-on-exec, signals and directory are as before."""
    pool = PoolConfig(bind=("127.0.0.1:0",), command=("/x",))
    listener = open_listener(("127.0.0.1:0", 0), pool)
    mask, here = signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getcwd()
    try:
        with pytest.raises(FileNotFoundError):
            Handover(listeners=[listener]).exec(["/nonexistent"], str(tmp_path))
        assert not listener.socket.get_inheritable()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        assert os.getcwd() == here
        assert not is_executed_again()
    finally:
        listener.close()


def test_handover_of_another_process_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child that has inherited the variable takes nothing over."""
    for text in ("999", "none", ""):
        monkeypatch.setenv(VARIABLE, text)
        assert is_executed_again()
        assert take_handover() is None
        assert not is_executed_again()
    memory = os.memfd_create("test")
    os.write(memory, b'{"pid": 1}')
    monkeypatch.setenv(VARIABLE, str(memory))
    assert take_handover() is None
    os.close(memory)  # which was not ours to close
