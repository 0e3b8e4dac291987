"""What the fuzzing has as seeds is given to each of its targets, under ASan and UBSan."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fcgi_app.protocol.whole import scan_whole

from .fuzz import SEEDS, TARGETS, build, sanitizer_options
from .fuzz.seeds import SITUATIONS


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *args],
        env={**os.environ, **sanitizer_options()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_seeds(tmp_path: Path, target: str) -> None:
    """Every seed goes through its target without a finding and without a leak."""
    seeds = sorted(map(str, (SEEDS / target).iterdir()))
    done = run(build(target, tmp_path, fuzzer=False), *seeds)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(seeds)}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--overflow", "heap-buffer-overflow"),
        ("--overflow-int", "signed integer overflow"),
        ("--leak", "detected memory leaks"),
    ],
)
def test_sanitizers_are_awake(tmp_path: Path, option: str, said: str) -> None:
    """A build for the seeds ends at an overflow and at a leak, and says so."""
    done = run(build("whole", tmp_path, fuzzer=False), option)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_what_makes_them(target: str) -> None:
    """The seeds that are committed are those of ``tests.fuzz.seeds``."""
    there = {path.name: path.read_bytes() for path in (SEEDS / target).iterdir()}
    made = SITUATIONS[target]
    assert {name: there.get(name) for name in made} == made


def test_whole_seeds_are_whole() -> None:
    """Those that are named after a whole request are one, and the others are none."""
    whole = {
        name
        for name, content in SITUATIONS["whole"].items()
        if scan_whole(content) is not None
    }
    assert whole == {
        "nginx",
        "not-kept",
        "body",
        "padded-body",
        "greatest-id",
        "padding",
        "most-padding",
        "two-requests",
        "one-byte-more",
    }
