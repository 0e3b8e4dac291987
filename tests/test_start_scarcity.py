"""``fcgi-app start`` where the system is out of something: processes, or disk space."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pools import Pool, assert_refused, nobodys_folder, run_start, unprivileged
from .servers import wait_until

pytestmark = pytest.mark.slow  # all of them start an interpreter

ENDLESS = ("/bin/sh", "-c", "exec sleep 600")
PREFIX, NOBODY = unprivileged()
NO_FORK = ["prlimit", "--nproc=0"]
PROCESSES = str(resource.getrlimit(resource.RLIMIT_NPROC)[1]).replace("-1", "unlimited")
"""As many as anybody may have."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that belongs to nobody; who is root has no say in it."""
    with nobodys_folder() as path:
        yield path


# ---- no more processes --------------------------------------------------------------


def test_fork_limit_at_the_start(folder: Path) -> None:
    """One line says why, and nothing is left."""
    words = ["--bind", "unix:sock", "--", *ENDLESS]
    done = run_start(*words, cwd=folder, prefix=[*PREFIX, *NO_FORK])
    assert_refused(done, 1, "Resource temporarily unavailable")
    assert os.listdir(folder) == []


def limit_processes(pool: Pool, limit: str) -> None:
    """Let the supervisor start so many processes; who is nobody may say so."""
    words = ["prlimit", f"--pid={pool.process.pid}", f"--nproc={limit}:"]
    subprocess.run([*PREFIX, *words], check=True)


def test_fork_limit_in_service() -> None:
    """It is tried again, ever more slowly; who runs serves, and all is well later."""
    with Pool("--workers", "2", prefix=PREFIX, owner=NOBODY) as pool:
        before = pool.wait_for_workers(2)
        limit_processes(pool, "0")
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        pool.wait_for_log("next start in", times=3)
        assert "Resource temporarily unavailable" in pool.log()
        pauses = [float(x) for x in re.findall(r"next start in (\S+) s", pool.log())]
        assert pauses == sorted(pauses)
        assert {pool.ask()} == before - {victim} == pool.workers()
        limit_processes(pool, PROCESSES)
        assert len(pool.wait_for_workers(2)) == 2
        assert not pool.has_ended()


def test_fork_limit_at_a_reload() -> None:
    """The reload fails, the next one succeeds."""
    with Pool("--workers", "2", prefix=PREFIX, owner=NOBODY) as pool:
        before = pool.wait_for_workers(2)
        limit_processes(pool, "0")
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed, the workers stay as they are")
        assert pool.workers() == before
        assert pool.ask() in before
        limit_processes(pool, PROCESSES)
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        pool.wait_for_other_workers(before)


def test_fork_limit_with_the_first_client() -> None:
    """ondemand: the client waits until a worker can be started."""
    options = ("--manager", "ondemand", "--workers", "2")
    with Pool(*options, prefix=PREFIX, owner=NOBODY) as pool:
        limit_processes(pool, "0")
        with pool.client() as client:
            pool.wait_for_log("next start in", times=2)
            limit_processes(pool, PROCESSES)
            assert client.pid() in pool.workers()


# ---- a full disk --------------------------------------------------------------------

TALKATIVE = """
import os, socket, sys
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        print("x" * 100_000, file=sys.stderr, flush=True)
        connection.sendall(b"%d\\n" % os.getpid())
"""


def serve_and_be_managed(pool: Pool) -> None:
    """Ask and operate; without a log it can only be seen from outside."""
    before = pool.wait_for_workers(2)
    for _ in range(20):
        assert pool.ask() in before
    pool.send(signal.SIGHUP)
    after = pool.wait_for_other_workers(before)
    os.kill(min(after), signal.SIGKILL)
    wait_until(lambda: len(pool.workers() - {min(after)}) == 2, "another worker")
    assert pool.ask()


@pytest.mark.parametrize("where", ["--log-file", "stderr"])
def test_full_disk_for_logs(where: str) -> None:
    """What is logged is lost, and nothing else."""
    options = ["--workers", "2"]
    options += ["--log-file", "/dev/full"] if where == "--log-file" else []
    prefix = ["/bin/sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
    with Pool(
        *options,
        source=TALKATIVE,
        ready=False,
        prefix=prefix if where == "stderr" else (),
    ) as pool:
        serve_and_be_managed(pool)


def test_disk_that_is_full_for_a_while() -> None:
    """Logging goes on as soon as there is room again."""
    with Pool("--workers", "2", source=TALKATIVE) as pool:
        log = pool.folder / "log"
        full = log.stat().st_size
        limit_files(pool, str(full))
        serve_and_be_managed(pool)
        assert log.stat().st_size == full
        limit_files(pool, "unlimited")
        pool.send(signal.SIGUSR1)
        pool.wait_for_log("log opened again")


def limit_files(pool: Pool, size: str) -> None:
    """Let no file of the supervisor grow beyond so many bytes."""
    words = ["prlimit", f"--pid={pool.process.pid}", f"--fsize={size}:"]
    subprocess.run(words, check=True)


def test_full_disk_for_the_pid_file(folder: Path) -> None:
    """Status 1 with the reason, and no file without a number is left."""
    words = ["--bind", "unix:sock", "--pid-file", "pid", "--", *ENDLESS]
    done = run_start(*words, cwd=folder, prefix=["prlimit", "--fsize=0"])
    assert_refused(done, 1, f"{folder}/pid: File too large")
    assert os.listdir(folder) == []
