"""From the file, the environment and the command line to what a supervisor runs.

A value on the command line goes before one of the environment, which goes before one of
the file: of its pool's table first, then of its top. See fcgi-app.toml(5). Nothing here
is changed or opened but the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..addresses import AddressKind, parse_address
from ..errors import ConfigError
from .command import find_pool_command
from .configfile import ConfigFile
from .identity import find_identity, find_owner
from .keys import POOL_KEYS, SERVICE_KEYS, Key, quote
from .pool import PREFIX, PoolConfig, ServiceConfig

__all__ = ["ConfigLoader", "flag_of", "format_config"]

DEFAULT_FILES = ("fcgi-app.toml", "pyproject.toml")
"""Read in the current directory, the first that has something for us."""

DEFAULT_POOL = "main"
"""The name of the pool of a file without pool tables, or of no file."""

_KEYS: dict[str, Key] = {**POOL_KEYS, **SERVICE_KEYS}
_COMMON_WORKERS = "WEB_CONCURRENCY"
"""What hosting services set; stands for ``FCGI_APP_START_WORKERS``."""

_PATH_KEYS = frozenset(("chroot", "pid_file", "log_file"))
_PATH_KEYS |= frozenset(("access_log", "control", "touch_reload"))
_NEEDED_MANAGERS = {
    "min_spare": ("dynamic",),
    "max_spare": ("dynamic",),
    "idle_timeout": ("dynamic", "ondemand"),
}
"""Keys that mean nothing to the other managers."""


@dataclass(frozen=True)
class _Given:
    """A value that somebody has given.

    Attributes:
        value: as `PoolConfig` has it, but ``chdir`` and ``command`` as written.
        where: says where it stands; it may take time to find out.
        base: directory that paths in it are relative to.
    """

    value: Any
    where: Callable[[], str]
    base: str


_Layer = dict[str, _Given]


def flag_of(key: str) -> str:
    """Return the option of a key: ``--stop-timeout`` of ``stop_timeout``."""
    if key == "command":
        return "COMMAND"
    # The option is given once for each limit.
    return "--" + ("rlimit" if key == "rlimits" else key.replace("_", "-"))


@dataclass(frozen=True)
class ConfigLoader:
    """Knows where the configuration comes from; each `load` reads the file again.

    Attributes:
        flags: key → what the command line says: a text, the texts of an option that can
            be repeated, or a bool. Only what was given. ``config`` is the file.
        environ: the environment; ``FCGI_APP_START_*``, ``WEB_CONCURRENCY``, ``PATH``.
        directory: absolute; what relative paths of both are relative to. Those in the
            file are relative to its own directory.
    """

    flags: Mapping[str, str | bool | tuple[str, ...]]
    environ: Mapping[str, str]
    directory: str

    def load(self) -> ServiceConfig:
        """Read everything, and look up programs, users and directories.

        Raises:
            ConfigError: a value is wrong, names where it stands; or there is no such
                user, group or directory.
            AppLoadError: a pool's program is missing or cannot be run.
            OSError: the file cannot be read.
        """
        return self._make(settle=True)

    def parse(self) -> ServiceConfig:
        """Read everything and look nothing up: programs are as they were written.

        Raises:
            ConfigError: as `load`.
            OSError: the file cannot be read.
        """
        return self._make(settle=False)

    def _make(self, *, settle: bool) -> ServiceConfig:
        flags, environment = self._read_flags(), self._read_environment()
        common, tables = self._read_file()
        if len(tables) > 1:
            for key in ("bind", "command"):
                for layer in (flags, environment):
                    if key in layer:
                        _refuse_for_many(layer[key], tables)
        pools = []
        for name, own in tables.items():
            layer = _merge(common, own, environment, flags)
            pools.append(self._make_pool(name, layer, flags, settle))
        layer = _merge(common, environment, flags)
        given = {k: v.value for k, v in layer.items() if k in SERVICE_KEYS}
        with _naming(layer, "configuration"):
            return ServiceConfig(pools=tuple(pools), **given)

    # ---- the three sources --------------------------------------------------------

    def _read_flags(self) -> _Layer:
        layer = {}
        for name, raw in self.flags.items():
            if name == "config":
                continue
            key = _KEYS[name]
            parse: Callable[[Any], Any] = key.from_text
            if isinstance(raw, bool):
                parse = key.from_toml
            elif isinstance(raw, tuple):
                assert key.from_words is not None
                parse = key.from_words
            where = partial(flag_of, name)
            layer[name] = _parse(name, raw, parse, where, self.directory)
        return layer

    def _read_environment(self) -> _Layer:
        layer = {}
        for variable, text in self.environ.items():
            if not variable.startswith(PREFIX) or variable == PREFIX + "CONFIG":
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in _KEYS or variable != PREFIX + name.upper():
                names = ["config", *_KEYS]
                raise _unknown(variable, text, name, names, _variable_of)
            if text:  # empty is how many tools unset
                layer[name] = self._read_variable(name, variable, text)
        text = self.environ.get(_COMMON_WORKERS, "")
        if text and "workers" not in layer:
            layer["workers"] = self._read_variable("workers", _COMMON_WORKERS, text)
        return layer

    def _read_variable(self, name: str, variable: str, text: str) -> _Given:
        parse = _KEYS[name].from_text
        return _parse(name, text, parse, lambda: variable, self.directory)

    def _read_file(self) -> tuple[_Layer, dict[str, _Layer]]:
        """Return the values of the top, and of each pool."""
        file = self._find_file()
        if file is None:
            return {}, {DEFAULT_POOL: {}}
        table = dict(file.table)
        tables = table.pop("pool", {})
        if not isinstance(tables, dict):
            raise ConfigError(file.where("pool"), tables, "must be a table of pools")
        common = _read_table(file, (), table, _KEYS)
        pools: dict[str, _Layer] = {}
        for name, content in tables.items():
            if not isinstance(content, dict):
                raise ConfigError(file.where("pool", name), content, "must be a table")
            pools[name] = _read_table(file, ("pool", name), content, POOL_KEYS)
            where = _where_in(file, ("pool", name))
            pools[name]["name"] = _Given(name, where, file.path)
        return common, pools or {DEFAULT_POOL: {}}

    def _find_file(self) -> ConfigFile | None:
        """Read the file that was asked for, or one of the current directory.

        The latter is left alone when the command is given: whoever could write a file
        into some directory would else have a say in programs that are started there.
        """
        path = self.flags.get("config", self.environ.get(PREFIX + "CONFIG") or None)
        if path is not None:
            assert isinstance(path, str)
            file = ConfigFile.read(os.path.join(self.directory, path))
            if file.top and not file.table:
                table = f"[{'.'.join(file.top)}]"
                raise ConfigError(file.path, table, "there is no such table")
            return file
        if "command" in self.flags or self.environ.get(PREFIX + "COMMAND"):
            return None
        for name in DEFAULT_FILES:
            path = os.path.join(self.directory, name)
            if os.path.exists(path):
                file = ConfigFile.read(path)
                if file.table or not file.top:
                    return file
        return None

    # ---- one pool -----------------------------------------------------------------

    def _make_pool(
        self, name: str, layer: _Layer, flags: _Layer, settle: bool
    ) -> PoolConfig:
        for key, what in (("bind", "an address"), ("command", "a program")):
            if key not in layer:
                reason = f"{what} is needed: {flag_of(key)}, or {key} in a file"
                raise ConfigError(f"pool {name}: {key}", "", reason)
        values = {k: v.value for k, v in layer.items() if k not in SERVICE_KEYS}
        values.setdefault("name", name)
        values["chdir"] = self._working_directory(layer)
        if "min_spare" in values:
            values.setdefault("max_spare", values["min_spare"])
        with _naming(layer, f"pool {name}"):
            pool = PoolConfig(**values)
            for key, managers in _NEEDED_MANAGERS.items():
                if key in flags and pool.manager not in managers:
                    reason = f"is only for the manager {' or '.join(managers)}"
                    raise ConfigError(key, flags[key].value, reason)
            return self._settle(pool, layer["command"].base) if settle else pool

    def _working_directory(self, layer: _Layer) -> str:
        if "chdir" not in layer:
            return "/" if "chroot" in layer else self.directory
        given = layer["chdir"]
        base = "/" if "chroot" in layer else given.base
        return os.path.join(base, given.value)

    def _settle(self, pool: PoolConfig, base: str) -> PoolConfig:
        """Look up what this machine has to have for the pool."""
        find_identity(pool.user, pool.group)
        find_owner(pool.socket_owner)
        root = (pool.chroot or "").rstrip("/")
        if pool.chroot is not None and not os.path.isdir(pool.chroot):
            raise ConfigError("chroot", pool.chroot, "there is no such directory")
        if not os.path.isdir(root + pool.chdir):
            inside = f" in {root}" if root else ""
            raise ConfigError(
                "chdir", pool.chdir, f"there is no such directory{inside}"
            )
        path = dict(pool.env).get("PATH", self.environ.get("PATH", os.defpath))
        command = find_pool_command(
            pool.command,
            directory=base if pool.chroot is None else pool.chdir,
            chroot=pool.chroot,
            path=path,
        )
        return replace(pool, command=command)


# ---- values and where they stand --------------------------------------------------


def _where_in(file: ConfigFile, keys: tuple[str, ...]) -> Callable[[], str]:
    return partial(file.where, *keys)


def _read_table(
    file: ConfigFile, top: tuple[str, ...], table: dict[str, Any], keys: dict[str, Key]
) -> _Layer:
    layer = {}
    for name, value in table.items():
        where = _where_in(file, (*top, name))
        if name not in keys:
            if name in SERVICE_KEYS:
                reason = "is for the supervisor and belongs to the top of the file"
                raise ConfigError(where(), value, reason)
            raise _unknown(where(), value, name, list(keys))
        base = os.path.dirname(file.path)
        layer[name] = _parse(name, value, keys[name].from_toml, where, base)
    return layer


def _parse(
    name: str,
    raw: object,
    parse: Callable[[Any], Any],
    where: Callable[[], str],
    base: str,
) -> _Given:
    try:
        value = parse(raw)
    except ValueError as error:
        shown = " ".join(raw) if isinstance(raw, tuple) else raw  # as it was typed
        raise ConfigError(where(), shown, str(error)) from None
    if name in _PATH_KEYS and value:
        value = os.path.join(base, value)
    elif name == "bind":
        value = tuple(_absolute_address(text, where, base) for text in value)
    elif name == "status_listen":
        value = _absolute_address(value, where, base)
    return _Given(value, where, base)


def _absolute_address(text: str, where: Callable[[], str], base: str) -> str:
    """Return an address that means the same in every directory."""
    try:
        address = parse_address(text)
        if address.kind is AddressKind.UNIX and not address.name.startswith("/"):
            text = "unix:" + os.path.join(base, address.name)
            parse_address(text)  # it is longer now
    except ConfigError as error:
        raise ConfigError(where(), text, error.reason) from None
    return text


def _merge(*layers: _Layer) -> _Layer:
    """Put layers on top of one another, the last one wins."""
    merged: _Layer = {}
    for layer in layers:
        for key, given in layer.items():
            if key in _KEYS and _KEYS[key].merges:
                before = merged[key].value if key in merged else ()
                items = {item[0]: item for item in (*before, *given.value)}
                given = replace(given, value=tuple(items.values()))
            merged[key] = given
    return merged


@contextmanager
def _naming(layer: _Layer, whose: str) -> Iterator[None]:
    """Let a ConfigError that passes say where its setting stands."""
    try:
        yield
    except ConfigError as error:
        given = layer.get(error.setting)
        where = given.where() if given else f"{whose}: {error.setting}"
        raise ConfigError(where, error.value, error.reason) from None


def _variable_of(key: str) -> str:
    return PREFIX + key.upper()


def _unknown(
    where: str,
    value: object,
    name: str,
    names: list[str],
    write: Callable[[str], str] = str,
) -> ConfigError:
    """Say that there is no key ``name``; ``write`` turns keys into what is meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    hint = f", did you mean {write(near[0])}?" if near else ""
    reason = f"no such key{hint} (there are {', '.join(map(write, names))})"
    return ConfigError(where, value, reason)


def _refuse_for_many(given: _Given, tables: Mapping[str, object]) -> None:
    reason = f"the file has several pools, each with its own: {', '.join(tables)}"
    raise ConfigError(given.where(), " ".join(given.value), reason)


# ---- showing ----------------------------------------------------------------------


def format_config(service: ServiceConfig) -> str:
    """Write a configuration as the file that makes it, every value included.

    Raises:
        ConfigError: a value cannot be written as TOML, which is UTF-8.
    """
    lines = _format_items(service, SERVICE_KEYS)
    for pool in service.pools:
        name = pool.name if "." not in pool.name else quote(pool.name)
        lines += ["", f"[pool.{name}]", *_format_items(pool, POOL_KEYS)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _format_items(
    config: ServiceConfig | PoolConfig, keys: Mapping[str, Key]
) -> list[str]:
    lines = []
    for name, key in keys.items():
        value = getattr(config, name)
        managers = _NEEDED_MANAGERS.get(name)
        unused = managers and getattr(config, "manager", None) not in managers
        if value is None or unused:
            continue
        try:
            lines.append(f"{name} = {key.to_toml(value)}")
        except ValueError as error:
            raise ConfigError(name, value, str(error)) from None
    return lines
