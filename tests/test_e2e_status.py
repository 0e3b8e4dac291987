"""The status path and the ping path through real web servers, and a saturated pool."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.client import request

from .pools import Pool
from .servers import Gate, WebServer, ask, wait_until
from .startload import site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SCRIPT = """
import os, socket
from fcgi_app import accept
while accept():
    if os.environ["QUERY_STRING"] == "hold":
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(os.environ["GATE"])
            gate.recv(1)
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print("application", os.environ["SCRIPT_NAME"], end="")
"""
WORKERS = 3
OPTIONS = ["--workers", str(WORKERS), "--env", "GATE=gate", "--backlog", "77"]
OPTIONS += ["--status-path", "/pool-status", "--ping-path", "/pool-ping"]
OPTIONS += ["--status-listen", "unix:status.sock"]


@pytest.fixture(scope="module", params=["nginx", "apache"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pool, WebServer]]:
    """A pool of three behind a web server."""
    script = tmp_path_factory.mktemp("status") / "app.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    with site("unix", command, *OPTIONS, apache=request.param == "apache") as found:
        yield found


def test_pages_over_http(served: tuple[Pool, WebServer]) -> None:
    """In each form, with its type; nobody may keep them."""
    pool, server = served
    kinds = {
        "": "text/plain;charset=UTF-8",
        "?full": "text/plain;charset=UTF-8",
        "?json&full": "application/json",
        "?openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }
    answers = {query: ask(server.port, "/pool-status" + query) for query in kinds}
    ping = ask(server.port, "/pool-ping")
    for query, kind in kinds.items():
        assert answers[query].status == 200
        assert answers[query].header("Content-Type") == kind
        assert "no-store" in (answers[query].header("Cache-Control") or "")
    found = json.loads(answers["?json&full"].body)
    pids = {process["pid"] for process in found["processes"]}
    assert (found["pool"], found["total processes"]) == ("main", WORKERS)
    assert len(pids) == WORKERS
    assert pids < pool.workers()  # the other one is the service of --status-listen
    assert (ping.status, ping.body) == (200, b"pong")


def test_other_paths_are_the_applications(served: tuple[Pool, WebServer]) -> None:
    """The page counts none of its own requests."""
    _, server = served
    before = json.loads(ask(server.port, "/pool-status?json").body)["accepted conn"]
    answer = ask(server.port, "/unix")
    after = json.loads(ask(server.port, "/pool-status?json").body)["accepted conn"]
    assert answer.body == b"application /unix"
    assert after == before + 1


def test_head_over_http(served: tuple[Pool, WebServer]) -> None:
    """A check that only wants the status."""
    _, server = served
    answer = ask(server.port, "/pool-ping", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_saturated_pool_can_be_looked_at(served: tuple[Pool, WebServer]) -> None:
    """All workers are busy, more clients wait: the service of --status-listen tells."""
    pool, server = served
    threads = []
    with Gate(Path(pool.folder) / "gate") as gate:
        for _ in range(WORKERS):
            threads.append(
                threading.Thread(target=ask, args=(server.port, "/unix?hold"))
            )
            threads[-1].start()
            gate.wait_for_arrival()
        waiting = threading.Thread(target=ask, args=(server.port, "/unix"))
        waiting.start()

        def look() -> dict[str, object]:
            params = {"SCRIPT_NAME": "/pool-status", "QUERY_STRING": "json&full"}
            address = f"unix:{pool.folder}/status.sock"
            found = json.loads(request(address, params, timeout=20).body)
            assert isinstance(found, dict)
            return found

        wait_until(lambda: look()["listen queue"] == 1, "one in the queue", seconds=20)
        found = look()
        gate.open()
        for thread in (*threads, waiting):
            thread.join(20)
    assert (found["active processes"], found["idle processes"]) == (WORKERS, 0)
    assert found["max active processes"] == WORKERS
    assert (found["max listen queue"], found["listen queue len"]) == (1, 77)
    processes = found["processes"]
    assert isinstance(processes, list)
    assert {process["request uri"] for process in processes} == {"/unix?hold"}
    wait_until(lambda: look()["listen queue"] == 0, "the queue to be empty", seconds=20)
