"""Which program a command is, before any directory or root is changed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from ..errors import AppLoadError

__all__ = ["find_command", "find_pool_command"]


def find_pool_command(
    command: Sequence[str], *, directory: str, chroot: str | None = None, path: str
) -> tuple[str, ...]:
    """Give ``command`` with the absolute path of its program.

    A program without a slash is searched in ``path`` and then in ``directory``, so that
    a file that lies about there takes the place of no program. One with a slash is
    relative to ``directory``. A Python script, which is a file ``*.py`` or one whose
    ``#!`` line names Python, needs no execute bit: without it, or without a ``#!``
    line, this interpreter runs it.

    Args:
        command: at least the program.
        directory: absolute; with ``chroot`` as seen from inside it.
        chroot: root directory of the program; its files are looked for there.
        path: directories to search, as in PATH.

    Returns:
        The words for execve(2), as seen from inside ``chroot``.

    Raises:
        AppLoadError: there is no such program, or it cannot be run.
    """
    root = (chroot or "").rstrip("/")
    program = _find(command[0], directory, root, path)
    arguments = tuple(command[1:])
    file = root + program
    if not os.path.isfile(file):  # and a pipe would make us wait for its first line
        raise AppLoadError(f"command {file!r}: is not a file")
    line = _first_line(file)
    executable = _may(file, os.X_OK)
    if executable and not (program.endswith(".py") and line[:2] != b"#!"):
        return program, *arguments
    if program.endswith(".py") or (line[:2] == b"#!" and b"python" in line):
        if not _may(file, os.R_OK):
            raise AppLoadError(f"command {file!r}: cannot be read")
        return _find_interpreter(root), program, *arguments
    raise AppLoadError(f"command {file!r}: not executable")


def _find(word: str, directory: str, root: str, path: str) -> str:
    """Return the absolute path of a program, as seen from inside ``root``."""
    if "/" not in word:
        # Relative directories of PATH would be those of whoever starts the pool.
        folders = [each for each in path.split(os.pathsep) if each.startswith("/")]
        for folder in folders:
            found = os.path.join(folder, word)
            if os.path.isfile(root + found) and _may(root + found, os.X_OK):
                return found
    # normpath would lead astray where "x/.." goes through a symbolic link.
    file = os.path.join(directory, word.removeprefix("./"))
    if not os.path.exists(root + file):
        also = "" if "/" in word else ", and no such program in PATH"
        raise AppLoadError(f"command {word!r}: no such file {root + file!r}{also}")
    return file


def _may(file: str, mode: int) -> bool:
    """Tell whether this process may do ``mode``, with the rights that it really has.

    access(2) alone asks for the real user, and forgets its capabilities.
    """
    return os.access(file, mode, effective_ids=os.access in os.supports_effective_ids)


def _first_line(file: str) -> bytes:
    """Return the beginning of a file; nothing of one that cannot be read."""
    try:
        with open(file, "rb") as script:
            return script.readline(200)
    except OSError:
        return b""


def _find_interpreter(root: str) -> str:
    """Return the path of the Python that runs us, which must be in ``root``, too."""
    if not sys.executable:
        raise AppLoadError("this Python does not know its own path, to run a script")
    # Outside of any root it is there: it runs.
    if root and not _may(root + sys.executable, os.X_OK):
        raise AppLoadError(f"there is no {sys.executable!r} in {root}")
    return sys.executable


def find_command(text: str) -> list[str]:
    """Turn a command line, such as the value of ``fcgistarter -c``, into words.

    The program becomes an absolute path, so that a later chdir does no harm; symbolic
    links stay, because an interpreter finds its virtual environment through its name.
    The first of these that exists is taken:

    1. if the first word has no slash: the program of that name in PATH;
    2. the file with exactly this name, blanks and all, without arguments;
    3. the file that the first word names; the other words are its arguments.

    Words are split as by a POSIX shell (:func:`shlex.split`); there are no variables,
    patterns or redirections. PATH goes before the current directory, lest a file that
    lies about there takes the place of the program that was meant.

    Raises:
        AppLoadError: no such file, nothing but blanks, or a quote that does not end.
    """
    try:
        words, problem = shlex.split(text), "no such file"
    except ValueError as error:
        words, problem = [], str(error).lower()
    if words and "/" not in words[0]:
        problem += ", and no such program in PATH"
        # With all the archivers that it loads, it is not for the supervisor's memory.
        from shutil import which

        found = which(words[0])
        if found:
            return [_absolute(found), *words[1:]]
    for candidate in ([text], words):
        if candidate and os.path.isfile(candidate[0]):
            return [_absolute(candidate[0]), *candidate[1:]]
    raise AppLoadError(f"command {text!r}: {problem if text.strip() else 'empty'}")


def _absolute(path: str) -> str:
    """Make ``path`` absolute as the system reads it: a link leads ``x/..`` astray."""
    path = os.path.join(os.getcwd(), path)
    return path if ".." in path.split("/") else os.path.normpath(path)
