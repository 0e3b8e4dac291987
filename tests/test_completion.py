"""Completion of the words of fcgi-app: in bash as it is, and asked as shells ask."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.cli.completion import SHELLS
from fcgi_app.cli.main import SUBCOMMANDS
from fcgi_app.cli.words import completer

from .pools import environment
from .servers.process import require

pytestmark = pytest.mark.slow  # each starts an interpreter

TIMEOUT = 30.0
PROMPT = "ready> "


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``fcgi-app``."""
    return subprocess.run(
        [sys.executable, "-m", "fcgi_app", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(**environ),
    )


def script_for(shell: str) -> str:
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- bash ------------------------------------------------------------------------


class Bash:
    """An interactive bash on a terminal, in which ``fcgi-app`` is completed."""

    def __init__(self, folder: Path) -> None:
        command = folder / "bin" / "fcgi-app"
        command.parent.mkdir()
        words = shlex.join([sys.executable, "-m", "fcgi_app"])
        command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        command.chmod(0o755)
        (folder / "script").write_text(script_for("bash"))
        (folder / "inputrc").write_text("set enable-bracketed-paste off\n")
        environ = environment(
            PATH=f"{command.parent}:{os.environ['PATH']}",
            PS1=PROMPT,
            INPUTRC=str(folder / "inputrc"),
            TERM="dumb",
            COLUMNS="500",
        )
        shell = require("bash")
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(shell, ["bash", "--norc", "--noprofile", "-i"], environ)
        self.read_until(PROMPT)
        self.type(". ./script\n")
        self.read_until(PROMPT)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def read_until(self, text: str) -> str:
        """Read what the terminal shows up to this text."""
        shown = ""
        deadline = time.monotonic() + TIMEOUT
        while text not in shown:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, left))
            assert ready, f"no {text!r} in {shown!r}"
            shown += os.read(self.terminal, 4096).decode()
        return shown

    def complete(self, typed: str) -> str:
        """What the completion key makes of a line."""
        self.type(typed + "\t@@")  # the mark is where the cursor is then
        shown = self.read_until("@@").replace("\a", "")
        self.type("\x15")  # take the line back
        return shown.removesuffix("@@").rpartition("\r")[2].removeprefix(PROMPT)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bash]:
    folder = tmp_path_factory.mktemp("bash")
    (folder / "my-file.toml").touch()
    (folder / "my-folder").mkdir()
    shell = Bash(folder)
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("fcgi-app sta", "fcgi-app sta"),  # start, status
        ("fcgi-app star", "fcgi-app start "),
        ("fcgi-app comp", "fcgi-app completion "),
        ("fcgi-app completion f", "fcgi-app completion fish "),
        ("fcgi-app start --touch-r", "fcgi-app start --touch-reload "),
        ("fcgi-app start --manager on", "fcgi-app start --manager ondemand "),
        ("fcgi-app start --config my-fi", "fcgi-app start --config my-file.toml "),
        ("fcgi-app start --chdir my-fo", "fcgi-app start --chdir my-folder/"),
        ("fcgi-app start --bind :1 -- my-f", "fcgi-app start --bind :1 -- my-f"),
        ("fcgi-app dev my-fi", "fcgi-app dev my-file.toml "),
    ],
)
def test_bash_completes(bash: Bash, typed: str, becomes: str) -> None:
    """The completion key makes of a line what it should, on a real terminal."""
    assert bash.complete(typed) == becomes


# ---- as any shell asks -----------------------------------------------------------


def offered(line: str, word: int) -> list[tuple[str, str]]:
    """What zsh is told: kind and value of each completion."""
    done = run(_FCGI_APP_COMPLETE="zsh_complete", COMP_WORDS=line, COMP_CWORD=str(word))
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    return list(zip(lines[::3], lines[1::3], strict=True))


def test_subcommands_are_offered() -> None:
    """Each of them, and nothing else."""
    assert offered("fcgi-app ", 1) == [("plain", name) for name in sorted(SUBCOMMANDS)]


@pytest.mark.parametrize("line", ["fcgi-app fdpass --bind x -- ", "fcgi-app dev a.py "])
def test_words_of_a_program_are_files(line: str) -> None:
    """What the program behind takes is not known: files are the best offer."""
    ((kind, _),) = offered(line, len(line.split()))
    assert kind == "file"


@pytest.mark.parametrize(("option", "kind"), [("chdir", "dir"), ("log-file", "file")])
def test_paths_are_completed_by_the_shell(option: str, kind: str) -> None:
    """It knows better than we do how; of directories it offers nothing else."""
    assert offered(f"fcgi-app start --{option} sr", 3) == [(kind, "sr")]


@pytest.mark.parametrize("command", ["status", "reload", "stop", "scale"])
@pytest.mark.parametrize("option", ["config", "control"])
def test_paths_of_a_supervisor_are_files(command: str, option: str) -> None:
    """They are what is typed most often."""
    assert offered(f"fcgi-app {command} --{option} sr", 3) == [("file", "sr")]


@pytest.mark.parametrize(
    ("metavar", "word", "found"),
    [
        ("a|ab|b", "", ["a", "ab", "b"]),
        ("a|ab|b", "a", ["a", "ab"]),
        ("a|ab|b", "c", []),
    ],
)
def test_completer_of_words(metavar: str, word: str, found: list[str]) -> None:
    """Those that begin as the word does."""
    complete = completer(metavar)
    assert complete is not None
    assert complete(None, None, word) == found  # type: ignore[arg-type]


def test_completer_of_what_is_free() -> None:
    """There is nothing to offer for a number."""
    assert completer("NUMBER") is None


@pytest.mark.parametrize("shell", SHELLS)
def test_script_asks_the_command(shell: str) -> None:
    """The script of each shell calls fcgi-app in the way of that shell."""
    script = script_for(shell)
    assert f"_FCGI_APP_COMPLETE={shell}_complete" in script
    assert "fcgi-app" in script


def test_script_for_bash_is_bash(tmp_path: Path) -> None:
    """bash reads it without a complaint."""
    script = tmp_path / "script"
    script.write_text(script_for("bash"))
    done = subprocess.run(
        [require("bash"), "--norc", "-ec", '. "$1"; complete -p fcgi-app', "-", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("fcgi-app")


def test_unknown_shell() -> None:
    """The message says which there are."""
    done = run("completion", "tcsh")
    assert done.returncode == 2
    for shell in SHELLS:
        assert shell in done.stderr
