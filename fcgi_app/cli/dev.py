"""The subcommand ``fcgi-app dev``."""

from __future__ import annotations

import threading
from collections.abc import Callable

import click

from ..launcher.dev import DevOptions, DevServer
from .words import offer_files

__all__ = ["dev"]


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Serve a script over HTTP, for development only.",
)
@click.argument("target", shell_complete=offer_files)
@click.argument(
    "args",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[ARG]...",
    shell_complete=offer_files,
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address or name to listen on. Others than this machine can connect to "
    "anything but a loopback address.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="TCP port to listen on; 0 takes a free one.",
)
@click.option(
    "--reload/--no-reload",
    default=True,
    show_default=True,
    help="Start the script again when it changes, or a .py file in its directory tree.",
)
@click.option(
    "--mount",
    metavar="PATH",
    default="",
    help="Serve the script at this path, which becomes SCRIPT_NAME.",
)
@click.option(
    "--document-root",
    metavar="DIRECTORY",
    type=click.Path(exists=True, file_okay=False),
    help="DOCUMENT_ROOT for the script; its own directory if not given.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="How long nothing may move in a request; 0: for ever.",
)
def dev(
    target: str,
    args: tuple[str, ...],
    host: str,
    port: int,
    reload: bool,
    mount: str,
    document_root: str | None,
    timeout: float,
) -> int:
    """Serve TARGET over HTTP, for development only.

    TARGET is a FastCGI program: a Python script, or any executable. It is started with
    a listening socket on descriptor 0, as a web server would do it, and gets the ARGs.
    Ctrl-C stops it.
    """
    options = DevOptions(
        target=target,
        args=args,
        host=host,
        port=port,
        reload=reload,
        mount=mount,
        document_root=document_root,
        timeout=timeout or None,
    )
    server = DevServer(options, announce=click.echo, report=_line_writer())
    return 128 + server.run()


def _line_writer() -> Callable[[str], None]:
    """Make what writes whole lines to standard error, from any thread."""
    lock = threading.Lock()

    def write(line: str) -> None:
        with lock:
            click.echo(line.encode("utf-8", "surrogateescape"), err=True)

    return write
