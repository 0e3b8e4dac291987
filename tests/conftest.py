"""What every test gets: checked process globals, a Hypothesis profile, the checkout."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fcgi_app import _backend
from fcgi_app._log import log_in_foreground

REPO = Path(__file__).resolve().parent.parent

# The machine may be busy with other tests: how long an example takes says nothing.
settings.register_profile(
    "fcgi_app",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fcgi_app")

# A shell without job control lets what it starts by "&" ignore Ctrl-C, and so would the
# programs that tests start, and stop by it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=("native", "pure"),
        help="the backend that the package must have chosen; else no test is run",
    )


def pytest_configure(config: pytest.Config) -> None:
    """A native backend that is missing is a failure, and no reason to test the other."""
    wanted = config.getoption("--backend")
    if wanted not in (None, _backend.BACKEND):
        raise pytest.UsageError(
            f"--backend={wanted}, but the backend is {_backend.describe()}"
        )


def pytest_report_header() -> str:
    return f"fcgi_app backend: {_backend.describe()}"


def _environment() -> dict[bytes, bytes]:
    """``os.environb`` without the variable that pytest itself changes in mid-test."""
    return {k: v for k, v in os.environb.items() if k != b"PYTEST_CURRENT_TEST"}


def _descriptors() -> dict[int, str]:
    """Descriptor → target, of each socket, pipe and poll object that is open."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the descriptor of listdir itself
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:")):
            found[int(entry)] = target
    return found


def _leaked(before: dict[int, str]) -> dict[int, str]:
    """What is open now and was not before; garbage does not count."""
    if _descriptors().items() - before.items():
        gc.collect()
    return dict(_descriptors().items() - before.items())


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """After a test standard streams, ``os.environ`` and descriptors are as before."""
    streams = sys.stdin, sys.stdout, sys.stderr
    environ, environb = os.environ, os.environb
    content = _environment()
    descriptors = _descriptors()
    yield
    now = sys.stdin, sys.stdout, sys.stderr
    assert all(a is b for a, b in zip(streams, now, strict=True)), (
        f"sys.stdin, stdout, stderr were {streams} and are {now}"
    )
    assert os.environ is environ
    assert os.environb is environb
    assert _environment() == content
    assert not _leaked(descriptors), "descriptors left open"


@pytest.fixture(autouse=True)
def log_at_once() -> Iterator[None]:
    """Threads of one test do not make the next one log in the background."""
    yield
    log_in_foreground()


@pytest.fixture
def native_backend(request: pytest.FixtureRequest) -> None:
    """The native backend is there; only who wants the pure one tested may lack it."""
    if _backend.BACKEND == "native":
        return
    wanted = request.config.getoption("--backend"), os.environ.get("FCGI_APP_BACKEND")
    if "pure" in wanted:
        pytest.skip("of the native backend")
    pytest.fail(f"the native backend is missing: {_backend.describe()}")


@pytest.fixture
def repo() -> Path:
    """The top of the checkout, absolute."""
    return REPO
