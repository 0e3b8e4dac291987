"""``fcgi-app start``: how workers are started, replaced, renewed and stopped."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import select
import signal
import subprocess
import sys
import termios
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from .pools import RAW, TIMEOUT, WORDS, Client, Pool, environment, find_processes
from .servers import wait_until

pytestmark = pytest.mark.slow

STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + RAW
DYING = """
import sys
print("first line", file=sys.stderr)
sys.exit("no database")
"""
CONFIG = """
[pool.main]
bind = "unix:@PATH@"
command = ["@PYTHON@", "-SE", "@SCRIPT@"]
workers = 2
"""


def run_start(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*WORDS, *words],
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


# ---- the start --------------------------------------------------------------------


def test_workers_share_the_socket() -> None:
    """As many run as were asked for, and each can serve."""
    with Pool("--workers", "3") as pool, ExitStack() as stack:
        clients = [stack.enter_context(pool.client()) for _ in range(3)]
        assert {client.pid() for client in clients} == pool.wait_for_workers(3)


def test_worker_that_dies_at_its_start() -> None:
    """The status is 3, its last lines are shown, and nothing is left."""
    with Pool("--workers", "2", source=DYING, ready=False) as pool:
        assert pool.wait() == 3
        last = pool.log().splitlines()[-3:]
        assert re.search(
            r"worker \d+ ended with exit status 1 right at its st", last[0]
        )
        assert last[1:] == ["first line", "no database"]


def test_step_before_the_program_that_fails() -> None:
    """The step is named, with the system's reason."""
    # More than fs.nr_open, which not even root may have.
    with Pool("--rlimit", "nofile=9000000000000000000", ready=False) as pool:
        assert pool.wait() == 3
        last = pool.log().splitlines()[-1]
        assert last == "pool main: rlimit nofile: not allowed to raise maximum limit"


def test_workers_get_what_the_options_say() -> None:
    """Environment, umask, working directory and limits are the worker's."""
    source = """
    import os, resource, sys
    mask = os.umask(0)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    print("FACTS", os.environ["FACT"], oct(mask), os.getcwd(), *limit, file=sys.stderr)
    board = os.environ["_FCGI_APP_SCOREBOARD"].partition(":")[0]
    found = set(os.listdir("/proc/self/fd")) - {board}
    print("FDS", *sorted(found), os.readlink(f"/proc/self/fd/{board}"), flush=True)
    """.replace("\n    ", "\n")
    options = ["--env", "FACT=a=b", "--umask", "027", "--chdir", "/usr"]
    options += ["--rlimit", "nofile=123:456"]
    with Pool(*options, source=source + RAW) as pool:
        assert "FACTS a=b 0o27 /usr 123 456" in pool.log()
        # 3 is the directory that is being read.
        assert "FDS 0 1 2 3 /memfd:fcgi_app main (deleted)\n" in pool.log()


def test_workers_run_as_the_user() -> None:
    """Root's workers become somebody else; who is not root stays who he is."""
    user = "www-data" if os.geteuid() == 0 else str(os.geteuid())
    group = "www-data" if os.geteuid() == 0 else str(os.getegid())
    # Not our Python, which may be in a closed directory.
    command = ["/bin/sh", "-c", "echo $(id -u) $(id -g) $(id -G); exec sleep 600"]
    with Pool("--user", user, "--group", group, command=command) as pool:
        (pid,) = pool.wait_for_workers(1)
        status = Path(f"/proc/{pid}/status").read_text()
        uids = status.partition("Uid:")[2].split()[:4]
        gids = status.partition("Gid:")[2].split()[:4]
        assert f"\n{uids[0]} {gids[0]} {gids[0]}" in pool.log()
        if os.geteuid() == 0:
            assert uids == [str(pwd.getpwnam(user).pw_uid)] * 4
            assert gids == [str(grp.getgrnam(group).gr_gid)] * 4
        # A change of the user undoes the prctl(2) that binds it to the supervisor.
        pool.stop(signal.SIGKILL)
        wait_until(lambda: not find_processes(pool.path), "no worker")


def test_two_addresses_have_workers_each() -> None:
    """With --bind twice there are two sockets with the workers of each."""
    with Pool("--workers", "2", "--bind", f"@fcgi-app-{os.getpid()}") as pool:
        pids = pool.wait_for_workers(4)
        with Client(f"\0fcgi-app-{os.getpid()}") as client:
            assert {client.pid(), pool.ask()} < pids


def test_socket_file_has_mode_and_owner() -> None:
    """Both are as asked for; the owner is ourselves, whom anybody may name."""
    owner = f"{os.geteuid()}:{os.getegid()}"
    with Pool("--socket-mode", "0640", "--socket-owner", owner) as pool:
        status = os.stat(pool.path)
        assert status.st_mode & 0o777 == 0o640
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def test_pid_file_of_a_living_process(tmp_path: Path) -> None:
    """It is an error that names the process; the file goes with its process."""
    file = tmp_path / "pid"
    with Pool("--pid-file", str(file)) as pool:
        assert int(file.read_text()) == pool.process.pid
        path = f"unix:{tmp_path}/s"
        ran = run_start("--bind", path, "--pid-file", str(file), "--", "/bin/true")
        assert ran.returncode == 2
        assert f"the process {pool.process.pid} runs" in ran.stderr
    assert not file.exists()
    file.write_text(f"{os.getpid()}\n")  # of a living process, but not held by it
    with Pool("--pid-file", str(file)) as pool:
        assert int(file.read_text()) == pool.process.pid


def test_daemon_returns_when_it_serves(tmp_path: Path) -> None:
    """The caller's process ends with 0, and clients are served."""
    path, log, pid_file = tmp_path / "s", tmp_path / "log", tmp_path / "pid"
    script = tmp_path / "worker.py"
    script.write_text(RAW)
    options = ["--bind", f"unix:{path}", "--daemon", "--log-file", str(log)]
    options += ["--pid-file", str(pid_file), "--", str(script)]
    ran = run_start(*options, POOL_TEST=str(path))
    try:
        assert (ran.returncode, ran.stdout) == (0, "")
        with Client(str(path)) as client:
            assert client.pid() in find_processes(str(path))
        pid = int(pid_file.read_text())
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/2") == str(log)
        assert os.getsid(pid) == pid
        os.kill(pid, signal.SIGUSR2)  # it stays a daemon
        wait_until(lambda: "executed again" in log.read_text(), "the exec")
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not find_processes(str(path)), "the end", seconds=TIMEOUT)
        assert not path.exists()
    finally:
        for pid in find_processes(str(path)):
            os.kill(pid, signal.SIGKILL)


def test_daemon_that_cannot_start(tmp_path: Path) -> None:
    """The caller learns the reason and gets the status."""
    path = f"unix:{tmp_path}/s"
    words = ["/bin/sh", "-c", "echo broken >&2; exit 7"]
    ran = run_start("--bind", path, "--daemon", "--", *words)
    assert ran.returncode == 3
    assert "ended with exit status 7" in ran.stderr
    assert ran.stderr.endswith("broken\n")


# ---- workers that end -------------------------------------------------------------


def test_worker_that_is_killed_is_replaced() -> None:
    """Another takes its place, the rest stay."""
    with Pool("--workers", "2") as pool:
        before = pool.wait_for_workers(2)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        pool.wait_for_log(f"worker {victim} ended with signal 9")
        wait_until(lambda: victim not in pool.workers(), "its end")
        assert before - {victim} < pool.wait_for_workers(2)


def test_workers_that_die_again_and_again() -> None:
    """They are started ever more slowly, and once they can, they serve again."""
    source = "import os, sys\nif os.path.exists('bad'): sys.exit('bad')\n" + RAW
    with Pool(source=source) as pool:
        (pool.folder / "bad").touch()
        os.kill(pool.ask(), signal.SIGKILL)
        pool.wait_for_log("next start in", times=4)
        text = pool.log()
        pauses = [float(x) for x in re.findall(r"next start in (\S+) sec", text)]
        assert pauses == sorted(pauses)
        assert pauses[3] >= 0.8
        (pool.folder / "bad").unlink()
        assert pool.ask()


def test_worker_that_is_old_is_replaced() -> None:
    """It finishes the request that it has, and its successor serves in the meantime."""
    with Pool("--max-lifetime", "0.5", "--jitter", "0") as pool:
        with pool.client() as client:
            old = client.pid()
            assert pool.ask() != old
            assert old in pool.workers()
        wait_until(lambda: old not in pool.workers(), "its end")


# ---- the stop ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_graceful_stop(number: int) -> None:
    """Who is being served is served to the end; nobody else can connect."""
    with Pool("--workers", "2") as pool:
        with pool.client() as client:
            pid = client.pid()
            pool.send(number)
            wait_until(lambda: not os.path.exists(pool.path), "no socket file")
            wait_until(lambda: pool.workers() == {pid}, "only the busy worker")
        assert pool.wait() == 0


def test_stop_timeout() -> None:
    """A worker that does not end is killed after it."""
    with Pool("--stop-timeout", "0.3", source=STUBBORN) as pool:
        assert pool.ask()
        assert pool.stop() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_quick_stop(number: int) -> None:
    """Nobody waits for the clients that are being served."""
    with Pool() as pool, pool.client() as client:
        assert client.pid()
        assert pool.stop(number) == 0
        assert client.is_cut()


def test_second_signal_makes_the_stop_quick() -> None:
    """The first TERM waits for the client, the second does not."""
    with Pool() as pool, pool.client() as client:
        assert client.pid()
        pool.send()
        wait_until(lambda: not os.path.exists(pool.path), "no socket file")
        pool.send()
        assert pool.wait() == 0
        assert client.is_cut()


def test_standard_error_that_nobody_reads(tmp_path: Path) -> None:
    """The supervisor obeys all the same."""
    source = "import sys\nprint('x' * 1_000_000, file=sys.stderr, flush=True)\n" + RAW
    (tmp_path / "worker.py").write_text(source)
    words = ["--bind", f"unix:{tmp_path}/s", "--", str(tmp_path / "worker.py")]
    with subprocess.Popen(
        [*WORDS, *words], env=environment(), stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        poller = select.poll()
        poller.register(process.stderr, select.POLLIN)
        assert poller.poll(TIMEOUT * 1000)
        size = fcntl.fcntl(process.stderr, fcntl.F_GETPIPE_SZ)
        wait_until(lambda: _waiting(process.stderr) > size - 8192, "a full pipe")
        process.terminate()
        assert process.wait(TIMEOUT) == 0


def _waiting(pipe: IO[bytes] | None) -> int:
    """How many bytes are in the pipe."""
    assert pipe is not None
    count = fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(count, sys.byteorder)


def test_no_worker_outlives_the_supervisor() -> None:
    """Not even when it is killed."""
    with Pool("--workers", "3") as pool:
        pool.wait_for_workers(3)
        assert pool.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not find_processes(pool.path), "no process")


def test_socket_of_a_killed_supervisor_is_taken_over() -> None:
    """The file that it left behind is replaced at the next start."""
    with Pool() as pool:
        pool.stop(signal.SIGKILL)
        wait_until(lambda: not find_processes(pool.path), "no process")
        assert os.path.exists(pool.path)
        words = ["--bind", f"unix:{pool.path}", "--", "/bin/false"]
        assert run_start(*words).returncode == 3
        assert not os.path.exists(pool.path)


# ---- the reload -------------------------------------------------------------------


def test_reload_renews_the_workers() -> None:
    """New ones serve on the same socket, an old one finishes what it has."""
    with Pool("--workers", "2") as pool:
        before, inode = pool.wait_for_workers(2), os.stat(pool.path).st_ino
        with pool.client() as client:
            old = client.pid()
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded")
            wait_until(lambda: pool.workers() & before == {old}, "only the busy one")
            assert pool.ask() not in before
        assert len(pool.wait_for_other_workers(before)) == 2
        assert os.stat(pool.path).st_ino == inode


def test_reload_that_cannot_start_keeps_the_workers() -> None:
    """The old ones serve on; the next reload may succeed."""
    with Pool("--workers", "2") as pool:
        before = pool.wait_for_workers(2)
        good = pool.script.read_text()
        pool.script.write_text(DYING)
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed, the workers stay as they are")
        assert "no database" in pool.log()
        assert pool.wait_for_workers(2) == before
        pool.script.write_text(good)
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        pool.wait_for_other_workers(before)


def test_reload_reads_the_file_anew() -> None:
    """A wrong file changes nothing; a good one changes numbers and sockets."""
    with Pool(config=CONFIG) as pool:
        before = pool.wait_for_workers(2)
        pool.write_config(CONFIG.replace("workers = 2", "workers = 'two'"))
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed")
        assert pool.workers() == before
        other = pool.folder / "other"
        text = CONFIG.replace("workers = 2", "workers = 1")
        pool.write_config(text.replace("@PATH@", str(other)))
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        with Client(str(other)) as client:
            assert {client.pid()} == pool.wait_for_workers(1)
        assert not os.path.exists(pool.path)


def test_stop_in_the_middle_of_a_reload() -> None:
    """Old and new workers are stopped."""
    source = "import os, time\nif os.path.exists('slow'): time.sleep(20)\n" + RAW
    with Pool("--stop-timeout", "5", source=source) as pool:
        (pool.folder / "slow").touch()
        pool.send(signal.SIGHUP)
        pool.wait_for_workers(2)
        assert pool.stop() == 0


# ---- other signals ----------------------------------------------------------------


def test_log_file_is_opened_again() -> None:
    """After USR1 what workers print comes to the new file."""
    source = RAW.replace("connection.recv(1)", "print('SERVED', flush=True)")
    with Pool("--log-file", "own.log", source=source, ready=False) as pool:
        log = pool.folder / "own.log"
        wait_until(lambda: log.exists() and "listening" in log.read_text(), "the start")
        log.rename(pool.folder / "old.log")
        pool.send(signal.SIGUSR1)
        wait_until(log.exists, "the new file")
        wait_until(lambda: "opened again" in log.read_text(), "the new file")
        pool.ask()
        wait_until(lambda: "SERVED" in log.read_text(), "the worker's line")


def test_supervisor_is_executed_again() -> None:
    """USR2: the same process, workers and socket, and everything works as before."""
    with Pool("--workers", "2") as pool:
        before, inode = pool.wait_for_workers(2), os.stat(pool.path).st_ino
        with pool.client() as client:
            busy = client.pid()
            pool.send(signal.SIGUSR2)
            pool.wait_for_log("executed again")
            assert pool.workers() == before
        assert {busy, pool.ask()} <= before
        os.kill(busy, signal.SIGKILL)
        pool.wait_for_log(f"worker {busy} ended with signal 9")
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        pool.wait_for_other_workers(before)
        assert os.stat(pool.path).st_ino == inode
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again", times=2)


def test_exec_with_a_worker_that_prints_nothing_any_more() -> None:
    """It has closed its standard output and error, as daemons do."""
    source = RAW.replace("listener =", "os.close(1); os.close(2)\nlistener =")
    with Pool(source=source) as pool:
        pid = pool.ask()
        wait_until(lambda: not Path(f"/proc/{pid}/fd/2").is_symlink(), "no descriptor")
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        assert pool.ask() == pid


def test_workers_are_bound_to_a_supervisor_that_was_executed_again() -> None:
    """They end with it even if it is killed."""
    with Pool("--workers", "2") as pool:
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        assert pool.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not find_processes(pool.path), "no process")


def test_exec_with_a_wrong_file_is_refused() -> None:
    """The supervisor goes on, for the next one could not start."""
    with Pool(config=CONFIG) as pool:
        before = pool.wait_for_workers(2)
        pool.write_config("workers = 0")
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("again: ")
        assert "executed again" not in pool.log()
        assert pool.ask() in before


def test_one_worker_more_or_fewer() -> None:
    """TTIN and TTOU change the number, never to less than one; an exec keeps it."""
    with Pool("--workers", "2") as pool:
        pool.wait_for_workers(2)
        pool.send(signal.SIGTTIN)
        three = pool.wait_for_workers(3)
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        for number in (2, 1):
            pool.send(signal.SIGTTOU)
            assert pool.wait_for_workers(number) < three
        pool.send(signal.SIGTTOU)
        pool.wait_for_log("at most 1 workers", times=2)
        assert pool.ask() in three
