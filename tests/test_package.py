"""What is shipped: wheel, sdist, public names, man pages, and what an import needs."""

from __future__ import annotations

import configparser
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import fcgi_app

REPO = Path(__file__).resolve().parent.parent
PACKAGE = Path(fcgi_app.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([os.fspath(PACKAGE)], "fcgi_app.")
    if not module.name.endswith("__main__")
)
MAN_PAGES = sorted(page.name for page in (REPO / "manpages").glob("*.[0-9]"))
FOLDERS = ("fcgi_app", "tests", "examples", "manpages", ".github", ".ci")

# What a script may import from the top (design of the API, by level).
PUBLIC_NAMES = {
    "accept",
    "configure",
    "current_request",
    "finish",
    "is_cgi",
    "last_call",
    "listen",
    "open_socket",
    "requests",
    "run",
    "set_exit_status",
    "start_filter_data",
    "Request",
    "Server",
    "AppLoadError",
    "CallSequenceError",
    "ConfigError",
    "FcgiAppError",
    "IncompleteData",
    "LimitError",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestAborted",
    "WorkerError",
    "__version__",
}
REQUIRED_PAGES = {
    "fcgi_app.3",
    "fcgi_app.fdpass.3",
    "FCGI_Accept.3",
    "FCGI_Finish.3",
    "FCGI_SetExitStatus.3",
    "FCGI_StartFilterData.3",
    "FCGI_ToFILE.3",
    "fcgi_app-roles.7",
    "fcgiapp.3",
    "fcgi-app.1",
    "fcgi-app-dev.1",
    "fcgi-app-fdpass.1",
    "fcgi-app-start.1",
    "fcgi-app.toml.5",
    "fcgi_app.testing.3",
    "fcgi_app.client.3",
    "fcgi-app-request.1",
    "fcgi-app-bridge.1",
    "fcgistarter.1",
}


def build(source: Path, kind: str, target: Path) -> Path:
    """Call the build backend as an installer does; ``kind`` is "wheel" or "sdist"."""
    target.mkdir()
    code = (
        "import sys, setuptools.build_meta as backend;"
        f"print(backend.build_{kind}(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(target)],
        cwd=source,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.splitlines()[-1]


@dataclass(frozen=True)
class Built:
    """A wheel and an sdist of this checkout, with the paths that they hold."""

    wheel: Path
    wheel_names: frozenset[str]
    sdist: Path
    sdist_names: frozenset[str]
    """Without the leading directory that carries name and version."""

    def read(self, ending: str) -> str:
        """The text of the one file in the wheel whose path ends so."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = [n for n in self.wheel_names if n.endswith(ending)]
            return archive.read(name).decode()

    def metadata(self) -> Message:
        """The wheel's METADATA, parsed."""
        return Parser().parsestr(self.read(".dist-info/METADATA"))


def wheel_names(wheel: Path) -> frozenset[str]:
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Wheel and sdist of a copy, so that the checkout stays as it is."""
    top = tmp_path_factory.mktemp("build")
    compiled = shutil.ignore_patterns("__pycache__")
    for name in FOLDERS:
        shutil.copytree(REPO / name, top / "source" / name, ignore=compiled)
    for path in REPO.iterdir():  # the environments beside them are not ours to pack
        if path.is_file():
            shutil.copy2(path, top / "source")
    sdist = build(top / "source", "sdist", top / "sdist")
    wheel = build(top / "source", "wheel", top / "wheel")
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive if member.isfile()]
    return Built(
        wheel,
        wheel_names(wheel),
        sdist,
        frozenset(name.partition("/")[2] for name in files),
    )


def run_isolated(
    *args: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# --- What is built -------------------------------------------------------------------


@pytest.mark.slow
def test_wheel_holds_the_whole_package(built: Built) -> None:
    """Every module of the checkout and the typing marker are in the wheel."""
    sources = {
        path.relative_to(REPO).as_posix()
        for pattern in ("*.py", "py.typed")
        for path in (REPO / "fcgi_app").rglob(pattern)
    }
    assert {n for n in built.wheel_names if n.startswith("fcgi_app/")} == sources


@pytest.mark.slow
def test_wheel_installs_every_man_page(built: Built) -> None:
    """Each page goes to share/man, in the directory of its section."""
    data = f"fcgi_app-{fcgi_app.__version__}.data/data/share/man"
    pages = {f"{data}/man{page[-1]}/{page}" for page in MAN_PAGES}
    assert {n for n in built.wheel_names if "/share/" in n} == pages


@pytest.mark.slow
def test_wheel_holds_nothing_else(built: Built) -> None:
    """Beside the package and the pages there is the metadata: no tests, no examples."""
    info = f"fcgi_app-{fcgi_app.__version__}.dist-info/"
    rest = {
        name
        for name in built.wheel_names
        if not name.startswith("fcgi_app/") and "/share/man/" not in name
    }
    assert rest == {
        info + "METADATA",
        info + "RECORD",
        info + "WHEEL",
        info + "entry_points.txt",
        info + "licenses/LICENSE",
        info + "top_level.txt",
    }


@pytest.mark.slow
def test_metadata_states_version_licence_and_python(built: Built) -> None:
    """The metadata carries the version of the module and the PEP 639 licence."""
    metadata = built.metadata()
    assert metadata["Name"] == "fcgi-app"
    assert metadata["Version"] == fcgi_app.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "forms" in metadata.get_all("Provides-Extra", [])


@pytest.mark.slow
def test_console_scripts_name_functions_that_exist(built: Built) -> None:
    """Both commands lead to a callable of the package."""
    parser = configparser.ConfigParser()
    parser.read_string(built.read(".dist-info/entry_points.txt"))
    scripts = dict(parser["console_scripts"])
    assert sorted(scripts) == ["fcgi-app", "fcgistarter"]
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.slow
def test_sdist_holds_what_the_tests_need(built: Built) -> None:
    """Package, tests, examples, man pages and the project's papers are in the sdist."""
    sources = {
        path.relative_to(REPO).as_posix()
        for top in FOLDERS
        for path in (REPO / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    papers = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"}
    assert sources | papers <= built.sdist_names


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    """A wheel made from the unpacked sdist holds the same files."""
    # Not tarfile: whether extraction warns without its filter depends on the Python.
    subprocess.run(["tar", "-xzf", built.sdist, "-C", tmp_path], timeout=30, check=True)
    (source,) = tmp_path.iterdir()
    again = build(source, "wheel", tmp_path / "wheel")
    assert wheel_names(again) == built.wheel_names


# --- What is imported ----------------------------------------------------------------


def test_isolated_run_tests_the_installed_package() -> None:
    """Under ``python -I`` the package under test is not the one of the checkout."""
    assert not sys.flags.isolated or PACKAGE != REPO / "fcgi_app"


def test_public_names_are_the_documented_ones() -> None:
    """``fcgi_app.__all__`` is the promised API, no more and no less."""
    assert set(fcgi_app.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", ["fcgi_app", *MODULES])
def test_names_of_all_exist_once(name: str) -> None:
    """What a module's ``__all__`` promises is there."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    assert [n for n in names if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", ["fcgi_app", *MODULES])
def test_module_imports_alone(name: str) -> None:
    """A module can be the first that is imported, and no import warns."""
    done = run_isolated("-W", "error", "-c", f"import {name}", cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_is_light() -> None:
    """``import fcgi_app`` loads no dependency and no big standard module."""
    heavy = {"asyncio", "cffi", "click", "concurrent", "email", "http.client", "ssl"}
    code = "import sys, fcgi_app; print(*sys.modules)"
    done = run_isolated("-c", code, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert heavy & set(done.stdout.split()) == set()


def test_copied_folder_serves_without_pip(tmp_path: Path) -> None:
    """The bare folder beside a script is enough: no site-packages, no dependency."""
    shutil.copytree(PACKAGE, tmp_path / "fcgi_app")
    script = tmp_path / "script.py"
    script.write_text(
        "from fcgi_app import accept\n"
        "while accept():\n"
        "    print('Content-Type: text/plain', end='\\r\\n\\r\\n')\n"
        "    print('bare')\n"
    )
    done = run_isolated("-S", "-W", "error", os.fspath(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Content-Type: text/plain\n\nbare\n"


# --- Man pages and scripts -----------------------------------------------------------


def test_required_pages_exist() -> None:
    """Every function and command that has a page upstream or a name of ours has one."""
    assert set(MAN_PAGES) >= REQUIRED_PAGES


@pytest.mark.parametrize("page", MAN_PAGES)
def test_man_page_is_clean(page: str) -> None:
    """mandoc has no warning about the page."""
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", f"manpages/{page}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["tests/run.sh", "examples/quickstart.sh"])
def test_script_explains_itself(script: str) -> None:
    """``--help`` prints the usage from any directory and does nothing else."""
    done = subprocess.run(
        ["sh", os.fspath(REPO / script), "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: sh {script}")


def test_ci_calls_the_test_script() -> None:
    """.ci/run is executable and runs the same command as the README."""
    run = REPO / ".ci" / "run"
    assert os.access(run, os.X_OK)
    done = subprocess.run(
        [os.fspath(run), "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.startswith("usage: sh tests/run.sh")
