"""``fcgi-app start``: sockets at a stop and a reload, and what outlives an exec."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from itertools import pairwise

import pytest

from fcgi_app.launcher.member import PATIENCE

from .ourworker import OURS, ask, ask_pid
from .pools import RAW, TIMEOUT, Client, Pool, unprivileged
from .servers import wait_until
from .servers.process import require

pytestmark = pytest.mark.slow

CONFIG = """
[pool.main]
bind = "unix:@PATH@"
command = ["@PYTHON@", "-SE", "@SCRIPT@"]
workers = 1
"""


# ---- the queue at a stop ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_stop_serves_who_waits_in_the_queue(kind: str) -> None:
    """Each gets his turn, though the workers die of SIGTERM; nobody else comes in."""
    name = f"fcgi-app-queue-{os.getpid()}"
    with Pool("--bind", f"@{name}") as pool, ExitStack() as stack:
        path = pool.path if kind == "file" else f"\0{name}"
        clients = [stack.enter_context(Client(path)) for _ in range(4)]
        first = clients[0].pid()
        asked = time.monotonic()
        pool.send(signal.SIGTERM)
        pool.wait_for_log("stopping")
        assert not os.path.exists(pool.path)
        # For so long a harmless moment for SIGTERM would be looked for.
        wait_until(lambda: time.monotonic() > asked + PATIENCE + 0.3, "its patience")
        for client, following in pairwise(clients):
            client.close()
            assert following.pid() == first
        clients[-1].close()
        assert pool.wait() == 0


def test_stop_does_not_wait_for_a_queue_that_nobody_serves() -> None:
    """After half of the stop timeout the workers are asked, after all of it killed."""
    with Pool("--stop-timeout", "1") as pool, pool.client() as busy:
        busy.pid()
        with pool.client() as waiting:
            began = time.monotonic()
            assert pool.stop() == 128 + signal.SIGTERM or busy.is_cut()
            assert time.monotonic() - began < 3
            assert waiting.is_cut()


def test_stop_does_not_wait_for_workers_that_die_at_once() -> None:
    """While none is started any more, nobody serves the queue."""
    dying = "import os, sys\nif os.path.exists('bad'): sys.exit(1)\n"
    with Pool("--stop-timeout", "60", source=dying + RAW) as pool:
        worker = pool.ask()
        (pool.folder / "bad").touch()
        os.kill(worker, signal.SIGKILL)
        pool.wait_for_log("next start in", 3)
        with pool.client() as waiting:
            began = time.monotonic()
            assert pool.stop() == 0
            assert time.monotonic() - began < 10
            assert waiting.is_cut()


def test_second_stop_does_not_mind_the_queue() -> None:
    """It is quick."""
    with Pool("--stop-timeout", "60") as pool, pool.client() as busy:
        busy.pid()
        with pool.client() as waiting:
            pool.send(signal.SIGTERM)
            pool.wait_for_log("stopping")
            began = time.monotonic()
            assert pool.stop() == 0
            assert time.monotonic() - began < 5
            assert waiting.is_cut()


def test_reload_serves_who_waits_at_an_address_that_goes() -> None:
    """The old workers do, before they go."""
    with Pool(config=CONFIG) as pool, pool.client() as busy, pool.client() as waiting:
        old = busy.pid()
        pool.write_config(CONFIG.replace("@PATH@", "@PATH@.new"))
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        assert not os.path.exists(pool.path)
        busy.close()
        assert waiting.pid() == old
        waiting.close()
        pool.wait_for_end(old)
        with Client(f"{pool.path}.new") as client:
            assert client.pid() != old


# ---- a reload -----------------------------------------------------------------------


def test_reload_applies_mode_and_backlog_to_a_socket_that_stays() -> None:
    """It is the same socket, of which nobody in the queue is lost."""
    patient = RAW.replace("with connection:", "with connection, suppress(OSError):")
    source = f"from contextlib import suppress\n{patient}"
    with Pool(config=CONFIG + 'socket_mode = "0600"\n', source=source) as pool:
        before = os.stat(pool.path)
        assert before.st_mode & 0o777 == 0o600
        owner = f"{os.geteuid()}:{os.getegid()}"
        more = f'socket_mode = "0660"\nsocket_owner = "{owner}"\nbacklog = 7\n'
        with pool.client() as busy, pool.client() as waiting:
            first = busy.pid()
            pool.write_config(CONFIG + more)
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded")
            assert waiting.pid() != first
        after = os.stat(pool.path)
        assert after.st_ino == before.st_ino
        assert after.st_mode & 0o777 == 0o660
        pool.wait_for_end(first)
        with pool.client() as busy, ExitStack() as stack:
            busy.pid()
            assert fill_queue(pool.path, 20, stack) == 7 + 1  # Linux lets one more in


def fill_queue(path: str, number: int, stack: ExitStack) -> int:
    """Connect so many times without waiting; how many of them got in."""
    for count in range(number):
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        if client.connect_ex(path) == errno.EAGAIN:
            return count
    return number


def test_failed_reload_leaves_the_mode() -> None:
    """Nothing of the new file holds, and the message is without Python's words."""
    with Pool(config=CONFIG + 'socket_mode = "0600"\n') as pool:
        more = f'socket_mode = "0660"\n[pool.other]\nbind = "{pool.script}"\n'
        pool.write_config(CONFIG + more + 'command = "/bin/cat"\n')
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reload failed")
        assert f"as they are: {pool.script}: a file that is not" in pool.log()
        assert os.stat(pool.path).st_mode & 0o777 == 0o600
        assert pool.ask()


# ---- an exec ------------------------------------------------------------------------


def test_output_of_what_a_worker_has_left_survives_an_exec() -> None:
    """A child of a worker that has ended still prints into the log."""
    source = """
import os, subprocess
if not os.path.exists("fifo"):
    os.mkfifo("fifo")
    subprocess.Popen(["/bin/sh", "-c", "read line < fifo; echo the child: $line"])
"""
    with Pool(source=source + RAW) as pool:
        os.kill(pool.ask(), signal.SIGKILL)
        pool.wait_for_log("ended with signal 9")
        for times in (1, 2):
            pool.send(signal.SIGUSR2)
            pool.wait_for_log("executed again", times)
        flags = os.O_WRONLY | os.O_NONBLOCK  # an error if nobody reads
        with open(os.open(pool.folder / "fifo", flags), "w") as fifo:
            fifo.write("well\n")
        pool.wait_for_log("the child: well")


def test_unfinished_line_survives_an_exec() -> None:
    """Its other half follows it."""
    source = RAW.replace(
        "    with connection:",
        '    with connection:\n        print("-whole", file=sys.stderr, flush=True)',
    )
    half = 'import sys\nprint("half", end="", file=sys.stderr, flush=True)\n'
    with Pool(source=source.replace("listener =", f"{half}listener =")) as pool:
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        pool.ask()
        pool.wait_for_log("half-whole")


def test_requests_stay_counted_over_reload_and_exec() -> None:
    """The scoreboard outlives both, and so does what a worker is to do."""
    options = ("--max-requests", "4", "--jitter", "0", "--status-path", "/status")
    with Pool(*options, source=OURS) as pool:

        def count() -> int:
            lines = ask(pool, uri="/status").body.decode().splitlines()
            (line,) = [x for x in lines if x.startswith("accepted conn:")]
            return int(line.rpartition(" ")[2])

        old = {ask_pid(pool) for _ in range(2)}
        assert count() == 2
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        pool.wait_for_other_workers(old)
        (worker,) = {ask_pid(pool) for _ in range(2)}
        assert count() == 4
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        assert [ask_pid(pool), ask_pid(pool)] == [worker, worker]
        pool.wait_for_log(f"worker {worker} has answered 4 requests")
        assert ask_pid(pool) != worker
        assert count() == 7


# ---- the limit of processes ---------------------------------------------------------


def test_limit_of_processes_is_no_end() -> None:
    """Those that there is room for serve; the rest is started when there is."""
    words, owner = unprivileged()
    taken = len(processes_of(owner))
    words += [require("prlimit"), f"--nproc={taken + 4}"]
    other = subprocess.Popen([*words, "/bin/sleep", "600"])
    try:
        with Pool("--workers", "3", prefix=words, owner=owner) as pool:
            pool.wait_for_log("Resource temporarily unavailable")
            assert pool.ask() in pool.wait_for_workers(2)
            other.kill()
            other.wait()
            assert len(pool.wait_for_workers(3)) == 3
    finally:
        other.kill()
        other.wait()


def processes_of(owner: int) -> list[str]:
    """The processes and threads of a user, which is what the limit counts."""
    return [
        thread
        for process in os.listdir("/proc")
        if process.isdigit() and os.stat(f"/proc/{process}").st_uid == owner
        for thread in os.listdir(f"/proc/{process}/task")
    ]


def test_socket_of_the_pool_is_not_blocked_by_a_client_who_waits() -> None:
    """A connection that says nothing does not keep a worker of ours from others."""
    with Pool(source=OURS) as pool, socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(TIMEOUT)
        silent.connect(pool.path)
        assert ask_pid(pool)
        wait_until(lambda: bool(ask_pid(pool)), "an answer")
