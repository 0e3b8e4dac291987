"""The status path and the ping path of a worker, and the program that does only that."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.client import Response, request
from fcgi_app.codec.constants import Role
from fcgi_app.errors import ConfigError
from fcgi_app.scoreboard import VARIABLE, Scoreboard
from fcgi_app.status.service import VARIABLE as STATUS_VARIABLE
from fcgi_app.status.service import open_boards

from .servers import wait_until
from .webserver import PACKAGE_PARENT, App

LOOP = """
    from fcgi_app import accept
    while accept():
        print("Content-Type: text/plain", end="\\r\\n\\r\\n")
        print("application")
"""
THREADS = """
    from fcgi_app import run
    def handle(request):
        request.stdout.write(b"Content-Type: text/plain\\r\\n\\r\\napplication\\n")
    run(handler=handle, threads=2)
"""
STATUS, PING = "/fpm-status", "/fpm-ping"


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    found = Scoreboard.create("main", 8)
    found.write_header(
        manager="static",
        started=time.time() - 100,
        most=1,
        queue_size=128,
        status_path=STATUS,
        ping_path=PING,
    )
    yield found
    found.close()


class Worker(App):
    """A worker of a pool, as a supervisor starts it."""

    def __init__(self, directory: Path, source: str, board: Scoreboard) -> None:
        slot = board.take_slot()
        super().__init__(
            directory,
            source,
            env={VARIABLE: f"{board.fileno()}:{slot}"},
            pass_fds=[board.fileno()],
        )

    def __enter__(self) -> Worker:
        return self

    def get(self, path: str, query: str = "", method: str = "GET") -> Response:
        """One request, and its answer."""
        return ask(self.listener.getsockname(), path, query, method=method)


def ask(
    address: str,
    path: str,
    query: str = "",
    *,
    method: str = "GET",
    role: Role = Role.RESPONDER,
) -> Response:
    params = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": path,
        "REQUEST_URI": path,
        "QUERY_STRING": query,
    }
    return request(f"unix:{address}", params, role=role, timeout=20)


def header(answer: Response, name: str) -> str:
    """The value of a header that is there once."""
    (value,) = [value for key, value in answer.headers if key.lower() == name]
    return value


@pytest.fixture(params=[LOOP, THREADS], ids=["loop", "threads"])
def worker(
    request: pytest.FixtureRequest, tmp_path: Path, board: Scoreboard
) -> Iterator[Worker]:
    with Worker(tmp_path, request.param, board) as found:
        yield found


def test_status_path_is_answered_by_the_runtime(worker: Worker) -> None:
    """Text, never cached; the application has not seen it, and it is not counted."""
    assert worker.get("/").body == b"application\n"
    answer = worker.get(STATUS)
    lines = answer.body.decode().splitlines()
    assert answer.status == 200
    assert header(answer, "content-type") == "text/plain;charset=UTF-8"
    assert header(answer, "content-length") == str(len(answer.body))
    assert "no-store" in header(answer, "cache-control")
    assert lines[0] == "pool:                 main"
    assert "accepted conn:        1" in lines
    assert "total processes:      1" in lines
    assert "start since:          100" in lines


def test_status_in_json_is_a_pool(worker: Worker) -> None:
    """With its workers in full."""
    worker.get("/", "a=1")
    answer = worker.get(STATUS, "json&full")
    found = json.loads(answer.body)
    (process,) = found["processes"]
    assert header(answer, "content-type") == "application/json"
    assert process["pid"] == worker.process.pid
    assert process["requests"] == 1
    assert process["request method"] == "GET"
    assert process["memory"] > 2**20


def test_status_in_openmetrics(worker: Worker) -> None:
    """With the type that Prometheus asks for."""
    answer = worker.get(STATUS, "openmetrics")
    assert header(answer, "content-type") == (
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    )
    assert b'fcgi_app_up{pool="main"} 1\n' in answer.body
    assert answer.body.endswith(b"\n# EOF\n")


def test_status_in_unknown_words_is_text(worker: Worker) -> None:
    """As php-fpm does it."""
    assert worker.get(STATUS, "jsonfull&x=json").body.startswith(b"pool: ")


def test_ping_path_is_answered_by_the_runtime(worker: Worker) -> None:
    """``pong``, as php-fpm's ping.response is by default."""
    answer = worker.get(PING)
    assert (answer.status, answer.body) == (200, b"pong")
    assert "no-store" in header(answer, "cache-control")


def test_head_has_no_body(worker: Worker) -> None:
    """But the same head."""
    answer = worker.get(PING, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert header(answer, "content-length") == "4"


@pytest.mark.parametrize("path", ["", "/", STATUS + "/", "/x" + STATUS, STATUS[:-1]])
def test_other_paths_are_the_applications(worker: Worker, path: str) -> None:
    """The path has to be equal."""
    assert worker.get(path).body == b"application\n"


def test_authorizer_is_never_answered_by_the_status_page(
    tmp_path: Path, board: Scoreboard
) -> None:
    """It would be a permission."""
    with Worker(tmp_path, LOOP, board) as worker:
        address = worker.listener.getsockname()
        answer = ask(address, STATUS, role=Role.AUTHORIZER)
    assert b"application" in answer.body


# ---- the service --------------------------------------------------------------


class Service:
    """``python -m fcgi_app.status.service``, as a supervisor starts it."""

    def __init__(self, folder: Path, boards: list[Scoreboard]) -> None:
        self.path = str(folder / "status.sock")
        readers = [_reader(board) for board in boards]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(16)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fcgi_app.status.service"],
                stdin=listener.fileno(),
                stderr=subprocess.PIPE,
                env={
                    **os.environ,
                    "PYTHONPATH": PACKAGE_PARENT,
                    STATUS_VARIABLE: ",".join(map(str, readers)),
                },
                pass_fds=readers,
                cwd=folder,  # "-m" looks there first
            )
        for reader in readers:
            os.close(reader)

    def get(self, path: str, query: str = "") -> Response:
        return ask(self.path, path, query)

    def stop(self) -> int:
        """End it; its log, which should be empty, is in ``log``."""
        self.process.terminate()
        _, self.log = self.process.communicate(timeout=20)
        return self.process.returncode


def _reader(board: Scoreboard) -> int:
    return os.open(f"/proc/self/fd/{board.fileno()}", os.O_RDONLY)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two pools with a status path in common, and one with its own."""
    boards = []
    for name, path in (("a", "/common"), ("b", "/common"), ("c", "/own")):
        boards.append(Scoreboard.create(name, 4))
        boards[-1].write_header(status_path=path, ping_path=f"/ping-{name}")
    found = Service(tmp_path_factory.mktemp("s"), boards)
    yield found
    for board in boards:
        board.close()
    assert (found.stop(), found.log) == (0, b"")


def names_in(answer: Response) -> list[str]:
    lines = answer.body.decode().splitlines()
    return [line.split()[1] for line in lines if line.startswith("pool:")]


@pytest.mark.parametrize(
    ("path", "query", "names"),
    [
        ("", "", ["a", "b", "c"]),
        ("/anything", "full", ["a", "b", "c"]),
        ("/common", "", ["a", "b"]),
        ("/own", "", ["c"]),
        ("/anything", "pool=b", ["b"]),
        ("/own", "pool=a&full", ["a"]),
    ],
)
def test_service_shows_the_pools_that_are_asked_for(
    service: Service, path: str, query: str, names: list[str]
) -> None:
    """By name, by status path, or all."""
    assert names_in(service.get(path, query)) == names


@pytest.mark.parametrize(
    ("path", "query", "single"),
    [
        ("/", "json", False),
        ("/common", "json", False),
        ("/own", "json", True),
        ("/", "json&pool=a", True),
        ("/common", "pool=a&json", True),
    ],
)
def test_service_gives_one_pool_as_its_workers_would(
    service: Service, path: str, query: str, single: bool
) -> None:
    """In JSON: the pool itself where one was asked for, else a list."""
    found = json.loads(service.get(path, query).body)
    assert ("pool" in found) == single
    assert ("pools" in found) != single


def test_service_refuses_an_unknown_pool(service: Service) -> None:
    """With 404, and the names that there are."""
    answer = service.get("/", "pool=x")
    assert answer.status == 404
    assert b"a, b, c" in answer.body


def test_service_answers_each_ping_path(service: Service) -> None:
    """For whoever asks this port instead of the pool's."""
    assert service.get("/ping-b").body == b"pong"


def test_service_gives_all_pools_as_openmetrics(service: Service) -> None:
    """Each number with the pool as its label."""
    text = service.get("/", "openmetrics").body.decode()
    assert [f'fcgi_app_up{{pool="{name}"}} 1' in text for name in "abc"] == [True] * 3
    assert text.count("# TYPE fcgi_app_up") == 1


def test_service_follows_the_scoreboard(tmp_path: Path, board: Scoreboard) -> None:
    """It reads anew for each request, from a descriptor that cannot be written to."""
    service = Service(tmp_path, [board])
    try:
        assert json.loads(service.get(STATUS, "json").body)["slow requests"] == 0
        board.write_header(slow_requests=7)
        wait_until(
            lambda: json.loads(service.get(STATUS, "json").body)["slow requests"] == 7,
            "the new number",
        )
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("value", ["", "x", "0,", "7000", "-1"])
def test_service_without_scoreboards_says_so(tmp_path: Path, value: str) -> None:
    """One line on standard error, no traceback, and a failure."""
    child = subprocess.run(
        [sys.executable, "-m", "fcgi_app.status.service"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT, STATUS_VARIABLE: value},
        timeout=60,
        check=False,
    )
    assert child.returncode == 1
    assert child.stderr.count(b"\n") == 1
    assert b"must be descriptors of scoreboards" in child.stderr


def test_open_boards_closes_what_it_opened(board: Scoreboard) -> None:
    """Where one of several is wrong; what is no scoreboard stays the caller's."""
    good = os.dup(board.fileno())
    reader, writer = os.pipe()
    with pytest.raises(ConfigError, match="must be descriptors"):
        open_boards(f"{good},{reader}")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(good)
    os.close(reader)
    os.close(writer)
