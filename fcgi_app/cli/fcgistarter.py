"""The command fcgistarter: Apache's flags, see fcgistarter(1).

Only options and messages are in here; :mod:`fcgi_app.launcher` does the work.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ..errors import ConfigError, FcgiAppError
from ..launcher import find_command, spawn_all
from ..launcher.detached import run_detached
from ..sockets import (
    AddressKind,
    open_socket,
    parse_address,
    plug_standard_descriptors,
)

__all__ = ["fcgistarter", "main"]

BACKLOG = 1024
"""Connections that wait for an accept; the number of Apache's fcgistarter."""


class _ApacheCommand(click.Command):
    """A command whose usage errors exit with 1, as Apache's fcgistarter, not with 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = ctx  # not every error of the parser has it, to show the usage
            error.show()
            ctx.exit(1)


class _Number(click.IntRange):
    """An integer in a range, called a number in messages."""

    name = "number"


@click.command(
    cls=_ApacheCommand,
    options_metavar="-c COMMAND -p PORT [-i INTERFACE] [-N NUM]",
    epilog="Arguments of the program belong into COMMAND: -c 'prog --option'.",
)
@click.option(
    "-c",
    "command",
    metavar="COMMAND",
    required=True,
    help="The FastCGI program, with arguments if it takes any.",
)
@click.option(
    "-p",
    "port",
    metavar="PORT",
    type=_Number(1, 65535),
    required=True,
    help="TCP port that the program listens on, 1 to 65535.",
)
@click.option(
    "-i",
    "interface",
    metavar="INTERFACE",
    help="Address or host name to listen on; all IPv4 addresses if not given.",
)
@click.option(
    "-N",
    "instances",
    metavar="NUM",
    type=_Number(min=1),
    default=1,
    show_default=True,
    help="Instances of the program, which share the port.",
)
def fcgistarter(command: str, port: int, interface: str | None, instances: int) -> None:
    """Start instances of a FastCGI program that listen on a TCP port, and exit."""
    try:
        _start(command, port, interface, instances)
    except FcgiAppError as error:
        _fail(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason)


def _start(command: str, port: int, interface: str | None, instances: int) -> None:
    """Do what the command is for; see :mod:`fcgi_app.launcher.detached`."""
    plug_standard_descriptors()
    words = find_command(command)
    with open_socket(_address(interface, port), backlog=BACKLOG) as listener:
        run_detached(lambda: spawn_all(words, listener, instances))


def _address(interface: str | None, port: int) -> str:
    """Put the two options together, in the form that open_socket takes.

    Raises:
        ConfigError: the interface is empty, as ``-i "$UNSET"`` makes it, or would be
            read as another kind of address, such as ``fd``.
    """
    if interface is None:
        return f":{port}"
    bare_ipv6 = ":" in interface and not interface.startswith("[")
    text = f"[{interface}]:{port}" if bare_ipv6 else f"{interface}:{port}"
    if not interface or parse_address(text).kind is not AddressKind.TCP:
        raise ConfigError("-i", interface, "is no host name or IP address")
    return text


def _fail(message: str) -> NoReturn:
    """End the process with a message, without usage: the command line was right."""
    click.echo(f"fcgistarter: {message}", err=True)
    sys.exit(1)


def main() -> None:
    """Run the command; the entry point of the console script."""
    fcgistarter(prog_name="fcgistarter")


if __name__ == "__main__":
    main()
