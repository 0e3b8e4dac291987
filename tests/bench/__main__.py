"""The command line of the benchmarks: ``python -m tests.bench --help``."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from fcgi_app.errors import FcgiAppError

from . import __doc__ as description
from .behind import BEHIND, compare_behind
from .cache import Cache
from .comparisons import COMPARISONS, compare
from .figures import Claim, exit_status
from .files import files
from .handover import handovers
from .levers import levers
from .load import LoadError, build
from .memory import cookies, footprint, idle
from .plot import PICTURES, advice, draw
from .programs import ROOT
from .report import RESULTS, hint, inventory, machine, verdicts, write_results
from .starting import starts
from .threads import crowd, multiplexed

FAILURES = (FcgiAppError, LoadError, OSError, EOFError, subprocess.CalledProcessError)
Measured = tuple[str, list[Claim]]
Scenario = tuple[str, Callable[[], Measured]]


def scenarios(
    cache: Cache, load: Path, rounds: int, seconds: float
) -> dict[str, Scenario]:
    """Give title and function of every scenario, in their order."""
    found: dict[str, Scenario] = {
        case.name: (case.title, partial(compare, cache, load, case, rounds, seconds))
        for case in COMPARISONS
    }
    for way in BEHIND:
        run = partial(compare_behind, cache, way, rounds, seconds)
        found[way.name] = (way.title, run)
    found["files"] = (
        "response of 64 MiB from a file, kept connection",
        partial(files, cache, load, rounds, seconds),
    )
    found["memory"] = (
        "memory of one process, hello",
        partial(footprint, cache, load, rounds),
    )
    found["start"] = (
        "from the start of a process to its first answer, hello",
        partial(starts, cache, rounds),
    )
    found["idle"] = (
        "idle kept connections",
        partial(idle, cache, load, rounds, seconds),
    )
    found["fdpass"] = (
        "handovers of mod_proxy_fdpass",
        partial(handovers, cache, rounds, seconds),
    )
    found["threads"] = (
        "16 threads, hello: 16 and 1,000 kept connections",
        partial(crowd, cache, load, rounds, seconds),
    )
    found["multiplexed"] = (
        "16 threads, hello: 64 requests at a time on 1 and on 64 connections",
        partial(multiplexed, cache, rounds, seconds),
    )
    found["cookies"] = ("requests that differ", partial(cookies, cache, load))
    found["levers"] = (
        "what each way to save time is worth by itself",
        partial(levers, rounds, seconds),
    )
    return found


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="*", help="which to run (all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="each sample (%(default)s)"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.name} and the plot"
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be greater than zero")
    return options


def _run(title: str, scenario: Callable[[], Measured]) -> Measured:
    """Run a scenario; what could not be measured at all has failed."""
    try:
        return scenario()
    except FAILURES as error:
        said = str(error.args[0] if isinstance(error, LoadError) else error)
        print(f"{title}: {said}", *error.args[1:], sep="\n", file=sys.stderr)
        problem = f"could not be measured: {said}"
        return problem, [Claim(title, None, math.nan, our_problem=problem)]


def _run_all(
    known: Mapping[str, Scenario], names: Iterable[str]
) -> tuple[list[str], list[Claim]]:
    """Run the scenarios and show each; give their texts and claims."""
    sections: list[str] = []
    claims: list[Claim] = []
    for name in names:
        title, scenario = known[name]
        text, found = _run(title, scenario)
        sections.append(f"## {name}: {title}\n\n{text}")
        claims += found
        print(f"\n{sections[-1]}", flush=True)
    return sections, claims


def main() -> int:
    """Run the scenarios.

    Returns:
        0: every limit holds; 1: one is passed, or something could not be measured;
        2: a wrong command line; 3: a peer was missing, and what was measured holds.
    """
    options = arguments()
    cache = Cache(ROOT / ".bench")
    known = scenarios(cache, build(cache.folder), options.rounds, options.seconds)
    if options.list:
        for name, (title, _) in known.items():
            print(f"{name:15} {title}")
        return 0
    if unknown := set(options.scenario) - known.keys():
        print(f"no scenario is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if options.write and advice():
        print(advice(), file=sys.stderr)
        return 2
    # what others do at the same time is in the figures, most of all in requests/s
    busy = f"load average {os.getloadavg()[0]:.1f} before"
    how = machine(f", {options.rounds} rounds of {options.seconds:g} s, {busy}")
    found = inventory(cache)
    print(how, found, *hint(), sep="\n\n", flush=True)
    sections, claims = _run_all(known, options.scenario or known)
    if not claims:  # the levers alone: there is nothing to judge, or to draw
        if options.write:
            print("no limits: nothing is written", file=sys.stderr)
        return 0
    print(f"\n{verdicts(claims)}")
    if options.write:
        draw(claims, how)
        write_results(how, found, claims, sections, PICTURES[0].name)
    elif advice():
        print(advice(), file=sys.stderr)
    return exit_status(claims)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FAILURES as error:
        print(*error.args, sep="\n", file=sys.stderr)
        sys.exit(1)
