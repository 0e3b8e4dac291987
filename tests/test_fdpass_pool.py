"""``fcgi-app fdpass --workers``, and the parts of the launcher that it is made of."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.launcher import lingering as lingering_module
from fcgi_app.launcher.lingering import Lingering
from fcgi_app.launcher.prefork import Prefork
from fcgi_app.launcher.signals import SignalPipe

from .fdpass_service import Client, Service
from .handovers import TIMEOUT, reset, tcp_connection
from .servers import wait_until
from .webserver import PACKAGE_PARENT

pytestmark = pytest.mark.slow

PARENT = 'echo "$PPID"; read -r word; echo "got $word"'
"""Tells which worker has started it, and runs until the client says a line."""


# ---- the pool -----------------------------------------------------------------------


def test_workers_share_the_clients() -> None:
    """Who is busy leaves clients to the others; then they wait; all are served."""
    options = ("--workers", "2", "--max-children", "1")
    with Service(*options, command=PARENT) as service, ExitStack() as stack:
        one = stack.enter_context(service.client())
        two = stack.enter_context(service.client())
        pids = {int(one.line()), int(two.line())}
        assert pids == service.workers() - {service.process.pid}
        three = stack.enter_context(service.client())
        one.say("1\n")
        assert one.rest() == "got 1\n"
        assert int(three.line()) in pids
        for client in (two, three):
            client.say("x\n")
            assert client.rest() == "got x\n"


def test_busy_workers_leave_clients_to_others() -> None:
    """Whichever worker becomes free first takes who waits."""
    options = ("--workers", "2", "--max-children", "1")
    with Service(*options, command=PARENT) as service, ExitStack() as stack:
        clients = [stack.enter_context(service.client()) for _ in range(14)]
        busy, waiting = clients[:2], clients[2:]
        for client in busy:
            client.line()
        for number, client in enumerate(waiting):
            done = busy.pop(number // 2 % 2)  # now the older, now the younger one
            done.say("x\n")
            assert done.rest() == "got x\n"
            client.line()
            busy.append(client)
        for client in busy:
            client.say("x\n")
            client.rest()


def test_worker_that_dies_is_replaced() -> None:
    """It is logged, and clients are served as before."""
    with Service("--workers", "2", command='echo "$PPID"') as service:
        wait_until(lambda: len(service.workers()) == 2, "two workers")
        for victim in service.workers():
            os.kill(victim, signal.SIGKILL)
            service.wait_for_log(
                f"worker {victim} ended with signal 9; starting another"
            )
            with service.client() as client:
                assert int(client.line()) != victim
        wait_until(lambda: len(service.workers()) == 2, "two workers", seconds=TIMEOUT)


def test_workers_lead_their_sessions() -> None:
    """The terminal's Ctrl-C does not reach them: the launcher tells them."""
    with Service("--workers", "2", command=PARENT) as service:
        with service.client() as client:
            worker = int(client.line())
            assert os.getsid(worker) == worker
            os.killpg(service.process.pid, signal.SIGINT)
            wait_until(lambda: not os.path.exists(service.path), "no socket file")
            client.say("late\n")
            assert client.rest() == "got late\n"
        assert service.wait() == 0


def test_stop_of_a_pool_serves_who_waits() -> None:
    """Clients in the backlog, which no worker had room for, get their turn."""
    options = ("--workers", "2", "--max-children", "1")
    with Service(*options, command=PARENT) as service, ExitStack() as stack:
        clients = [stack.enter_context(service.client()) for _ in range(6)]
        for client in clients[:2]:
            client.line()
        service.send()
        wait_until(lambda: not os.path.exists(service.path), "no socket file")
        for client in clients:
            client.say("word\n")
        for client in clients:
            assert client.rest().endswith("got word\n")
            client.socket.close()
        assert service.wait() == 0


def test_second_signal_to_a_pool() -> None:
    """It reaches the programs through the workers."""
    with (
        Service("--workers", "2", command=PARENT) as service,
        service.client() as client,
    ):
        client.line()
        service.send()
        wait_until(lambda: not os.path.exists(service.path), "no socket file")
        assert service.process.poll() is None
        service.send(signal.SIGINT)
        assert client.rest() == ""
        assert service.wait() == 128 + signal.SIGINT


def test_stop_timeout_of_a_pool() -> None:
    """When the time is over, each worker ends its programs."""
    options = ("--workers", "2", "--stop-timeout", "0.2")
    with Service(*options, command=PARENT) as service, service.client() as client:
        client.line()
        assert service.stop() == 128 + signal.SIGTERM
        assert client.rest() == ""


def test_workers_do_not_outlive_the_launcher() -> None:
    """Killed, it tells them nothing; they finish what they do, and go."""
    with Service("--workers", "2", command=PARENT) as service:
        with service.client() as client:
            client.line()
            service.process.kill()
            assert service.wait() == -signal.SIGKILL
            service.wait_for_log("the launcher has gone")
            client.say("late\n")
            assert client.rest() == "got late\n"
        wait_until(lambda: not service.processes(), "no worker", seconds=TIMEOUT)


def test_bind_to_an_inherited_descriptor(tmp_path: Path) -> None:
    """A supervisor may own the socket: its file stays."""
    path = str(tmp_path / "socket")
    for workers in ("1", "2"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            words = ["-m", "fcgi_app", "fdpass", "--bind", "fd:0", "--workers", workers]
            with subprocess.Popen(
                [sys.executable, *words, "--", "echo", "here"],
                stdin=listener.fileno(),
                env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
            ) as process:
                try:
                    with Client(path) as client:
                        assert client.rest() == "here\n"
                finally:
                    process.terminate()
                assert process.wait(TIMEOUT) == 0
        os.unlink(path)


# ---- Prefork ------------------------------------------------------------------------

POOL = """
import os, signal, sys
from fcgi_app.launcher.prefork import Prefork
{serve}
print("stopped by", Prefork(serve, 2, stop_timeout=0.1).run(), flush=True)
"""


@contextmanager
def run_pool(serve: str) -> Iterator[subprocess.Popen[str]]:
    """Run a pool of two in a process with one thread; killed when time is up."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", POOL.format(serve=serve)],
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:

        def kill_all() -> None:
            for pid in (*children_of(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)

        watchdog = threading.Timer(TIMEOUT, kill_all)
        watchdog.start()
        try:
            yield process
            assert process.wait(TIMEOUT) == 0
        finally:
            watchdog.cancel()
            if process.poll() is None:
                kill_all()


def children_of(pid: int) -> list[int]:
    """The pids of the children of the one thread of a process."""
    return [
        int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def test_prefork_kills_who_does_not_stop() -> None:
    """After its timeout and the grace; the result tells the signal."""
    serve = """
import fcgi_app.launcher.prefork as prefork
prefork.STOP_GRACE = 0.1
def serve(lifeline):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        signal.pause()
"""
    with run_pool(serve) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.terminate()
        assert process.stdout.read() == "stopped by 15\n"


def test_prefork_copy_starts_afresh() -> None:
    """Signals have their default actions, none is blocked, and nothing is inherited."""
    serve = """
def serve(lifeline):
    stop = [signal.getsignal(n) == signal.SIG_DFL for n in (15, 2, 1, 10, 17)]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    numbers = sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
    print(all(stop), signal.set_wakeup_fd(-1), len(blocked), len(numbers), flush=True)
    signal.pause()
"""
    with run_pool(serve) as process:
        assert process.stdout
        seen = [process.stdout.readline() for _ in range(2)]
        assert seen == ["True -1 0 4\n"] * 2
        process.terminate()
        assert process.stdout.read() == "stopped by 0\n"


def test_prefork_reports_an_error_of_a_copy() -> None:
    """The traceback is logged, and the copy is replaced only after a pause."""
    serve = """
def serve(lifeline):
    if os.fork() == 0:
        os._exit(0)  # a child of a copy is none of the parent's
    os.wait()
    raise RuntimeError("broken")
"""
    began = time.monotonic()
    with run_pool(serve) as process:
        assert process.stdout
        seen = ""
        while seen.count("RuntimeError: broken") < 3:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        assert time.monotonic() - began > 1  # the third comes after the pause
        process.terminate()
        seen += process.stdout.read()
    assert "ended with exit status 1; starting another" in seen
    assert "stopped by" in seen.splitlines()[-1]


def test_prefork_needs_a_number() -> None:
    """No copies are none of its business."""
    with pytest.raises(ConfigError, match="workers: 0: must be at least 1"):
        Prefork(lambda lifeline: 0, 0, stop_timeout=1)


# ---- SignalPipe ---------------------------------------------------------------------


def test_signal_pipe_tells_signals_in_order() -> None:
    """What has come can be read; afterwards all is as it was."""
    before = signal.getsignal(signal.SIGUSR1)
    with SignalPipe() as signals:
        assert signals.read() == []
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert signals.read() == [signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1]
        assert signals.read() == []
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_signal_pipe_leaves_ignored_signals_alone() -> None:
    """But for SIGCHLD, which has to come."""
    names = (signal.SIGHUP, signal.SIGCHLD)
    old = [signal.signal(number, signal.SIG_IGN) for number in names]
    try:
        with SignalPipe() as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGCHLD)
            assert signals.read() == [signal.SIGCHLD]
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        for number, handler in zip(names, old, strict=True):
            signal.signal(number, handler)


# ---- Lingering ----------------------------------------------------------------------


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as opened:
        yield opened


def work(selector: selectors.BaseSelector, lingering: Lingering) -> None:
    """Do what a loop does, until all are closed."""
    while lingering:
        left = max(0.0, lingering.next_deadline() - time.monotonic())
        for key, _ in selector.select(left):
            key.data()
        lingering.close_late()


def test_lingering_waits_for_the_client(selector: selectors.BaseSelector) -> None:
    """What it sends is thrown away, its end is the end."""
    lingering = Lingering(selector)
    with tcp_connection() as (client, server):
        server.send(b"answer")
        lingering.add(server.dup())
        server.close()
        client.sendall(b"x" * 100_000)
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""
        assert len(lingering) == 1
        client.close()
        work(selector, lingering)
    assert lingering.next_deadline() == float("inf")


def test_lingering_has_an_end(
    selector: selectors.BaseSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends for ever is closed when its time is over."""
    monkeypatch.setattr(lingering_module, "MOST_SECONDS", 0.2)
    lingering = Lingering(selector)
    with tcp_connection() as (client, server):
        lingering.add(server.dup())
        server.close()
        client.setblocking(False)
        began = time.monotonic()
        while lingering and time.monotonic() < began + TIMEOUT:
            try:
                client.send(b"x" * 1000)
            except (BlockingIOError, ConnectionError):
                pass
            for key, _ in selector.select(0):
                key.data()
            lingering.close_late()
        assert 0.2 <= time.monotonic() - began < 1.5


def test_lingering_of_a_client_that_has_gone(
    selector: selectors.BaseSelector,
) -> None:
    """A reset, and a socket that never was connected, are closed at once."""
    lingering = Lingering(selector)
    with tcp_connection() as (client, server):
        reset(client.dup())
        client.close()
        lingering.add(server.dup())
        lingering.add(socket.socket())
        work(selector, lingering)


def test_lingering_forgets_what_was_closed_meanwhile(
    selector: selectors.BaseSelector,
) -> None:
    """An event that select has seen before `close` does no harm."""
    lingering = Lingering(selector)
    with tcp_connection() as (client, server):
        lingering.add(server.dup())
        client.send(b"x")
        events = selector.select(TIMEOUT)
        lingering.close()
        for key, _ in events:
            key.data()
        assert events
        assert not lingering
