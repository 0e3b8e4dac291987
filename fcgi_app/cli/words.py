"""What a shell is offered for the value of an option, or for an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["completer", "offer_files"]

Completer = Callable[[click.Context, click.Parameter, str], list[Any]]
"""What click calls with the word so far."""


def offer_files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Have the shell complete the name of a file by its own rules."""
    return [CompletionItem(incomplete, type="file")]


def completer(metavar: str) -> Completer | None:
    """Return what completes a value that help texts call ``metavar``.

    That is ``FILE``, ``DIRECTORY``, or words with ``|`` between them; None for others.
    """
    if metavar == "FILE":
        return offer_files
    if metavar == "DIRECTORY":
        return lambda ctx, param, incomplete: [CompletionItem(incomplete, type="dir")]
    if "|" in metavar:
        words = metavar.split("|")
        return lambda ctx, param, incomplete: [
            word for word in words if word.startswith(incomplete)
        ]
    return None
