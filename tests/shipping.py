"""What is shipped, built as an installer builds it, and looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
FOLDERS = ("fcgi_app", "tests", "examples", "manpages", ".github", ".ci")
PURE = "py3-none-any"
EXTENSION = "fcgi_app/_native/_core.abi3.so"


def call_backend(
    source: Path, hook: str, target: Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Call the build backend as an installer does; the last line is the file's name."""
    target.mkdir()
    code = (
        "import sys, setuptools.build_meta as backend;"
        f"print(backend.build_{hook}(sys.argv[1]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, os.fspath(target)],
        cwd=source,
        env={"PATH": os.environ["PATH"]} | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def build(source: Path, hook: str, target: Path, **environ: str) -> tuple[Path, str]:
    """Build what ``hook`` is for ("wheel", "sdist"), and give it and what was said."""
    done = call_backend(source, hook, target, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("fcgi_app: ")]
    return target / done.stdout.splitlines()[-1], "\n".join(said)


@dataclass(frozen=True)
class Wheel:
    """A wheel and the paths that it holds."""

    path: Path
    names: frozenset[str]

    def read(self, ending: str) -> str:
        """The text of the one file whose path ends so."""
        with zipfile.ZipFile(self.path) as archive:
            (name,) = [n for n in self.names if n.endswith(ending)]
            return archive.read(name).decode()

    def metadata(self) -> Message:
        """METADATA, parsed."""
        return Parser().parsestr(self.read(".dist-info/METADATA"))

    def tags(self) -> list[str]:
        """What WHEEL says that it is for."""
        return Parser().parsestr(self.read(".dist-info/WHEEL")).get_all("Tag", [])

    def extensions(self) -> set[str]:
        """Every shared object in it."""
        return {name for name in self.names if name.endswith(".so")}


def open_wheel(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        return Wheel(path, frozenset(archive.namelist()))


def copy_checkout(target: Path) -> Path:
    """Copy what is the project's, so that the checkout stays as it is."""
    left = shutil.ignore_patterns("__pycache__", "*.so")
    for name in FOLDERS:
        shutil.copytree(REPO / name, target / name, ignore=left)
    for path in REPO.iterdir():  # the environments beside them are not ours to pack
        if path.is_file():
            shutil.copy2(path, target)
    return target


def unpack(sdist: Path, target: Path) -> Path:
    """Unpack an sdist, and give the directory with pyproject.toml."""
    # Not tarfile: whether extraction warns without its filter depends on Python.
    target.mkdir()
    subprocess.run(["tar", "-xzf", sdist, "-C", target], timeout=30, check=True)
    (source,) = target.iterdir()
    return source
