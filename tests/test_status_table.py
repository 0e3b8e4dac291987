"""The table of ``fcgi-app status``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from fcgi_app.status.snapshot import WorkerView
from fcgi_app.status.table import format_service

TAKEN = 1_000_000.0


def worker(pid: int, **facts: Any) -> dict[str, Any]:
    return asdict(WorkerView(pid=pid, started=TAKEN - 100, state="idle")) | facts


def service(*workers: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """What the control socket tells of a service with one pool."""
    pool = {
        "name": "site",
        "manager": "dynamic",
        "addresses": ["unix:/run/a", "127.0.0.1:9000"],
        "most": 4,
        "active": 1,
        "accepted": 1523,
        "slow_requests": 2,
        "restarts": 3,
        "queue": {"waiting": 5, "limit": 128},
        "queue_most": 6,
        "workers": list(workers),
    }
    return {
        "version": "1.2",
        "pid": 77,
        "state": "running",
        "started": TAKEN - 93_784,
        "taken": TAKEN,
        "pools": [pool | facts],
    }


def test_table_is_aligned() -> None:
    """To the character."""
    first = worker(9, requests=0, rss=12 * 2**20, cpu=0.5)
    second = worker(
        12345,
        state="running",
        requests=17,
        active=1,
        rss=2**29,
        cpu=150.0,
        request_seconds=1.25,
        method="POST",
        uri="/a?b",
    )
    assert format_service(service(first, second)) == (
        "fcgi-app 1.2, pid 77, running, up for 1d02h\n"
        "\n"
        "pool site, dynamic, on unix:/run/a, 127.0.0.1:9000\n"
        "workers 2 (most 8), active 1; requests 1523, slow 2; restarts 3; "
        "queue 5 (most 6, limit 128)\n"
        "  PID  STATE    UPTIME  REQUESTS     RSS     CPU  TIME  REQUEST\n"
        "    9  idle      1m40s         0   12.0M    0.5%     -  -\n"
        "12345  running   1m40s        17  512.0M  150.0%  1.2s  POST /a?b\n"
    )


def test_table_without_workers_and_without_numbers() -> None:
    """A pool on demand that nobody has asked for; a pool without a scoreboard."""
    text = format_service(service(queue=None))
    assert "no worker runs\n" in text
    assert "queue" not in text
    bare = service(worker(5))
    del bare["pools"][0]["accepted"]
    assert "restarts" not in format_service(bare)


def test_table_shows_what_is_not_known_as_such() -> None:
    """Dashes, and no zero that somebody would believe."""
    text = format_service(service(worker(5, state="unknown", started=None)))
    assert text.splitlines()[-1].split() == ["5", "unknown", *["-"] * 6]


def test_table_shows_who_leaves_and_what_it_still_does() -> None:
    """The oldest of its requests, and how many there are besides."""
    leaving = worker(
        5,
        leaving=True,
        state="ending",
        active=3,
        request_seconds=61.0,
        method="GET",
        uri="/x",
    )
    line = format_service(service(leaving)).splitlines()[-1]
    assert " leaving " in line
    assert line.endswith("  1m01s  GET /x (and 2 more)")


def test_table_obeys_nobody() -> None:
    """What a client sends as URI does not reach the terminal as it is."""
    evil = worker(5, active=1, request_seconds=0.0, method="GET", uri="/\x1b[2J\n\x07")
    text = format_service(service(evil))
    assert text.endswith("GET /\\x1b[2J\\n\\x07\n")
    assert "\x1b" not in text


def test_table_is_cut_at_the_width() -> None:
    """Lines do not wrap."""
    long = worker(5, active=1, request_seconds=0.0, method="GET", uri="/" * 200)
    lines = format_service(service(long), width=80).splitlines()
    assert max(map(len, lines)) == 80


def test_cpu_is_of_the_time_between_two_looks() -> None:
    """Where there were two; of a worker that is new, of its life."""
    before = service(worker(5, cpu=10.0), worker(6, cpu=50.0, started=1.0))
    before["taken"] = TAKEN - 2
    now = service(worker(5, cpu=11.0), worker(6, cpu=1.0))
    lines = format_service(now, before).splitlines()
    assert "  50.0%  " in lines[-2]  # one of two seconds
    assert "   1.0%  " in lines[-1]  # another process has the number now: 1 of 100


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.00s"),
        (0.004, "0.00s"),
        (0.25, "0.25s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (8_640_000, "100d00h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    """Two units that tell most."""
    line = format_service(service(worker(5, request_seconds=seconds, active=1)))
    assert line.splitlines()[-1].split()[6] == shown
