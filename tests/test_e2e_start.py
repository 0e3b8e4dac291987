"""``fcgi-app start`` behind nginx: no operation on the pool costs a request.

The workers are ours, which know their supervisor, or libfcgi's, which know nothing of
it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .servers import ask, wait_until
from .startload import ask_for_pid, build_workers, site, under_load, wait_for_hold

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Commands = dict[str, list[str]]
THREE = ("--workers", "3")
WAYS = ["hello-unix", "hello-kept-unix", "hello-kept-tcp", "echo-unix", "echo-tcp"]


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """The workers, where every user can run them."""
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    folder.chmod(0o755)
    yield build_workers(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("way", WAYS)
def test_no_request_is_lost_over_reloads(commands: Commands, way: str) -> None:
    """Some reloads, each with new workers; also on connections that nginx keeps."""
    worker, _, kind = way.partition("-")
    with under_load(kind, commands[worker], *THREE) as (pool, load):
        for number in range(1, 7):
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded", times=number)
            load.wait_for_answers(5)
        assert len(load.pids) >= 7


@pytest.mark.parametrize("way", ["hello-kept-unix", "echo-unix"])
def test_no_request_is_lost_over_execs(commands: Commands, way: str) -> None:
    """The supervisor executes itself three times; the workers do not notice."""
    worker, _, kind = way.partition("-")
    with under_load(kind, commands[worker], *THREE) as (pool, load):
        before = pool.workers()
        for number in range(1, 4):
            pool.send(signal.SIGUSR2)
            pool.wait_for_log("executed again", times=number)
            load.wait_for_answers(20)
        assert load.pids <= before


@pytest.mark.parametrize("way", ["hello-kept-unix", "echo-tcp"])
def test_no_request_is_lost_over_one_worker_more_or_fewer(
    commands: Commands, way: str
) -> None:
    """Ten times TTOU and TTIN; on TCP there are two sockets with workers each."""
    worker, _, kind = way.partition("-")
    sockets = 2 if "tcp" in kind else 1
    with under_load(kind, commands[worker], *THREE) as (pool, load):
        for _ in range(10):
            for number, workers in ((signal.SIGTTOU, 2), (signal.SIGTTIN, 3)):
                pool.send(number)
                pool.wait_for_workers(workers * sockets)
            load.wait_for_answers(5)


@pytest.mark.parametrize("way", ["hello-kept-unix", "hello-unix", "echo-unix"])
def test_no_request_is_lost_over_kills_of_idle_workers(
    commands: Commands, way: str
) -> None:
    """25 times SIGKILL for a worker while nobody asks; the next request is served."""
    worker, _, kind = way.partition("-")
    with site(kind, commands[worker], *THREE) as (pool, server):
        for _ in range(25):
            victim = ask_for_pid(server.port, f"/{kind}")
            os.kill(victim, signal.SIGKILL)
            # While it dies, it may still take a connection from the queue.
            pool.wait_for_end(victim)
            assert ask_for_pid(server.port, f"/{kind}") != victim
            pool.wait_for_workers(3)


def test_long_requests_outlive_all_operations(commands: Commands) -> None:
    """Reloads, an exec, fewer workers: whoever is served is served to the end."""
    with site("unix", commands["hello"], *THREE) as (pool, server):
        before = pool.wait_for_workers(3)
        held = [pool.folder / f"held-{number}" for number in range(3)]
        with ThreadPoolExecutor(3) as threads:
            asked, busy = [], []
            for path in held:
                target = f"/unix?hold:{path}"
                asked.append(threads.submit(ask_for_pid, server.port, target))
                busy.append(wait_for_hold(path))
            for number in range(1, 4):
                pool.send(signal.SIGHUP)
                pool.wait_for_log("reloaded", times=number)
                pool.send(signal.SIGUSR2)
                pool.wait_for_log("executed again", times=number)
            pool.send(signal.SIGTTOU)
            assert ask_for_pid(server.port, "/unix") not in before
            for path in held:
                path.unlink()
            assert [each.result(20) for each in asked] == busy
        assert set(busy) == before
        pool.wait_for_workers(2)


def test_kill_of_a_busy_worker_costs_its_own_request(commands: Commands) -> None:
    """Whoever it served gets a 502, everybody else an answer."""
    with under_load("unix", commands["hello"], *THREE) as (pool, load):
        for number in range(5):
            held = pool.folder / f"held-{number}"
            with ThreadPoolExecutor(1) as thread:
                asked = thread.submit(ask, load.port, f"/unix?hold:{held}")
                os.kill(wait_for_hold(held), signal.SIGKILL)
                assert asked.result(20).status == 502
            pool.wait_for_workers(3)


@pytest.mark.parametrize("kind", ["unix", "kept-unix"])
def test_no_request_is_lost_over_max_requests(commands: Commands, kind: str) -> None:
    """Workers leave after their requests; that is no failure, and none is missed."""
    options = (*THREE, "--max-requests", "20")
    with under_load(kind, commands["hello"], *options) as (pool, load):
        pool.wait_for_log(" started\n", times=3 + 20)
        load.wait_for_answers(20)
        assert "next start in" not in pool.log()
        assert "ended with" not in pool.log()
        pool.wait_for_workers(3)


def test_wedged_worker_costs_its_own_request(commands: Commands) -> None:
    """It is gone a second after its time, its traceback is logged, the others serve."""
    options = (*THREE, "--request-timeout", "0.5")
    with under_load("unix", commands["hello"], *options) as (pool, load):
        held = pool.folder / "held"
        with ThreadPoolExecutor(1) as thread:
            began = time.monotonic()
            asked = thread.submit(ask, load.port, f"/unix?hold:{held}")
            worker = wait_for_hold(held)
            assert asked.result(20).status == 502
            took = time.monotonic() - began
        pool.wait_for_end(worker)
        assert 0.5 <= took < 1.5
        assert "hello.py" in pool.log().partition("most recent call first")[2]
        wait_until(lambda: worker not in pool.workers(), "its end")
        pool.wait_for_workers(3)
