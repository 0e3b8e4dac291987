"""The state of a service as a table for people, from what the control socket tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .render import plain

__all__ = ["format_service"]

_COLUMNS = ("PID", "STATE", "UPTIME", "REQUESTS", "RSS", "CPU", "TIME", "REQUEST")
_LEFT = frozenset(("STATE", "REQUEST"))

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def format_service(
    status: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
    *,
    width: int | None = None,
) -> str:
    """Write a supervisor, its pools and its workers as lines.

    Args:
        status: what `describe_service` has given.
        before: what it gave some time ago: CPU is of the time between. None: of a
            worker's whole life.
        width: columns of the terminal, to cut lines at; None: do not.
    """
    up = _format_seconds(status["taken"] - status["started"])
    state = status["state"]
    lines = [f"fcgi-app {status['version']}, pid {status['pid']}, {state}, up for {up}"]
    shares = _cpu_shares(status, before)
    for pool in status["pools"]:
        lines += ["", *_format_pool(pool, status["taken"], shares)]
    return "".join(plain(line)[:width].rstrip() + "\n" for line in lines)


def _format_pool(
    pool: Mapping[str, Any], taken: float, shares: Mapping[int, float]
) -> list[str]:
    workers = pool["workers"]
    addresses = ", ".join(pool["addresses"])
    lines = [f"pool {pool['name']}, {pool['manager']}, on {addresses}"]
    if "accepted" in pool:
        lines.append(_format_counts(pool))
    if workers:
        rows = [_row(worker, taken, shares) for worker in workers]
        lines += _align([_COLUMNS, *rows])
    else:
        lines.append("no worker runs")
    return lines


def _format_counts(pool: Mapping[str, Any]) -> str:
    places = pool["most"] * max(1, len(pool["addresses"]))
    found = [
        f"workers {len(pool['workers'])} (most {places}), active {pool['active']}",
        f"requests {pool['accepted']}, slow {pool['slow_requests']}",
        f"restarts {pool['restarts']}",
    ]
    queue = pool["queue"]
    if queue is not None:
        waiting, most, limit = queue["waiting"], pool["queue_most"], queue["limit"]
        found.append(f"queue {waiting} (most {most}, limit {limit})")
    return "; ".join(found)


def _row(
    worker: Mapping[str, Any], taken: float, shares: Mapping[int, float]
) -> tuple[str, ...]:
    started, requests, pid = worker["started"], worker["requests"], worker["pid"]
    seconds = worker["request_seconds"]
    share = shares.get(pid)
    return (
        str(pid),
        "leaving" if worker["leaving"] else worker["state"],
        "-" if started is None else _format_seconds(taken - started),
        "-" if requests is None else str(requests),
        "-" if worker["rss"] is None else f"{worker['rss'] / 2**20:.1f}M",
        "-" if share is None else f"{share * 100:.1f}%",
        "-" if seconds is None else _format_seconds(seconds),
        _format_request(worker) if seconds is not None else "-",
    )


def _format_request(worker: Mapping[str, Any]) -> str:
    """Write the request that is running, the oldest of several."""
    text = f"{worker['method']} {worker['uri']}".strip()
    others = (worker["active"] or 1) - 1
    return f"{text} (and {others} more)" if others else text


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if title in _LEFT else cell.rjust(width)
            for cell, width, title in zip(row, widths, _COLUMNS, strict=True)
        ]
        lines.append("  ".join(cells))
    return lines


def _cpu_shares(
    status: Mapping[str, Any], before: Mapping[str, Any] | None
) -> dict[int, float]:
    """Return pid → the part of one processor that a worker has used."""
    used_before = _cpu_by_worker(before) if before is not None else {}
    shares = {}
    for key, used in _cpu_by_worker(status).items():
        pid, started = key
        since, less = started, 0.0
        if before is not None and key in used_before:
            since, less = before["taken"], used_before[key]
        seconds = status["taken"] - since
        if seconds > 0:
            shares[pid] = max(0.0, used - less) / seconds
    return shares


def _cpu_by_worker(status: Mapping[str, Any]) -> dict[tuple[int, float], float]:
    """Return (pid, start) → seconds; a pid alone may be another's by now."""
    return {
        (worker["pid"], worker["started"]): worker["cpu"]
        for pool in status["pools"]
        for worker in pool["workers"]
        if worker["cpu"] is not None and worker["started"] is not None
    }


def _format_seconds(seconds: float) -> str:
    """Write a duration in the two units that tell most."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.2f}s" if seconds < 1 else f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"
