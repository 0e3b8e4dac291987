"""Pools as OpenMetrics 1.0, which Prometheus reads.

https://prometheus.io/docs/specs/om/open_metrics_spec/ . What is not known has no line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .snapshot import PoolView, WorkerView

__all__ = ["CONTENT_TYPE", "render_openmetrics"]

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_Number = int | float | None


class _Family(NamedTuple):
    """A metric family of a pool or of a worker."""

    name: str  # without the prefix and without what the kind adds
    kind: str
    text: str
    unit: str = ""


_POOL: Sequence[tuple[_Family, Callable[[PoolView], _Number]]] = (
    (
        _Family("start_time", "gauge", "When the pool was started.", "seconds"),
        lambda pool: pool.started,
    ),
    (
        _Family("requests", "counter", "Requests that the workers have got."),
        lambda pool: pool.accepted,
    ),
    (
        _Family("listen_queue", "gauge", "Connections that wait to be accepted."),
        lambda pool: pool.queue.waiting if pool.queue else None,
    ),
    (
        _Family("max_listen_queue", "gauge", "The most that were seen waiting."),
        lambda pool: pool.queue_most if pool.queue else None,
    ),
    (
        _Family("listen_queue_limit", "gauge", "Connections that may wait."),
        lambda pool: pool.queue.limit if pool.queue else None,
    ),
    (
        _Family("active_requests", "gauge", "Requests that are being served."),
        lambda pool: pool.active_requests,
    ),
    (
        _Family("max_active_processes", "gauge", "The most workers seen running."),
        lambda pool: pool.active_most,
    ),
    (
        _Family("max_children_reached", "counter", "Workers wanted beyond the most."),
        lambda pool: pool.most_reached,
    ),
    (
        _Family("slow_requests", "counter", "Requests longer than slow_log."),
        lambda pool: pool.slow_requests,
    ),
    (
        _Family("restarts", "counter", "Workers that died and were replaced."),
        lambda pool: pool.restarts,
    ),
)

_WORKER: Sequence[tuple[_Family, Callable[[WorkerView], _Number]]] = (
    (
        _Family("process_requests", "counter", "Requests that a worker has finished."),
        lambda worker: worker.requests,
    ),
    (
        _Family(
            "process_request",
            "gauge",
            "How long the oldest request of a worker has been running.",
            "seconds",
        ),
        lambda worker: worker.request_seconds,
    ),
    (
        _Family(
            "process_resident_memory", "gauge", "Resident memory of a worker.", "bytes"
        ),
        lambda worker: worker.rss,
    ),
    (
        _Family(
            "process_cpu", "counter", "Processor time of a worker so far.", "seconds"
        ),
        lambda worker: worker.cpu,
    ),
    (
        _Family("process_start_time", "gauge", "When a worker was started.", "seconds"),
        lambda worker: worker.started,
    ),
)

_STATES = ("starting", "idle", "running", "ending", "unknown")


def render_openmetrics(pools: Iterable[PoolView], *, full: bool = False) -> str:
    """Write pools as metric families with the label ``pool``.

    Args:
        pools: any number, with different names.
        full: with numbers of each worker, whose label ``pid`` is new all the time.
    """
    seen = tuple(pools)
    lines = _head(_Family("up", "gauge", "Whether there is an answer: 1."))
    lines += [_line("up", {"pool": pool.name}, 1) for pool in seen]
    lines += _head(_Family("pool", "info", "How a pool is configured."))
    for pool in seen:
        labels = {"pool": pool.name, "manager": pool.manager}
        lines.append(_line("pool_info", labels, 1))
    lines += _head(_Family("processes", "gauge", "Workers by what they do."))
    for pool in seen:
        for state in _STATES:
            number = sum(_state_of(worker) == state for worker in pool.workers)
            lines.append(
                _line("processes", {"pool": pool.name, "state": state}, number)
            )
    for family, value_of in _POOL:
        lines += _head(family)
        for pool in seen:
            lines += _sample(family, {"pool": pool.name}, value_of(pool))
    for worker_family, number_of in _WORKER if full else ():
        lines += _head(worker_family)
        for pool in seen:
            for worker in pool.workers:
                labels = {"pool": pool.name, "pid": str(worker.pid)}
                value = number_of(worker) if worker.pid else None
                lines += _sample(worker_family, labels, value)
    return "\n".join([*lines, "# EOF"]) + "\n"


def _state_of(worker: WorkerView) -> str:
    """Return the one state that a worker is counted for."""
    return "running" if worker.is_running else worker.state


def _full_name(family: _Family) -> str:
    return f"{family.name}_{family.unit}" if family.unit else family.name


def _head(family: _Family) -> list[str]:
    name = "fcgi_app_" + _full_name(family)
    unit = [f"# UNIT {name} {family.unit}"] if family.unit else []
    return [f"# TYPE {name} {family.kind}", *unit, f"# HELP {name} {family.text}"]


def _sample(family: _Family, labels: dict[str, str], value: _Number) -> list[str]:
    if value is None:
        return []
    suffix = "_total" if family.kind == "counter" else ""
    return [_line(_full_name(family) + suffix, labels, value)]


def _line(name: str, labels: dict[str, str], value: int | float) -> str:
    pairs = ",".join(f'{key}="{_quoted(text)}"' for key, text in labels.items())
    shown = f"{value:.3f}" if isinstance(value, float) else value
    return f"fcgi_app_{name}{{{pairs}}} {shown}"


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
