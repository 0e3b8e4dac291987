"""The command ``fcgi-app``: its subcommands, its errors, its exit status."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from .._version import __version__
from ..errors import FcgiAppError
from .exits import EXIT_SIGNAL, fail

__all__ = ["SUBCOMMANDS", "Take", "group", "run"]

Take = Callable[[Mapping[str, Any]], int]
"""Takes the options of ``start`` by their keys, and returns an exit status."""

SUBCOMMANDS = {
    "bridge": "fcgi_app.cli.bridge:bridge",
    "completion": "fcgi_app.cli.completion:completion",
    "dev": "fcgi_app.cli.dev:dev",
    "fdpass": "fcgi_app.cli.fdpass:fdpass",
    "reload": "fcgi_app.cli.control:reload",
    "request": "fcgi_app.cli.request:request",
    "scale": "fcgi_app.cli.control:scale",
    "start": "fcgi_app.cli.start:start",
    "status": "fcgi_app.cli.status:status",
    "stop": "fcgi_app.cli.control:stop",
}
"""Where each subcommand is, as MODULE:ATTRIBUTE. It is imported when it is called, so
that a process that lives as long as ``start`` holds nothing of the others."""


class _LazyGroup(click.Group):
    """A group whose subcommands are those of `SUBCOMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = SUBCOMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    import platform

    from .._backend import describe

    python = f"{platform.python_implementation()} {platform.python_version()}"
    click.echo(f"fcgi-app {__version__}\n{python}\nbackend {describe()}")
    ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the versions of the package and of Python, and the backend.",
)
def group() -> None:
    """Run FastCGI programs."""


def run(words: Sequence[str], take: Take | None = None) -> int:
    """Run a command line and return the exit status, errors reported.

    Args:
        words: of the command line, without the program.
        take: given the options of ``start``, whose pools another process will run;
            None: this process runs them.
    """
    try:
        status = group.main(
            words, prog_name="fcgi-app", standalone_mode=False, obj=take
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_SIGNAL + 2  # SIGINT
    except (FcgiAppError, OSError) as error:
        return fail(error)
    return status if isinstance(status, int) else 0
