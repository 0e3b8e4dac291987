"""``fcgi-app start``: what workers tell, who sees it, and how many there are by it."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.client import build_cgi_params, request
from fcgi_app.launcher.equipping import Equipper
from fcgi_app.launcher.outside import waits_for_clients
from fcgi_app.launcher.pool import PoolConfig, ServiceConfig

from .ourworker import OURS, ask, ask_pid
from .pools import TIMEOUT, Pool
from .servers import wait_until

pytestmark = pytest.mark.slow


# ---- how many -----------------------------------------------------------------------


def test_dynamic_keeps_one_free_for_the_next() -> None:
    """While two are in work a third waits, which nobody has asked for."""
    options = ["--manager", "dynamic", "--workers", "5", "--idle-timeout", "0.3"]
    with Pool(*options, source=OURS) as pool, ThreadPoolExecutor(2) as clients:
        (first,) = pool.wait_for_workers(1)
        answers = [clients.submit(ask_pid, pool, "sleep=3")]
        wait_until(lambda: waits_for_clients(first) is False, "the first in work")
        answers.append(clients.submit(ask_pid, pool, "sleep=3"))
        three = pool.wait_for_workers(3)
        assert {answer.result() for answer in answers} < three
        pool.wait_for_workers(1)


def test_ondemand_stops_who_tells_that_he_is_idle() -> None:
    """Not one who sleeps in a request for longer than the idle timeout."""
    options = ["--manager", "ondemand", "--workers", "2", "--idle-timeout", "0.3"]
    with Pool(*options, source=OURS) as pool:
        assert pool.workers() == set()
        worker = ask_pid(pool, "sleep=1")
        assert pool.log().count("is not needed") == 0
        pool.wait_for_log(f"worker {worker} is not needed")
        pool.wait_for_workers(0)


def test_supervisor_sleeps_while_dynamic_workers_are_idle() -> None:
    """What they tell is not looked at while nobody comes."""
    options = ["--manager", "dynamic", "--workers", "4", "--min-spare", "2"]
    with Pool(*options, source=OURS) as pool:
        ask(pool)
        status = Path(f"/proc/{pool.process.pid}/status")

        def wake_ups() -> str:
            lines = status.read_text().splitlines()
            return next(line for line in lines if line.startswith("voluntary"))

        seen: list[str] = []

        def sleeps() -> bool:
            seen.append(wake_ups())
            return len(seen) > 40 and len(set(seen[-40:])) == 1  # of 50 ms each

        wait_until(sleeps, "two seconds without a wake-up")


# ---- access log ---------------------------------------------------------------------


def test_access_log_is_opened_again() -> None:
    """By the supervisor, for workers who could not; each request has its line."""
    options = ["--access-log", "access", "--access-format", "%m %U %>s"]
    with Pool(*options, source=OURS) as pool:
        log = pool.folder / "access"
        before = pool.wait_for_workers(1)
        ask(pool, uri="/one")
        wait_until(lambda: log.read_text() == "GET /one 200\n", "a line")
        log.rename(pool.folder / "old")
        pool.send(signal.SIGUSR1)
        pool.wait_for_log("reloaded")
        pool.wait_for_other_workers(before)
        ask(pool, uri="/two")
        wait_until(lambda: log.read_text() == "GET /two 200\n", "a line")
        assert (pool.folder / "old").read_text() == "GET /one 200\n"
        assert log.stat().st_mode & 0o777 == 0o640


def test_access_log_that_cannot_be_opened() -> None:
    """The start fails with the path; nothing runs."""
    with Pool("--access-log", "/dev/null/x", source=OURS, ready=False) as pool:
        assert pool.wait() == 1
        assert "/dev/null/x: Not a directory" in pool.log()


# ---- status -------------------------------------------------------------------------


def status_of(address: str) -> dict[str, object]:
    params = build_cgi_params("/status?json&pool=main")
    found: dict[str, object] = json.loads(request(address, params, timeout=20).body)
    return found


def test_status_of_a_pool_that_is_busy() -> None:
    """It is served beside the pool, and knows each pool; its own it does not count."""
    name = f"@fcgi-app-status-{os.getpid()}"
    with Pool("--status-listen", name, source=OURS) as pool:
        with ThreadPoolExecutor(1) as clients:
            clients.submit(ask_pid, pool, "sleep=1")
            wait_until(
                lambda: status_of(name).get("active processes") == 1, "an active one"
            )
            assert status_of(name)["pool"] == "main"
        assert len(pool.workers()) == 2
        before = pool.workers()
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        pool.wait_for_other_workers(before)
        ask(pool)
        wait_until(lambda: status_of(name).get("accepted conn") == 2, "two requests")


def overview(pool: Pool) -> dict[str, Any]:
    """What the control socket says of the first pool."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(TIMEOUT)
        control.connect(str(pool.folder / "control"))
        control.sendall(b'{"command": "status"}\n')
        with control.makefile() as answer:
            found: dict[str, Any] = json.load(answer)["status"]["pools"][0]
    return found


@pytest.mark.parametrize("place", ["@SCRIPT@", "@PATH@.other"])
@pytest.mark.parametrize("number", [2, 500])
def test_failed_reload_to_a_larger_pool(number: int, place: str) -> None:
    """What is known of the workers stays, whether a socket fails or a worker.

    A much larger one has a new scoreboard.
    """
    config = """
    control = "control"
    [pool.main]
    bind = "unix:@PATH@"
    command = ["@PYTHON@", "-SE", "@SCRIPT@"]
    manager = "ondemand"
    """
    bad = f'[pool.other]\nbind = "unix:{place}"\ncommand = "/bin/false"\n'
    with Pool(config=config, source=OURS) as pool:
        worker = ask_pid(pool)
        pool.write_config(f"{config}workers = {number}\nping_path = '/ping'\n{bad}")
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed")
        assert ask_pid(pool) == worker
        found = overview(pool)
        assert [each["pid"] for each in found["workers"]] == [worker]
        assert found["workers"][0]["requests"] == 2
        assert found["most"] == 1
        os.kill(worker, signal.SIGKILL)
        answer = ask(pool, uri="/ping").body
        assert int(answer) != worker
        pool.write_config(f"{config}workers = {number}\n")
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        pool.wait_for_end(int(answer))
        assert ask_pid(pool)
        assert overview(pool)["most"] == number


def test_status_is_served_by_the_user_of_the_workers() -> None:
    """Nothing runs as root only since somebody looks."""
    pool = PoolConfig(bind=("@x",), command=("/x",), user="www", group="web")
    service = ServiceConfig(pools=(pool,), status_listen="@y")
    equipper = Equipper()
    first, status = equipper.pools_of(service)
    equipper.close()
    assert first is pool
    assert (status.user, status.group, status.bind) == ("www", "web", ("@y",))


def test_ping_and_status_path() -> None:
    """They are answered by the worker, and nothing else is."""
    options = ["--status-path", "/s", "--ping-path", "/p"]
    with Pool(*options, source=OURS) as pool:
        assert ask(pool, uri="/p").body.strip() == b"pong"
        assert b"main" in ask(pool, uri="/s").body
        assert ask_pid(pool) in pool.workers()
