"""Pools as text for people and as JSON for programs.

Both have the names, the order and the units of php-fpm's status page (fpm_status.c of
PHP 8.2); what php-fpm does not have stands behind. What is not known is ``-`` in text
and ``null`` in JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .snapshot import PoolView, WorkerView

__all__ = ["describe_pool", "plain", "render_json", "render_text"]

_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_RULE = "*" * 24
_WIDTH = 22


def render_text(pools: Iterable[PoolView], *, full: bool = False) -> str:
    """Write pools as lines ``name: value``, with an empty line between pools.

    Args:
        pools: any number.
        full: with each worker, after a line of asterisks.
    """
    return "\n".join(_pool_as_text(pool, full) for pool in pools)


def render_json(content: Mapping[str, Any]) -> str:
    """Write what `describe_pool` gives, or something around it, in ASCII."""
    return json.dumps(content, separators=(",", ":")) + "\n"


def describe_pool(pool: PoolView, *, full: bool = False) -> dict[str, Any]:
    """Return a pool by php-fpm's names; ``start time`` is in seconds since 1970."""
    found = _pool_items(pool)
    if full:
        found["processes"] = [_worker_items(worker, pool) for worker in pool.workers]
    return found


def plain(text: str) -> str:
    """Return a text without what a terminal or a reader of lines would obey."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


# ---- names and values ---------------------------------------------------------


def _pool_items(pool: PoolView) -> dict[str, Any]:
    queue = pool.queue
    return {
        "pool": pool.name,
        "process manager": pool.manager,
        "start time": int(pool.started),
        "start since": max(0, int(pool.taken - pool.started)),
        "accepted conn": pool.accepted,
        "listen queue": queue.waiting if queue else None,
        "max listen queue": pool.queue_most if queue else None,
        "listen queue len": queue.limit if queue else None,
        "idle processes": pool.idle,
        "active processes": pool.active,
        "total processes": len(pool.workers),
        "max active processes": pool.active_most,
        "max children reached": pool.most_reached,
        "slow requests": pool.slow_requests,
        "active requests": pool.active_requests,
        "restarts": pool.restarts,
    }


def _worker_items(worker: WorkerView, pool: PoolView) -> dict[str, Any]:
    since = None if worker.started is None else max(0.0, pool.taken - worker.started)
    seconds = worker.request_seconds
    if seconds is None:
        seconds = worker.last_seconds
    return {
        "pid": worker.pid or None,
        "state": worker.state.capitalize(),
        "start time": None if worker.started is None else int(worker.started),
        "start since": None if since is None else int(since),
        "requests": worker.requests,
        "request duration": None if seconds is None else int(seconds * 1_000_000),
        "request method": worker.method or None,
        "request uri": worker.uri or None,
        "content length": worker.content_length,
        "script": worker.script or None,
        "remote address": worker.remote or None,
        "active requests": worker.active,
        "memory": worker.rss,
        "cpu time": None if worker.cpu is None else round(worker.cpu, 2),
    }


# ---- text ---------------------------------------------------------------------


def _pool_as_text(pool: PoolView, full: bool) -> str:
    lines = _as_lines(_pool_items(pool))
    if full:
        for worker in pool.workers:
            lines += ["", _RULE, *_as_lines(_worker_items(worker, pool))]
    return "\n".join(lines) + "\n"


def _as_lines(items: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in items.items():
        if name == "start time" and value is not None:
            value = _format_time(value)
        shown = "-" if value is None else plain(str(value))
        title = "request URI" if name == "request uri" else name
        lines.append(f"{title + ':':<{_WIDTH}}{shown}")
    return lines


def _format_time(seconds: int) -> str:
    """Write local time as Apache and php-fpm do, whatever the locale."""
    at = time.localtime(seconds)
    month = _MONTHS[at.tm_mon * 3 - 3 : at.tm_mon * 3]
    return time.strftime(f"%d/{month}/%Y:%H:%M:%S %z", at)
