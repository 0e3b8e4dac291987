"""The C of the native backend given anything at all: targets, seeds, and how to build them.

    python -m tests.fuzz SECONDS [TARGET ...]

runs the targets for so many seconds altogether, one after the other, with libFuzzer (clang
and its sanitizers). What it finds beyond the seeds stays in ``.fuzz/``, and so does an input
that breaks something, which the last lines name: mend it, and make it a seed.

``tests/test_fuzz.py`` gives the seeds to every target with gcc in each run of the tests.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["HERE", "SEEDS", "TARGETS", "build", "sanitizer_options"]

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "fcgi_app" / "_native"  # of the checkout; no wheel has it
SEEDS = HERE / "seeds"
# What else belongs to a target; "output" and "lane" have their sources in themselves.
TARGETS = {
    "params": ("params.c",),
    "whole": ("whole.c",),
    "body": ("body.c",),
    "output": (),
    "environ": ("environ.c", "layout.c", "slot.c", "params.c"),
    "lane": (
        *("params.c", "whole.c", "waiting.c"),
        *("environ.c", "layout.c", "slot.c"),
    ),
}
_FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror")
_SANITIZERS = "address,undefined"


def build(target: str, folder: Path, *, fuzzer: bool) -> Path:
    """Compile a target with ASan and UBSan; with libFuzzer by clang, or to replay by gcc.

    Raises:
        subprocess.CalledProcessError: there is an error or a warning in it.
    """
    made = folder / target
    kinds = f"fuzzer,{_SANITIZERS}" if fuzzer else _SANITIZERS
    sources = [HERE / f"{target}.c", *(NATIVE / name for name in TARGETS[target])]
    if not fuzzer:
        sources.append(HERE / "replay.c")
    subprocess.run(
        [
            "clang" if fuzzer else "gcc",
            *_FLAGS,
            f"-fsanitize={kinds}",
            "-fno-sanitize-recover=all",
            f"-I{NATIVE}",
            f"-I{HERE}",
            *map(str, sources),
            "-o",
            str(made),
        ],
        check=True,
    )
    return made


def sanitizer_options() -> dict[str, str]:
    """Give the variables that make the sanitizers say all that they know."""
    return {
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
