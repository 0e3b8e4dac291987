"""The subcommand ``fcgi-app bridge``."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Sequence
from functools import partial

import click

from .. import sockets
from ..envnames import is_meta_variable
from ..errors import ConfigError
from ..launcher.bridging import Bridge
from .exits import fail

__all__ = ["bridge"]


class _BridgeCommand(click.Command):
    """A command whose options may stand in a file that the first one names.

    A web server may append words to a command line that whoever makes the request
    chooses (RFC 3875 §4.4). They must be nothing to us.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["from_file"] = args[:1] in (["-f"], ["--file"])
        if ctx.meta["from_file"]:
            if len(args) < 2:
                raise click.BadOptionUsage("file", "Option '-f' needs a file.", ctx)
            args = _read_words(args[1])
        return super().parse_args(ctx, args)


def _read_words(path: str) -> list[str]:
    """Give the words of a command file: lines that begin with # are comments.

    Raises:
        ConfigError: a quote does not end, or nothing but comments is there.
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line for line in file if not line.lstrip().startswith("#")]
    try:
        words = shlex.split("".join(lines))
    except ValueError as error:
        raise ConfigError("--file", path, str(error).lower()) from None
    if not words:
        raise ConfigError("--file", path, "has no line with an address")
    return words


def _not_here(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.BadParameter("must come first, and not in such a file.")


@click.command(
    cls=_BridgeCommand,
    context_settings={"allow_interspersed_args": False},
    short_help="Answer a CGI request by a FastCGI program.",
    options_metavar="[OPTIONS]",
)
@click.argument("address")
@click.argument(
    "words",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[START_OPTION]... [-- COMMAND [ARG]...]",
)
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    expose_value=False,
    callback=_not_here,
    help="Read options and arguments from this file; only as the first option, as in "
    "#!/usr/bin/env -S fcgi-app bridge -f. All that follows is ignored.",
)
@click.option(
    "--start",
    "starts",
    is_flag=True,
    help="If nobody listens on ADDRESS, run fcgi-app start with what follows ADDRESS, "
    "as a daemon.",
)
@click.option(
    "--start-timeout",
    type=click.FloatRange(0, 1e6, min_open=True),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="How long that may take.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 1e6),
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="How long nothing may move; 0: for ever.",
)
@click.pass_context
def bridge(
    ctx: click.Context,
    address: str,
    words: tuple[str, ...],
    starts: bool,
    start_timeout: float,
    timeout: float,
) -> int:
    """Answer a CGI request by the FastCGI program that listens on ADDRESS.

    A web server runs this as a CGI program. Its environment and standard input become
    the request, what the FastCGI program answers is its output. The exit status is
    that of the FastCGI program.

    Without --start, what follows ADDRESS is ignored.
    """
    limit = timeout or None
    connect: Callable[[], socket.socket] = partial(
        sockets.connect, address, timeout=limit
    )
    if starts:
        from ..launcher.autostart import PoolOnDemand  # not for every request

        if not ctx.meta["from_file"]:
            words = _without_appended(words)
        if not words:
            raise click.UsageError("--start needs a command after ADDRESS.")
        environ = {
            name: value
            for name, value in os.environ.items()
            if not is_meta_variable(os.fsencode(name))
        }
        connect = PoolOnDemand(address, words, environ, limit, start_timeout).connect
    return Bridge(address, connect, limit, fail).run(os.environb)


def _without_appended(words: Sequence[str]) -> tuple[str, ...]:
    """Take away what the system and the web server append to a #! line.

    That is the path of the file that the line is in, and behind it words of the
    query, which are the client's.
    """
    script = os.environ.get("SCRIPT_FILENAME")
    if script is not None and "GATEWAY_INTERFACE" in os.environ:
        for place, word in enumerate(words):
            if _is_same_file(word, script):
                return tuple(words[:place])
    return tuple(words)


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
