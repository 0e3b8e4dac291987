"""What the measured programs need, found or built: environments, programs, byte code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .load import LoadError, build
from .programs import APPS, ROOT, Program

__all__ = ["DEBIAN", "Cache", "NoPeer", "find_tool", "missing_packages"]

DEBIAN = {
    "libfcgi": "libfcgi-dev",
    "FCGI.pm": "libfcgi-perl",
    "nginx": "nginx-light",
    "wrk": "wrk",
}
"""The Debian package of what pip cannot install."""


class NoPeer(Exception):
    """Something to compare with cannot be had; the text says why."""


def find_tool(name: str) -> str:
    """Give the path of a command, also of one for administrators.

    Raises:
        NoPeer: it is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        package = DEBIAN.get(name, name)
        raise NoPeer(f"{name} is not installed (Debian package {package})")
    return found


def _has(what: str) -> bool:
    """Say whether a key of ``DEBIAN`` is there."""
    if what in ("nginx", "wrk"):
        try:
            find_tool(what)
        except NoPeer:
            return False
        return True
    command = ["perl", "-MFCGI", "-e1"]
    if what == "libfcgi":
        # only asks the preprocessor, which knows where headers are
        command = ["cc", "-E", "-include", "fcgi_stdio.h", "-x", "c", os.devnull]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        return False


def missing_packages() -> list[str]:
    """Name the Debian packages without which there are peers missing."""
    return [package for what, package in DEBIAN.items() if not _has(what)]


class Cache:
    """A folder for what is built: the peers' environments, byte code, programs.

    It ignores itself in git, and can be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        """Create ``folder`` if it is missing."""
        self.folder = folder
        self._missing: dict[str, str] = {}
        folder.mkdir(exist_ok=True)
        (folder / ".gitignore").write_text("*\n")

    def prepare(self, program: Program) -> None:
        """See that there is what ``program`` needs; install or build it, once.

        Raises:
            NoPeer: it cannot be had.
        """
        if program.name in self._missing:
            raise NoPeer(self._missing[program.name])
        try:
            self._prepare(program)
        except NoPeer as error:
            self._missing[program.name] = str(error)
            raise

    def _prepare(self, program: Program) -> None:
        if program.requirement:
            self._install(program)
        elif program.script.endswith(".c"):
            if not _has("libfcgi"):
                raise NoPeer(f"needs the Debian package {DEBIAN['libfcgi']}")
            try:
                self._compiled(program)
            except LoadError as error:
                raise NoPeer(str(error)) from error
        elif program.script.endswith(".pl") and not _has("FCGI.pm"):
            raise NoPeer(f"needs the Debian package {DEBIAN['FCGI.pm']}")

    def _install(self, program: Program) -> None:
        folder = self._environment(program)
        complete = folder / "complete"
        if complete.exists():
            return
        print(f"installing {program.requirement}", file=sys.stderr, flush=True)
        make = [sys.executable, "-m", "venv", "--clear", str(folder)]
        pip = [str(self._python(program)), "-m", "pip", "install", "--quiet"]
        for command in (make, [*pip, program.requirement]):
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                said = (ended.stderr or ended.stdout).strip().splitlines()
                errors = [line for line in said if line.startswith("ERROR")] or said
                why = errors[-1] if errors else f"status {ended.returncode}"
                raise NoPeer(f"cannot install {program.requirement}: {why}")
        complete.touch()

    def command(self, program: Program, *arguments: str) -> Sequence[str]:
        """Give the command line that runs ``program``, which is prepared.

        Args:
            program: one of ``apps/``.
            arguments: the handler, most often; the program's own follow.
        """
        words = [*arguments, *program.arguments]
        if program.script.endswith(".c"):
            return [str(self._compiled(program)), *words]
        script = str(APPS / program.script)
        if program.script.endswith(".pl"):
            return ["perl", script, *words]
        return [str(self._python(program)), script, *words]

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
        return environment | dict(program.environment)

    def _compiled(self, program: Program) -> Path:
        return build(self.folder, APPS / program.script, "fcgi")

    def _environment(self, program: Program) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        name = program.requirement.partition("==")[0]
        return self.folder / f"{name}-{version}"

    def _python(self, program: Program) -> Path:
        if not program.requirement:
            return Path(sys.executable)
        return self._environment(program) / "bin" / "python"
