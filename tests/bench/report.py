"""What a run was: the machine, the programs that were found; and its file of results."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fcgi_app.errors import RemoteProtocolError

from .cache import DEBIAN, Cache, NoPeer, missing_packages
from .figures import VERDICTS, Claim, table, tally
from .load import LoadError
from .processes import Server
from .programs import OURS, POOL, PROGRAMS, Program
from .wire import fetch

__all__ = ["RESULTS", "hint", "inventory", "machine", "verdicts", "write_results"]

RESULTS = Path(__file__).with_name("RESULTS.md")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def machine(how: str = "") -> str:
    """Say what the figures were measured on, and how."""
    now = datetime.datetime.now(datetime.timezone.utc)
    settings = "".join(
        f", {name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("FCGI_APP_")
    )
    return (
        f"{now:%Y-%m-%d}, {platform.python_implementation()} "
        f"{platform.python_version()} ({platform.python_compiler()}), "
        f"Linux {platform.release()}, {_processor()}, "
        f"{len(os.sched_getaffinity(0))} CPUs{how}{settings}"
    )


def _version(package: str) -> str:
    """Give the version of a Debian package; without dpkg, empty."""
    command = ["dpkg-query", "-W", "-f", "${Version}", package]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if ended.returncode else ended.stdout.strip()


def _ask_backend(cache: Cache, program: Program) -> str:
    """Ask a process of ours which backend it runs with.

    Raises:
        LoadError: it does not say.
    """
    command = cache.command(program, "backend")
    try:
        with Server(command, cache.process_environment(program)) as server:
            return fetch(server.path).decode().strip()
    except (OSError, RemoteProtocolError, ValueError) as error:
        what = f"{program.name} does not say which backend it runs with"
        raise LoadError(what, *map(str, error.args)) from error


def _describe(cache: Cache, program: Program) -> str:
    try:
        cache.prepare(program)
    except NoPeer as error:
        return f"no peer: {error}"
    if program.script in (OURS.script, POOL.script):
        return f"backend: {_ask_backend(cache, program)}"
    if program.requirement:
        return program.requirement.replace("==", " ")
    package = DEBIAN["FCGI.pm" if program.script.endswith(".pl") else "libfcgi"]
    return f"{package} {_version(package)}".strip()


def inventory(cache: Cache) -> str:
    """Prepare all programs, and list what each of them is, or why it is not there.

    Raises:
        LoadError: our own program does not answer.
    """
    rows = [(program.name, _describe(cache, program)) for program in PROGRAMS]
    for tool in ("nginx", "wrk"):
        package = DEBIAN[tool]
        missing = f"no peer: needs the Debian package {package}"
        there = f"{package} {_version(package)}".strip()
        rows.append((tool, missing if package in missing_packages() else there))
    return table(("program", "what was found"), rows)


def hint() -> list[str]:
    """Say in a line which Debian packages are missing; no line if none is."""
    packages = " ".join(missing_packages())
    said = f"missing, their rows say 'no peer': apt-get install {packages}"
    return [said] if packages else []


def verdicts(claims: Sequence[Claim]) -> str:
    """Give the table of all limits, and how many there are of each kind."""
    return f"{table(VERDICTS, [claim.row() for claim in claims])}\n\n{tally(claims)}"


def write_results(
    how: str, found: str, claims: Sequence[Claim], sections: Sequence[str], plot: str
) -> None:
    """Write ``RESULTS``.

    Args:
        how: what `machine` says.
        found: what `inventory` says.
        claims: of all scenarios.
        sections: of each scenario, its title and its table.
        plot: the name of the picture.
    """
    parts = [
        "# Results of `python -m tests.bench`",
        how,
        f"## Limits\n\n![Ratios with their spread, and the limits]({plot})",
        verdicts(claims),
        f"## Programs\n\n{found}",
        *sections,
    ]
    RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
