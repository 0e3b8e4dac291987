"""Several clients of one pool at once: with kept and new connections, over nginx and
directly."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from ..pools import Pool
from ..servers import Nginx, wait_until
from ..servers.http import Answer, ask
from .comparisons import HELLO
from .load import Load
from .wire import build_request

__all__ = ["Crowd", "Tally", "connect_to", "crowd", "hello_pool"]

APP = Path(__file__).with_name("apps") / "pooled.py"
CONNECTIONS = 4
"""Of each kind, directly."""
KINDS = (("kept", True), ("new", False))
HTTP_CLIENTS = 2
"""Of each kind, over nginx."""
SLICE = 0.1
"""Seconds of load after which a client looks whether it is to go on."""


class Tally(NamedTuple):
    """What came of the requests of one client."""

    answered: int = 0
    failed: int = 0
    repeated: int = 0
    """Sent again on a new connection, because a kept one had ended."""
    problem: str = ""
    """The first failure."""

    def plus(self, other: Tally) -> Tally:
        """Add the numbers of another one, that came later."""
        return Tally(
            self.answered + other.answered,
            self.failed + other.failed,
            self.repeated + other.repeated,
            self.problem or other.problem,
        )


class Client(Protocol):
    """Sends requests one after the other on each of its connections."""

    def load(self, seconds: float) -> Tally:
        """Ask for so long, and wait for the last answers."""


class Direct:
    """The load generator ``load.c`` at the pool's socket."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def load(self, seconds: float) -> Tally:
        """Ask for so long, and wait for the last answers."""
        found = self._load.run(seconds)
        return Tally(found.requests, found.errors, found.repeated, found.problem)


class OverHttp:
    """Clients of nginx, each with a connection of its own, kept or new.

    Not even a kept connection is opened again by itself: nginx stays.
    """

    def __init__(self, port: int, target: str, *, keep: bool) -> None:
        self._port = port
        self._target = target
        self._kept: list[http.client.HTTPConnection | None] = [None] * HTTP_CLIENTS
        self._keep = keep
        self._threads = ThreadPoolExecutor(HTTP_CLIENTS)

    def load(self, seconds: float) -> Tally:
        """Ask for so long, and wait for the last answers."""
        until = time.monotonic() + seconds
        found = Tally()
        slots = range(HTTP_CLIENTS)
        for tally in self._threads.map(lambda slot: self._ask_on(slot, until), slots):
            found = found.plus(tally)
        return found

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown()
        for connection in self._kept:
            if connection is not None:
                connection.close()

    def _ask_on(self, slot: int, until: float) -> Tally:
        answered, problems = 0, []
        while time.monotonic() < until:
            try:
                answer = self._ask(slot)
                if (answer.status, answer.body) == (200, HELLO):
                    answered += 1
                    continue
                problem = f"status {answer.status}, {answer.body[:80]!r}"
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
                self._drop(slot)
            problems.append(f"{self._target}: {problem}")
        return Tally(answered, len(problems), problem="".join(problems[:1]))

    def _ask(self, slot: int) -> Answer:
        if not self._keep:
            return ask(self._port, self._target)
        connection = self._kept[slot]
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
            self._kept[slot] = connection
        connection.request("GET", self._target)
        with connection.getresponse() as response:
            return Answer(response.status, (), response.read())

    def _drop(self, slot: int) -> None:
        if (connection := self._kept[slot]) is not None:
            connection.close()
            self._kept[slot] = None


class Crowd:
    """All clients of a pool.

    Attributes:
        pool: whose.
        port: where nginx serves it, at ``/unix`` and at ``/kept-unix``.
        tallies: what came of the requests so far, by the client's name.
    """

    def __init__(self, pool: Pool, port: int, clients: dict[str, Client]) -> None:
        self.pool = pool
        self.port = port
        self.tallies = {name: Tally() for name in clients}
        self._clients = clients
        self._threads = ThreadPoolExecutor(len(clients))

    @property
    def answered(self) -> int:
        """How many requests have been answered."""
        return sum(tally.answered for tally in self.tallies.values())

    @property
    def failed(self) -> int:
        """How many requests have not."""
        return sum(tally.failed for tally in self.tallies.values())

    def pulse(self, seconds: float) -> None:
        """Let all clients ask for so long, and wait for their last answers."""
        going = [
            self._threads.submit(self._ask, name, seconds) for name in self.tallies
        ]
        for each in going:
            each.result()

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Let all clients ask, without a pause, until the end of the block."""
        stopping = threading.Event()

        def go_on(name: str) -> None:
            while not stopping.is_set():
                self._ask(name, SLICE)

        going = [self._threads.submit(go_on, name) for name in self.tallies]
        try:
            yield
        finally:
            stopping.set()
            for each in going:
                each.result()

    def check_served(self) -> None:
        """See that each client has been served.

        Raises:
            AssertionError: one was not.
        """
        starved = [name for name, tally in self.tallies.items() if not tally.answered]
        assert not starved, f"clients without an answer: {', '.join(starved)}"

    def wait_for_answers(self) -> None:
        """Wait until more answers are known of, as at the end of a slice of load."""
        before = self.answered
        wait_until(lambda: self.answered > before, "answers", seconds=20)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _ask(self, name: str, seconds: float) -> None:
        found = self._clients[name].load(seconds)
        self.tallies[name] = self.tallies[name].plus(found)


def connect_to(path: str) -> socket.socket:
    """Connect to a Unix socket; the caller closes."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def hello_pool(
    *options: str,
    ready: bool = True,
    start_log: str = "",
    foreign: Path | None = None,
) -> Pool:
    """Start a pool of hello workers; nginx may connect to its socket.

    Args:
        options: of the command.
        ready: wait until it serves.
        start_log: file for the lines that ``apps/pooled.py`` describes.
        foreign: what to run instead of that.
    """
    words = ("--socket-mode", "0666", *options)
    command = [str(foreign)] if foreign else [sys.executable, str(APP)]
    return Pool(*words, command=command, ready=ready, START_LOG=start_log)


@contextmanager
def crowd(program: Path, *options: str, foreign: Path | None = None) -> Iterator[Crowd]:
    """Start a pool of hello workers, nginx in front of it, and clients of both.

    Args:
        program: the load generator.
        options: of the pool.
        foreign: the workers are this program, on libfcgi, which serves one connection
            at a time: no client keeps any.
    """
    folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        pool = stack.enter_context(hello_pool(*options, foreign=foreign))
        nginx = Nginx(folder, "nginx.conf", {"SOCK": pool.path})
        stack.callback(nginx.stop)
        clients: dict[str, Client] = {}
        for name, keep in KINDS[1:] if foreign else KINDS:
            load = Load(
                program,
                pool.path,
                request=build_request(keep=keep, marked=True),
                body=HELLO,
                connections=CONNECTIONS,
                keep=keep,
                renew=keep,
                spin=False,
            )
            clients[name] = Direct(stack.enter_context(load))
            target = "/kept-unix" if keep else "/unix"
            over = OverHttp(nginx.port, target, keep=keep)
            stack.callback(over.close)
            clients[f"nginx, {name}"] = over
        found = Crowd(pool, nginx.port, clients)
        stack.callback(found.close)
        found.pulse(0.2)
        yield found
    assert not os.path.exists(pool.path)
