"""A TOML file as the configuration reads it: tables, and where in the file they stand.

Not for pools alone: nothing here knows a key.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import ConfigError

__all__ = ["ConfigFile"]

PROJECT_FILE = "pyproject.toml"
PROJECT_TABLE = ("tool", "fcgi-app")
"""Where in a file of that name our keys are."""


def _parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; raises ValueError as tomllib does."""
    # tomli is tomllib under the name that it had before Python 3.11.
    module = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    parsed: dict[str, Any] = module.loads(text)
    return parsed


@dataclass(frozen=True)
class ConfigFile:
    """A file that has been read.

    Attributes:
        path: absolute.
        text: all of it.
        top: keys that lead to the table that is ours; none for the whole file.
        table: that table; empty if there is none.
    """

    path: str
    text: str
    top: tuple[str, ...]
    table: dict[str, Any]

    @classmethod
    def read(cls, path: str) -> ConfigFile:
        """Read a file; of a pyproject.toml only the table ``[tool.fcgi-app]`` counts.

        Raises:
            ConfigError: it is not TOML; ``setting`` is path and line.
            OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            content = file.read()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            byte = content[error.start : error.start + 1]
            raise ConfigError(f"{path}:{line}", byte, "is not UTF-8") from None
        try:
            parsed = _parse_toml(text)
        except ValueError as error:
            raise _syntax_error(path, text, str(error)) from None
        except RecursionError:
            raise ConfigError(path, "[[[…", "is nested too deeply") from None
        is_project = os.path.basename(path) == PROJECT_FILE
        top = PROJECT_TABLE if is_project else ()
        table: Any = parsed
        for depth, key in enumerate(top, 1):
            table = table.get(key, {})
            if not isinstance(table, dict):
                where = f"{path}: {'.'.join(top[:depth])}"
                raise ConfigError(where, table, "must be a table")
        return cls(path, text, top, table)

    def where(self, *keys: str) -> str:
        """Say where a value stands: path, line if it can be told, and its name."""
        line = _find_line(self.text, (*self.top, *keys))
        place = f"{self.path}:{line}" if line else self.path
        return f"{place}: {'.'.join(keys)}"


def _syntax_error(path: str, text: str, message: str) -> ConfigError:
    """Turn tomllib's message, which ends with the place, into ours."""
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    if found is None:  # "at end of document"
        return ConfigError(path, "TOML", message)
    reason, line, column = found[1], int(found[2]), found[3]
    lines = text.split("\n")
    shown = lines[line - 1].strip() if line <= len(lines) else ""
    return ConfigError(f"{path}:{line}", shown, f"{reason} (column {column})")


def _find_line(text: str, keys: Sequence[str]) -> int | None:
    """Find the line where the value that ``keys`` lead to begins, from 1 on.

    The parser does not tell. But what stands before that line is TOML as well and does
    not have the value, and this is so for no later line that the key may stand on.
    """
    lines = text.split("\n")
    found = None
    for number, line in enumerate(lines, 1):
        if keys[-1] not in line:
            continue
        try:
            before = _parse_toml("\n".join(lines[: number - 1]))
        except ValueError:  # within a value of several lines
            continue
        if _has(before, keys):
            break
        found = number
    return found


def _has(table: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True
