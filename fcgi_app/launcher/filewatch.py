"""Which files have changed, found out by looking at them; no thread, no clock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator

__all__ = ["Watcher"]

MAX_FOLDERS = 1000
"""Folders that are looked into, all in all: a script may lie in a home directory."""
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})

_State = tuple[int, int, int]
"""Modification time in ns, size, inode: a file may change twice in one tick."""


class Watcher:
    """Watches files and every ``.py`` file in some directory trees.

    Hidden folders, virtual environments and symbolic links to folders are left out, and
    so is what comes after the first 1,000 folders, the nearest first.

    Args:
        files: absolute paths; while one is missing, no change counts.
        trees: directories, absolute.

    Attributes:
        unsettled: something is changing right now; `poll` again soon.
    """

    def __init__(self, files: Iterable[str], trees: Iterable[str] = ()) -> None:
        self.unsettled = False
        self._files = frozenset(files)
        self._trees = tuple(dict.fromkeys(trees))
        self._known = self._last = self._look()

    def poll(self) -> list[str]:
        """Give the paths of what has changed since the last time it gave some.

        A change counts when two polls in a row find the same and the files are there:
        an editor or a compiler may still be writing.
        """
        now = self._look()
        settled = now == self._last and self._files <= now.keys()
        self._last = now
        self.unsettled = now != self._known and not settled
        if now == self._known or not settled:
            return []
        paths = now.keys() | self._known.keys()
        changed = [path for path in paths if now.get(path) != self._known.get(path)]
        self._known = now
        return sorted(changed)

    def _look(self) -> dict[str, _State]:
        found = {}
        for path in self._paths():
            try:
                status = os.stat(path)
            except OSError:
                continue  # gone in the meantime, or a link to nowhere
            found[path] = status.st_mtime_ns, status.st_size, status.st_ino
        return found

    def _paths(self) -> Iterator[str]:
        yield from self._files
        for folder in _folders(self._trees):
            for entry in folder:
                if entry.name.endswith(".py"):
                    yield entry.path


def _folders(tops: tuple[str, ...]) -> Iterator[list[os.DirEntry[str]]]:
    """Give the entries of ``tops`` and of the folders below, the nearest first."""
    waiting = deque(tops)
    seen: set[str] = set()  # one tree may be in another
    while waiting and len(seen) < MAX_FOLDERS:
        path = waiting.popleft()
        if path in seen:
            continue
        try:
            with os.scandir(path) as entries:
                folder = list(entries)
        except OSError:
            continue  # gone in the meantime, or not ours to read
        if path not in tops and any(entry.name == "pyvenv.cfg" for entry in folder):
            continue
        seen.add(path)
        yield folder
        waiting.extend(entry.path for entry in folder if _is_worth(entry))


def _is_worth(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.name in _SKIPPED:
        return False
    return entry.is_dir(follow_symlinks=False)
