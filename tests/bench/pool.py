"""The figures of ``fcgi-app start``: what operations on a pool cost its clients.

    python -m tests.bench.pool                 everything, some five minutes
    python -m tests.bench.pool reloads start   these alone
    python -m tests.bench.pool --quick         a tenth of the operations
    python -m tests.bench.pool --write         also write tests/bench/POOL.md

Needed: Linux, nginx, a C compiler, libfcgi. Each scenario starts a pool of its own and the
clients of ``crowd.py``: some on kept and some on new connections, over nginx and
directly. Every byte of every answer is checked. A request that was sent on a kept
connection which the pool has just ended is sent again on a new one, as nginx does it
and any web server must; how often the direct clients had to is in the column "again".

    reloads        50 times SIGHUP
    kills          200 times SIGKILL for a worker that serves nobody
    recycling      workers that end after --max-requests
    execs          20 times SIGUSR2
    sizes          SIGTTOU and SIGTTIN
    dynamic        load and rest in turn, until there is one worker again
    ondemand       the same, until there is none
    busy           SIGKILL for a worker in the middle of a request
    foreign        50 times SIGHUP, with workers that are libfcgi's, in C
    foreign-kills  50 times SIGKILL for one of them that serves nobody
    wedged         --request-timeout and workers that hang
    idle           memory, wake-ups and CPU time of a supervisor with nothing to do
    start          from the command to the first answer

The exit status is 0 when every limit holds, 1 when one is passed or something could
not be measured, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .cache import Cache
from .figures import VERDICTS, exit_status, table
from .load import LoadError, build
from .operations import OPERATIONS, Found, operate
from .programs import ROOT
from .report import machine
from .supervision import idle, start, wedged

__all__ = ["main"]

FOREIGN = Path(__file__).with_name("foreign.c")
RESULTS = Path(__file__).with_name("POOL.md")
QUICK = 0.1
ROUNDS = 5
HEAD = ("operation", "client", "answered", "failed", "again", "problem")


def scenarios(cache: Path, share: float) -> dict[str, Callable[[], Found]]:
    """Give each scenario's function, in their order."""
    program, foreign = build(cache), build(cache, FOREIGN, "fcgi")
    found: dict[str, Callable[[], Found]] = {
        name: partial(operate, operation, program, foreign, share)
        for name, operation in OPERATIONS.items()
    }
    rounds = max(1, round(ROUNDS * share))
    found["wedged"] = partial(wedged, program, rounds)
    found["idle"] = idle
    found["start"] = partial(start, rounds)
    return found


def report(found: Found) -> str:
    """Write the tables."""
    verdicts = [claim.row() for claim in found.claims]
    parts = [machine(), table(VERDICTS, verdicts)]
    if found.rows:
        parts.append(table(HEAD, [tuple(map(str, row)) for row in found.rows]))
    return "\n\n".join(parts)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.pool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="*", help="which to run (all)")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the operations"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write the results to {RESULTS.name}"
    )
    return parser.parse_args()


def main() -> int:
    """Run the scenarios; 0 when every claim holds, 1 if not, 2 for a wrong name."""
    options = arguments()
    share = QUICK if options.quick else 1.0
    known = scenarios(Cache(ROOT / ".bench").folder, share)
    if unknown := set(options.scenario) - known.keys():
        print(f"no scenario is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    found = Found([], [])
    failed = False
    for name in options.scenario or known:
        began = time.monotonic()
        try:
            part = known[name]()
        except (AssertionError, LoadError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        found.rows.extend(part.rows)
        found.claims.extend(part.claims)
    text = report(found)
    print(text)
    if options.write:
        title = "# Results of `python -m tests.bench.pool`"
        RESULTS.write_text(f"{title}\n\n{text}\n", encoding="utf-8")
    return 1 if failed else exit_status(found.claims)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LoadError, OSError, subprocess.CalledProcessError) as error:
        print(*error.args, sep="\n", file=sys.stderr)
        sys.exit(1)
