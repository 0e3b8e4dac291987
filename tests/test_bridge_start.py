"""``fcgi-app bridge``: command files, words of others, and pools that it starts."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from fcgi_app.launcher import autostart
from fcgi_app.testing import ScriptApplication, run_script

from .bridges import (
    TIMEOUT,
    WORDS,
    body_of,
    cgi_environment,
    find_pids,
    make_folder,
    run,
)
from .servers import wait_until

pytestmark = pytest.mark.slow  # each starts an interpreter


@pytest.fixture
def folder() -> Iterator[Path]:
    with make_folder() as path:
        yield path


@pytest.fixture
def app(folder: Path) -> Iterator[ScriptApplication]:
    with run_script(folder / "app.py") as running:
        yield running


# ---- command files, and words that others append


def test_command_file(app: ScriptApplication, folder: Path) -> None:
    """Comments, options over several lines, quotes; what follows the file is nothing."""
    file = folder / "command"
    file.write_text(f"#!/usr/bin/env x\n  # more\n--timeout\n5 '{app.address}'\n\n")
    for words in ([], ["--help"], ["-f", "/etc/passwd"], ["--start", "--", "false"]):
        assert int(body_of(run("-f", str(file), *words, path_info="/argv"))) == app.pid


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# nothing\n", "has no line with an address"),
        ("'unix:/x\n", "no closing quotation"),
        ("-f other\n", "must come first"),
    ],
)
def test_command_file_malformed(folder: Path, text: str, told: str) -> None:
    """The file is named, or the option."""
    (folder / "command").write_text(text)
    done = run("-f", str(folder / "command"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in done.stderr.decode()


def test_words_after_the_address(app: ScriptApplication, folder: Path) -> None:
    """They are no options, and start nothing."""
    made = folder / "made"
    words = ["/cgi-bin/app", "--start", "--help", "--", "/bin/touch", str(made)]
    assert int(body_of(run(app.address, *words, path_info="/argv"))) == app.pid
    done = run(str(folder / "nobody"), *words[1:])
    assert done.returncode == 7
    assert not made.exists()


# ---- starting a pool


@pytest.fixture
def pools(folder: Path) -> Iterator[Path]:
    """The directory; pools that were started in it are stopped."""
    yield folder
    for pid_file in folder.glob("*.pid"):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    wait_until(lambda: not find_pids(folder), "the end of the pools", seconds=TIMEOUT)


def start_words(folder: Path, *options: str, address: str = "") -> list[str]:
    """What starts a pool in the directory."""
    address = address or f"unix:{folder}/app.sock"
    words = ["--start", address, "--pid-file", f"{folder}/pool.pid", *options]
    return [*words, "--", f"{folder}/app.py", "argument"]


def test_start(pools: Path) -> None:
    """The first request starts the pool, the next finds it."""
    done = run(*start_words(pools, "--workers", "1"), path_info="/argv")
    pid, word = body_of(done, started=True).split()
    assert word == b"argument"
    done = run(*start_words(pools), path_info="/argv")
    assert body_of(done).split() == [pid, word]


def test_start_holds_nothing_of_the_request(pools: Path) -> None:
    """The web server sees the end of its pipes; the pool has a clean environment."""
    done = run(*start_words(pools), OF_THE_SITE="kept")  # it reads to their end
    body_of(done, started=True)
    shown = body_of(run(f"{pools}/app.sock", path_info="/started")).decode()
    names = {line.partition("=")[0] for line in shown.splitlines()}
    assert {"PATH", "OF_THE_SITE"} <= names
    assert not names & {"GATEWAY_INTERFACE", "REQUEST_METHOD", "HTTP_COOKIE"}


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_many_start_at_once(pools: Path, where: str) -> None:
    """One pool serves them all."""
    address = ""
    if where == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = start_words(pools, "--workers", "1", address=address)
    processes = [
        subprocess.Popen(
            [*WORDS, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=cgi_environment("/argv"),
        )
        for _ in range(6)
    ]
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert {process.returncode for process in processes} == {0}
    assert not any(b"error" in stderr for _, stderr in outputs)
    assert sorted(stderr.count(b"listening on") for _, stderr in outputs)[-2:] == [0, 1]
    assert len({stdout for stdout, _ in outputs}) == 1
    lock = autostart._lock_path(address or f"unix:{pools}/app.sock")
    os.unlink(lock)  # that of a port is in a directory that stays


def test_start_that_fails(pools: Path) -> None:
    """A page with 503; the log says why; nothing is left."""
    (pools / "app.py").write_text("raise SystemExit('cannot work')")
    done = run(*start_words(pools))
    assert done.returncode == 7
    assert done.stdout.startswith(b"Status: 503 ")
    assert b"cannot work" in done.stderr
    assert b"the pool did not start: exit status 3" in done.stderr


def test_start_that_takes_too_long(pools: Path) -> None:
    """It is stopped, and nothing of it is left."""
    words = ["--start-timeout", "0.5", "--start", f"unix:{pools}/app.sock"]
    options = ["--config", str(pools / "pipe")]
    os.mkfifo(pools / "pipe")  # reading the configuration waits for ever
    before = monotonic()
    done = run(*words, *options)
    assert monotonic() - before < 5  # it was asked to end, and did
    assert (done.returncode, done.stdout[:12]) == (28, b"Status: 503 ")
    assert b"not ready after 0.5 seconds" in done.stderr
    wait_until(lambda: not find_pids(pools), "the end of the start")


def test_start_by_a_command_file(pools: Path) -> None:
    """What follows the file is nothing to the pool, either."""
    file = pools / "command"
    file.write_text(" ".join(start_words(pools)))
    done = run("-f", str(file), "--evil", path_info="/argv")
    assert body_of(done, started=True).split()[1:] == [b"argument"]


def test_start_while_another_has_the_lock(pools: Path) -> None:
    """Who waits for the lock in vain says so."""
    with (pools / "app.sock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("--start-timeout", "0.2", *start_words(pools))
    assert done.returncode == 28
    assert b"app.sock.lock: locked by somebody else" in done.stderr


def test_start_without_a_place_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else has put there is not used; it is as if nobody listened."""
    monkeypatch.setattr(autostart, "_LOCKS", str(tmp_path))
    (tmp_path / "target").mkdir()
    (tmp_path / f"fcgi-app-{os.geteuid()}").symlink_to("target")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pool = autostart.PoolOnDemand(address, ["--", "false"], {}, 5.0, 5.0)
    with pytest.raises(PermissionError, match="no directory of this user"):
        pool.connect()
    assert not list((tmp_path / "target").iterdir())


def test_start_in_a_script_line(pools: Path) -> None:
    """The path that the system appends, and the client's words, end the command."""
    script = pools / "cgi"
    script.write_text("#!/bin/false\n")
    words = [*start_words(pools), str(script), "--evil"]
    done = run(*words, path_info="/argv", SCRIPT_FILENAME=str(script))
    assert body_of(done, started=True).split()[1:] == [b"argument"]
