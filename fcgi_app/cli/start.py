"""The subcommand ``fcgi-app start``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from .._log import log_info
from .._version import __version__
from ..errors import AppLoadError, WorkerError
from ..launcher.config import ConfigLoader, flag_of, format_config
from ..launcher.daemon import fork_daemon
from ..launcher.handover import is_executed_again
from ..launcher.pool import MANAGERS, PREFIX, PoolConfig, ServiceConfig
from ..launcher.relay import LogStream, Outlet
from ..launcher.supervisor import Supervisor
from ..sockets import plug_standard_descriptors

__all__ = ["start"]

EXIT_COMMAND = 3
"""The command cannot be run, or its workers end at once."""
EXIT_SIGNAL = 128

_REPEATED = frozenset(("bind", "env", "rlimits"))
_UNSAID = frozenset(("max_spare", "chdir"))
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
        flag_of(key), key, metavar=metavar, multiple=repeated, help=text
    )


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
        "jitter", "FRACTION", "Shorten each lifetime by up to this part, from 0 to 1."
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
)


def _add_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Run a pool of processes that serve FastCGI.",
    epilog=f"Every setting can be written into a file, and be given by a variable "
    f"of the environment: {PREFIX}STOP_TIMEOUT=5 is --stop-timeout 5.",
)
@click.argument(
    "command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]"
)
@_add_options
@click.option(
    "--daemon/--no-daemon",
    default=None,
    help="Leave the terminal when the pool has started.",
)
@click.option(
    "--config",
    metavar="FILE",
    help="Read this TOML file, or the table [tool.fcgi-app] of a pyproject.toml. "
    "Without it and without COMMAND: fcgi-app.toml or pyproject.toml, if there is one.",
)
@click.option("--check-config", is_flag=True, help="Check all settings and exit.")
@click.option(
    "--print-config", is_flag=True, help="Show all settings as TOML and exit."
)
def start(check_config: bool, print_config: bool, **given: Any) -> int:
    """Run a pool of processes of COMMAND that serve FastCGI.

    COMMAND is any FastCGI program; each process has the listening socket on descriptor
    0. One that ends is replaced. A Python script needs no execute bit.
    """
    flags = {key: value for key, value in given.items() if value not in (None, ())}
    loader = ConfigLoader(flags, os.environ.copy(), os.getcwd())
    try:
        if print_config:
            # TOML is UTF-8, whatever the locale.
            click.echo(format_config(loader.load()).encode(), nl=False)
            return 0
        service = loader.load()
        if check_config:
            names = ", ".join(pool.name for pool in service.pools)
            click.echo(f"configuration is good: {names}")
            return 0
        return _serve(service, loader.load)
    except (AppLoadError, WorkerError) as error:
        click.echo(f"fcgi-app: error: {error}", err=True)
        return EXIT_COMMAND


def _serve(service: ServiceConfig, load: Callable[[], ServiceConfig]) -> int:
    """Run the pools and return the exit status."""
    plug_standard_descriptors()
    tell_ready: Callable[[], object] = lambda: None  # noqa: E731 - of two kinds
    directory = os.getcwd()
    executed_again = is_executed_again()
    if service.daemon:  # nothing new after SIGUSR2
        forked = fork_daemon()
        if isinstance(forked, int):
            return forked
        tell_ready = forked
    outlet = Outlet()
    _log_to(outlet)
    if not executed_again:
        log_info("fcgi-app %s starts, pid %d", __version__, os.getpid())
    command = [sys.executable, *sys.orig_argv[1:]]
    supervisor = Supervisor(
        service,
        load=load,
        command=command,
        directory=directory,
        on_ready=tell_ready,
        outlet=outlet,
    )
    number = supervisor.run()
    return EXIT_SIGNAL + number if number else 0


def _log_to(outlet: Outlet) -> None:
    """Let the package's log say what happens, one line each."""
    # A terminal or pipe that nobody reads must not stop the supervisor.
    handler = logging.StreamHandler(LogStream(outlet))
    handler.setFormatter(logging.Formatter("%(asctime)s fcgi-app: %(message)s"))
    logger = logging.getLogger("fcgi_app")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
