"""Who asks a supervisor: where its control socket is, and answers of all kinds."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.launcher.asking import ask, find_control

from .pools import environment

TIMEOUT = 30.0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("control = 3", "fcgi-app.toml:1: control: 3: must be a path"),
        ("control = ''", "must be a path"),
        ("workers = 3", "not known: give --control"),
        ("control = [", "fcgi-app.toml"),
    ],
)
def test_find_control_in_a_file_that_does_not_help(
    tmp_path: Path, text: str, error: str
) -> None:
    """The error names the file, and what would."""
    (tmp_path / "fcgi-app.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(error)):
        find_control(None, None, {}, str(tmp_path))


def test_find_control_in_order(tmp_path: Path) -> None:
    """Command line, environment, file; relative to where each stands."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.toml").write_text('control = "../c"\n[pool.a]\nb = 1\n')
    (tmp_path / "pyproject.toml").write_text('[tool.fcgi-app]\ncontrol = "p"\n')
    (tmp_path / "fcgi-app.toml").write_text("")
    here = str(tmp_path)
    variable = {"FCGI_APP_START_CONTROL": "v"}
    file = {"FCGI_APP_START_CONFIG": "sub/x.toml"}
    assert find_control("a", "sub/x.toml", variable, here) == f"{here}/a"
    assert find_control(None, "sub/x.toml", variable, here) == f"{here}/v"
    assert find_control(None, "sub/x.toml", {}, here) == f"{here}/sub/../c"
    assert find_control(None, None, file, here) == f"{here}/sub/../c"
    with pytest.raises(ConfigError, match="not known"):  # start reads this file alone
        find_control(None, None, {}, here)
    (tmp_path / "fcgi-app.toml").unlink()
    assert find_control(None, None, {}, here) == f"{here}/p"
    with pytest.raises(FileNotFoundError):
        find_control(None, "no-such.toml", {}, here)


def answer_once(listener: socket.socket, content: bytes) -> None:
    """Read a question, and say this."""
    with listener.accept()[0] as connection:
        connection.recv(1000)
        connection.sendall(content)


def test_ask_somebody_who_hangs_up(tmp_path: Path) -> None:
    """No answer is an error, and so is half of one."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        for content in (b"", b'{"ok": true}'):
            thread = threading.Thread(target=answer_once, args=(listener, content))
            thread.start()
            with pytest.raises(ConnectionResetError, match="without an answer"):
                ask(path, {"command": "status"}, timeout=TIMEOUT)
            thread.join()


@pytest.mark.parametrize("content", [b"SSH-2.0\n", b"[]\n", b'{"ok": 1}\n', b"\xff\n"])
def test_ask_somebody_else(tmp_path: Path, content: bytes) -> None:
    """What is no answer is no traceback."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=answer_once, args=(listener, content))
        thread.start()
        with pytest.raises(OSError, match="no supervisor's answer"):
            ask(path, {"command": "stop"}, timeout=TIMEOUT)
        thread.join()


STUBBORN = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
for _ in range(2):
    connection, _ = listener.accept()
    connection.recv(1000)
    connection.sendall(b'{"ok": true}\\n')
    connection.close()
sys.stdin.read()
"""
"""A supervisor that answers, and needs a while for its end."""


def test_ask_to_stop_waits_for_the_end_of_the_process(tmp_path: Path) -> None:
    """The answer is not enough: whoever starts the next one needs what this one has."""
    path = str(tmp_path / "s")
    with subprocess.Popen(
        [sys.executable, "-SEc", STUBBORN, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        question = {"command": "stop"}
        with pytest.raises(TimeoutError):
            ask(path, question, timeout=0.5)
        assert child.poll() is None
        assert ask(path, {**question, "wait": False}, timeout=TIMEOUT) == {"ok": True}
        child.communicate(timeout=TIMEOUT)


@pytest.mark.parametrize("found", [{}, {"status": {}}, {"status": {"pools": 3}}])
def test_status_of_another_version(found: dict[str, Any], tmp_path: Path) -> None:
    """A supervisor that was started before an upgrade may tell less."""
    done = run_against({"ok": True, **found}, "status", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fcgi-app: error: the answer cannot be read: ")


def test_error_is_shown_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    """Lines stay lines; a worker may have printed anything."""
    answer = {"ok": False, "error": "one\x1b[2J\ntwo"}
    done = run_against(answer, "reload", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("one\\x1b[2J\ntwo\n")


def run_against(
    answer: dict[str, Any], command: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command that gets this answer from somebody in a supervisor's place."""
    path = str(folder / "s")
    content = json.dumps(answer).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=answer_once, args=(listener, content))
        thread.start()
        done = subprocess.run(
            [sys.executable, "-m", "fcgi_app", command, "--control", path],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        thread.join()
    return done
