"""What a supervisor sees is the same whether Python or C writes it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcgi_app.scoreboard import Scoreboard

from .slotworker import Worker, open_board
from .webserver import Pairs, Wire, whole_request

pytestmark = pytest.mark.usefixtures("native_backend")

WAITING = """
    from fcgi_app.loop import process_loop
    go_on = open("fifo", "rb", buffering=0)

    def is_short():
        return process_loop._shortcut is not None and process_loop._shortcut.opened > 0

    while fcgi_app.accept():
        short = is_short()
        go_on.read(1)
        print("Content-Type: text/plain\\n")
        exec(os.environ.get("HTTP_DO", ""))
        print(short, is_short())
"""
"""A loop each of whose requests runs until the test has seen it."""
SHORT = b"True True\n"

NAMES = st.sampled_from(
    [
        b"REQUEST_METHOD",
        b"REQUEST_URI",
        b"SCRIPT_NAME",
        b"SCRIPT_FILENAME",
        b"REMOTE_ADDR",
        b"CONTENT_LENGTH",
        b"OTHER",
    ]
)
SIZES = (0, 1, 15, 16, 17, 47, 48, 49, 95, 96, 97, 255, 256, 257, 300)
"""Around the room that each text has."""
TEXTS = st.one_of(
    st.sampled_from([b"", b"0", b"GET", b"/a?b", b"POST", "/é".encode(), b"\xff\x01"]),
    st.sampled_from(SIZES).map(lambda size: bytes(33 + n % 90 for n in range(size))),
)


@dataclass
class Pair:
    """The same program on both backends, each request of which waits."""

    workers: list[Worker]
    go_on: list[int]

    def ask(
        self, wires: list[Wire], pairs: Pairs, *, tells: bytes = b""
    ) -> list[bytes]:
        """Send a request to both, compare what is to be seen, let it end."""
        pairs = list(pairs)
        seen = []
        before = [worker.slot.requests for worker in self.workers]
        for wire in wires:
            wire.send(whole_request(1, pairs, keep=True))
        for worker, fd in zip(self.workers, self.go_on, strict=True):
            running = worker.wait_for(state="running", active=1)
            assert running.request_started >= running.since > 0
            seen.append({**vars(running)})
            os.write(fd, b"x")
        bodies = [wire.answer().body for wire in wires]
        for worker, requests in zip(self.workers, before, strict=True):
            idle = worker.wait_for(state="idle", active=0)
            assert idle.requests == requests + 1
            assert idle.request_started == 0.0
            assert 0 < idle.last_duration < 60
            seen.append({**vars(idle)})
        for state in seen:
            for name in ("pid", "slot", "request_started", "last_duration", "since"):
                del state[name]
        assert seen[0] == seen[1]
        assert seen[2] == seen[3]
        return bodies


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    with open_board() as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path, board: Scoreboard) -> Iterator[Pair]:
    with ExitStack() as stack:
        made = Pair([], [])
        for backend in ("pure", "native"):
            place = tmp_path / backend
            place.mkdir()
            os.mkfifo(place / "fifo")
            env = {"FCGI_APP_BACKEND": backend}
            worker = stack.enter_context(Worker(place, board, WAITING, env=env))
            made.workers.append(worker)
            made.go_on.append(os.open(place / "fifo", os.O_WRONLY))
            stack.callback(os.close, made.go_on[-1])
        yield made


def connect(pair: Pair, stack: ExitStack) -> list[Wire]:
    return [stack.enter_context(worker.connect()) for worker in pair.workers]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=40,
    deadline=None,
)
@given(pairs=st.lists(st.tuples(NAMES, TEXTS), max_size=9))
def test_any_params(pair: Pair, pairs: list[tuple[bytes, bytes]]) -> None:
    """The counts, and the texts in the room that they have."""
    # A body that is announced has to come; those that are long are of another kind.
    pairs = [
        (name, value)
        for name, value in pairs
        if name != b"CONTENT_LENGTH" or value in (b"", b"0")
    ]
    with ExitStack() as stack:
        wires = connect(pair, stack)
        for _ in range(2):  # the second time, C knows the names
            pair.ask(wires, pairs)


@pytest.mark.parametrize(
    "names",
    [
        (b"REQUEST_METHOD", b"REQUEST_URI", b"SCRIPT_FILENAME", b"REMOTE_ADDR"),
        (b"SCRIPT_NAME",),
        (b"SCRIPT_NAME", b"REQUEST_URI", b"REQUEST_URI", b"SCRIPT_FILENAME"),
    ],
    ids=["all", "script", "twice"],
)
def test_rooms(pair: Pair, names: tuple[bytes, ...]) -> None:
    """Texts of all lengths: a script is cut at its begin, the others at their end."""
    with ExitStack() as stack:
        wires = connect(pair, stack)
        bodies = []
        for size in SIZES:
            text = bytes(33 + n % 90 for n in range(size))
            pairs = [(name, name[:1] + text) for name in names]
            bodies.append(pair.ask(wires, pairs)[1])
            bodies.append(pair.ask(wires, [(name, text) for name in names])[1])
        assert bodies[1:] == [SHORT] * (len(bodies) - 1)


def test_is_short(pair: Pair) -> None:
    """In a pool, requests take the short way; what is not usual is counted as well."""
    with ExitStack() as stack:
        wires = connect(pair, stack)
        plain = [(b"REQUEST_URI", b"/"), (b"HTTP_DO", b"")]
        pair.ask(wires, plain)
        assert pair.ask(wires, plain)[1] == SHORT
        looking = b"fcgi_app.current_request()"
        for do, short in (
            (looking, b"True False\n"),
            (b"", SHORT),
            (b"fcgi_app.finish(); fcgi_app.finish()", None),
            (b"", SHORT),
        ):
            body = pair.ask(wires, [(b"REQUEST_URI", b"/"), (b"HTTP_DO", do)])[1]
            assert short is None or body == short


@pytest.mark.parametrize("size", [4, 70_000], ids=["short", "long"])
def test_body(pair: Pair, size: int) -> None:
    """Requests with bodies, of which the long take the long way, and others, by turns."""
    with ExitStack() as stack:
        wires = connect(pair, stack)
        found = b""
        for number in range(6):
            pair.ask(wires, [(b"REQUEST_URI", b"/%d" % number)])
            for wire, worker, fd in zip(wires, pair.workers, pair.go_on, strict=True):
                pairs = [(b"CONTENT_LENGTH", b"%d" % size), (b"REQUEST_URI", b"/body")]
                wire.send(whole_request(1, pairs, bytes(size), keep=True))
                assert worker.wait_for(state="running").content_length == size
                os.write(fd, b"x")
                found = wire.answer().body  # at last, the native one's
                worker.wait_for(state="idle", requests=2 * number + 2)
    assert (found == SHORT) == (size == 4)


def test_server_in_the_middle_of_a_request(tmp_path: Path, board: Scoreboard) -> None:
    """The request that runs when another server starts stays to be seen."""
    source = """
    go_on = open("fifo", "rb", buffering=0)

    def handler(request):
        request.stdout.write(b"A: b\\r\\n\\r\\nserver")

    while fcgi_app.accept():
        if os.environ.get("START"):
            server = fcgi_app.Server("unix:second", handler, threads=2)
            server.start()
            go_on.read(1)
        print("A: b\\n")
    server.stop()
"""
    os.mkfifo(tmp_path / "fifo")
    with Worker(tmp_path, board, source) as worker, ExitStack() as stack:
        go_on = os.open(tmp_path / "fifo", os.O_WRONLY)
        for _ in range(4):
            worker.ask(("START", ""))
        wire = stack.enter_context(worker.connect())
        wire.send(whole_request(1, [(b"START", b"1")]))
        state = worker.wait_for(threads=3, state="running", active=1)
        assert (state.requests, state.request_started > 0) == (4, True)
        with client(tmp_path / "second") as second:
            second.send(whole_request())
            assert second.answer().body == b"server"
        state = worker.wait_for(requests=5, active=1, state="running")
        assert state.request_started > 0
        os.write(go_on, b"x")
        os.close(go_on)
        wire.records()
        worker.wait_for(requests=6, active=0)
        assert worker.stop() == 0


def client(path: Path) -> Wire:
    """A connection to a Unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return Wire(connection)


def test_handler_that_raises_while_it_is_given_back(
    tmp_path: Path, board: Scoreboard
) -> None:
    """The counts are right all the same."""
    source = """
    import signal
    from fcgi_app.watching import Watcher
    resume = Watcher.resume

    def handler(*_):
        raise KeyboardInterrupt

    def spy(*arguments):
        Watcher.resume = resume
        signal.raise_signal(signal.SIGUSR2)
        return resume(*arguments)

    signal.signal(signal.SIGUSR2, handler)
    while fcgi_app.accept():
        print("A: b\\n")
        try:
            if os.environ.get("LOOK"):
                Watcher.resume = spy
                fcgi_app.current_request()
        except KeyboardInterrupt:
            print("interrupted")
"""
    with Worker(tmp_path, board, source) as worker:
        for number in range(1, 6):
            assert worker.ask(("LOOK", "")).body == b""
            worker.wait_for(requests=number, state="idle")
        assert worker.ask(("LOOK", "1")).body == b"interrupted\n"
        for number in range(2):
            assert worker.ask(("LOOK", "")).body == b""
            state = worker.wait_for(state="idle", active=0)
            assert state.requests >= 6 + number
        assert worker.stop() == 0


def test_shared_with_a_server(tmp_path: Path, board: Scoreboard) -> None:
    """Another server in the same process takes its share of the slot."""
    source = """
    from fcgi_app.loop import process_loop
    server = None
    def handler(request):
        request.stdout.write(b"A: b\\r\\n\\r\\nserver")
    while fcgi_app.accept():
        short = process_loop._shortcut.opened > 0
        if os.environ.get("START"):
            server = fcgi_app.Server("unix:second", handler, threads=2)
            server.start()
        print("A: b\\n")
        print(short)
    server.stop()
"""
    with Worker(tmp_path, board, source) as worker:
        start = ("START", "")
        assert worker.ask(start).body == b"False\n"
        assert worker.ask(start).body == b"True\n"
        worker.wait_for(threads=1, requests=2)
        worker.ask(("START", "1"))  # whose print() is the log's from then on
        worker.wait_for(threads=3, requests=3, active=0)
        assert worker.ask(start).body == b"False\n"
        worker.wait_for(threads=3, requests=4, active=0)
        assert worker.stop() == 0
