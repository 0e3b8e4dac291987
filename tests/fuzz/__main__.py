"""``python -m tests.fuzz SECONDS [TARGET ...]``; see the package's docstring."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from . import SEEDS, TARGETS, build, sanitizer_options

_KEPT = Path(".fuzz")


def _run(target: str, seconds: int) -> bool:
    """Fuzz one target; whether nothing was found."""
    corpus = _KEPT / f"corpus-{target}"
    corpus.mkdir(parents=True, exist_ok=True)
    program = build(target, _KEPT, fuzzer=True).resolve()
    done = subprocess.run(
        [
            program,
            f"-max_total_time={seconds}",
            "-print_final_stats=1",
            "-timeout=20",
            f"-artifact_prefix={_KEPT.resolve()}/{target}-",
            corpus,
            SEEDS / target,
        ],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **sanitizer_options()},
        check=False,
    )
    log = _KEPT / f"{target}.log"
    log.write_text(done.stderr)
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    edges, features, inputs = covered[-1] if covered else ("?", "?", "?")
    print(
        f"{target}: {int(runs[1]) if runs else 0:,} inputs in {seconds} s,"
        f" {edges} edges, {features} features, {inputs} inputs kept:"
        f" {'nothing found' if not done.returncode else f'FOUND something, see {log}'}",
        flush=True,
    )
    if done.returncode:
        print(done.stderr[-3000:])
    return not done.returncode


def main() -> None:
    """Fuzz as the command line says; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("seconds", type=int, help="for all targets together")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    chosen = parser.parse_args()
    targets = chosen.targets or list(TARGETS)
    if unknown := {*targets} - {*TARGETS}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    share = max(chosen.seconds // len(targets), 1)
    found_nothing = [_run(target, share) for target in targets]  # each, in any case
    sys.exit(not all(found_nothing))


if __name__ == "__main__":
    main()
