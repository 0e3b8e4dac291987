"""The subcommand ``fcgi-app completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .main import group

__all__ = ["SHELLS", "completion"]

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "fcgi-app"
_VARIABLE = "_FCGI_APP_COMPLETE"
"""Set by the scripts; what click makes of the program's name."""


@click.command(short_help="Print the script that completes words in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete the words of fcgi-app.

    Into ~/.bashrc:   eval "$(fcgi-app completion bash)"

    Into ~/.zshrc:   eval "$(fcgi-app completion zsh)"

    For fish:   fcgi-app completion fish > ~/.config/fish/completions/fcgi-app.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, _PROGRAM, _VARIABLE).source())
