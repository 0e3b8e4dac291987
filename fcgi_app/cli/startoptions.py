"""The options of ``fcgi-app start``: one for each key of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..launcher.config import flag_of
from ..launcher.pool import MANAGERS, PoolConfig
from .words import completer

__all__ = ["add_options"]

_REPEATED = frozenset(("bind", "env", "rlimits"))
_UNSAID = frozenset(("max_spare", "chdir", "status_path", "ping_path"))
"""Keys whose default is told in the help text."""

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _option(key: str, metavar: str, text: str) -> _Decorator:
    """Make the option of a key; its value stays text, which the configuration reads."""
    default = getattr(PoolConfig, key, None)
    if default is not None and default != () and key not in _UNSAID:
        shown = f"{default:g}" if isinstance(default, float) else default
        text = f"{text}  [default: {shown}]"
    repeated = key in _REPEATED
    return click.option(
        flag_of(key),
        key,
        metavar=metavar,
        multiple=repeated,
        help=text,
        shell_complete=completer(metavar),
    )


def _switch(key: str, text: str) -> _Decorator:
    flag = flag_of(key)
    return click.option(f"{flag}/--no-{flag[2:]}", key, default=None, help=text)


_OPTIONS = (
    _option(
        "bind",
        "ADDRESS",
        "Listen there: unix:PATH, @NAME, HOST:PORT, [IPV6]:PORT, :PORT, "
        "fd:N or systemd. Can be given more than once.",
    ),
    _option(
        "workers",
        "NUMBER",
        "Processes for each address; the most there may be, unless "
        "the manager is static.",
    ),
    _option("manager", "|".join(MANAGERS), "How the number of processes is decided."),
    _option("min_spare", "NUMBER", "dynamic: processes that always run."),
    _option(
        "max_spare",
        "NUMBER",
        "dynamic: idle processes that may stay; as --min-spare if not given.",
    ),
    _option(
        "idle_timeout",
        "SECONDS",
        "dynamic, ondemand: how long a process is idle before it is stopped.",
    ),
    _option(
        "stop_timeout",
        "SECONDS",
        "How long a process may finish its request before it is killed.",
    ),
    _option("max_lifetime", "SECONDS", "Replace a process that is so old; 0: never."),
    _option(
        "max_requests",
        "NUMBER",
        "Replace a process that has answered so many requests; 0: never.",
    ),
    _option(
        "max_rss",
        "BYTES",
        "Replace a process whose resident memory is more: 512M, 1G; 0: never.",
    ),
    _option(
        "jitter",
        "FRACTION",
        "Make each lifetime and number of requests less by up to this part, 0 to 1.",
    ),
    _option(
        "request_timeout",
        "SECONDS",
        "End a process whose request takes longer; 0: never.",
    ),
    _option(
        "slow_log",
        "SECONDS",
        "Report a request that takes longer, with a traceback; 0: none.",
    ),
    _option(
        "status_path", "PATH", "Answer requests with this SCRIPT_NAME with the state."
    ),
    _option("ping_path", "PATH", "Answer requests with this SCRIPT_NAME with 'pong'."),
    _option("access_log", "FILE", "Append a line for each request to this file."),
    _option(
        "access_format",
        "FORMAT",
        "Of these lines: common, combined, json, or directives as %r.",
    ),
    _option("backlog", "NUMBER", "Connections that wait for a process."),
    _option(
        "socket_mode",
        "OCTAL",
        "Permissions of socket files; the web server's user needs write permission.",
    ),
    _option("socket_owner", "USER[:GROUP]", "Owner of socket files."),
    _option("user", "NAME", "Run the processes as this user."),
    _option("group", "NAME", "Run the processes as this group."),
    _option("chroot", "DIRECTORY", "Root directory of the processes."),
    _option(
        "chdir",
        "DIRECTORY",
        "Working directory of the processes; the current one if not given.",
    ),
    _option("umask", "OCTAL", "File mode creation mask of the processes."),
    _option(
        "env",
        "NAME=VALUE",
        "Add a variable to the environment of the processes. Can be "
        "given more than once.",
    ),
    _option(
        "rlimits",
        "NAME=SOFT[:HARD]",
        "Limit a resource, as in nofile=4096 or "
        "core=unlimited. Can be given more than once.",
    ),
    _option("pid_file", "FILE", "Write the process id there, and hold a lock on it."),
    _option("log_file", "FILE", "Append the standard error of all to this file."),
    _option(
        "control", "FILE", "Let fcgi-app status, reload, stop and scale in, there."
    ),
    _option("status_listen", "ADDRESS", "Serve the state of all pools there."),
    _switch("reload", "Reload when a source file changes; for development."),
    _option("touch_reload", "FILE", "Reload when this file changes."),
    _switch("daemon", "Leave the terminal when the pool has started."),
)


def add_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a click command with all of them; what is not given is None or ()."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command
