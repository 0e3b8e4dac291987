"""The entry point of ``fcgi-app``: it decides who reads the command line.

``fcgi-app start`` becomes a process that lives for months. A child that is forked right
at the start reads its options with click, tells them, and ends, so that the process
never loads click, which with all that it imports takes a good mebibyte. The process id
stays that of the process that was started, as service managers and LISTEN_PID want it.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from ..errors import FcgiAppError
from ..inherited import plug_standard_descriptors
from .exits import EXIT_ERROR, EXIT_SIGNAL, fail
from .lazily import import_lazily

__all__ = ["main"]

_SELDOM_USED = ("ast", "inspect", "locale", "tokenize")
"""Imported by ``dataclasses`` and ``subprocess``, which do not use them for what a
supervisor does: 1.5 MiB."""


def main() -> NoReturn:
    """Run the command and exit; the entry point of the console script.

    Exit status: 0 done, 1 an error of the package or the system, 2 a wrong option or
    setting, 3 the workers' command cannot be run, 128 + n ended by signal n.
    """
    words = sys.argv[1:]
    sys.exit(_start(words) if words[:1] == ["start"] else _run(words))


def _run(words: Sequence[str]) -> int:
    """Run any command in this process."""
    from .main import run

    return run(words)


def _start(words: Sequence[str]) -> int:
    """Have the options read by a child; then be the supervisor."""
    plug_standard_descriptors()  # or the pipe would become one of them
    for name in _SELDOM_USED:
        import_lazily(name)
    try:
        import_module("fcgi_app.launcher.config")  # which both need
        pid, reader = _fork_reader(words)
        from .serve import serve  # loaded while the child does its part

        status, flags = _read_report(pid, reader)
        return status if flags is None else serve(flags)
    except KeyboardInterrupt:
        return EXIT_SIGNAL + 2  # SIGINT
    except (FcgiAppError, OSError) as error:
        return fail(error)


def _fork_reader(words: Sequence[str]) -> tuple[int, int]:
    """Return the child's process id, and the pipe that it tells its findings in.

    Raises:
        OSError: there can be no process, or no pipe.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _be_reader(words, writer)
    except OSError as error:
        os.close(reader)
        raise OSError(error.errno, f"cannot fork: {error.strerror}") from error
    finally:
        os.close(writer)
    return pid, reader


def _be_reader(words: Sequence[str], writer: int) -> NoReturn:
    """Be the child, and never come into the frames of the parent."""
    try:
        report = marshal.dumps(_read_options(words))
        with suppress(BrokenPipeError), open(writer, "wb") as pipe:
            pipe.write(report)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:  # noqa: BLE001 - there is nobody above
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _read_options(words: Sequence[str]) -> dict[str, Any]:
    """Return the options, or None and the exit status if there is nothing to start."""
    from .main import run

    told: dict[str, Any] = {"flags": None}

    def take(flags: Mapping[str, Any]) -> int:
        told["flags"] = dict(flags)
        return 0

    try:
        told["status"] = run(words, take)
    except SystemExit as end:  # click's, when nobody reads what it shows any more
        told["status"] = end.code
    return told


def _read_report(pid: int, reader: int) -> tuple[int, dict[str, Any] | None]:
    """Return the exit status and the options that a child tells; it is reaped.

    The status is told in this way because there is none to wait for where SIGCHLD is
    ignored.
    """
    with open(reader, "rb") as pipe:
        text = pipe.read()
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if not text:  # it was killed, or has shown its traceback
        return EXIT_ERROR, None
    told = marshal.loads(text)
    if told["flags"] is None:
        return int(told["status"]), None
    return 0, dict(told["flags"])


if __name__ == "__main__":
    main()
