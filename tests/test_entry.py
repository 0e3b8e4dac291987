"""The entry point of fcgi-app: a child reads the options, and the supervisor is small."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fcgi_app
from fcgi_app import _log
from fcgi_app.cli.lazily import import_lazily
from fcgi_app.cli.main import SUBCOMMANDS
from fcgi_app.launcher.chance import draw_chance

from .pools import TIMEOUT, WORDS, Pool, environment
from .servers import wait_until

# From 3.12 on the interpreter is bigger, and its dataclasses uses inspect.
MOST_MEMORY = (16 if sys.version_info < (3, 12) else 17) * 1024
"""KiB of the supervisor of eight workers: 16 MiB is what we promise."""

MANPAGES = Path(__file__).parent.parent / "manpages"
HELLO = Path(__file__).parent.parent / "examples" / "hello.py"

HEAVY = frozenset(("click", "logging", "json", "shutil", "tempfile", "ipaddress"))
HEAVY |= {"random", "http", "fcgi_app.stdio", "fcgi_app.protocol", "fcgi_app.client"}
"""What a supervisor has no use for, or not before it is asked for."""

PATCHED = """
import sys
from fcgi_app.cli import entry, serve
{patch}
sys.argv = ["fcgi-app", "start", *{words}]
entry.main()
"""
"""The command with one function replaced; serve itself would not return."""

TELL = """
def tell(flags):
    print({"flags": flags, "modules": sorted(sys.modules)})
    return 7
serve.serve = tell
"""


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``fcgi-app start``."""
    return subprocess.run(
        [*WORDS, *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **{"env": environment(), **options},
    )


def run_patched(patch: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``fcgi-app start`` in an interpreter that has been changed before."""
    source = PATCHED.replace("{patch}", patch).replace("{words}", ascii(words))
    return subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
    )


# ---- who reads the options -------------------------------------------------------


@pytest.mark.slow
def test_options_arrive_as_given() -> None:
    """Repeated ones, switches, bytes that are no text, and the exit status back."""
    words = ("--bind", "@a", "--bind", "@b", "--no-daemon", "--", "a\udcff", "--help")
    done = run_patched(TELL, *words)
    assert (done.returncode, done.stderr) == (7, "")
    assert ast.literal_eval(done.stdout)["flags"] == {
        "bind": ("@a", "@b"),
        "daemon": False,
        "command": ("a\udcff", "--help"),
    }


@pytest.mark.slow
def test_supervisor_loads_what_it_uses() -> None:
    """What lives for months holds nothing that it may never need."""
    done = run_patched(TELL, "--bind", "@a")
    loaded = ast.literal_eval(done.stdout)["modules"]
    assert "fcgi_app.launcher.supervisor" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        (["--help"], 0, "Usage: fcgi-app start"),
        (["--no-such-option"], 2, "No such option"),
        (["--", "x"], 2, "an address is needed"),
        (["--bind", "@x", "--check-config", "--", "no-such"], 3, "no such file"),
    ],
)
@pytest.mark.parametrize("disposition", [signal.SIG_DFL, signal.SIG_IGN])
def test_status_when_nothing_is_to_start(
    words: list[str], status: int, shown: str, disposition: signal.Handlers
) -> None:
    """It is the child's, also where SIGCHLD is ignored and no status can be had."""

    def set_up() -> None:
        signal.signal(signal.SIGCHLD, disposition)

    done = run(*words, preexec_fn=set_up)
    assert done.returncode == status
    assert shown in done.stdout + done.stderr


@pytest.mark.slow
def test_error_of_the_child() -> None:
    """A bug shows its traceback, and nothing is started."""
    done = run_patched("from fcgi_app.cli import main\nmain.run = None")
    assert (done.returncode, done.stdout) == (1, "")
    assert "TypeError" in done.stderr


@pytest.mark.slow
def test_nobody_reads_the_help() -> None:
    """As with ``fcgi-app start --help | head -1``: it ends, and says nothing of it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*WORDS, "--help"],
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--bind", "@x", "true"], ["--check-config"]])
def test_directory_that_is_gone(words: list[str], tmp_path: Path) -> None:
    """The message says which one: a deployment may have replaced it."""
    folder = tmp_path / "gone"
    folder.mkdir()

    def set_up() -> None:
        os.chdir(folder)
        folder.rmdir()

    done = run(*words, preexec_fn=set_up)
    message = "fcgi-app: error: current directory: No such file or directory\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.slow
def test_no_descriptor_at_all() -> None:
    """Closed standard descriptors do not get in the way."""
    done = run("--no-such-option", preexec_fn=lambda: os.closerange(0, 3))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = run("--help", preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_supervisor_is_the_process_that_was_started() -> None:
    """The child has gone: the only children are the workers."""
    with Pool("--workers", "2") as pool:
        folder = Path(f"/proc/{pool.process.pid}")
        children = (folder / "task" / folder.name / "children").read_text().split()
        assert {int(pid) for pid in children} == pool.wait_for_workers(2)
        assert sorted(os.listdir(folder / "task")) == [folder.name]  # and no thread


@pytest.mark.slow
def test_memory_of_a_supervisor() -> None:
    """Eight workers cost it no more than we promise, and SIGUSR2 changes nothing."""
    with Pool("--workers", "8", command=[str(HELLO)]) as pool:

        def measure() -> int:
            text = Path(f"/proc/{pool.process.pid}/status").read_text()
            return int(text.partition("VmRSS:")[2].split()[0])

        def is_small() -> bool:
            return measure() <= MOST_MEMORY

        # What the start has used is given back right after it.
        pool.wait_for_workers(8)
        wait_until(is_small, f"{measure()} KiB are fewer", seconds=TIMEOUT)
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        wait_until(is_small, f"{measure()} KiB are fewer", seconds=TIMEOUT)


# ---- the manual ------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_manual_lists_the_subcommand(name: str) -> None:
    """fcgi-app(1) says what it is for, and names its page, which there is."""
    text = (MANPAGES / "fcgi-app.1").read_text()
    description, _, rest = text.partition(".Sh ENVIRONMENT")
    assert f".It Cm {name}\n" in description
    assert f".Xr fcgi-app-{name} 1 ." in description
    assert f".Xr fcgi-app-{name} 1 ," in rest.partition(".Sh SEE ALSO")[2]
    page = (MANPAGES / f"fcgi-app-{name}.1").read_text()
    assert f".Nm fcgi-app {name}\n" in page


# ---- names that are loaded when they are asked for -------------------------------


def test_public_names_are_there() -> None:
    """Each of them, also for dir(); and no other."""
    for name in fcgi_app.__all__:
        assert getattr(fcgi_app, name) is not None
    assert set(fcgi_app.__all__) <= set(dir(fcgi_app))
    with pytest.raises(AttributeError, match="'nonsense'"):
        fcgi_app.nonsense  # noqa: B018 - it is the question


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of its own, which says in a file that it has been loaded."""
    path = tmp_path / "lazy_example.py"
    path.write_text("open(__file__ + '.loaded', 'x').close()\nanswer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Path(f"{path}.loaded")
    sys.modules.pop("lazy_example", None)


def test_lazy_module(module: Path) -> None:
    """It is loaded once, when somebody asks for something in it."""
    import_lazily("lazy_example")
    first: types.ModuleType = __import__("lazy_example")
    assert not module.exists()
    with pytest.raises(AttributeError, match="nonsense"):
        first.nonsense  # noqa: B018 - it is the question
    assert module.exists()
    assert first.answer == 42
    assert "answer" in vars(first)  # from now on without a detour
    second: types.ModuleType = __import__("lazy_example")
    assert (second.answer, second.__file__) == (42, first.__file__)
    import_lazily("lazy_example")
    assert __import__("lazy_example") is second


def test_chance() -> None:
    """Numbers from 0 to below 1, hardly ever the same twice."""
    drawn = [draw_chance() for _ in range(1000)]
    assert all(0 <= number < 1 for number in drawn)
    assert min(drawn) < 0.1 < 0.9 < max(drawn)
    assert len(set(drawn)) > 990


# ---- the log of a launcher -------------------------------------------------------


@pytest.fixture
def lines(caplog: Any) -> Iterator[list[str]]:
    """Where the messages go instead of ``logging``, which gets none of them."""
    found: list[str] = []
    _log.log_to(found.append)
    yield found
    _log.log_to(None)
    assert not caplog.records


def test_log_of_a_launcher(lines: list[str]) -> None:
    """Messages are put together as logging does it."""
    _log.log_info("worker %d, %r", 7, "x")
    _log.log_warning("100 % sure")
    assert lines == ["worker 7, 'x'", "100 % sure"]


def test_log_of_a_launcher_shows_tracebacks(lines: list[str]) -> None:
    """They follow the message, and end without a newline."""
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        _log.log_exception("it failed")
    (text,) = lines
    assert text.startswith("it failed\nTraceback (most recent call last):\n")
    assert text.endswith("RuntimeError: a bug")


def test_log_goes_back_to_logging(caplog: Any) -> None:
    """Without a sink, logging has the messages again."""
    take: Callable[[str], object] = lambda text: None  # noqa: E731 - typed
    _log.log_to(take)
    _log.log_to(None)
    _log.log_warning("here")
    assert [record.getMessage() for record in caplog.records] == ["here"]
