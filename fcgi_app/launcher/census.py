"""What a supervisor knows of its workers, for `Supervision.report`."""

from __future__ import annotations

import os
import time
from typing import Any

from .._version import __version__
from .generation import Generation
from .member import Member
from .roster import Roster
from .succession import Succession

__all__ = ["build_report"]


def build_report(
    succession: Succession, started: float, stopping: bool
) -> dict[str, Any]:
    """Describe everything in values that JSON has; the keys are those of the protocol.

    Args:
        succession: all workers.
        started: when the supervisor was started, seconds since 1970.
        stopping: it has been asked to stop.
    """
    offset = time.time() - time.monotonic()
    pools: dict[str, dict[str, Any]] = {}
    latest = succession.latest
    # Whoever serves says what the pool is; those who come and leave are there as well.
    for generation in sorted(succession, key=lambda each: each is not latest):
        for roster in generation.rosters:
            if generation is latest or roster.members:
                pool = pools.setdefault(roster.pool.name, _describe_pool(roster))
                _add_roster(pool, roster, generation, latest, offset)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "started": started,
        "state": _state(succession, stopping),
        "pools": list(pools.values()),
    }


def _state(succession: Succession, stopping: bool) -> str:
    if stopping:
        return "stopping"
    if succession.current is None:
        return "starting"
    return "running" if succession.coming is None else "reloading"


def _describe_pool(roster: Roster) -> dict[str, Any]:
    pool = roster.pool
    return {
        "name": pool.name,
        "manager": pool.manager,
        "command": list(pool.command),
        "addresses": [],
        "most": roster.most,
        "workers": [],
    }


def _add_roster(
    pool: dict[str, Any],
    roster: Roster,
    generation: Generation,
    latest: Generation | None,
    offset: float,
) -> None:
    address = roster.listener.address
    if generation is latest:
        pool["addresses"].append(address)
    for member in roster.members:
        pool["workers"].append(_describe_member(member, address, offset))


def _describe_member(member: Member, address: str, offset: float) -> dict[str, Any]:
    state = "serving" if member.ready else "starting"
    return {
        "pid": member.pid,
        "address": address,
        "slot": None if member.seat is None else member.seat.number,
        "state": "leaving" if member.leaves else state,
        "started": member.started + offset,
        "leaving": member.leaves,
    }
