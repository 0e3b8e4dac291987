"""``fcgi-app start`` behind Apache's mod_proxy_fcgi, with and without ``enablereuse``.

Without it each request has a connection of its own, and no operation costs a request.
With it Apache keeps connections. Before it uses one again it looks whether the other
end has closed it, but what happens right after that look is an error (503), which
nobody can avoid who ever closes a connection: the request is not sent again. Therefore
workers come and go between two requests here, not during them.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pools import Pool
from .servers import WebServer
from .startload import ask_for_pid, build_workers, site, under_load

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Commands = dict[str, list[str]]
FOUR = ("--workers", "4")
REUSE = "/reuse-unix"


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """The workers, where every user can run them."""
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    folder.chmod(0o755)
    yield build_workers(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("worker", ["hello", "echo"])
def test_workers_come_and_go_under_load(commands: Commands, worker: str) -> None:
    """Reloads, and one worker more or fewer, with new connections."""
    with under_load("unix", commands[worker], *FOUR, apache=True) as (pool, load):
        for number in range(1, 7):
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded", times=number)
            load.wait_for_answers(5)
        assert len(load.pids) >= 7
        for number, workers in ((signal.SIGTTIN, 5), (signal.SIGTTOU, 4)) * 3:
            pool.send(number)
            pool.wait_for_workers(workers)
            load.wait_for_answers(5)


# libfcgi ends kept connections by itself now and then: 2 in 1000 requests fail without
# any operation.
@pytest.mark.parametrize("way", ["hello-unix", "hello-reuse-unix", "echo-unix"])
def test_execs_under_load(commands: Commands, way: str) -> None:
    """The workers stay, and so do the connections to them."""
    worker, _, kind = way.partition("-")
    with under_load(kind, commands[worker], *FOUR, apache=True) as (pool, load):
        before = pool.workers()
        for number in range(1, 3):
            pool.send(signal.SIGUSR2)
            pool.wait_for_log("executed again", times=number)
            load.wait_for_answers(10)
        assert load.pids <= before


def test_max_requests_under_load(commands: Commands) -> None:
    """Workers leave after their requests, and none is missed."""
    options = (*FOUR, "--max-requests", "20")
    with under_load("unix", commands["hello"], *options, apache=True) as (pool, load):
        pool.wait_for_log(" started\n", times=4 + 20)
        load.wait_for_answers(20)
        assert "ended with" not in pool.log()


@pytest.mark.parametrize("worker", ["hello", "echo"])
def test_workers_come_and_go_behind_kept_connections(
    commands: Commands, worker: str
) -> None:
    """Apache sees that its connection is closed, and makes another."""
    with site("reuse-unix", commands[worker], *FOUR, apache=True) as (pool, server):
        before = pool.workers()
        assert ask_for_pid(server.port, REUSE) in before
        for number in range(1, 3):
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded", times=number)
            after = pool.wait_for_other_workers(before)
            assert ask_for_pid(server.port, REUSE) in after
            before = after
        kill_five(pool, server, REUSE)


@pytest.mark.parametrize("worker", ["hello", "echo"])
def test_kills_of_idle_workers(commands: Commands, worker: str) -> None:
    """The next request is served by another one."""
    with site("unix", commands[worker], *FOUR, apache=True) as (pool, server):
        kill_five(pool, server, "/unix")


def kill_five(pool: Pool, server: WebServer, target: str) -> None:
    """Kill the worker that has served, and see that another one does."""
    for _ in range(5):
        victim = ask_for_pid(server.port, target)
        os.kill(victim, signal.SIGKILL)
        pool.wait_for_end(victim)
        assert ask_for_pid(server.port, target) != victim
        pool.wait_for_workers(4)
