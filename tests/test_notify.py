"""fcgi_app.launcher.notify: messages for systemd, and a watchdog of its."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.launcher.attendant import Event
from fcgi_app.launcher.notify import SystemdNotifier

from .attendants import Manager, Unasked


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    path = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    with Manager(str(folder / "notify")) as manager:
        yield manager


class Quiet(Unasked):
    """A supervision that has something to report, and nothing else."""

    def report(self) -> dict[str, Any]:
        pools = [{"name": "a", "manager": "static", "most": 2}]
        return {"pools": [*pools, {"name": "b", "manager": "dynamic", "most": 9}]}


@pytest.fixture
def notifier(folder: Path) -> Iterator[SystemdNotifier]:
    """One that has been opened, for the manager."""
    notifier = SystemdNotifier(str(folder / "notify"))
    notifier.open(Quiet())
    yield notifier
    notifier.close()


def test_ready_names_the_process_and_what_is_served(
    manager: Manager, notifier: SystemdNotifier
) -> None:
    """READY comes with MAINPID and one line for people."""
    notifier.note("ready", "")
    assert manager.receive() == {
        "READY": "1",
        "MAINPID": str(os.getpid()),
        "STATUS": "serving a: static, 2; b: dynamic, 9",
    }


@pytest.mark.parametrize("event", ["reloading", "executing"])
def test_reload_has_a_time_and_an_end(
    manager: Manager, notifier: SystemdNotifier, event: Event
) -> None:
    """RELOADING has the monotonic time in microseconds; READY follows."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.note(event, "")
    told = manager.receive()
    assert (told["RELOADING"], told["STATUS"]) == ("1", event)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert before <= int(told["MONOTONIC_USEC"]) <= after
    notifier.note("reloaded", "")
    assert manager.receive()["READY"] == "1"


def test_reload_that_failed_is_ready_again(
    manager: Manager, notifier: SystemdNotifier
) -> None:
    """The reason is in the status, in one line, and not too long for a message."""
    notifier.note("reload failed", "worker 7 ended\nline\n" + "x" * 100_000)
    told = manager.receive()
    assert told["READY"] == "1"
    status = "reload failed, serving as before: worker 7 ended line xxx"
    assert told["STATUS"].startswith(status)
    assert len(told["STATUS"]) < 1000


def test_stopping(manager: Manager, notifier: SystemdNotifier) -> None:
    """A stop is told."""
    notifier.note("stopping", "")
    assert manager.receive() == {"STOPPING": "1", "STATUS": "stopping"}


def test_abstract_socket() -> None:
    """A name that begins with @ is in the abstract namespace."""
    address = f"@fcgi-app-test-{os.getpid()}"
    with Manager(address) as manager:
        notifier = SystemdNotifier.from_environ({"NOTIFY_SOCKET": address})
        assert notifier is not None
        notifier.open(Quiet())
        notifier.note("stopping", "")
        assert manager.receive()["STOPPING"] == "1"
        notifier.close()


def test_manager_that_does_not_read_is_waited_for(
    manager: Manager, notifier: SystemdNotifier
) -> None:
    """Nobody blocks for it; what has no room goes out when there is some, in order."""
    manager.socket.setblocking(False)
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    filler.connect(manager.socket.getsockname())
    with suppress(BlockingIOError):
        while True:
            filler.send(b"X=1\n")
    filler.close()
    assert notifier.watched() == {}
    notifier.note("reloading", "")
    notifier.note("reloaded", "")
    ((descriptor, events),) = notifier.watched().items()
    while "X" in manager.receive_all()[-1]:
        notifier.handle(descriptor, events)
        notifier.handle(descriptor, events)  # once more is no harm
    assert notifier.watched() == {}


def test_order_of_what_had_to_wait(manager: Manager, notifier: SystemdNotifier) -> None:
    """Messages are not mixed up when some had to wait."""
    manager.socket.setblocking(False)
    events: tuple[Event, ...] = ("reloading", "reloaded", "stopping")
    after_the_first = 0
    for event in events * 2000:  # more than the queue of any datagram socket
        notifier.note(event, "")
        after_the_first += bool(notifier.watched())
        if after_the_first == 5:
            break
    assert after_the_first == 5
    told = manager.receive_all()
    while watched := notifier.watched():
        for descriptor, wanted in watched.items():
            notifier.handle(descriptor, wanted)
        told += manager.receive_all()
    first = [next(iter(message)) for message in told]
    names = ["RELOADING", "READY", "STOPPING"] * 2000
    assert len(first) > 5
    assert first == names[: len(first)]


def test_manager_that_is_gone(
    folder: Path, manager: Manager, notifier: SystemdNotifier, caplog: Any
) -> None:
    """It is a warning, once; the next one with the same name is told, and missed."""
    notifier.note("ready", "")
    manager.receive()
    manager.socket.close()
    (folder / "notify").unlink()
    notifier.note("reloading", "")
    notifier.note("reloaded", "")
    (record,) = caplog.records
    assert str(folder / "notify") in record.getMessage()
    assert notifier.watched() == {}
    with Manager(str(folder / "notify")) as other:
        notifier.note("stopping", "")
        assert other.receive()["STOPPING"] == "1"
    (folder / "notify").unlink()
    notifier.note("stopping", "")
    assert len(caplog.records) == 2


def test_manager_that_has_started_again(
    folder: Path, manager: Manager, notifier: SystemdNotifier, caplog: Any
) -> None:
    """A new socket at the same path gets the next message, and nobody complains."""
    notifier.note("ready", "")
    manager.socket.close()
    (folder / "notify").unlink()
    with Manager(str(folder / "notify")) as other:
        notifier.note("stopping", "")
        assert other.receive()["STOPPING"] == "1"
    assert not caplog.records


@pytest.mark.parametrize("address", [None, ""])
def test_nobody_wants_to_know(address: str | None) -> None:
    """Without NOTIFY_SOCKET there is nothing to look after."""
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    assert SystemdNotifier.from_environ(environ) is None


@pytest.mark.parametrize("address", ["/", "@", "vsock:2:3", "run/systemd/notify"])
def test_address_that_is_no_socket(address: str, caplog: Any) -> None:
    """An address of another kind is a warning that names it, and no error."""
    assert SystemdNotifier.from_environ({"NOTIFY_SOCKET": address}) is None
    (record,) = caplog.records
    assert repr(address) in record.getMessage()


# ---- watchdog --------------------------------------------------------------------


def test_watchdog_hears_twice_in_its_time(folder: Path, manager: Manager) -> None:
    """The first sign comes at once, then one each half of WATCHDOG_USEC."""
    environ = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "30000000"}
    notifier = SystemdNotifier.from_environ(environ)
    assert notifier is not None
    before = time.monotonic()
    notifier.open(Quiet())
    assert manager.receive() == {"WATCHDOG": "1"}
    due = notifier.due()
    assert before + 15 <= due <= time.monotonic() + 15
    notifier.turn(due - 1)
    assert manager.receive_all() == []
    notifier.turn(due)
    assert manager.receive() == {"WATCHDOG": "1"}
    assert notifier.due() == due + 15
    notifier.close()
    assert notifier.due() == inf


@pytest.mark.parametrize(
    ("environ", "warnings"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": ""}, 0),
        ({"WATCHDOG_USEC": "0"}, 0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "30s"}, 1),
        ({"WATCHDOG_USEC": "-1"}, 1),
        ({"WATCHDOG_USEC": "²"}, 1),
        ({"WATCHDOG_USEC": "9" * 30}, 1),
    ],
)
def test_no_watchdog(
    environ: dict[str, str],
    warnings: int,
    folder: Path,
    manager: Manager,
    caplog: Any,
) -> None:
    """Without a watchdog, or with that of another process, nothing is ever due."""
    address = {"NOTIFY_SOCKET": str(folder / "notify")}
    notifier = SystemdNotifier.from_environ(environ | address)
    assert notifier is not None
    notifier.open(Quiet())
    notifier.turn(time.monotonic() + 1e9)
    assert notifier.due() == inf
    assert manager.receive_all() == []
    assert len(caplog.records) == warnings
    notifier.close()
