"""The subcommand ``fcgi-app fdpass``."""

from __future__ import annotations

import re

import click

from ..launcher.fdpass import FdpassService, find_users
from ..launcher.inetd import InetdOptions, find_program
from .words import offer_files

__all__ = ["fdpass"]

EXIT_SIGNAL = 128


def _parse_mode(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Read permission bits in octal."""
    if re.fullmatch("(0o)?[0-7]{1,4}", value) and int(value, 8) <= 0o777:
        return int(value, 8)
    raise click.BadParameter(f"{value!r} is not an octal number from 0 to 0777.")


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Run a program for each client that Apache hands over.",
)
@click.argument(
    "command",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    shell_complete=offer_files,
)
@click.option(
    "--bind",
    metavar="ADDRESS",
    required=True,
    help="Unix socket to listen on: unix:PATH, @NAME, fd:N or systemd.",
)
@click.option(
    "--mode",
    callback=_parse_mode,
    metavar="OCTAL",
    default="0600",
    show_default=True,
    help="Permissions of the socket file; Apache's user needs write permission.",
)
@click.option(
    "--allow-user",
    "users",
    metavar="NAME",
    multiple=True,
    help="User, or user id, that may hand over clients; can be given more than once. "
    "Everybody who can connect, if not given.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that receive clients, on one socket.",
)
@click.option(
    "--max-children",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Programs that run at a time, for each worker; further clients wait.",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="How long programs may go on after a stop signal.",
)
def fdpass(
    command: tuple[str, ...],
    bind: str,
    mode: int,
    users: tuple[str, ...],
    workers: int,
    max_children: int,
    stop_timeout: float,
) -> int:
    """Run COMMAND for each client that Apache hands over.

    Apache's mod_proxy_fdpass sends the response head and then the client's socket.
    COMMAND has it as standard input and output, and writes the body.
    """
    inetd = InetdOptions(find_program(command), max_children, stop_timeout)
    allow_uids = find_users(users) if users else None
    number = FdpassService(bind, inetd, mode, allow_uids, workers).run()
    return EXIT_SIGNAL + number if number else 0
