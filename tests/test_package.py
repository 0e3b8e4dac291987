"""What is shipped: wheel, sdist, public names, man pages, and what an import needs."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import fcgi_app
from fcgi_app._backend import BACKEND

from .shipping import (
    EXTENSION,
    FOLDERS,
    PURE,
    REPO,
    Wheel,
    build,
    call_backend,
    copy_checkout,
    open_wheel,
)

PACKAGE = Path(fcgi_app.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([os.fspath(PACKAGE)], "fcgi_app.")
    if not module.name.endswith(("__main__", "_native.build"))
)
"""All that can be imported: without the extension not ``fcgi_app._native`` either."""
if BACKEND != "native":
    only = ("bulk", "lane", "lazyenviron", "lentslot", "paramlist", "shortcut")
    MODULES = [name for name in MODULES if name.rpartition(".")[2] not in only]
if not any((PACKAGE / "_native").glob("_core*.so")):
    MODULES = [name for name in MODULES if not name.startswith("fcgi_app._native")]
MAN_PAGES = sorted(page.name for page in (REPO / "manpages").glob("*.[0-9]"))

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


NATIVE = "cp310-abi3-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
TAGS = {"native": NATIVE, "pure": PURE}


@dataclass(frozen=True)
class Built:
    """Both wheels and an sdist of this checkout."""

    wheels: dict[str, Wheel]
    """By backend."""
    sdist: Path
    sdist_names: frozenset[str]
    """Without the leading directory that carries name and version."""

    def unpack(self, target: Path) -> Path:
        """Unpack the sdist, and give the directory with pyproject.toml."""
        # Not tarfile: whether extraction warns without its filter depends on Python.
        target.mkdir()
        subprocess.run(
            ["tar", "-xzf", self.sdist, "-C", target], timeout=30, check=True
        )
        (source,) = target.iterdir()
        return source


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All that is shipped, from one copy: no build leaves anything for the next."""
    top = tmp_path_factory.mktemp("build")
    source = copy_checkout(top / "source")
    sdist, _ = build(source, "sdist", top / "sdist")
    wheels = {}
    for backend in ("native", "pure"):
        path, _ = build(source, "wheel", top / backend, FCGI_APP_BUILD=backend)
        wheels[backend] = open_wheel(path)
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive if member.isfile()]
    names = frozenset(name.partition("/")[2] for name in files)
    return Built(wheels, sdist, names)


@pytest.fixture(params=["native", "pure"])
def wheel(request: pytest.FixtureRequest, built: Built) -> Wheel:
    """Each of the two wheels."""
    return built.wheels[request.param]


@pytest.fixture
def build_module() -> ModuleType:
    """``_native/build.py``, loaded as setuptools loads it."""
    path = REPO / "fcgi_app" / "_native" / "build.py"
    spec = importlib.util.spec_from_file_location("built_by", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_isolated(
    *args: str, cwd: Path | None = None, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={"PATH": os.environ["PATH"]} | (environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# --- What is built -------------------------------------------------------------------


@pytest.mark.slow
def test_wheel_holds_the_whole_package(wheel: Wheel) -> None:
    """Every module of the checkout, but the one that builds, and what types need."""
    sources = {
        path.relative_to(REPO).as_posix()
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (REPO / "fcgi_app").rglob(pattern)
    }
    found = {n for n in wheel.names if n.startswith("fcgi_app/")}
    assert found - {EXTENSION} == sources - {"fcgi_app/_native/build.py"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "pure"])
def test_wheel_is_for_whom_its_backend_is(built: Built, backend: str) -> None:
    """With the extension for every CPython from 3.10 on; without it for all."""
    wheel = built.wheels[backend]
    assert wheel.path.name == f"fcgi_app-{fcgi_app.__version__}-{TAGS[backend]}.whl"
    assert wheel.tags() == [TAGS[backend]]
    assert wheel.extensions() == ({EXTENSION} if backend == "native" else set())


@pytest.mark.slow
def test_wheel_installs_every_man_page(wheel: Wheel) -> None:
    """Each page goes to share/man, in the directory of its section."""
    data = f"fcgi_app-{fcgi_app.__version__}.data/data/share/man"
    pages = {f"{data}/man{page[-1]}/{page}" for page in MAN_PAGES}
    assert {n for n in wheel.names if "/share/" in n} == pages


@pytest.mark.slow
def test_wheel_holds_nothing_else(wheel: Wheel) -> None:
    """Beside the package and the pages there is the metadata: no tests, no examples."""
    info = f"fcgi_app-{fcgi_app.__version__}.dist-info/"
    rest = {
        name
        for name in wheel.names
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
def test_metadata_states_version_licence_and_python(wheel: Wheel) -> None:
    """The metadata carries the version of the module and the PEP 639 licence."""
    metadata = wheel.metadata()
    assert metadata["Name"] == "fcgi-app"
    assert metadata["Version"] == fcgi_app.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "forms" in metadata.get_all("Provides-Extra", [])


@pytest.mark.slow
def test_console_scripts_name_functions_that_exist(wheel: Wheel) -> None:
    """Both commands lead to a callable of the package."""
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(".dist-info/entry_points.txt"))
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
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    papers = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"}
    assert sources | papers <= built.sdist_names


@pytest.mark.slow
def test_sdist_holds_what_the_extension_is_made_of(
    built: Built, build_module: ModuleType
) -> None:
    """The C sources, what Python sees of them, and what builds them; nothing built."""
    needed = {*build_module.SOURCES, "fcgi.h", "lane.h", "core.cdef", "build.py"}
    assert {f"fcgi_app/_native/{name}" for name in needed} <= built.sdist_names
    assert [name for name in built.sdist_names if name.endswith(".so")] == []


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    """A wheel made from the unpacked sdist is the native one, with the same files."""
    path, said = build(built.unpack(tmp_path / "sdist"), "wheel", tmp_path / "wheel")
    assert path.name == built.wheels["native"].path.name
    assert open_wheel(path).names == built.wheels["native"].names
    assert said == (
        "fcgi_app: building the package with the native backend, _core.abi3.so"
    )


# --- Building without a compiler -----------------------------------------------------


def no_compiler(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": os.fspath(tmp_path / "bin")}


def failing_compiler(_: Path) -> dict[str, str]:
    return {"CC": "/bin/false"}


def no_headers(_: Path) -> dict[str, str]:
    return {"CFLAGS": "-nostdinc"}


def no_cffi(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "cffi.py").write_text("raise ImportError('there is no cffi')\n")
    return {"PYTHONPATH": os.fspath(tmp_path)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        (no_compiler, r"it could not be compiled: CompileError: .*"),
        (failing_compiler, r"it could not be compiled: CompileError: .*/bin/false.*"),
        (no_headers, r"it could not be compiled: CompileError: .*"),
        (no_cffi, r"it could not be compiled: ImportError: there is no cffi"),
    ],
)
def test_build_that_cannot_compile(
    built: Built,
    tmp_path: Path,
    lacking: Callable[[Path], dict[str, str]],
    reason: str,
) -> None:
    """It gives the pure wheel, named so, and says why."""
    source = built.unpack(tmp_path / "sdist")
    path, said = build(source, "wheel", tmp_path / "wheel", **lacking(tmp_path))
    assert path.name.endswith(f"-{PURE}.whl")
    assert open_wheel(path).names == built.wheels["pure"].names
    intro = "fcgi_app: building the pure Python package, without the native backend: "
    assert re.fullmatch(re.escape(intro) + reason, said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            "native",
            "FCGI_APP_BUILD=native, but there is none: it could not be compiled",
        ),
        ("quick", "FCGI_APP_BUILD: 'quick': must be one of ('auto', 'pure', 'native')"),
    ],
)
def test_build_of_what_cannot_be_had(
    built: Built, tmp_path: Path, wanted: str, reason: str
) -> None:
    """Whoever insists on the native backend gets it or an error; no guess at others."""
    source = built.unpack(tmp_path / "sdist")
    environ = {"FCGI_APP_BUILD": wanted, "CC": "/bin/false"}
    done = call_backend(source, "wheel", tmp_path / "wheel", **environ)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"fcgi_app: {reason}")
    assert [*(tmp_path / "wheel").iterdir()] == []


@pytest.mark.slow
def test_build_of_an_editable_installation(built: Built, tmp_path: Path) -> None:
    """The extension is put into the checkout; where there is none, an old one goes."""
    source = built.unpack(tmp_path / "sdist")
    path, _ = build(source, "editable", tmp_path / "native")
    assert path.name.endswith(f"-{NATIVE}.whl")
    assert (source / EXTENSION).exists()
    path, said = build(source, "editable", tmp_path / "pure", CC="/bin/false")
    assert path.name.endswith(f"-{PURE}.whl")
    assert "without the native backend" in said
    assert not (source / EXTENSION).exists()


@pytest.mark.parametrize(
    ("owner", "attribute", "value", "reason"),
    [
        ("sys.implementation", "name", "pypy", "it is for CPython, and this is pypy"),
        ("sys", "platform", "freebsd14", "it is for Linux, and this is freebsd14"),
        (
            "sysconfig",
            "get_config_var",
            {"Py_GIL_DISABLED": 1}.get,
            "it is not for free-threaded Python",
        ),
    ],
)
def test_build_elsewhere(
    build_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    attribute: str,
    value: object,
    reason: str,
) -> None:
    """For another Python or another system it is not tried."""
    assert build_module.find_obstacle() is None
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{attribute}", value)
        found = build_module.find_obstacle()
    assert found == reason


# --- What is installed ---------------------------------------------------------------


@pytest.fixture(params=["native", "pure"])
def installed(
    request: pytest.FixtureRequest, built: Built, tmp_path: Path
) -> tuple[str, Path]:
    """The backend and the place of a wheel that pip has installed."""
    place = tmp_path / "installed"
    pip = [sys.executable, "-Im", "pip", "install", "-qq", "--no-index", "--no-deps"]
    wheel = built.wheels[request.param].path
    subprocess.run([*pip, f"--target={place}", wheel], timeout=60, check=True)
    return request.param, place


@pytest.mark.slow
def test_installed_wheel_has_its_backend(installed: tuple[str, Path]) -> None:
    """The wheel's own backend does the work, and the command says which."""
    backend, place = installed
    code = "import fcgi_app._backend as b; print(b.BACKEND, b.__file__)"
    done = run_isolated("-c", code, cwd=place)
    assert done.stdout == f"{backend} {place}/fcgi_app/_backend.py\n", done.stderr
    done = run_isolated("-m", "fcgi_app", "--version", cwd=place)
    assert done.stdout.splitlines()[-1] == (
        "backend native (it is there)"
        if backend == "native"
        else "backend pure (no native backend: this is the package without it)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["native", "pure"])
def test_installed_wheel_and_the_backend_asked_for(
    installed: tuple[str, Path], wanted: str
) -> None:
    """Pure can always be had; native is an error of one line where it is missing."""
    backend, place = installed
    environ = {"FCGI_APP_BACKEND": wanted}
    done = run_isolated("-m", "fcgi_app", "--version", cwd=place, environ=environ)
    if (backend, wanted) == ("pure", "native"):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "fcgi-app: error: FCGI_APP_BACKEND: 'native': there is no native backend:"
            " this is the package without it\n"
        )
    else:
        assert done.returncode == 0
        assert done.stdout.endswith(f"backend {wanted} (FCGI_APP_BACKEND={wanted})\n")


# --- What is imported ----------------------------------------------------------------


def test_isolated_run_tests_the_installed_package() -> None:
    """Under ``python -I`` the package under test is not the one of the checkout."""
    assert not sys.flags.isolated or PACKAGE != REPO / "fcgi_app"


@pytest.mark.slow
def test_suite_on_another_backend_than_the_one_meant() -> None:
    """``--backend`` ends a run on the wrong one at once; nothing is skipped."""
    done = run_isolated(
        *("-m", "pytest", "-p", "no:cacheprovider", "--backend=native", "tests"),
        cwd=REPO,
        environ={"FCGI_APP_BACKEND": "pure"},
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--backend=native, but the backend is pure (" in done.stderr


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
