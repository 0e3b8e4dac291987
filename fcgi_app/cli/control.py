"""The subcommands that tell a running ``fcgi-app start`` what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from ..launcher.asking import ask, find_control
from ..status.render import plain
from .exits import EXIT_ERROR, report_error, working_directory
from .words import offer_files

__all__ = ["ask_supervisor", "fail_with", "reload", "scale", "stop", "where_options"]

SHORT_SECONDS = 10.0
"""For what is answered at once."""

_Command = Callable[..., Any]


def where_options(command: _Command) -> _Command:
    """Add the options that say which supervisor."""
    for add in (
        click.option(
            "--config",
            metavar="FILE",
            shell_complete=offer_files,
            help="The file of the supervisor, which names its control socket.",
        ),
        click.option(
            "--control",
            metavar="PATH",
            shell_complete=offer_files,
            help="Control socket of the supervisor; by default FCGI_APP_START_CONTROL, "
            "or what the file says.",
        ),
    ):
        command = add(command)
    return command


_timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait for so long at most; for as long as it takes if not given.",
)


def ask_supervisor(
    control: str | None,
    config: str | None,
    question: Mapping[str, Any],
    *,
    timeout: float | None = SHORT_SECONDS,
) -> dict[str, Any]:
    """Find the supervisor and ask it; raises as `find_control` and `ask`."""
    path = find_control(control, config, os.environ, working_directory())
    return ask(path, question, timeout=timeout)


@click.command(short_help="Have fcgi-app start replace its workers.")
@where_options
@_timeout_option
@click.option("--no-wait", is_flag=True, help="Do not wait for the outcome.")
def reload(
    control: str | None, config: str | None, timeout: float | None, no_wait: bool
) -> int:
    """Have fcgi-app start read its file again and replace all workers.

    Waits until the new workers have taken over. If they cannot be started, the old
    ones stay, and the exit status is 1.
    """
    question = {"command": "reload", "wait": not no_wait}
    answer = ask_supervisor(control, config, question, timeout=timeout)
    if answer["ok"]:
        return 0
    return fail_with(f"the workers stay as they are: {answer['error']}")


@click.command(short_help="Stop fcgi-app start.")
@where_options
@_timeout_option
@click.option("--quick", is_flag=True, help="Do not let requests be finished.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
def stop(
    control: str | None,
    config: str | None,
    timeout: float | None,
    quick: bool,
    no_wait: bool,
) -> int:
    """Stop fcgi-app start and its workers, and wait until they have ended.

    Requests that are running may be finished, within its --stop-timeout.
    """
    question = {"command": "stop", "quick": quick, "wait": not no_wait}
    answer = ask_supervisor(control, config, question, timeout=timeout)
    return 0 if answer["ok"] else fail_with(answer["error"])


@click.command(
    context_settings={"ignore_unknown_options": True},  # -1 is a number
    short_help="Change how many workers fcgi-app start runs.",
)
@where_options
@click.option("--pool", metavar="NAME", help="Which pool, if there are several.")
@click.argument("number", metavar="NUMBER|+NUMBER|-NUMBER")
def scale(
    control: str | None, config: str | None, pool: str | None, number: str
) -> int:
    """Change how many workers each address of a pool has, or may have.

    With a sign it is that many more or fewer. A reload makes it what the file says.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", number):
        raise click.BadParameter(
            f"{number!r} is no whole number, with or without a sign.",
            param_hint="NUMBER",
        )
    question: dict[str, Any] = {"command": "scale", "workers": int(number)}
    question["relative"] = number[0] in "+-"
    if pool is not None:
        question["pool"] = pool
    answer = ask_supervisor(control, config, question)
    if not answer["ok"]:
        return fail_with(answer["error"])
    workers = "worker" if answer["workers"] == 1 else "workers"
    click.echo(plain(f"pool {answer['pool']}: {answer['workers']} {workers}"))
    return 0


def fail_with(text: str) -> int:
    """Report what a supervisor says is wrong, which may be several lines."""
    report_error("\n".join(map(plain, text.split("\n"))))
    return EXIT_ERROR
