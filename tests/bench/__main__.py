"""The command line of the benchmarks: ``python -m tests.bench --help``."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import __doc__ as description
from .behind import BEHIND, compare_behind
from .cache import Cache
from .comparisons import COMPARISONS, compare
from .figures import VERDICTS, Claim, table
from .handover import handovers
from .load import LoadError, build
from .memory import cookies, footprint, idle
from .programs import ROOT
from .threads import crowd, multiplexed

RESULTS = Path(__file__).with_name("RESULTS.md")
Measured = tuple[str, list[Claim]]


def scenarios(
    cache: Cache, load: Path, rounds: int, seconds: float
) -> dict[str, tuple[str, Callable[[], Measured]]]:
    """Give title and function of every scenario, in their order."""
    found: dict[str, tuple[str, Callable[[], Measured]]] = {
        case.name: (case.title, partial(compare, cache, load, case, rounds, seconds))
        for case in COMPARISONS
    }
    for way in BEHIND:
        run = partial(compare_behind, cache, way, rounds, seconds)
        found[way.name] = (way.title, run)
    found["memory"] = (
        "memory of one process, hello",
        partial(footprint, cache, load, rounds),
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
    return found


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
        "--write", action="store_true", help=f"write the results to {RESULTS.name}"
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be greater than zero")
    return options


def main() -> int:
    """Run the scenarios; 0 when no claim fails, 1 when one does, 2 for a wrong name."""
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
    how = f", {options.rounds} rounds of {options.seconds:g} s"
    sections = [machine(how)]
    print(sections[0], flush=True)
    claims: list[Claim] = []
    for name in options.scenario or known:
        title, run = known[name]
        text, found = run()
        sections.append(f"## {name}: {title}\n\n{text}")
        claims += found
        print(f"\n{sections[-1]}", flush=True)
    rows = [claim.row() for claim in claims]
    verdicts = table(VERDICTS, rows)
    print(f"\n{verdicts}")
    if options.write:
        sections[1:1] = [f"## Limits\n\n{verdicts}"]
        text = "\n\n".join(["# Results of `python -m tests.bench`", *sections])
        RESULTS.write_text(text + "\n", encoding="utf-8")
    return int(any(claim.verdict == "fails" for claim in claims))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LoadError, OSError, EOFError, subprocess.CalledProcessError) as error:
        print(*error.args, sep="\n", file=sys.stderr)
        sys.exit(1)
