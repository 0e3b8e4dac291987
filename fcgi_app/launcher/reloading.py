"""Reloads that files ask for: ``--touch-reload`` one of them, ``--reload`` the sources.

Files are looked at, once a second: that works on every file system, needs nothing
installed, and costs the processor nothing to speak of. Attendants, see `.attendant`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from math import inf
from time import monotonic

from .._log import log_info, log_warning
from ..errors import FcgiAppError
from .attendant import Event, Supervision
from .filewatch import Watcher
from .pool import PoolConfig

__all__ = ["LOOK_SECONDS", "SourceReload", "TouchReload", "sources_of"]

LOOK_SECONDS = 1.0
"""Between two looks at the files."""

SETTLE_SECONDS = 0.1
"""The same while they are changing."""

_MOST_OF_TIME = 0.02
"""Part of the time that looking may take, in a big tree."""

_State = tuple[int, int, int] | None
"""Of a file: time of its last change in ns, size, inode; None: there is none."""


class _Look:
    """An attendant that does nothing but look at files from time to time."""

    def __init__(self) -> None:
        self._supervision: Supervision | None = None
        self._next_look = inf

    def open(self, supervision: Supervision) -> None:
        """Begin: what changes from now on counts."""
        self._supervision = supervision
        self._remember()
        self._next_look = monotonic() + LOOK_SECONDS

    def watched(self) -> Mapping[int, int]:
        """Wait for no descriptor."""
        return {}

    def handle(self, descriptor: int, events: int) -> None:
        """Have nothing to do with descriptors."""

    def due(self) -> float:
        """Return when to look next."""
        return self._next_look

    def turn(self, now: float) -> None:
        """Look, when it is time, and reload if something has changed."""
        if now < self._next_look or self._supervision is None:
            return
        reason = self._find_reason()
        took = monotonic() - now
        self._next_look = now + max(self._pause(), took / _MOST_OF_TIME)
        if reason:
            log_info("%s: reloading", reason)
            self._supervision.reload()

    def note(self, event: Event, text: str) -> None:
        """Look no more once all of it stops."""
        if event == "stopping":
            self._next_look = inf

    def close(self) -> None:
        """Look no more."""
        self._supervision = None
        self._next_look = inf

    def _pause(self) -> float:
        return LOOK_SECONDS

    def _remember(self) -> None:
        raise NotImplementedError

    def _find_reason(self) -> str:
        """Say what has changed; nothing if nothing has."""
        raise NotImplementedError


class TouchReload(_Look):
    """Reloads when a file is touched, written, replaced or made; an `Attendant`.

    Args:
        path: absolute; the file need not be there. That it goes away is no reason.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._known: _State = None

    def _remember(self) -> None:
        self._known = _state_of(self._path)

    def _find_reason(self) -> str:
        before, self._known = self._known, _state_of(self._path)
        if self._known in (None, before):
            return ""
        return f"{self._path} was touched"


class SourceReload(_Look):
    """Reloads when a program changes, or Python code around it; an `Attendant`.

    Args:
        pools: gives what runs, at the start and again after each reload.
    """

    def __init__(self, pools: Callable[[], Iterable[PoolConfig]]) -> None:
        super().__init__()
        self._pools = pools
        self._sources: tuple[list[str], list[str]] = ([], [])
        self._watcher = Watcher([])

    def note(self, event: Event, text: str) -> None:
        """Look at other files if others are run now."""
        super().note(event, text)
        if event == "reloaded" and sources_of(self._read_pools()) != self._sources:
            self._remember()

    def _remember(self) -> None:
        self._sources = sources_of(self._read_pools())
        self._watcher = Watcher(*self._sources)

    def _read_pools(self) -> list[PoolConfig]:
        try:
            return list(self._pools())
        except (FcgiAppError, OSError) as error:  # changed again since it was read
            log_warning("sources are not watched: %s", error)
            return []

    def _pause(self) -> float:
        return SETTLE_SECONDS if self._watcher.unsettled else LOOK_SECONDS

    def _find_reason(self) -> str:
        changed = self._watcher.poll()
        if not changed:
            return ""
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{others} changed"


def sources_of(pools: Iterable[PoolConfig]) -> tuple[list[str], list[str]]:
    """Tell which files the commands of pools are made of, as far as words can tell.

    They are the program, and each argument that names a file; of Python files also the
    directory, whose ``.py`` files count, and so do those below. ``python -m`` loads
    modules from the working directory.

    Returns:
        Files and directories, absolute paths, for a `Watcher`.
    """
    files: dict[str, None] = {}
    trees: dict[str, None] = {}
    for pool in pools:
        root = (pool.chroot or "").rstrip("/")
        folder = root + str(pool.chdir)
        if "python" in os.path.basename(pool.command[0]) and "-m" in pool.command:
            trees[folder] = None
        for word in pool.command:
            path = root + word if word.startswith("/") else os.path.join(folder, word)
            if os.path.isfile(path):
                files[path] = None
                if _is_python(path):
                    trees[os.path.dirname(path)] = None
    return list(files), list(trees)


def _is_python(path: str) -> bool:
    """Tell whether a file is a Python script, by its name or its first line."""
    if path.endswith(".py"):
        return True
    try:
        with open(path, "rb") as script:
            line = script.readline(200)
    except OSError:
        return False
    return line.startswith(b"#!") and b"python" in line


def _state_of(path: str) -> _State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
