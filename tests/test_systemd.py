"""What systemd gives and gets: sockets, messages, a watchdog, unit files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.inherited import keep_activated

from .attendants import Manager
from .pools import TIMEOUT, Client, Pool, environment
from .servers import wait_until
from .servers.process import require

UNITS = Path(__file__).parent.parent / "examples" / "systemd"

FROM_SYSTEMD = {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}
FROM_SYSTEMD |= {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}

TELL = """
import json, os, socket
folder = "/proc/self/fd/"
sockets = [n for n in os.listdir(folder) if os.path.lexists(folder + n)
           and os.readlink(folder + n).startswith("socket:")]
facts = {"environ": dict(os.environ), "sockets": sockets, "pid": os.getpid()}
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(json.dumps(facts).encode() + b"\\n")
"""
"""A worker that tells of itself whoever connects."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    path = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def ask(path: Path) -> dict[str, Any]:
    """What the worker behind a socket tells."""
    with Client(str(path)) as client, client.socket.makefile() as lines:
        facts: dict[str, Any] = json.loads(lines.readline())
        return facts


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    with Manager(str(folder / "notify")) as manager:
        yield manager


# ---- a service -------------------------------------------------------------------


def wait_for(manager: Manager, name: str) -> dict[str, str]:
    """The next message with this name; signs of life are passed over."""
    while True:
        told = manager.receive()
        if name in told:
            return told
        assert "WATCHDOG" in told, told


@pytest.mark.slow
def test_service_tells_all_its_life(folder: Path, manager: Manager) -> None:
    """Ready, reloading, ready, executing, ready, stopping: always the same process."""
    address = str(folder / "notify")
    with Pool("--workers", "2", NOTIFY_SOCKET=address, ready=False) as pool:
        ready = wait_for(manager, "READY")
        assert ready["MAINPID"] == str(pool.process.pid)
        assert ready["STATUS"] == "serving main: static, 2"
        workers = pool.wait_for_workers(2)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            pool.send(number)
            assert int(wait_for(manager, "RELOADING")["MONOTONIC_USEC"]) > 0
            assert wait_for(manager, "READY")["MAINPID"] == str(pool.process.pid)
            if number == signal.SIGHUP:
                workers = pool.wait_for_other_workers(workers)
        assert pool.ask() in workers
        pool.send()
        wait_for(manager, "STOPPING")
        wait_until(pool.has_ended, "the end", seconds=TIMEOUT)
        assert manager.receive_all() == []


@pytest.mark.slow
def test_service_tells_that_a_reload_failed(folder: Path, manager: Manager) -> None:
    """systemd must not wait for a reload that comes to nothing."""
    config = 'bind = "unix:@PATH@"\ncommand = ["@PYTHON@", "-SE", "@SCRIPT@"]\n'
    with Pool(config=config, NOTIFY_SOCKET=str(folder / "notify")) as pool:
        wait_for(manager, "READY")
        pool.write_config(config + "nonsense = 1\n")
        pool.send(signal.SIGHUP)
        wait_for(manager, "RELOADING")
        assert "nonsense" in wait_for(manager, "READY")["STATUS"]
        assert pool.ask() in pool.workers()


@pytest.mark.slow
def test_service_feeds_the_watchdog(folder: Path, manager: Manager) -> None:
    """An idle service gives its signs of life, twice in the time, and no more."""
    address = str(folder / "notify")
    with Pool(ready=False, NOTIFY_SOCKET=address, WATCHDOG_USEC="600000"):
        wait_for(manager, "READY")
        manager.receive_all()
        times = []
        for _ in range(4):
            assert manager.receive() == {"WATCHDOG": "1"}
            times.append(time.monotonic())
        # Three pauses of 0.3 s, of which a machine under load may have seen less.
        assert times[-1] - times[0] > 0.5


# ---- sockets ---------------------------------------------------------------------

CONFIG = """
[pool.main]
bind = "systemd:web"
command = ["@PYTHON@", "-SE", "@SCRIPT@"]
"""

CONFIG_OF_BOTH = (
    CONFIG
    + """
[pool.other]
bind = "systemd:admin"
command = ["@PYTHON@", "-SE", "@SCRIPT@"]
"""
)


def activated(folder: Path, config: str, **environ: str) -> Pool:
    """A service that systemd starts when a client connects to one of two sockets.

    They are called "admin" and "web", and are files of this name.
    """
    prefix = [require("systemd-socket-activate"), "--fdname=admin:web"]
    prefix += [f"--listen={folder / name}" for name in ("admin", "web")]
    names = (*environment(), *environ, "POOL_TEST")
    prefix += [f"--setenv={name}" for name in names]
    pool = Pool(
        config=config,
        prefix=prefix,
        owner=None,
        ready=False,
        source=TELL,
        **environ,
    )
    pool.wait_for_log("as 4.")  # both listen
    return pool


@pytest.mark.slow
def test_activated_service_serves_the_socket_of_a_name(folder: Path) -> None:
    """The worker has this socket as descriptor 0, no other, and no word of systemd."""
    notify = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "60000000"}
    with (
        Manager(notify["NOTIFY_SOCKET"]) as manager,
        activated(folder, CONFIG, WATCHDOG_PID="1", **notify) as pool,
    ):
        facts = ask(folder / "web")
        assert facts["sockets"] == ["0"]
        assert not FROM_SYSTEMD & set(facts["environ"])
        assert facts["environ"]["POOL_TEST"] == pool.path
        pool.wait_for_log(f"listening on unix:{folder / 'web'}")
        assert manager.receive()["MAINPID"] == str(pool.process.pid)
    assert (folder / "web").exists()  # it is systemd's


@pytest.mark.slow
def test_activated_service_reloads_and_executes_again(folder: Path) -> None:
    """The sockets stay through SIGHUP and SIGUSR2, also one that was not used so far."""
    with activated(folder, CONFIG) as pool:
        workers = {ask(folder / "web")["pid"]}
        pool.send(signal.SIGHUP)
        workers = pool.wait_for_other_workers(workers)
        assert ask(folder / "web")["pid"] in workers
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        assert ask(folder / "web")["pid"] in workers
        pool.write_config(CONFIG_OF_BOTH)
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded", 2)
        for name in ("web", "admin"):
            facts = ask(folder / name)
            assert facts["pid"] not in workers
            assert facts["sockets"] == ["0"]
            assert not FROM_SYSTEMD & set(facts["environ"])


@pytest.mark.slow
def test_activated_service_without_a_socket_of_that_name(folder: Path) -> None:
    """The message says which names there are."""
    pool = activated(folder, CONFIG.replace("systemd:web", "systemd:wob"))
    try:
        with Client(str(folder / "web")):
            assert pool.process.wait(TIMEOUT) == 2
        assert "'systemd:wob': no such listening stream socket" in pool.log()
        assert "admin, web" in pool.log()
    finally:
        pool.kill()
        shutil.rmtree(pool.folder)


@pytest.mark.slow
def test_sockets_of_another_process() -> None:
    """LISTEN_PID is heeded: variables that have leaked mean nothing."""
    pool = Pool(config=CONFIG, source=TELL, ready=False, LISTEN_PID="1", LISTEN_FDS="1")
    try:
        assert pool.process.wait(TIMEOUT) == 2
        assert "LISTEN_PID is 1" in pool.log()
    finally:
        pool.kill()
        shutil.rmtree(pool.folder)


def test_keep_activated_without_sockets() -> None:
    """Nothing was passed, or something that is not so: there is nothing to keep."""
    assert keep_activated({}) == []
    mine = {"LISTEN_PID": str(os.getpid())}
    assert keep_activated(mine) == []
    assert keep_activated(mine | {"LISTEN_FDS": "900"}) == []


# ---- unit files ------------------------------------------------------------------


def exec_start() -> list[str]:
    """The command of the service unit."""
    text = (UNITS / "fcgi-app.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return shlex.split(line)


@pytest.mark.slow
def test_unit_files_are_good(folder: Path) -> None:
    """systemd-analyze finds nothing to say, once the program is there."""
    program = folder / "fcgi-app"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("fcgi-app.service", "fcgi-app.socket"):
        text = (UNITS / name).read_text()
        (folder / name).write_text(text.replace(exec_start()[0], str(program)))
    units = [str(folder / name) for name in ("fcgi-app.service", "fcgi-app.socket")]
    done = subprocess.run(
        [require("systemd-analyze"), "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(SYSTEMD_UNIT_PATH=f"{folder}:/lib/systemd/system"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_unit_files_fit_together(folder: Path) -> None:
    """The service asks for the socket's name, and its options are good."""
    text = (UNITS / "fcgi-app.socket").read_text()
    (name,) = re.findall(r"^FileDescriptorName=(.*)$", text, re.MULTILINE)
    program, *words = exec_start()
    assert (program.rpartition("/")[2], words[0]) == ("fcgi-app", "start")
    assert f"systemd:{name}" in words
    script = folder / "hello.py"
    script.touch()
    words[-1] = str(script)
    done = subprocess.run(
        [sys.executable, "-m", "fcgi_app", words[0], "--check-config", *words[1:]],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        cwd=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_service_unit_has_time_to_stop() -> None:
    """systemd kills later than the supervisor does."""
    text = (UNITS / "fcgi-app.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    words = exec_start()
    assert int(words[words.index("--stop-timeout") + 1]) < int(seconds)
