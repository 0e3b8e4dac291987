"""Pools as values, text, JSON and OpenMetrics; listen queues; processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from math import nan

import pytest

from fcgi_app.scoreboard import ENDING, IDLE, RUNNING, Scoreboard
from fcgi_app.status.listenqueue import (
    ListenQueue,
    read_listen_queue,
    sum_listen_queues,
)
from fcgi_app.status.observe import observe
from fcgi_app.status.openmetrics import render_openmetrics
from fcgi_app.status.process import read_process
from fcgi_app.status.render import describe_pool, plain, render_json, render_text
from fcgi_app.status.snapshot import Moment, PoolView, WorkerView, take_snapshot

NOW = Moment(monotonic=5000.0, unix=1_700_000_100.0)

PHP_POOL = """\
pool:                 main
process manager:      dynamic
start time:           14/Nov/2023:22:13:20 +0000
start since:          100
accepted conn:        55
listen queue:         2
max listen queue:     9
listen queue len:     1024
idle processes:       1
active processes:     1
total processes:      3
max active processes: 3
max children reached: 4
slow requests:        5
"""
"""What PHP 8.2's fpm_status.c prints for such a pool, to the byte."""

PHP_WORKER = """\
************************
pid:                  {pid}
state:                Running
start time:           {started}
start since:          {since}
requests:             41
request duration:     1500000
request method:       GET
request URI:          /x?a=1
content length:       12
"""


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A pool: this process runs a request, another is idle, a slot is not claimed."""
    found = Scoreboard.create("main", 16)
    found.write_header(
        manager="dynamic",
        started=1_700_000_000.0,
        most=4,
        queue=2,
        queue_most=9,
        queue_size=1024,
        ended_requests=5,
        active_most=3,
        most_reached=4,
        slow_requests=5,
        restarts=6,
        status_path="/status",
        ping_path="/ping",
    )
    texts = (b"GET", b"/x?a=1", b"/srv/a.py", b"192.0.2.1")
    write(found, os.getpid(), RUNNING, 1, 41, 4998.5, 0.25, 12, texts)
    write(found, 4_000_000, IDLE, 0, 8, 0.0, 0.002, -1, (b"", b"", b"", b""))
    found.take_slot()
    yield found
    found.close()


def write(
    board: Scoreboard,
    pid: int,
    state: int,
    active: int,
    requests: int,
    started: float,
    duration: float,
    length: int,
    texts: tuple[bytes, bytes, bytes, bytes],
) -> int:
    """What a worker writes."""
    number = board.take_slot()
    assert number is not None
    slot = board.slot(number)
    assert slot.claim(pid, 1, 0)
    slot.write_current(
        state, active, requests, started, duration, 4000.0, length, *texts
    )
    return number


def view(board: Scoreboard) -> PoolView:
    return take_snapshot(board, NOW)


# ---- values -------------------------------------------------------------------


def test_snapshot_has_what_workers_tell(board: Scoreboard) -> None:
    """Counts, the request, how long it has been running, and what the system says."""
    pool = view(board)
    worker = pool.workers[0]
    assert (worker.pid, worker.state, worker.active) == (os.getpid(), "running", 1)
    assert (worker.method, worker.uri) == ("GET", "/x?a=1")
    assert (worker.script, worker.remote) == ("/srv/a.py", "192.0.2.1")
    assert (worker.request_seconds, worker.last_seconds) == (1.5, 0.25)
    assert worker.content_length == 12
    assert worker.rss is not None
    assert worker.rss > 2**20


def test_snapshot_says_what_is_not_known(board: Scoreboard) -> None:
    """A slot that nobody has claimed is a worker that does not tell, or not yet."""
    _, idle, silent = view(board).workers
    assert (idle.state, idle.request_seconds, idle.content_length) == (
        "idle",
        None,
        None,
    )
    assert (idle.rss, idle.cpu, idle.started) == (None, None, None)
    assert silent == WorkerView()
    assert (silent.state, silent.requests) == ("unknown", None)


def test_snapshot_adds_up(board: Scoreboard) -> None:
    """Requests of those that have ended, of the living, and those that run."""
    pool = view(board)
    assert pool.accepted == 5 + 41 + 1 + 8
    assert (pool.idle, pool.active, pool.active_requests) == (1, 1, 1)
    assert pool.queue == ListenQueue(2, 1024)
    board.write_header(active_most=0, queue_most=1)  # what is seen now counts, too
    assert (view(board).active_most, view(board).queue_most) == (1, 2)


def test_snapshot_of_a_worker_that_ends_with_a_request(board: Scoreboard) -> None:
    """It is active until the request is done."""
    write(board, 4_000_001, ENDING, 1, 0, 4999.0, 0.0, -1, (b"", b"", b"", b""))
    assert view(board).active == 2


def test_snapshot_of_nonsense_is_made_of_numbers(board: Scoreboard) -> None:
    """A worker can write anything into this memory; JSON and int() stand it."""
    board.write_header(started=nan)
    texts = (b"\xff", b"\n\x1b[2J\xc3\xa9", b"", b"")
    write(board, 4_000_002, RUNNING, 1, 2, nan, nan, -5, texts)
    write(board, 4_000_003, RUNNING, 1, 2, -1e300, 1e300, -5, texts)
    write(board, 4_000_004, RUNNING, 1, 2, 6000.0, -1.0, -5, texts)
    found = view(board)
    text = render_json(describe_pool(found, full=True))
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["start time"] == 0
    assert "\x1b" not in render_text([found], full=True)
    assert r"\n\x1b[2Jé" in render_text([found], full=True)
    assert "nan" not in render_openmetrics([found], full=True)


def test_observe_notes_the_most(board: Scoreboard) -> None:
    """The queue of this moment, the most there was, the most that ran."""
    board.write_header(queue_most=1, active_most=0)
    with socket.create_server(("127.0.0.1", 0), backlog=5) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        observe(board, [listener])
        first = board.header
        for _ in clients:
            listener.accept()[0].close()
        observe(board, [listener])
        for client in clients:
            client.close()
    second = board.header
    assert (first.queue, first.queue_most, first.queue_size) == (3, 3, 5)
    assert (second.queue, second.queue_most, second.queue_size) == (0, 3, 5)
    assert first.active_most == 1
    board.write_header(active_most=3)
    observe(board, [])
    assert board.header.active_most == 3


def test_queue_that_is_not_seen_is_not_zero(board: Scoreboard) -> None:
    """Not where nothing was noted."""
    observe(board, [])
    pool = view(board)
    assert pool.queue is None
    assert describe_pool(pool)["listen queue"] is None
    assert "listen queue:         -\n" in render_text([pool])
    assert "listen_queue{" not in render_openmetrics([pool])


# ---- the system ---------------------------------------------------------------


def unix_listener() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # the system picks an abstract name
    return listener


@pytest.mark.parametrize("family", ["tcp4", "tcp6", "unix"])
def test_listen_queue_is_what_the_system_counts(family: str) -> None:
    """Connections that wait, and how many may; of each family."""
    if family == "unix":
        listener = unix_listener()
    else:
        address = "127.0.0.1" if family == "tcp4" else "::1"
        kind = socket.AF_INET if family == "tcp4" else socket.AF_INET6
        listener = socket.socket(kind)
        listener.bind((address, 0))
    with listener:
        listener.listen(7)
        assert read_listen_queue(listener) == ListenQueue(0, 7)
        clients = []
        for _ in range(2):
            clients.append(socket.socket(listener.family))
            clients[-1].connect(listener.getsockname())
        assert read_listen_queue(listener) == ListenQueue(2, 7)
        listener.accept()[0].close()
        assert read_listen_queue(listener) == ListenQueue(1, 7)
        for client in clients:
            client.close()


def test_listen_queues_add_up() -> None:
    """A pool's sockets as one; none if there are none."""
    with unix_listener() as one, socket.create_server(("127.0.0.1", 0)) as two:
        one.listen(3)
        two.listen(4)
        assert sum_listen_queues([one, two]) == ListenQueue(0, 7)
    assert sum_listen_queues([one, two]) is None  # closed: not seen, no error
    assert sum_listen_queues([]) is None


def test_process_is_seen() -> None:
    """Memory and age of a child, and its processor time."""
    code = "while True: pass"
    before = time.time()
    with subprocess.Popen([sys.executable, "-SE", "-c", code]) as child:
        until = time.monotonic() + 20
        while (seen := read_process(child.pid)) is None or seen.cpu < 0.2:
            assert time.monotonic() < until
        child.kill()
    assert before - 0.5 < seen.started < time.time()
    assert 2**20 < seen.rss < 2**30
    assert seen.cpu < time.time() - before + 0.5


def test_process_that_is_gone() -> None:
    """None, and not somebody else."""
    child = subprocess.Popen([sys.executable, "-SE", "-c", ""])
    child.wait()
    assert read_process(child.pid) is None
    assert read_process(0) is None


# ---- text and JSON ------------------------------------------------------------


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC."""
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_text_is_that_of_php_fpm(board: Scoreboard) -> None:
    """To the byte, and what is ours comes behind."""
    text = render_text([view(board)])
    assert text.startswith(PHP_POOL)
    assert text.removeprefix(PHP_POOL) == (
        "active requests:      1\nrestarts:             6\n"
    )


@pytest.mark.usefixtures("utc")
def test_text_in_full_has_each_worker(board: Scoreboard) -> None:
    """As php-fpm: an empty line, asterisks, and the lines of a worker."""
    pool = view(board)
    text = render_text([pool], full=True)
    blocks = text.split("\n\n")
    started = pool.workers[0].started
    assert len(blocks) == 1 + 3
    assert started is not None
    shown = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(started))
    since = max(0, int(NOW.unix - started))
    expected = PHP_WORKER.format(pid=os.getpid(), started=shown, since=since)
    assert blocks[1].startswith(expected)
    assert "state:                Unknown\n" in blocks[3]
    assert "requests:             -\n" in blocks[3]


def test_text_of_several_pools(board: Scoreboard) -> None:
    """An empty line between."""
    text = render_text([view(board), view(board)])
    assert text.count("\n\npool:                 main\n") == 1


def test_json_has_php_fpms_names(board: Scoreboard) -> None:
    """In its order; times and durations are numbers."""
    found = json.loads(render_json(describe_pool(view(board), full=True)))
    names = [line.partition(":")[0] for line in PHP_POOL.splitlines()]
    assert list(found)[: len(names)] == names
    assert found["start time"] == 1_700_000_000
    assert found["active processes"] == 1
    worker = found["processes"][0]
    names = [line.partition(":")[0] for line in PHP_WORKER.splitlines()[1:]]
    assert list(worker)[: len(names)] == [name.lower() for name in names]
    assert worker["request duration"] == 1_500_000
    assert found["processes"][1]["request duration"] == 2000
    assert found["processes"][2]["pid"] is None


def test_json_without_full_has_no_workers(board: Scoreboard) -> None:
    """It stays small."""
    assert "processes" not in describe_pool(view(board))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/a?b=c d", "/a?b=c d"),
        ("\n\r\t\x00\x1b\x7f", r"\n\r\t\x00\x1b\x7f"),
        ("é \ufffd", "é \ufffd"),
        ("\u202e\u2028", r"\u202e\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_plain_leaves_nothing_that_a_terminal_obeys(text: str, shown: str) -> None:
    """Control characters, and those that turn the direction of writing."""
    assert plain(text) == shown


# ---- OpenMetrics --------------------------------------------------------------

LINE = re.compile(r'(fcgi_app_[a-z_]+)\{([a-z]+="[^"]*",?)+\} -?[0-9]+(\.[0-9]+)?')


def test_openmetrics_follows_the_specification(board: Scoreboard) -> None:
    """Families in one piece, each with its head; counters are _total; one end."""
    text = render_openmetrics([view(board), view(board)], full=True)
    assert text.endswith("\n# EOF\n")
    kinds: dict[str, str] = {}
    current = ""
    for line in text.splitlines()[:-1]:
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split()
            assert current not in kinds
            kinds[current] = kind
        elif line.startswith("# UNIT "):
            assert line.split()[2:] == [current, current.rpartition("_")[2]]
        elif line.startswith("# HELP "):
            assert line.startswith(f"# HELP {current} ")
        else:
            found = LINE.fullmatch(line)
            assert found, line
            suffix = {"counter": "_total", "info": "_info"}.get(kinds[current], "")
            assert found[1] == current + suffix
    assert set(kinds.values()) == {"gauge", "counter", "info"}


@pytest.mark.parametrize(
    "line",
    [
        'fcgi_app_up{pool="main"} 1',
        'fcgi_app_pool_info{pool="main",manager="dynamic"} 1',
        'fcgi_app_processes{pool="main",state="idle"} 1',
        'fcgi_app_processes{pool="main",state="running"} 1',
        'fcgi_app_processes{pool="main",state="unknown"} 1',
        'fcgi_app_start_time_seconds{pool="main"} 1700000000.000',
        'fcgi_app_requests_total{pool="main"} 55',
        'fcgi_app_listen_queue{pool="main"} 2',
        'fcgi_app_max_listen_queue{pool="main"} 9',
        'fcgi_app_listen_queue_limit{pool="main"} 1024',
        'fcgi_app_active_requests{pool="main"} 1',
        'fcgi_app_max_active_processes{pool="main"} 3',
        'fcgi_app_max_children_reached_total{pool="main"} 4',
        'fcgi_app_slow_requests_total{pool="main"} 5',
        'fcgi_app_restarts_total{pool="main"} 6',
    ],
)
def test_openmetrics_has_each_number(board: Scoreboard, line: str) -> None:
    """Once."""
    assert render_openmetrics([view(board)]).splitlines().count(line) == 1


def test_openmetrics_of_workers(board: Scoreboard) -> None:
    """Only in full, and only what is known."""
    few = render_openmetrics([view(board)])
    full = render_openmetrics([view(board)], full=True)
    label = f'{{pool="main",pid="{os.getpid()}"}}'
    assert "pid=" not in few
    assert f"fcgi_app_process_requests_total{label} 41\n" in full
    assert f"fcgi_app_process_request_seconds{label} 1.500\n" in full
    assert full.count("fcgi_app_process_resident_memory_bytes{") == 1
    assert 'pid="0"' not in full
