"""The control socket by itself: a supervisor that only notes what it is asked."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import stat
import tempfile
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from fcgi_app.launcher.control import (
    ANSWER_SECONDS,
    LINE_SECONDS,
    LONGEST_LINE,
    MOST_CALLERS,
    MOST_WAITING,
    PAUSE_SECONDS,
    ControlServer,
)

from .controldesk import Desk, Recorder, has_answer, is_cut, read


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="fcgi-app-") as name:
        yield Path(name)


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    found = Desk(folder)
    yield found
    found.close()


# ---- the socket file ----------------------------------------------------------


def test_socket_is_its_owners_alone(folder: Path) -> None:
    """Mode 0600 even where the umask would allow more; removed at the end."""
    before = os.umask(0)
    try:
        desk = Desk(folder)
    finally:
        os.umask(before)
    status = os.lstat(desk.path)
    desk.close()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert not os.path.lexists(desk.path)


def test_socket_that_nobody_listens_on_is_replaced(folder: Path) -> None:
    """What a killed supervisor has left is no obstacle."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "control"))
    desk = Desk(folder)
    assert desk.ask({"command": "status"})["ok"]
    desk.close()


def test_socket_that_is_alive_is_refused(desk: Desk) -> None:
    """The second supervisor fails, and the first one keeps its socket."""
    second = ControlServer(desk.path)
    with pytest.raises(OSError, match="another process listens"):
        second.open(Recorder())
    second.close()
    assert desk.ask({"command": "status"})["ok"]


def test_other_file_is_not_touched(folder: Path) -> None:
    """A path that is something else is an error."""
    (folder / "control").write_text("precious")
    server = ControlServer(str(folder / "control"))
    with pytest.raises(FileExistsError):
        server.open(Recorder())
    server.close()
    assert (folder / "control").read_text() == "precious"


def test_socket_of_somebody_else_stays(desk: Desk) -> None:
    """Whoever has replaced the file keeps it."""
    os.unlink(desk.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(desk.path)
        desk.server.close()
        assert os.path.exists(desk.path)


def test_open_again_after_close(desk: Desk) -> None:
    """As after an exec that has failed."""
    desk.server.close()
    desk.server.open(desk.supervisor)
    assert desk.ask({"command": "status"})["ok"]


# ---- questions ----------------------------------------------------------------


def test_status_is_the_report(desk: Desk) -> None:
    """The report comes with what is seen of each worker."""
    answer = desk.ask({"command": "status"})
    (pool,) = answer["status"]["pools"]
    (worker,) = pool["workers"]
    assert answer["ok"]
    assert (pool["name"], worker["pid"]) == ("main", os.getpid())
    assert worker["state"] == "starting"
    assert worker["rss"] > 2**20
    assert (pool["accepted"], pool["queue"], pool["active"]) == (0, None, 0)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 4000, "not a line of JSON"),
        (b"", "not a line of JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "command: None: must be one of status, reload, stop, scale"),
        (b'{"command": ["stop"]}', "command: ['stop']: must be one of"),
        (b'{"command": "halt"}', "command: 'halt': must be one of"),
        (b'{"command": "stop", "qiuck": true}', "qiuck: no such key of stop"),
        (b'{"command": "stop", "quick": 1}', "quick: 1: must be true or false"),
        (b'{"command": "scale", "workers": true}', "must be a whole number"),
        (b'{"command": "scale", "workers": 1.0}', "must be a whole number"),
        (b'{"command": "scale"}', "workers: a number is needed"),
        (b'{"command": "scale", "workers": 101}', "must be from 1 to 100"),
        (b"x" * (LONGEST_LINE + 1), f"more than {LONGEST_LINE} bytes"),
    ],
)
def test_wrong_line_is_answered_with_what_is_wrong(
    desk: Desk, line: bytes, error: str
) -> None:
    """The answer names it; nothing is done, but what scale itself refuses."""
    caller = desk.call()
    caller.sendall(line + b"\n")
    desk.turn()
    answer = read(caller)
    assert not answer["ok"]
    assert error in answer["error"]
    assert set(desk.supervisor.calls) <= {("main", 101, False)}


def test_line_may_come_in_pieces(desk: Desk) -> None:
    """One byte at a time."""
    caller = desk.call()
    for byte in b'{"command": "scale", "workers": 3}':
        caller.send(bytes([byte]))
        desk.turn()
        assert not has_answer(caller)
    caller.send(b"\n")
    desk.turn()
    assert read(caller) == {"ok": True, "pool": "main", "workers": 3}


def test_endless_line_is_refused_before_its_end(desk: Desk) -> None:
    """Nobody fills the supervisor's memory."""
    caller = desk.call()
    caller.sendall(b" " * (LONGEST_LINE + 1))
    desk.turn()
    assert not read(caller)["ok"]


def test_failure_of_a_command_is_an_answer(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the report does not end the supervisor."""
    desk.supervisor.broken = True
    answer = desk.ask({"command": "status"})
    assert "no report" in answer["error"]
    assert "no report" in caplog.text
    desk.supervisor.broken = False
    assert desk.ask({"command": "status"})["ok"]


# ---- scale --------------------------------------------------------------------


def test_scale_passes_on_what_is_asked(folder: Path) -> None:
    """Pool, number, and whether it is relative."""
    desk = Desk(folder, "a", "b")
    desk.ask({"command": "scale", "pool": "b", "workers": -1, "relative": True})
    desk.ask({"command": "scale", "pool": "a", "workers": 7})
    desk.close()
    assert desk.supervisor.calls == [("b", -1, True), ("a", 7, False)]


def test_scale_of_several_pools_needs_a_name(folder: Path) -> None:
    """The answer says which there are."""
    desk = Desk(folder, "a", "b")
    answer = desk.ask({"command": "scale", "workers": 2})
    desk.close()
    assert answer == {"ok": False, "error": "pool: which of a, b?"}


def test_scale_without_a_name_is_not_the_status_service(folder: Path) -> None:
    """It is a pool, too, but not one to be scaled."""
    desk = Desk(folder, "site", "status")
    answer = desk.ask({"command": "scale", "workers": 2})
    desk.close()
    assert answer == {"ok": True, "pool": "site", "workers": 2}


# ---- reload -------------------------------------------------------------------


def test_reload_is_answered_when_it_is_done(desk: Desk) -> None:
    """Not before."""
    caller = desk.call({"command": "reload"})
    assert desk.supervisor.calls == ["reload"]
    desk.server.note("reloading", "")
    desk.turn()
    assert not has_answer(caller)
    desk.server.note("reloaded", "as new")
    assert read(caller) == {"ok": True, "text": "as new"}


def test_reload_that_fails_at_once(desk: Desk) -> None:
    """The outcome may come while the supervisor is being asked."""

    def fail() -> None:
        desk.server.note("reloading", "")
        desk.server.note("reload failed", "no such program\nline 2")

    desk.supervisor.on_reload = fail
    answer = desk.ask({"command": "reload"})
    assert answer == {"ok": False, "error": "no such program\nline 2"}


def test_reload_waits_for_its_own_outcome(desk: Desk) -> None:
    """One that was going on already has not read what this one is about."""
    desk.server.note("reloading", "")
    caller = desk.call({"command": "reload"})
    desk.server.note("reloaded", "")
    assert not has_answer(caller)
    desk.server.note("reloading", "")
    desk.server.note("reload failed", "now")
    assert read(caller) == {"ok": False, "error": "now"}


def test_reload_without_waiting(desk: Desk) -> None:
    """Answered at once."""
    assert desk.ask({"command": "reload", "wait": False})["ok"]
    assert desk.supervisor.calls == ["reload"]


def test_reload_ends_with_the_supervisor(desk: Desk) -> None:
    """Whoever waits is told when a stop, an exec or the end comes first."""
    first = desk.call({"command": "reload"})
    desk.server.note("stopping", "")
    assert "stopped" in read(first)["error"]
    assert "stopping" in desk.ask({"command": "reload"})["error"]
    assert "stopping" in desk.ask({"command": "scale", "workers": 1})["error"]


def test_reload_ends_with_an_exec(desk: Desk) -> None:
    """The next process does not know who has waited."""
    caller = desk.call({"command": "reload"})
    desk.server.note("executing", "")
    desk.server.close()
    assert not read(caller)["ok"]


# ---- stop ---------------------------------------------------------------------


def test_stop_is_answered_at_the_end(desk: Desk) -> None:
    """Status can be asked until then."""
    caller = desk.call({"command": "stop"})
    desk.server.note("stopping", "")
    assert desk.supervisor.calls == ["stop"]
    assert desk.ask({"command": "status"})["ok"]
    assert not has_answer(caller)
    desk.server.close()
    assert read(caller) == {"ok": True}


def test_second_stop_does_not_hurry(desk: Desk) -> None:
    """As a second signal would; only who asks for a quick stop gets it."""
    desk.call({"command": "stop"})
    desk.call({"command": "stop"})
    assert desk.supervisor.calls == ["stop"]
    assert desk.ask({"command": "stop", "quick": True, "wait": False})["ok"]
    assert desk.supervisor.calls == ["stop", "quick stop"]


def test_stop_after_a_signal_does_not_hurry(desk: Desk) -> None:
    """The stop that goes on may have begun otherwise."""
    desk.server.note("stopping", "")
    desk.call({"command": "stop"})
    assert desk.supervisor.calls == []


# ---- callers that are slow, or many -------------------------------------------


def test_slow_question_is_cut_off(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Whether nothing comes, or half a line; not before its time."""
    silent, half = desk.call(), desk.call()
    half.sendall(b'{"command"')
    desk.turn()
    assert desk.server.due() == desk.now + LINE_SECONDS
    desk.now += LINE_SECONDS - 0.1
    desk.turn()
    assert not has_answer(silent)
    desk.now += 0.2
    desk.turn()
    assert is_cut(silent)
    assert is_cut(half)
    assert caplog.text.count("too slow to ask") == 2
    assert desk.server.due() == inf


def test_slow_reader_is_cut_off(desk: Desk) -> None:
    """A large answer goes out as it is taken, for so long."""
    desk.supervisor.workers = 5000
    caller = desk.call({"command": "status"})
    caller.recv(1000)
    desk.now += ANSWER_SECONDS - 0.1
    desk.turn()
    assert len(desk.server.watched()) == 2
    desk.now += 0.2
    desk.turn()
    assert len(desk.server.watched()) == 1


def test_large_answer_arrives(desk: Desk) -> None:
    """In as many pieces as it takes."""
    desk.supervisor.workers = 5000
    caller = desk.call({"command": "status"})
    content = b""
    while not content.endswith(b"\n"):
        content += caller.recv(1 << 20)
        desk.turn()
    assert len(json.loads(content)["status"]["pools"][0]["workers"]) == 5000


def test_waiting_callers_cost_no_time(desk: Desk) -> None:
    """Nothing is due for them, and nothing is polled but their end."""
    caller = desk.call({"command": "reload"})
    assert desk.server.due() == inf
    caller.close()
    desk.turn()
    assert len(desk.server.watched()) == 1


def test_caller_that_writes_no_more_still_waits(desk: Desk) -> None:
    """As ``nc -N`` and others do it."""
    caller = desk.call({"command": "reload"})
    caller.shutdown(socket.SHUT_WR)
    desk.turn()
    desk.server.note("reloading", "")
    desk.server.note("reloaded", "")
    assert read(caller)["ok"]


def test_caller_that_has_gone_is_forgotten(desk: Desk) -> None:
    """Before its question, and before its answer."""
    desk.call().close()
    desk.turn()
    desk.supervisor.workers = 5000
    desk.call({"command": "status"}).close()
    desk.turn()
    assert len(desk.server.watched()) == 1


def test_callers_are_few_at_a_time(desk: Desk) -> None:
    """More wait in the queue, and have their turn when the silent ones are cut off."""
    silent = [desk.call() for _ in range(MOST_CALLERS)]
    late = desk.call({"command": "status"})
    assert len(desk.server.watched()) == MOST_CALLERS
    assert not has_answer(late)
    desk.now += LINE_SECONDS
    desk.turn()
    assert all(map(is_cut, silent))
    desk.turn()
    assert read(late)["ok"]


def test_waiting_callers_leave_room(desk: Desk) -> None:
    """Reloads that never end do not keep anybody from asking, or stopping."""
    for _ in range(MOST_WAITING):
        desk.call({"command": "reload"})
    refused = desk.ask({"command": "reload"})
    assert "others wait" in refused["error"]
    assert len(desk.supervisor.calls) == MOST_WAITING
    assert desk.ask({"command": "status"})["ok"]
    assert desk.ask({"command": "stop", "wait": False})["ok"]


def test_no_descriptor_left_is_no_busy_loop(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is accepted for a second, and then the one who has waited."""
    caller = socket.socket(socket.AF_UNIX)
    desk.callers.append(caller)
    caller.connect(desk.path)
    caller.sendall(b'{"command": "status"}\n')
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)  # the lowest that is free
    (listener,) = desk.server.watched()
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limits[1]))
    try:
        desk.server.handle(listener, select.POLLIN)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in caplog.text
    assert desk.server.watched() == {}
    assert desk.server.due() == desk.now + PAUSE_SECONDS
    desk.now += PAUSE_SECONDS
    desk.server.turn(desk.now)
    desk.turn()
    assert read(caller)["ok"]


def test_event_of_a_closed_descriptor_is_ignored(desk: Desk) -> None:
    """Its number may belong to a newer caller, whom it does not concern."""
    caller = desk.call({"command": "reload"})
    ours = next(d for d, events in desk.server.watched().items() if not events)
    desk.server.handle(ours, select.POLLHUP)
    desk.server.handle(999, select.POLLIN)
    desk.server.note("reloading", "")
    desk.server.note("reloaded", "")
    assert read(caller)["ok"]
