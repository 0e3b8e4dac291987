"""What a pool of workers is: values only, checked when they are made.

`fcgi_app.launcher.config` makes them from a file, the environment and the command line;
the supervisor reads them. The names are the keys of fcgi-app.toml(5).
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, NamedTuple, get_args

from ..addresses import Address, AddressKind, parse_address
from ..errors import ConfigError

__all__ = [
    "MANAGERS",
    "MAX_WORKERS",
    "PREFIX",
    "STATUS_POOL",
    "Manager",
    "PoolConfig",
    "Rlimit",
    "ServiceConfig",
    "rlimit_names",
]

Manager = Literal["static", "dynamic", "ondemand"]
"""How the number of workers is decided, in the words of php-fpm's ``pm``."""

MANAGERS: tuple[Manager, ...] = get_args(Manager)

PREFIX = "FCGI_APP_START_"
"""Of the environment variables of the supervisor; a setting of `fcgi_app.settings`
never begins so."""

STATUS_POOL = "status"
"""The name of the pool that serves ``status_listen``; no other has it then."""

MAX_WORKERS = 10_000
"""More processes than one machine runs; whoever writes more has slipped."""

MAX_URI_PATH = 127
"""Bytes of a status or ping path: room that a scoreboard has."""


class Rlimit(NamedTuple):
    """One limit of setrlimit(2) for the workers.

    Attributes:
        name: as in the constant of <sys/resource.h>, without ``RLIMIT_``, in lower
            case: ``nofile``.
        soft: what is enforced; ``resource.RLIM_INFINITY`` for none.
        hard: how far a worker may raise it; the same unit.
    """

    name: str
    soft: int
    hard: int

    @property
    def number(self) -> int:
        """The constant that setrlimit(2) takes."""
        return int(getattr(resource, "RLIMIT_" + self.name.upper()))


def rlimit_names() -> tuple[str, ...]:
    """Return the names of the limits that this system has, sorted."""
    prefix = "RLIMIT_"
    return tuple(
        sorted(
            name.removeprefix(prefix).lower()
            for name in vars(resource)
            if name.startswith(prefix)
        )
    )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """One pool: a command, the sockets that its workers share, and how many there are.

    Times are in seconds; 0 means never, unless it says otherwise.

    Attributes:
        name: what log lines call it.
        bind: addresses to listen on (forms: `fcgi_app.addresses`), at least one. A
            worker has one of them on descriptor 0: with several addresses there are
            ``workers`` workers for each.
        command: program and arguments, as execve(2) gets them; at least the program.
            The program is an absolute path (inside ``chroot``, if there is one).
        manager: ``static``: always ``workers`` workers; ``dynamic``: between
            ``min_spare`` and ``workers``; ``ondemand``: between none and ``workers``.
        workers: the most workers that run at a time for an address (static: the
            number), while none is being replaced.
        min_spare: dynamic: workers that are started at first and always run.
        max_spare: dynamic: workers that may stay though they have nothing to do; from
            ``min_spare`` to ``workers``.
        idle_timeout: dynamic and ondemand: a worker that is not needed is stopped when
            it has done nothing for so long; greater than 0. php-fpm:
            pm.process_idle_timeout 10 s.
        stop_timeout: how long a worker may go on after SIGTERM before SIGKILL; 0: no
            time at all.
        max_lifetime: a worker so old is replaced; 0: never.
        max_requests: a worker that has answered so many requests is replaced; 0: never.
            php-fpm: pm.max_requests.
        max_rss: a worker whose resident memory is more bytes than this is replaced; 0:
            never.
        jitter: each worker's lifetime and number of requests are less by up to this
            fraction of ``max_lifetime`` and ``max_requests``, 0 to 1, so that not all
            are replaced at once.
        request_timeout: a worker whose request takes longer is ended; 0: never.
            php-fpm: request_terminate_timeout.
        slow_log: a request that takes longer is reported, with a traceback; 0: none.
            php-fpm: request_slowlog_timeout.
        status_path: requests with this SCRIPT_NAME get the state of the pool as
            answer; empty: none. php-fpm: pm.status_path.
        ping_path: requests with this SCRIPT_NAME get ``pong`` as answer; empty: none.
            php-fpm: ping.path.
        access_log: absolute path of a file that gets a line for each request, outside
            of ``chroot``; None: none.
        access_format: of these lines, see `fcgi_app.accesslog`.
        backlog: connections that wait for an accept, see listen(2).
        socket_mode: permission bits of socket files; None: 0o777 without the umask.
        socket_owner: ``USER``, ``USER:GROUP`` or ``:GROUP`` that owns socket files;
            names or numbers; None: whoever starts the pool.
        user: name or number that the workers run as; None: as the supervisor.
        group: the same for the group; None: the login group of ``user``.
        chroot: root directory of the workers, absolute; None: no change.
        chdir: working directory of the workers, absolute, inside ``chroot``.
        umask: of the workers; None: that of the supervisor.
        env: name-value pairs that are added to the environment of the workers; a later
            pair replaces an earlier one.
        rlimits: limits of the workers, each at most once.

    Raises:
        ConfigError: a value is out of its range; ``setting`` is the attribute's name.
    """

    name: str = "main"
    bind: tuple[str, ...]
    command: tuple[str, ...]
    manager: Manager = "static"
    workers: int = 1
    min_spare: int = 1
    max_spare: int = 1
    idle_timeout: float = 10.0
    stop_timeout: float = 30.0
    max_lifetime: float = 0.0
    max_requests: int = 0
    max_rss: int = 0
    jitter: float = 0.1
    request_timeout: float = 0.0
    slow_log: float = 0.0
    status_path: str = ""
    ping_path: str = ""
    access_log: str | None = None
    access_format: str = "common"
    backlog: int = 1024
    socket_mode: int | None = None
    socket_owner: str | None = None
    user: str | None = None
    group: str | None = None
    chroot: str | None = None
    chdir: str = "/"
    umask: int | None = None
    env: tuple[tuple[str, str], ...] = ()
    rlimits: tuple[Rlimit, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            check = _CHECKS.get(field.name)
            value = getattr(self, field.name)
            if check is not None and value is not None:
                reason = check(value)
                if reason:
                    raise ConfigError(field.name, _shown(value), reason)
        self._check_together()

    def _check_together(self) -> None:
        """Check what depends on two values."""
        if self.manager == "dynamic":
            if self.min_spare > self.workers:
                reason = f"must not be more than workers, which is {self.workers}"
                raise ConfigError("min_spare", self.min_spare, reason)
            if not self.min_spare <= self.max_spare <= self.workers:
                reason = (
                    f"must be from min_spare, which is {self.min_spare}, to workers, "
                    f"which is {self.workers}"
                )
                raise ConfigError("max_spare", self.max_spare, reason)
        if self.ping_path and self.ping_path == self.status_path:
            raise ConfigError("ping_path", self.ping_path, "is the status_path as well")
        for setting in ("socket_mode", "socket_owner"):
            value = getattr(self, setting)
            if value is not None and not any(map(_has_file, self.bind)):
                value = f"{value:04o}" if isinstance(value, int) else value
                reason = f"no address of {', '.join(self.bind)} is a socket file"
                raise ConfigError(setting, value, reason)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What one supervisor runs.

    Attributes:
        pools: at least one, with different names and addresses.
        daemon: leave the terminal when all pools have started.
        pid_file: absolute path of a file with the supervisor's process id; None: none.
        log_file: absolute path that standard output and error of the supervisor and
            of the workers are appended to; SIGUSR1 opens it again. None: they stay what
            they are (``daemon``: /dev/null).
        control: absolute path of the socket that fcgi-app status, reload, stop and
            scale talk to; None: none.
        status_listen: address where the state of all pools is served, by a process of
            its own; None: nowhere.
        reload: reload whenever a source file of the pools has changed.
        touch_reload: absolute path of a file whose change reloads; None: none.

    Raises:
        ConfigError: two pools have the same name or address, or there is none; or a
            path or address is none, or the control socket has the address of a pool.
    """

    pools: tuple[PoolConfig, ...]
    daemon: bool = False
    pid_file: str | None = None
    log_file: str | None = None
    control: str | None = None
    status_listen: str | None = None
    reload: bool = False
    touch_reload: str | None = None

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError("pool", (), "there must be at least one")
        names: set[str] = set()
        owners: dict[Any, str] = {}
        for pool in self.pools:
            if pool.name in names:
                raise ConfigError("name", pool.name, "two pools have this name")
            names.add(pool.name)
            for text in pool.bind:
                if not _is_fixed(text):
                    continue
                address = parse_address(text)
                other = owners.setdefault(address, pool.name)
                if other != pool.name:
                    reason = f"the pools {other} and {pool.name} have the same address"
                    raise ConfigError("bind", text, reason)
        for setting in ("pid_file", "log_file", "control", "touch_reload"):
            path = getattr(self, setting)
            if path is not None and (reason := _check_path(path)):
                raise ConfigError(setting, path, reason)
        if self.status_listen is not None:
            if STATUS_POOL in names:
                reason = "with status_listen this is the name of the pool for it"
                raise ConfigError("name", STATUS_POOL, reason)
            address = _parse_listening("status_listen", self.status_listen)
            if address in owners and _is_fixed(self.status_listen):
                reason = f"the pool {owners[address]} has the same address"
                raise ConfigError("status_listen", self.status_listen, reason)
            owners[address] = STATUS_POOL
        if self.control is not None:
            address = _parse_listening("control", f"unix:{self.control}")
            if address in owners:
                reason = f"the pool {owners[address]} has the same address"
                raise ConfigError("control", self.control, reason)


# ---- one value: each check returns what is wrong, or "" -----------------------


def _shown(value: object) -> object:
    """Return a value for a message; of pairs the names, as the rest may be secret."""
    if not isinstance(value, tuple):
        return value
    return " ".join(each if isinstance(each, str) else each[0] for each in value)


def _has_file(address: str) -> bool:
    return parse_address(address).kind is AddressKind.UNIX


def _is_fixed(address: str) -> bool:
    """Tell whether two sockets cannot have the address; port 0 is a new one each."""
    parsed = parse_address(address)
    return parsed.kind is not AddressKind.TCP or parsed.number != 0


def _parse_listening(setting: str, text: str) -> Address:
    try:
        return parse_address(text)
    except ConfigError as error:
        raise ConfigError(setting, text, error.reason) from None


def _check_name(value: str) -> str:
    good = value and all(c.isascii() and (c.isalnum() or c in "_.-") for c in value)
    return "" if good else "must be of letters, digits, '_', '.' and '-'"


def _check_bind(value: tuple[str, ...]) -> str:
    if not value:
        return "there must be at least one address"
    seen = set()
    for text in value:
        address = _parse_listening("bind", text)
        if address in seen and _is_fixed(text):
            return f"{text!r} is there twice"
        seen.add(address)
    return ""


def _check_command(value: tuple[str, ...]) -> str:
    if not value or not value[0]:
        return "there must be a program"
    return "contains a NUL character" if any("\0" in word for word in value) else ""


def _check_path(value: str) -> str:
    if "\0" in value:
        return "contains a NUL character"
    return "" if value.startswith("/") else "must be an absolute path"


def _check_uri_path(value: str) -> str:
    if not value:
        return ""
    if len(value.encode("utf-8", "surrogateescape")) > MAX_URI_PATH:
        return f"must have at most {MAX_URI_PATH} bytes"
    good = value.startswith("/") and value.isprintable() and "?" not in value
    return "" if good else "must be the path of a URI: '/', and no '?' in it"


def _check_format(value: str) -> str:
    from ..accesslog import parse_format  # only where somebody has set it

    if value == PoolConfig.access_format:
        return ""
    if not value.isprintable():
        return "must be of printable characters"
    try:
        parse_format(value)
    except ConfigError as error:
        return error.reason
    return ""


def _check_not_empty(value: str) -> str:
    return "" if value and "\0" not in value else "must be a name or a number"


def _check_owner(value: str) -> str:
    user, colon, group = value.partition(":")
    good = (user or group) and not (colon and not group) and "\0" not in value
    return "" if good else "must be USER, USER:GROUP or :GROUP"


def _check_env(value: tuple[tuple[str, str], ...]) -> str:
    for name, content in value:
        if not name or "=" in name or "\0" in name + content:
            return f"{name!r} is no NAME=VALUE of an environment"
    return ""


def _check_rlimits(value: tuple[Rlimit, ...]) -> str:
    known = rlimit_names()
    seen = set()
    for limit in value:
        if limit.name not in known:
            return f"{limit.name!r} is no limit; there are {', '.join(known)}"
        if limit.name in seen:
            return f"{limit.name!r} is there twice"
        seen.add(limit.name)
        highest = float("inf") if limit.hard == resource.RLIM_INFINITY else limit.hard
        lowest = float("inf") if limit.soft == resource.RLIM_INFINITY else limit.soft
        for number in (limit.soft, limit.hard):
            if number != resource.RLIM_INFINITY and not 0 <= number < 2**63:
                return f"{limit.name!r} must be from 0 to {2**63 - 1}, or unlimited"
        if lowest > highest:
            return f"{limit.name!r} has a soft limit above its hard limit"
    return ""


def _whole(low: int, high: int) -> Callable[[Any], str]:
    def check(value: int) -> str:
        return "" if low <= value <= high else f"must be from {low} to {high}"

    return check


def _bits(value: int) -> str:
    return "" if 0 <= value <= 0o777 else "must be from 0 to 0o777"


def _seconds(value: float) -> str:
    return "" if isfinite(value) and value >= 0 else "must be a number from 0 on"


def _some_seconds(value: float) -> str:
    return "" if isfinite(value) and value > 0 else "must be a number greater than 0"


def _fraction(value: float) -> str:
    return "" if 0 <= value <= 1 else "must be a number from 0 to 1"


def _check_manager(value: str) -> str:
    return "" if value in MANAGERS else f"must be one of {', '.join(MANAGERS)}"


_CHECKS: dict[str, Callable[[Any], str]] = {
    "name": _check_name,
    "bind": _check_bind,
    "command": _check_command,
    "manager": _check_manager,
    "workers": _whole(1, MAX_WORKERS),
    "min_spare": _whole(1, MAX_WORKERS),
    "max_spare": _whole(1, MAX_WORKERS),
    "idle_timeout": _some_seconds,
    "stop_timeout": _seconds,
    "max_lifetime": _seconds,
    "max_requests": _whole(0, 2**32 - 1),
    "max_rss": _whole(0, 2**63 - 1),
    "jitter": _fraction,
    "request_timeout": _seconds,
    "slow_log": _seconds,
    "status_path": _check_uri_path,
    "ping_path": _check_uri_path,
    "access_log": _check_path,
    "access_format": _check_format,
    "backlog": _whole(1, 2**31 - 1),
    "socket_mode": _bits,
    "socket_owner": _check_owner,
    "user": _check_not_empty,
    "group": _check_not_empty,
    "chroot": _check_path,
    "chdir": _check_path,
    "umask": _bits,
    "env": _check_env,
    "rlimits": _check_rlimits,
}
