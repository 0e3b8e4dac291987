"""``fcgi-app start`` where something is wrong: clear errors, and nothing is harmed."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pools import Client, Pool, assert_refused, nobodys_folder, run_start, unprivileged

pytestmark = pytest.mark.slow  # all of them start an interpreter

CONFIG = """
[pool.main]
bind = "unix:@PATH@"
command = ["@PYTHON@", "-SE", "@SCRIPT@"]
workers = 2
"""
ENDLESS = ("/bin/sh", "-c", "exec sleep 600")
PREFIX, NOBODY = unprivileged()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that belongs to nobody; who is root has no say in it."""
    with nobodys_folder() as path:
        yield path


def snapshot(path: Path) -> list[tuple[str, int, int, int]]:
    """What is in a folder: names, kinds and modes, inode numbers, sizes."""
    found = []
    for each in sorted(path.rglob("*")):
        status = each.lstat()
        found.append(
            (str(each), status.st_mode, status.st_ino, status.st_size),
        )
    return found


# ---- the address --------------------------------------------------------------------


def make(kind: str, path: Path) -> None:
    """Make something that is no socket."""
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.with_name("other").write_text("precious")
        path.symlink_to("other")
    else:
        path.symlink_to("nothing")


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link", "broken link"])
def test_path_that_is_no_socket(kind: str, folder: Path) -> None:
    """Whatever it is, it stays as it is, and so does what a link points to."""
    path = folder / "sock"
    make(kind, path)
    before = snapshot(folder)
    done = run_start("--bind", "unix:sock", "--", *ENDLESS, cwd=folder)
    assert_refused(done, 1, f"{path}: a file that is not a socket is in the way")
    assert snapshot(folder) == before


def test_path_of_a_live_socket() -> None:
    """It is refused, and the pool that has it serves on, on the same socket."""
    with Pool() as pool:
        inode = os.stat(pool.path).st_ino
        bind = f"unix:{pool.path}"
        done = run_start("--bind", bind, "--", *ENDLESS, cwd=pool.folder)
        assert_refused(
            done, 1, f"error: {pool.path}: another process listens on the socket"
        )
        assert pool.ask() in pool.workers()
        assert os.stat(pool.path).st_ino == inode


def test_path_of_a_live_socket_with_a_full_queue(folder: Path) -> None:
    """A pool that is too busy to accept is alive, too."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        listener.bind(str(folder / "sock"))
        listener.listen(0)
        client.connect(str(folder / "sock"))
        before = snapshot(folder)
        done = run_start("--bind", "unix:sock", "--", *ENDLESS, cwd=folder)
        assert_refused(done, 1, "another process listens on the socket")
        assert snapshot(folder) == before


def test_path_of_a_stale_socket(folder: Path) -> None:
    """The file that nobody listens on is replaced, and goes with the new pool."""
    path = folder / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
    with Pool("--bind", f"unix:{path}") as pool, Client(str(path)) as client:
        assert client.pid() in pool.workers()
    assert not path.exists()


def test_path_of_a_socket_that_may_not_be_asked(folder: Path) -> None:
    """Whether it is stale cannot be told, so it stays."""
    path = folder / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(0)
    before = snapshot(folder)
    words = ["--bind", "unix:sock", "--", *ENDLESS]
    done = run_start(*words, cwd=folder, prefix=PREFIX)
    assert_refused(done, 1, f"error: {path}: cannot tell whether the socket is in use")
    assert snapshot(folder) == before


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_second_address_is_taken(family: socket.AddressFamily, folder: Path) -> None:
    """The first one is closed again, and its file removed."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as other:
        port = other.getsockname()[1]
        taken = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        words = ["--bind", "unix:sock", "--bind", taken, "--", *ENDLESS]
        done = run_start(*words, cwd=folder)
        assert_refused(done, 1, f"{taken}: Address already in use")
    assert os.listdir(folder) == []


def test_reload_onto_bad_addresses() -> None:
    """Files and other programs are not harmed, and the pool serves where it did."""
    with Pool(config=CONFIG) as pool, socket.create_server(("127.0.0.1", 0)) as other:
        before = pool.wait_for_workers(2)
        precious = pool.folder / "precious"
        precious.write_text("text")
        port = other.getsockname()[1]
        addresses = {
            f"{precious}": "a file that is not a socket",
            f"127.0.0.1:{port}": "Address already in use",
            f"{pool.folder}/none/sock": "No such file or directory",
        }
        for number, (address, reason) in enumerate(addresses.items(), 1):
            new = f'bind = ["unix:@PATH@", "{address}"]'
            pool.write_config(CONFIG.replace('bind = "unix:@PATH@"', new))
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reload failed", times=number)
            said = pool.log().splitlines()[-1]
            assert reason in said
            assert address in said
            assert pool.ask() in before
        assert precious.read_text() == "text"
        assert pool.workers() == before


# ---- the file -----------------------------------------------------------------------

WRONG_FILES = {
    "unknown key": ("\nworker = 3\n", r":7: pool\.main\.worker: 3: no such key, did"),
    "unknown pool key": ("\n[pool.b]\njob = 1\n", r":8: pool\.b\.job: 1: no such key"),
    "wrong type": ("\nuser = 33\n", r":7: pool\.main\.user: 33: must be a string"),
    "no TOML": ("\nuser = = 33\n", r":7: 'user = = 33': Invalid value"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_file(case: str, folder: Path) -> None:
    """The start ends with status 2 and one line that names file, line and key."""
    text, message = WRONG_FILES[case]
    config = CONFIG.replace("@PATH@", "sock").replace("@PYTHON@", sys.executable)
    (folder / "a.toml").write_text(config + text)
    done = run_start("--config", "a.toml", cwd=folder)
    assert_refused(done, 2, f"{folder}/a.toml:")
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(folder) == ["a.toml"]


def test_wrong_file_at_a_reload() -> None:
    """Whatever is wrong with it, or if it is gone, the pool stays as it is."""
    with Pool(config=CONFIG) as pool:
        before = pool.wait_for_workers(2)
        for number, (text, message) in enumerate(WRONG_FILES.values(), 1):
            pool.write_config(CONFIG + text)
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reload failed", times=number)
            assert re.search(message, pool.log())
        pool.config.unlink()
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed", times=len(WRONG_FILES) + 1)
        assert "No such file or directory" in pool.log()
        assert pool.ask() in before
        assert pool.workers() == before


# ---- the command --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no program\n", "Exec format error"),
        ("#!/no/such/interpreter\n", "/no/such/interpreter"),
    ],
)
def test_command_that_cannot_be_executed(text: str, reason: str, folder: Path) -> None:
    """It looks like a program, but the system cannot run it: status 3."""
    (folder / "prog").write_text(text)
    (folder / "prog").chmod(0o755)
    done = run_start("--bind", "unix:sock", "--", "./prog", cwd=folder)
    assert_refused(done, 3, reason)
    assert f"{folder}/prog" in done.stderr
    assert os.listdir(folder) == ["prog"]


@pytest.mark.parametrize(
    ("script", "how", "last"),
    [
        ("echo last words >&2; exit 7", "exit status 7", ["last words"]),
        ("echo to stdout; exit 0", "exit status 0", ["to stdout"]),
        ("echo no newline >&2; kill -9 $$", "signal 9", ["no newline"]),
        ("printf 'cut off' >&2; exit 1", "exit status 1", ["cut off"]),
        (
            "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i + 1)); done; exit 1",
            "exit status 1",
            [f"line {number}" for number in range(90, 100)],
        ),
        ("exec 1>&- 2>&-; exit 1", "exit status 1", []),
    ],
    ids=["status", "success", "signal", "no newline", "many lines", "silent"],
)
def test_command_that_dies_at_once(
    script: str, how: str, last: list[str], folder: Path
) -> None:
    """Status 3; how it ended, and the last lines that it has written."""
    words = ["--bind", "unix:sock", "--workers", "3", "--", "/bin/sh", "-c", script]
    done = run_start(*words, cwd=folder)
    assert_refused(done, 3, f"ended with {how} right at its start")
    error = done.stderr.rpartition("fcgi-app: error: ")[2]
    assert error.splitlines()[1:] == last
    assert os.listdir(folder) == []


def test_command_that_dies_at_once_with_garbage(folder: Path) -> None:
    """What it has written need not be text; one line may be long."""
    script = r"printf '\377\376\033[31m\n' >&2; head -c 3000000 /dev/zero >&2; exit 1"
    words = ["--bind", "unix:sock", "--", "/bin/sh", "-c", script]
    done = run_start(*words, cwd=folder)
    assert_refused(done, 3, "ended with exit status 1 right at its start")


# ---- permissions --------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", ["--bind=unix:closed/s", "--pid-file=closed/p", "--log-file=closed/l"]
)
def test_folder_that_may_not_be_written(option: str, folder: Path) -> None:
    """Status 1, and the name of the file that could not be made."""
    (folder / "closed").mkdir(mode=0o555)
    words = ["--bind", "unix:sock", option, "--", *ENDLESS]
    done = run_start(*words, cwd=folder, prefix=PREFIX)
    assert_refused(done, 1, f"{folder}/closed/{option[-1]}: Permission denied")
    assert os.listdir(folder) == ["closed"]
    assert os.listdir(folder / "closed") == []


def test_command_that_may_not_be_executed(folder: Path) -> None:
    """Status 3: found, but not for this user."""
    (folder / "prog").write_text("#!/bin/sh\n")
    (folder / "prog").chmod(0o644)
    words = ["--bind", "unix:sock", "--", "./prog"]
    done = run_start(*words, cwd=folder, prefix=PREFIX)
    assert_refused(done, 3, f"'{folder}/prog': not executable")
    assert os.listdir(folder) == ["prog"]


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--user", "root"], 3, "pool main: "),
        (["--chroot", "/"], 3, "pool main: chroot /: "),
        (["--socket-owner", "root"], 1, "/sock: "),
        (["--rlimit", "nofile=9000000000000000000"], 3, "pool main: rlimit nofile: "),
    ],
    ids=["user", "chroot", "socket-owner", "rlimit"],
)
def test_what_only_root_may(
    options: list[str], status: int, reason: str, folder: Path
) -> None:
    """The step is named with the system's reason, and nothing is left."""
    words = ["--bind", "unix:sock", *options, "--", *ENDLESS]
    done = run_start(*words, cwd=folder, prefix=PREFIX)
    assert_refused(done, status, reason)
    assert re.search("not permitted|not allowed|maximum limit", done.stderr)
    assert os.listdir(folder) == []


def test_reload_to_what_is_not_permitted() -> None:
    """The workers that serve stay, if those of the new file could not start."""
    with Pool(config=CONFIG, prefix=PREFIX, owner=NOBODY) as pool:
        before = pool.wait_for_workers(2)
        pool.write_config(CONFIG + 'chroot = "/"\n')
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed, the workers stay as they are")
        assert "pool main: chroot /: Operation not permitted" in pool.log()
        assert pool.ask() in before
        assert pool.workers() == before


# ---- the pid file -------------------------------------------------------------------


def test_pid_file_of_a_living_pool_stays() -> None:
    """A second start is refused, however often, and the first keeps its file."""
    options = ("--workers", "2", "--pid-file", "pid")
    with Pool(*options) as pool:
        file = pool.folder / "pid"
        inode = file.stat().st_ino
        for more in ([], ["--daemon"]):
            words = ["--bind", "unix:two", "--pid-file", "pid", *more, "--", *ENDLESS]
            done = run_start(*words, cwd=pool.folder)
            assert_refused(
                done, 2, f"'{file}': the process {pool.process.pid} runs and holds"
            )
            assert (int(file.read_text()), file.stat().st_ino) == (
                pool.process.pid,
                inode,
            )
        assert not (pool.folder / "two").exists()
        pool.send(signal.SIGUSR2)  # the lock goes along
        pool.wait_for_log("executed again")
        done = run_start(
            *("--bind", "unix:two", "--pid-file", "pid", "--", *ENDLESS),
            cwd=pool.folder,
        )
        assert_refused(done, 2, f"the process {pool.process.pid} runs")
    assert not file.exists()


def test_pid_file_that_is_a_folder(folder: Path) -> None:
    """It stays, and the message has its name."""
    (folder / "pid").mkdir()
    words = ["--bind", "unix:sock", "--pid-file", "pid", "--", *ENDLESS]
    assert_refused(run_start(*words, cwd=folder), 1, f"{folder}/pid: Is a directory")
    assert os.listdir(folder) == ["pid"]
