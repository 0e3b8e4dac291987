"""The command ``fcgi-app``: its subcommands, its errors, its exit status."""

from __future__ import annotations

import platform
import sys
from typing import NoReturn

import click

from .._version import __version__
from ..errors import ConfigError, FcgiAppError
from .dev import dev
from .fdpass import fdpass
from .start import start

__all__ = ["group", "main"]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_SIGNAL = 128


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from .._backend import describe

    python = f"{platform.python_implementation()} {platform.python_version()}"
    click.echo(f"fcgi-app {__version__}\n{python}\nbackend {describe()}")
    ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


group.add_command(dev)
group.add_command(fdpass)
group.add_command(start)


def main() -> NoReturn:
    """Run the command and exit; the entry point of the console script.

    Exit status: 0 done, 1 an error of the package or the system, 2 a wrong option or
    setting, 128 + n ended by signal n.
    """
    sys.exit(_run())


def _run() -> int:
    try:
        status = group.main(prog_name="fcgi-app", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_SIGNAL + 2  # SIGINT
    except (FcgiAppError, OSError) as error:
        click.echo(f"fcgi-app: error: {_one_line(error)}", err=True)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR
    return status if isinstance(status, int) else 0


def _one_line(error: Exception) -> str:
    """Give the message of an error, without Python's way to write an OSError."""
    if isinstance(error, OSError) and error.strerror is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror
    return " ".join(str(error).split("\n"))


if __name__ == "__main__":
    main()
