"""The measured programs: ours, and peers in virtual environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["BARE", "FLIPFLOP", "FLUP", "OURS", "Cache", "Program"]

APPS = Path(__file__).with_name("apps")
ROOT = Path(__file__).parents[2]
"""The checkout, whose fcgi_app is measured."""


class Program(NamedTuple):
    """A program of ``apps/`` and what it needs."""

    name: str
    script: str
    requirement: str | None = None
    """What pip installs for it; None: it runs on the checkout."""


OURS = Program("fcgi_app", "ours.py")
FLUP = Program("flup", "flup_app.py", "flup==1.0.3")
FLIPFLOP = Program("flipflop", "flipflop_app.py", "flipflop==1.0")
BARE = Program("bare interpreter", "bare.py")


class Cache:
    """A folder for what is built: the peers' environments, byte code, programs.

    It ignores itself in git, and can be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        """Create ``folder`` if it is missing."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / ".gitignore").write_text("*\n")

    def prepare(self, program: Program) -> None:
        """Install what ``program`` needs, once.

        Raises:
            subprocess.CalledProcessError: pip failed.
        """
        if program.requirement is None:
            return
        folder = self._environment(program)
        complete = folder / "complete"
        if complete.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(self._python(program)), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, program.requirement], check=True)
        complete.touch()

    def command(self, program: Program, *arguments: str) -> Sequence[str]:
        """Give the command line that runs ``program``."""
        return [str(self._python(program)), str(APPS / program.script), *arguments]

    def process_environment(self, program: Program) -> dict[str, str]:
        """Give the environment variables that ``program`` runs with.

        The same few for all. Byte code is cached, as it is for an installed package:
        a program that compiles its modules at each start is bigger. Our own settings
        pass through, so that they can be measured.
        """
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "TMPDIR") or name.startswith("FCGI_APP_")
        }
        environment["LANG"] = "C.UTF-8"
        environment["PYTHONPYCACHEPREFIX"] = str(self.folder / "bytecode")
        environment["PYTHONPATH"] = str(ROOT)
        return environment

    def _environment(self, program: Program) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / f"{program.name}-{version}"

    def _python(self, program: Program) -> Path:
        if program.requirement is None:
            return Path(sys.executable)
        return self._environment(program) / "bin" / "python"
