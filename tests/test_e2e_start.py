"""``fcgi-app start`` behind nginx: no operation on the pool costs a request.

The workers are libfcgi's, in C: they know nothing of the supervisor.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest

from .pools import Pool
from .servers import Nginx, ask, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ECHO = r"""
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    while (FCGI_Accept() >= 0) {
        if (getenv("QUERY_STRING")[0])
            usleep(2000);
        printf("Content-Type: text/plain\r\n\r\n%d", (int)getpid());
    }
    return 0;
}
"""

SCRIPT = """
import os
from fcgi_app import accept
while accept():
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print(os.getpid(), end="")
"""


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The C program, where every user can run it."""
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    folder.chmod(0o755)
    (folder / "echo.c").write_text(ECHO)
    subprocess.run(
        ["cc", "-O2", "-o", "echo", "echo.c", "-lfcgi"], cwd=folder, check=True
    )
    yield str(folder / "echo")
    shutil.rmtree(folder)


class Load:
    """Clients that ask nginx one request after the other, until they are stopped.

    Attributes:
        answers: how many requests were answered.
        pids: the workers that did.
        failures: what was no answer.
    """

    def __init__(self, port: int, mount: str) -> None:
        self.answers = 0
        self.pids: set[int] = set()
        self.failures: list[str] = []
        self._port = port
        self._mount = mount
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        targets = [mount, mount, mount + "?slow"]
        self._threads = [threading.Thread(target=self._run, args=(t,)) for t in targets]

    def _run(self, target: str) -> None:
        while not self._stopping.is_set():
            try:
                answer = ask(self._port, target)
                pid = int(answer.body) if answer.status == 200 else 0
                failure = "" if pid else f"status {answer.status}"
            except (OSError, ValueError, HTTPException) as error:
                pid, failure = 0, repr(error)
            with self._lock:
                if failure:
                    self.failures.append(failure)
                else:
                    self.answers += 1
                    self.pids.add(pid)

    def wait_for_answers(self, number: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.answers + number
        wait_until(
            lambda: self.answers >= goal or bool(self.failures),
            f"{number} more answers",
            seconds=30,
        )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def site(kind: str, *command: str) -> Iterator[tuple[Pool, Load]]:
    """nginx in front of a pool of three, under load."""
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    options = ["--workers", "3", "--socket-mode", "0666"]
    options += ["--bind", "127.0.0.1:0"] if "tcp" in kind else []
    with Pool(*options, command=command) as pool:
        values: dict[str, object] = {"SOCK": pool.path}
        if "tcp" in kind:
            line = next(x for x in pool.log().splitlines() if "listening on 127" in x)
            values["APP_PORT"] = line.partition("on 127.0.0.1:")[2].partition(",")[0]
        server = Nginx(folder, "nginx.conf", values)
        try:
            with Load(server.port, f"/{kind}") as load:
                load.wait_for_answers(20)
                yield pool, load
                load.wait_for_answers(20)
            assert load.failures == []
        finally:
            server.stop()
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_no_request_is_lost_over_reloads(echo: str, kind: str) -> None:
    """20 reloads, each with new workers."""
    with site(kind, echo) as (pool, load):
        for number in range(1, 21):
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded", times=number)
            load.wait_for_answers(5)
        assert len(load.pids) >= 21


@pytest.mark.parametrize("kind", ["unix", "tcp", "kept-unix", "kept-tcp"])
def test_no_request_is_lost_over_reloads_of_scripts(tmp_path: Path, kind: str) -> None:
    """The same with workers of ours, also on connections that nginx keeps."""
    script = tmp_path / "app.py"
    script.write_text(SCRIPT)
    with site(kind, sys.executable, str(script)) as (pool, load):
        for number in range(1, 11):
            pool.send(signal.SIGHUP)
            pool.wait_for_log("reloaded", times=number)
            load.wait_for_answers(5)
        assert len(load.pids) >= 11


def test_no_request_is_lost_over_execs(echo: str) -> None:
    """The supervisor executes itself three times; the workers do not notice."""
    with site("unix", echo) as (pool, load):
        before = pool.workers()
        for number in range(1, 4):
            pool.send(signal.SIGUSR2)
            pool.wait_for_log("executed again", times=number)
            load.wait_for_answers(20)
        assert load.pids <= before


def test_no_request_is_lost_over_one_worker_more_or_fewer(echo: str) -> None:
    """10 times TTOU and TTIN."""
    with site("tcp", echo) as (pool, load):
        for _ in range(10):
            pool.send(signal.SIGTTOU)
            pool.wait_for_workers(4)
            pool.send(signal.SIGTTIN)
            pool.wait_for_workers(6)
            load.wait_for_answers(5)


def test_no_request_is_lost_over_kills_of_idle_workers(echo: str) -> None:
    """50 times SIGKILL for a worker while nobody asks; the next request is served."""
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    options = ("--workers", "3", "--socket-mode", "0666")
    with Pool(*options, command=[echo]) as pool:
        server = Nginx(folder, "nginx.conf", {"SOCK": pool.path})
        try:
            for _ in range(50):
                victim = min(pool.wait_for_workers(3))
                os.kill(victim, signal.SIGKILL)
                # While it dies, it may still take a connection from the queue.
                pool.wait_for_end(victim)
                answer = ask(server.port, "/unix")
                assert answer.status == 200
                assert int(answer.body) != victim
        finally:
            server.stop()
    shutil.rmtree(folder)
