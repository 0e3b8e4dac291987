"""Users and groups by name or number: who the workers are, who owns a socket file."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ConfigError
from .pool import PREFIX, PoolConfig

__all__ = [
    "UNCHANGED",
    "Identity",
    "find_identity",
    "find_owner",
    "find_user",
    "worker_environment",
]

UNCHANGED = -1
"""What chown(2) takes for an id that stays."""

_OF_SYSTEMD = frozenset(("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))
_OF_SYSTEMD |= frozenset(("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
"""For the supervisor alone: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)."""

_HIGHEST_ID = 2**32 - 2
"""Of uid_t on Linux; the next is UNCHANGED."""


@dataclass(frozen=True)
class Identity:
    """What a process has to become; in the order groups, gid, uid.

    Attributes:
        uid: user id; None: it stays.
        gid: group id; None: it stays.
        groups: supplementary group ids, which replace all others; None: they stay.
    """

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None


def find_identity(user: str | None, group: str | None) -> Identity | None:
    """Look up whom the workers shall run as.

    With a user, the supplementary groups are those of its login. With a group and no
    user they are that group alone, if this process is root, which alone may change
    them. A number that is in no database has no groups but ``group``.

    Args:
        user: name or number; a name is tried first. None: no change.
        group: the same; None: the login group of ``user``.

    Returns:
        None if both are None.

    Raises:
        ConfigError: there is none of that name, or a number without login group needs
            ``group``; ``setting`` is ``user`` or ``group``.
    """
    if user is None and group is None:
        return None
    gid = None if group is None else _find_group("group", group)
    if user is None:
        return Identity(None, gid, _only(gid) if os.geteuid() == 0 else None)
    entry = _find_entry("user", user)
    if entry is None:
        if gid is None:
            reason = "has no login group, so a group must be given"
            raise ConfigError("user", user, reason)
        return Identity(int(user), gid, (gid,))
    gid = entry.pw_gid if gid is None else gid
    return Identity(entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)))


def _only(gid: int | None) -> tuple[int, ...]:
    return () if gid is None else (gid,)


def find_owner(owner: str | None) -> tuple[int, int]:
    """Look up ``USER``, ``USER:GROUP`` or ``:GROUP``.

    Returns:
        User id and group id, as ``os.chown`` takes them; UNCHANGED for what is not
        given.

    Raises:
        ConfigError: there is none of that name; ``setting`` is ``socket_owner``.
    """
    user, _, group = (owner or "").partition(":")
    uid = gid = UNCHANGED
    if user:
        uid = find_user("socket_owner", user)
    if group:
        gid = _find_group("socket_owner", group)
    return uid, gid


def find_user(setting: str, user: str) -> int:
    """Return the id of a user that is given by name or by number.

    Raises:
        ConfigError: there is none of that name, in ``setting``.
    """
    entry = _find_entry(setting, user)
    return int(user) if entry is None else entry.pw_uid


def worker_environment(pool: PoolConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a pool's workers.

    It is ``environ`` without the settings of the supervisor and what systemd tells it;
    for another user with HOME, USER and LOGNAME of that user; and with the
    pool's ``env`` last.

    Raises:
        ConfigError: there is no such user.
    """
    env = {
        name: value
        for name, value in environ.items()
        if not name.startswith(PREFIX) and name not in _OF_SYSTEMD
    }
    entry = None if pool.user is None else _find_entry("user", pool.user)
    if entry is not None:
        env["HOME"] = entry.pw_dir
        env["USER"] = env["LOGNAME"] = entry.pw_name
    env.update(pool.env)
    return env


def _find_entry(setting: str, user: str) -> pwd.struct_passwd | None:
    """Return the entry of a user; None for a number that has none."""
    # It may be a number. ValueError: not of the locale's characters.
    with suppress(KeyError, ValueError):
        return pwd.getpwnam(user)
    number = _parse_id(user)
    if number is None:
        raise ConfigError(setting, user, "there is no such user")
    try:
        return pwd.getpwuid(number)
    except KeyError:
        return None


def _find_group(setting: str, group: str) -> int:
    with suppress(KeyError, ValueError):  # as above
        return grp.getgrnam(group).gr_gid
    number = _parse_id(group)
    if number is None:
        raise ConfigError(setting, group, "there is no such group")
    return number


def _parse_id(text: str) -> int | None:
    """Return the number of a text that is one, and an id; else None."""
    if text.isascii() and text.isdigit() and len(text) <= 10:
        number = int(text)
        if number <= _HIGHEST_ID:
            return number
    return None
