"""A pool of ``fcgi-app start`` behind a real web server, and clients who ask it.

The workers are either ours, which know their supervisor, or libfcgi's, in C, which know
nothing of it. Every answer is the pid of the worker.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

from .pools import Pool
from .servers import Apache, Nginx, WebServer, ask, wait_until

__all__ = ["Load", "ask_for_pid", "build_workers", "site", "under_load"]
__all__ += ["wait_for_hold"]

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

HELLO = """
import os, time
from fcgi_app import accept
while accept():
    how, _, path = os.environ["QUERY_STRING"].partition(":")
    if how == "slow":
        time.sleep(0.002)
    if how == "hold":
        try:
            with open(path, "x") as file:
                print(os.getpid(), file=file)
        except FileExistsError:
            pass  # the web server has sent it again
        else:
            while os.path.exists(path):
                time.sleep(0.01)
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print(os.getpid(), end="")
"""
ONE_PROCESS = ["StartServers 1", "ServerLimit 1", "MaxRequestWorkers 8"]
"""Of Apache's processes each keeps connections of its own; libfcgi's workers serve one."""


def build_workers(folder: Path) -> dict[str, list[str]]:
    """Make both workers in a folder that every user may enter; give their commands."""
    (folder / "hello.py").write_text(HELLO)
    (folder / "echo.c").write_text(ECHO)
    compile_echo = ["cc", "-O2", "-o", "echo", "echo.c", "-lfcgi"]
    subprocess.run(compile_echo, cwd=folder, check=True)
    return {
        "hello": [sys.executable, str(folder / "hello.py")],
        "echo": [str(folder / "echo")],
    }


def wait_for_hold(path: Path) -> int:
    """Wait for the worker that was asked ``?hold:path``; its pid.

    It is busy as long as the file is there.
    """
    wait_until(
        lambda: path.exists() and path.read_text().endswith("\n"),
        "a worker that is busy",
    )
    return int(path.read_text())


def ask_for_pid(port: int, target: str) -> int:
    """Ask once; the pid of the worker that has answered.

    Raises:
        AssertionError: there was no good answer.
    """
    answer = ask(port, target)
    assert answer.status == 200, f"status {answer.status} of {target}"
    return int(answer.body)


class Load:
    """Clients that ask a web server one request after the other, until the end.

    Attributes:
        answers: how many requests were answered.
        pids: the workers that did.
        failures: what was no answer.
        port: of the web server.
    """

    def __init__(self, port: int, mount: str) -> None:
        self.answers = 0
        self.pids: set[int] = set()
        self.failures: list[str] = []
        self.port = port
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        targets = [mount, mount, mount + "?slow"]
        self._threads = [threading.Thread(target=self._run, args=(t,)) for t in targets]

    def _run(self, target: str) -> None:
        while not self._stopping.is_set():
            try:
                pid, failure = ask_for_pid(self.port, target), ""
            except (AssertionError, OSError, ValueError, HTTPException) as error:
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
def site(
    kind: str, command: Sequence[str], *options: str, apache: bool = False
) -> Iterator[tuple[Pool, WebServer]]:
    """A web server in front of a pool.

    Args:
        kind: a location of examples/servers/nginx.conf or apache-proxy-fcgi.conf.
        command: of the workers.
        options: of the pool.
        apache: Apache is the web server, not nginx.
    """
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    words = ["--socket-mode", "0666", *options]
    words += ["--bind", "127.0.0.1:0"] if "tcp" in kind else []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        pool = stack.enter_context(Pool(*words, command=command))
        values: dict[str, object] = {"SOCK": pool.path}
        if "tcp" in kind:
            line = next(x for x in pool.log().splitlines() if "listening on 127" in x)
            values["APP_PORT"] = line.partition("on 127.0.0.1:")[2].partition(",")[0]
        server: WebServer
        if apache:
            more = [word for line in ONE_PROCESS for word in ("-c", line)]
            server = Apache(folder, "apache-proxy-fcgi.conf", values, more)
        else:
            server = Nginx(folder, "nginx.conf", values)
        stack.callback(server.stop)
        yield pool, server


@contextmanager
def under_load(
    kind: str, command: Sequence[str], *options: str, apache: bool = False
) -> Iterator[tuple[Pool, Load]]:
    """A web server in front of a pool, and clients who must get all answers."""
    with site(kind, command, *options, apache=apache) as (pool, server):
        with Load(server.port, f"/{kind}") as load:
            load.wait_for_answers(20)
            yield pool, load
            load.wait_for_answers(20)
        assert load.failures == [], server.log()[-2000:]
