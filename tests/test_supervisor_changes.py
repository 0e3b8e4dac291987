"""What may happen to a pool while it starts, is renewed, or is executed again."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from fcgi_app.accesslog import AccessLog, Entry
from fcgi_app.launcher.asking import ask as ask_supervisor
from fcgi_app.launcher.equipping import Equipper
from fcgi_app.launcher.generation import Generation
from fcgi_app.launcher.listeners import Listener, open_listener
from fcgi_app.launcher.logfiles import open_log_file
from fcgi_app.launcher.member import Member
from fcgi_app.launcher.pool import PoolConfig, ServiceConfig
from fcgi_app.launcher.relay import Outlet, Relay

from .ourworker import OURS, ask_pid
from .pools import TIMEOUT, Pool, assert_refused, run_start
from .servers import wait_until

CONFIG = """
control = "control"
[pool.main]
bind = ["unix:@PATH@"]
command = ["@PYTHON@", "@SCRIPT@"]
manager = "dynamic"
workers = 1
"""


def told_by(pool: Pool) -> set[int]:
    """The workers that tell what they do, as far as the supervisor knows."""
    desk, question = str(pool.folder / "control"), {"command": "status"}
    answer: dict[str, Any] = ask_supervisor(desk, question, timeout=TIMEOUT)
    (found,) = answer["status"]["pools"]
    return {each["pid"] for each in found["workers"] if each["requests"] is not None}


# ---- start and reload -------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_program_that_a_shell_has_started(number: int) -> None:
    """It ends with its shell, which dies of SIGTERM and tells nobody."""
    script = f"{sys.executable} worker.py; true"  # not as its last command
    with Pool(source=OURS, command=("/bin/sh", "-c", script)) as pool:
        before = ask_pid(pool)
        pool.send(number)
        wait_until(
            lambda: not os.path.exists(f"/proc/{before}"), "the end", seconds=TIMEOUT
        )
        if number == signal.SIGHUP:
            pool.wait_for_log("reloaded")
            assert ask_pid(pool) != before
        else:
            pool.wait()


@pytest.mark.slow
def test_worker_that_has_answered_its_requests_while_others_start() -> None:
    """Its end is no failure of the start."""
    slow_but_first = """
import os, time
try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    time.sleep(5)
"""
    options = ("--workers", "2", "--max-requests", "1", "--jitter", "0")
    with Pool(*options, source=slow_but_first + OURS, ready=False) as pool:
        wait_until(lambda: os.path.exists(pool.path), "the socket")
        ask_pid(pool)
        pool.wait_for_log("has answered 1 requests")
        pool.wait_for_log("listening on")
        pool.wait_for_workers(2)


@pytest.mark.slow
def test_two_reloads_of_a_pool_without_workers() -> None:
    """The second one follows the first at once, though nothing else happens."""
    options = ("--manager", "ondemand", "--access-log", "access.log")
    with Pool(*options, source=OURS) as pool:
        for number in (signal.SIGSTOP, signal.SIGHUP, signal.SIGUSR1, signal.SIGCONT):
            pool.send(number)
        pool.wait_for_log("reloaded", times=2)


@pytest.mark.slow
def test_new_log_keeps_the_number_of_workers() -> None:
    """USR1 starts as many as there were, HUP as many as the configuration says."""
    with Pool("--access-log", "access.log", source=OURS) as pool:
        pool.send(signal.SIGTTIN)
        before = pool.wait_for_workers(2)
        pool.send(signal.SIGUSR1)
        pool.wait_for_log("reloaded")
        before = pool.wait_for_other_workers(before)
        assert len(before) == 2
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded", times=2)
        assert not pool.wait_for_workers(1) & before


def test_start_is_awaited_without_spinning(tmp_path: Path) -> None:
    """Limits of workers are looked at when all have started, and not due before."""
    pool = PoolConfig(
        name="main",
        bind=(f"unix:{tmp_path}/socket",),
        command=("/bin/sleep", "60"),
        request_timeout=0.1,
    )
    equipper = Equipper()
    with closing(equipper), open("/dev/null", "wb") as log:
        generation = Generation(
            ServiceConfig(pools=(pool,)), Outlet(log.fileno()), (), equipper
        )
        try:
            generation.start()
            (roster,) = generation.rosters
            wait_until(lambda: roster.due() <= monotonic(), "the first look")
            now = monotonic()
            assert generation.due() > now
        finally:
            generation.kill_all()
            generation.close_but(())


# ---- exec -------------------------------------------------------------------------


@pytest.mark.slow
def test_exec_is_refused_if_a_socket_cannot_be_had() -> None:
    """The next supervisor would end, and all workers with it."""
    with (
        Pool(config=CONFIG, source=OURS) as pool,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        (before,) = pool.wait_for_workers(1)
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        pool.write_config(CONFIG.replace("@PATH@", f'@PATH@", "{where}'))
        pool.send(signal.SIGUSR2)
        pool.wait_for_log(f"again: {where}: Address already in use")
        assert "executed again" not in pool.log()
        assert ask_pid(pool) == before


@pytest.mark.slow
def test_exec_without_a_place_for_the_control_socket() -> None:
    """It is missed in the log; the workers serve on."""
    with Pool(config=CONFIG, source=OURS) as pool:
        (before,) = pool.wait_for_workers(1)
        (pool.folder / "control").unlink()
        (pool.folder / "control").touch()
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        assert "a file that is not a socket is in the way" in pool.log()
        assert ask_pid(pool) == before


@pytest.mark.slow
def test_exec_is_refused_while_a_socket_is_emptied() -> None:
    """Who waits at an address that is gone from the file is served before."""
    config = CONFIG.replace("@PATH@", "@PATH@.other")
    with Pool(config=CONFIG) as pool:
        with pool.client() as first, pool.client() as second:
            old = first.pid()
            pool.write_config(config)
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded")
            pool.send(signal.SIGUSR2)
            pool.wait_for_log("refused: not while clients wait")
            first.close()
            assert second.pid() == old
        pool.wait_for_end(old)
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")


@pytest.mark.slow
def test_exec_with_another_number_of_workers() -> None:
    """A scoreboard that has become too small is replaced: no slot has two owners."""
    with Pool(config=CONFIG, source=OURS) as pool:
        (before,) = pool.wait_for_workers(1)
        more = "workers = 500\nmin_spare = 2\nmax_spare = 2"
        pool.write_config(CONFIG.replace("workers = 1", more))
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        (new,) = pool.wait_for_workers(2) - {before}
        wait_until(lambda: told_by(pool) == {new}, "the one with the new scoreboard")
        os.kill(before, signal.SIGKILL)
        pool.wait_for_log(f"worker {before} ended")
        wait_until(lambda: told_by(pool) == pool.wait_for_workers(2), "both")
        assert new in told_by(pool)


@pytest.mark.slow
def test_exec_while_a_worker_of_another_scoreboard_leaves() -> None:
    """Its slot is not taken for one of the new scoreboard."""
    with Pool(config=CONFIG, source=OURS) as pool, ThreadPoolExecutor(1) as clients:
        (before,) = pool.wait_for_workers(1)
        clients.submit(ask_pid, pool, "wedge")
        pool.wait_for_log("wedged")
        pool.write_config(CONFIG.replace("workers = 1", "workers = 500"))
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        (new,) = pool.workers() - {before}
        wait_until(lambda: told_by(pool) == {new}, "the new one")
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        os.kill(before, signal.SIGKILL)
        pool.wait_for_end(before)
        wait_until((pool.folder / "control").exists, "the control socket")
        assert told_by(pool) == {new}


# ---- who is out of reach ----------------------------------------------------------


class _Running:
    """A child that does not end."""

    pid = 2**22 + 1

    def poll(self) -> int | None:
        return None


def test_worker_of_another_user_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that runs sudo(8): no signal reaches it, and nobody waits for its end."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "killpg", refuse)
    with open("/dev/null", "wb") as log:
        member = Member(_Running(), Relay(Outlet(log.fileno()), -1), 0.0)
        member.leave(0.0, 5.0)
        member.push(0.5)  # while a harmless moment is looked for
        reach = [(member.was_terminated, member.out_of_reach)]
        member.push(6.0)
        reach.append((member.was_killed, member.out_of_reach))
        assert reach == [(True, False), (True, True)]
        assert member.due(7.0) > 1e9
    assert "signal SIGTERM: Operation not permitted" in caplog.text
    assert "signal SIGKILL: Operation not permitted" in caplog.text


# ---- files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "open_it", [open_log_file, lambda path: AccessLog(path, "common")]
)
def test_log_that_is_a_pipe_without_reader(
    open_it: Callable[[str], object], tmp_path: Path
) -> None:
    """It is refused: nobody waits until somebody reads."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device or address"):
        open_it(path)


def test_log_file_that_is_a_pipe_without_reader(tmp_path: Path) -> None:
    """The start fails with its path."""
    os.mkfifo(tmp_path / "pipe")
    words = ("--bind", f"unix:{tmp_path}/socket", "--log-file", "pipe", "--")
    done = run_start(*words, "/bin/cat", cwd=tmp_path)
    assert_refused(done, 1, "pipe: No such device or address")


def test_access_format_of_other_bytes(tmp_path: Path) -> None:
    """What the environment says in no known encoding stands in the line as it is."""
    path = tmp_path / "log"
    with closing(AccessLog(str(path), os.fsdecode(b"\xff%%\xfe"))) as log:
        log.write(Entry({}, 200, 0, 0.0, 0.0, False))
    assert path.read_bytes() == b"\xff%\xfe\n"


def test_mode_is_of_the_socket_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that takes the place of the file at the last moment is not followed."""
    victim, path = tmp_path / "victim", tmp_path / "socket"
    victim.touch(0o600)
    pool = PoolConfig(
        name="main",
        bind=(f"unix:{path}",),
        command=("/bin/cat",),
        socket_mode=0o666,
        socket_owner=f"{os.getuid()}:{os.getgid()}",
    )
    with closing(open_listener((pool.bind[0], 0), pool)) as listener:
        path.chmod(0o600)
        listener.apply(pool)
        assert path.stat().st_mode & 0o777 == 0o666
        look = Listener._own_file

        def look_too_early(self: Listener) -> str | None:
            found = look(self)
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(victim)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Listener, "_own_file", look_too_early)
            with pytest.raises(FileNotFoundError, match="was replaced"):
                listener.apply(pool)
    assert victim.stat().st_mode & 0o777 == 0o600
