"""The load generator ``load.c``: compiled when it changed, driven over pipes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from .processes import LOAD_CPU, SERVER_CPU, read_line

__all__ = ["Figures", "Load", "LoadError", "build"]

SOURCE = Path(__file__).with_name("load.c")


class LoadError(Exception):
    """Answers were wrong or did not come; the text says which."""


class Figures(NamedTuple):
    """What the load generator reports of one command."""

    requests: int
    errors: int
    problem: str
    """The first error, empty without errors."""
    starved: int
    """Connections on which nothing was answered."""
    opened: int
    repeated: int
    """Requests that were sent again, because a kept connection had ended."""
    seconds: float
    p50_us: float
    p99_us: float


def build(cache: Path, source: Path = SOURCE, *libraries: str) -> Path:
    """Compile the load generator, or ``source``, into ``cache``; give its path.

    Args:
        cache: existing folder.
        source: one file of C.
        libraries: as in ``-lfcgi``, without the ``-l``.

    Raises:
        LoadError: there is no C compiler, or it failed.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = cache / f"{source.stem}-{digest}"
    if program.exists():
        return program
    new = cache / f"{source.stem}-{digest}.{os.getpid()}"
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(new)]
    try:
        link = [f"-l{name}" for name in libraries]
        subprocess.run([*command, str(source), *link], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LoadError(f"cannot compile {source}: {error}") from error
    return new.rename(program)


class Load:
    """One load generator on ``LOAD_CPU``, with its connections to one server."""

    def __init__(
        self,
        program: Path,
        path: str,
        *,
        request: bytes,
        body: bytes,
        total: int | None = None,
        connections: int = 1,
        keep: bool = True,
        renew: bool = False,
        spin: bool = LOAD_CPU != SERVER_CPU,
    ) -> None:
        """Start it; nothing is connected before the first command.

        Args:
            program: what ``build`` gave.
            path: the server's Unix socket.
            request: every byte of one request.
            body: what each answer must hold, repeated until ``total`` bytes.
            total: length of an answer's body; the length of ``body`` if None.
            connections: how many requests are under way at a time.
            keep: reuse connections; otherwise one for each request.
            renew: with ``keep``, open a connection anew that the server has ended
                before it answered, and send the request again, as web servers do.
            spin: look for answers all the time, on ``LOAD_CPU`` alone.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="fcgi_app-bench-")
        request_file = Path(self._folder.name, "request")
        body_file = Path(self._folder.name, "body")
        request_file.write_bytes(request)
        body_file.write_bytes(body)
        self._process = subprocess.Popen(
            [
                program,
                path,
                request_file,
                body_file,
                str(len(body) if total is None else total),
                str(connections),
                ("renewed" if renew else "kept") if keep else "new",
                "spin" if spin else "sleep",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if spin:
            os.sched_setaffinity(self._process.pid, {LOAD_CPU})

    def run(self, seconds: float, requests: int = 1 << 40) -> Figures:
        """Load the server for ``seconds`` or until ``requests`` are answered."""
        return self._command(f"run {seconds:f} {requests}", seconds + 20)

    def open_idle(self, count: int) -> Figures:
        """Open ``count`` more connections, send a request on each, leave them open."""
        return self._command(f"open {count}", 60)

    def again(self) -> Figures:
        """Send one more request on each idle connection."""
        return self._command("again", 60)

    def _command(self, line: str, seconds: float) -> Figures:
        """Send a command, give its answer.

        Raises:
            LoadError: no answer came within ``seconds``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        try:
            answer = read_line(self._process.stdout, seconds, "the load generator")
        except (EOFError, TimeoutError) as error:
            raise LoadError(str(error)) from error
        return Figures(**json.loads(answer))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


def checked(figures: Figures) -> Figures:
    """Give ``figures`` back when every answer was right.

    Raises:
        LoadError: there were errors, no answers, or connections without answers.
    """
    if figures.errors:
        raise LoadError(f"{figures.errors} errors, the first: {figures.problem}")
    if figures.starved:
        raise LoadError(f"{figures.starved} connections starved")
    if not figures.requests:
        raise LoadError("nothing was answered")
    return figures
