"""What a new worker does to itself between fork and exec."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from .identity import Identity, find_identity
from .pool import PoolConfig

__all__ = ["prepare_child"]


def prepare_child(pool: PoolConfig) -> Callable[[], None]:
    """Return what a forked child has to do for this pool.

    Names are looked up now, not in the child. When a step fails, the child says which
    on descriptor 2 and raises OSError.

    Raises:
        ConfigError: there is no such user or group.
    """
    identity = find_identity(pool.user, pool.group)

    def set_up() -> None:
        for what, step in _steps(pool, identity):
            try:
                step()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                os.write(2, f"pool {pool.name}: {what}: {reason}\n".encode())
                raise

    return set_up


def _steps(
    pool: PoolConfig, identity: Identity | None
) -> list[tuple[str, Callable[[], object]]]:
    """Return the steps in their order, each with the setting that it comes from."""
    steps: list[tuple[str, Callable[[], object]]] = []
    for limit in pool.rlimits:
        number, pair = limit.number, (limit.soft, limit.hard)
        steps.append((f"rlimit {limit.name}", _setter(number, pair)))
    root = pool.chroot
    if root is not None:  # before the user changes, who may not do it any more
        steps.append((f"chroot {root}", lambda: os.chroot(root)))
    if identity is not None:
        steps += _become(identity)
    # As the user whom the directory may be open to; after chroot it is inside.
    steps.append((f"chdir {pool.chdir}", lambda: os.chdir(pool.chdir)))
    mask = pool.umask
    if mask is not None:
        steps.append(("umask", lambda: os.umask(mask)))
    return steps


def _setter(number: int, pair: tuple[int, int]) -> Callable[[], object]:
    return lambda: resource.setrlimit(number, pair)


def _become(identity: Identity) -> list[tuple[str, Callable[[], object]]]:
    """Return the steps in the one order that works: groups, group, user."""
    groups, gid, uid = identity.groups, identity.gid, identity.uid
    steps: list[tuple[str, Callable[[], object]]] = []
    # Whoever is it already needs no right to become it.
    if groups is not None and set(groups) != set(os.getgroups()):
        steps.append(("supplementary groups", lambda: os.setgroups(groups)))
    if gid is not None:
        steps.append((f"group {gid}", lambda: os.setgid(gid)))
    if uid is not None:
        steps.append((f"user {uid}", lambda: os.setuid(uid)))
    return steps
