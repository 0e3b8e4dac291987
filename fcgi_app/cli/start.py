"""The subcommand ``fcgi-app start``."""

from __future__ import annotations

import os
from typing import Any

import click

from ..errors import AppLoadError
from ..launcher.config import ConfigLoader, format_config
from ..launcher.pool import PREFIX
from .exits import EXIT_COMMAND, report_error, working_directory
from .main import Take
from .startoptions import add_options
from .words import offer_files

__all__ = ["start"]


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Run a pool of processes that serve FastCGI.",
    epilog=f"Every setting can be written into a file, and be given by a variable "
    f"of the environment: {PREFIX}STOP_TIMEOUT=5 is --stop-timeout 5.",
)
@click.argument(
    "command",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[COMMAND [ARG]...]",
    shell_complete=offer_files,
)
@add_options
@click.option(
    "--config",
    metavar="FILE",
    shell_complete=offer_files,
    help="Read this TOML file, or the table [tool.fcgi-app] of a pyproject.toml. "
    "Without it and without COMMAND: fcgi-app.toml or pyproject.toml, if there is one.",
)
@click.option("--check-config", is_flag=True, help="Check all settings and exit.")
@click.option(
    "--print-config", is_flag=True, help="Show all settings as TOML and exit."
)
@click.pass_obj
def start(
    take: Take | None, /, check_config: bool, print_config: bool, **given: Any
) -> int:
    """Run a pool of processes of COMMAND that serve FastCGI.

    COMMAND is any FastCGI program; each process has the listening socket on descriptor
    0. One that ends is replaced. A Python script needs no execute bit.
    """
    flags = {key: value for key, value in given.items() if value not in (None, ())}
    if not (check_config or print_config):
        if take is None:
            from .serve import serve

            take = serve
        return take(flags)
    try:
        service = ConfigLoader(flags, os.environ.copy(), working_directory()).load()
    except AppLoadError as error:
        report_error(str(error))
        return EXIT_COMMAND
    if print_config:
        # TOML is UTF-8, whatever the locale.
        click.echo(format_config(service).encode(), nl=False)
    else:
        names = ", ".join(pool.name for pool in service.pools)
        click.echo(f"configuration is good: {names}")
    return 0
