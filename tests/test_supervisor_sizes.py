"""``fcgi-app start``: how many workers there are, as clients come and go."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from .pools import TIMEOUT, Pool
from .servers import wait_until

pytestmark = pytest.mark.slow


def test_ondemand_starts_with_the_first_client() -> None:
    """None runs before; each client that waits gets one, up to the limit."""
    options = ("--manager", "ondemand", "--workers", "2", "--idle-timeout", "0.3")
    with Pool(*options) as pool:
        assert pool.workers() == set()
        with pool.client() as one, pool.client() as two, pool.client() as three:
            pids = {one.pid(), two.pid()}
            assert pids == pool.workers()
            one.close()
            assert three.pid() in pids
        pool.wait_for_workers(0)
        assert pool.ask()
        pool.wait_for_workers(0)


def test_ondemand_keeps_a_worker_that_serves() -> None:
    """It sleeps for longer than the idle timeout, and its client is not cut off."""
    options = ("--manager", "ondemand", "--workers", "2", "--idle-timeout", "0.1")
    with Pool(*options) as pool, pool.client() as client:
        pid = client.pid()
        pool.wait_for_log(f"worker {pid} is not needed")
        assert pool.ask() != pid
        assert pid in pool.workers()
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)


def test_dynamic_grows_and_shrinks() -> None:
    """From the least to the most, and back to what may stay."""
    options = ["--manager", "dynamic", "--workers", "4", "--min-spare", "1"]
    options += ["--max-spare", "2", "--idle-timeout", "0.3"]
    with Pool(*options) as pool:
        first = pool.wait_for_workers(1)
        with ExitStack() as stack:
            clients = [stack.enter_context(pool.client()) for _ in range(5)]
            pids = {client.pid() for client in clients[:4]}
            assert len(pids) == 4
            assert first < pids
            assert pool.workers() == pids
            clients[0].close()
            assert clients[4].pid() in pids
        assert pool.wait_for_workers(2) < pids


def test_supervisor_sleeps_when_nothing_happens() -> None:
    """It does not wake up once in a second, whatever the manager."""
    options = ["--manager", "dynamic", "--workers", "3", "--idle-timeout", "0.1"]
    with Pool(*options) as pool:
        assert pool.ask()
        status = Path(f"/proc/{pool.process.pid}/status")

        def switches() -> list[str]:
            lines = status.read_text().splitlines()
            return [line for line in lines if "voluntary_ctxt" in line]

        def settled() -> bool:
            before = switches()
            time.sleep(1.0)  # that nothing happens can only be seen in time
            return switches()[0] == before[0]

        wait_until(settled, "a second without a wake-up")


def test_backlog_survives_workers() -> None:
    """A client that connects while no worker runs is served by the next one."""
    with Pool() as pool, socket.socket(socket.AF_UNIX) as probe:
        pid = pool.ask()
        os.kill(pid, signal.SIGSTOP)
        probe.connect(pool.path)
        os.kill(pid, signal.SIGKILL)
        probe.settimeout(TIMEOUT)
        assert int(probe.recv(100)) != pid
