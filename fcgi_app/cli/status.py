"""The subcommand ``fcgi-app status``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

import click

from ..status.table import format_service
from .control import ask_supervisor, fail_with, where_options

__all__ = ["status"]

_CLEAR = "\x1b[H\x1b[2J"


@click.command(short_help="Show what the workers of fcgi-app start do.")
@where_options
@click.option("--json", "as_json", is_flag=True, help="Show everything, as JSON.")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    default=2.0,
    show_default=True,
    help="With --watch: the time between.",
)
def status(
    control: str | None,
    config: str | None,
    as_json: bool,
    watch: bool,
    interval: float,
) -> int:
    """Show the pools of fcgi-app start, and what each worker does."""
    before: dict[str, Any] | None = None
    try:
        while True:
            answer = ask_supervisor(control, config, {"command": "status"})
            if not answer["ok"]:
                return fail_with(answer["error"])
            try:
                _show(answer["status"], before, as_json=as_json, again=watch)
            except (LookupError, TypeError, AttributeError):
                reason = "the supervisor is of another version, perhaps"
                return fail_with(f"the answer cannot be read: {reason}")
            if not watch:
                return 0
            before = answer["status"]
            time.sleep(interval)
    except KeyboardInterrupt:
        if not watch:
            raise
        return 0


def _show(
    found: dict[str, Any], before: dict[str, Any] | None, *, as_json: bool, again: bool
) -> None:
    """Print one answer; a program gets one line for each."""
    if as_json:
        click.echo(json.dumps(found, indent=None if again else 2))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if again and sys.stdout.isatty():
        click.echo(_CLEAR, nl=False)
    elif before is not None:
        click.echo("")
    click.echo(format_service(found, before, width=width), nl=False)
