"""What a supervisor sees of a worker, in each of the ways in which requests are served."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.codec.constants import Role
from fcgi_app.scoreboard import VARIABLE, Scoreboard

from .slotworker import HANDLE, Worker, open_board
from .threads import eventually
from .webserver import (
    App,
    Wire,
    begin_request,
    params,
    stdin,
    whole_request,
)

LOOP = """
    while fcgi_app.accept():
        handle(sys.stdout.write, sys.stdin.read, os.environ)
"""
HANDLER = """
    def handler(request):
        read = lambda: request.stdin.read().decode()
        write = lambda text: request.stdout.write(text.encode())
        handle(write, read, request.params)
"""
RUN = HANDLER + "    fcgi_app.run(handler)\n"
THREADS = HANDLER + "    fcgi_app.run(handler, threads=3)\n"
SERVER = (
    HANDLER
    + """
    import signal
    server = fcgi_app.Server(None, handler, threads=3)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    server.serve_forever()
"""
)
FCGX = """
    from fcgi_app.fcgiapp import *
    FCGX_Init()
    request = FCGX_Request()
    FCGX_InitRequest(request, 0, 0)
    while FCGX_Accept_r(request) >= 0:
        read = lambda: FCGX_GetStr(1000, request.in_).decode()
        params = dict(text.split("=", 1) for text in request.envp)
        handle(lambda text: FCGX_PutS(text, request.out), read, params)
        FCGX_Finish_r(request)
"""
FCGX_INTERRUPTIBLE = FCGX.replace("request, 0, 0", "request, 0, 1")
WAYS = {
    "loop": LOOP,
    "run": RUN,
    "threads": THREADS,
    "server": SERVER,
    "fcgx": FCGX,
    "fcgx, interruptible": FCGX_INTERRUPTIBLE,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    with open_board() as made:
        yield made


def begin(worker: Worker, uri: str, *pairs: tuple[bytes, bytes]) -> Wire:
    """Start a request that runs until `end`."""
    wire = worker.connect()
    all_pairs = [
        (b"REQUEST_METHOD", b"PUT"),
        (b"REQUEST_URI", uri.encode()),
        (b"REMOTE_ADDR", b"192.0.2.7"),
        (b"WAIT", b"1"),
        *pairs,
    ]
    wire.send(begin_request(), params(1, all_pairs))
    return wire


def end(wire: Wire, text: bytes = b"done") -> bytes:
    """Let a request end; return the body of its answer."""
    with wire:
        wire.send(stdin(1, text))
        return wire.answer().body


class TestSlot:
    @every_way
    def test_one_request(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """A worker is idle, runs a request, and is idle again."""
        with Worker(tmp_path, board, way) as worker:
            threads = 3 if "threads=3" in way else 1
            idle = worker.wait_for(state="idle", threads=threads)
            assert (idle.pid, idle.requests) == (worker.process.pid, 0)
            assert (idle.request_started, idle.uri) == (0.0, "")
            length = (b"CONTENT_LENGTH", b"4")
            wire = begin(worker, "/a?b", (b"SCRIPT_FILENAME", b"/srv/x"), length)
            running = worker.wait_for(state="running")
            assert (running.active, running.requests) == (1, 0)
            assert (running.method, running.uri) == ("PUT", "/a?b")
            assert (running.script, running.remote) == ("/srv/x", "192.0.2.7")
            assert running.content_length == 4
            assert running.request_started >= idle.since > 0
            assert end(wire) == b"done"
            after = worker.wait_for(state="idle")
            assert (after.active, after.requests) == (0, 1)
            assert (after.request_started, after.uri) == (0.0, "/a?b")
            taken = after.since - running.request_started
            assert 0 < after.last_duration <= taken
            assert worker.stop() == 0
            assert worker.slot.state == "ending"
            assert worker.log == ""

    @every_way
    def test_counts(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """Each request counts, on kept connections as well; and nothing else does."""
        with Worker(tmp_path, board, way) as worker:
            for _ in range(3):
                worker.ask()
            with worker.connect() as wire:
                for _ in range(4):
                    wire.send(whole_request(keep=True))
                    assert wire.answer().body == b"ok"
            state = worker.wait_for(requests=7, state="idle")
            assert (state.active, state.method) == (0, "GET")

    @every_way
    def test_environment(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """The application sees neither the variable nor the descriptor."""
        source = (
            """
    def handle(write, read, params):
        import ctypes
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        name = "_FCGI_APP_SCOREBOARD"
        files = [os.readlink(f"/proc/self/fd/{fd}") for fd in PASSED if is_open(fd)]
        write(f"A: b\\r\\n\\r\\n{os.environ.get(name)} {getenv(name.encode())} {files}")

    PASSED = [int(os.environ["_FCGI_APP_SCOREBOARD"].split(":")[0])]

    def is_open(fd):
        return os.path.exists(f"/proc/self/fd/{fd}")
"""
            + way
        )
        with Worker(tmp_path, board, source) as worker:
            assert worker.ask().body == b"None None []"

    def test_two_at_once(self, tmp_path: Path, board: Scoreboard) -> None:
        """Of several requests the oldest is shown; when it ends, the next oldest."""
        with Worker(tmp_path, board, THREADS) as worker:
            wires = []
            for number, name in enumerate(("/old", "/middle", "/new"), 1):
                wires.append(begin(worker, name))
                state = worker.wait_for(active=number)
                assert (state.uri, state.state) == ("/old", "running")
            first = worker.slot
            end(wires[1])
            state = worker.wait_for(active=2)
            assert (state.uri, state.requests) == ("/old", 1)
            assert state.request_started == first.request_started
            end(wires[0])
            state = worker.wait_for(active=1)
            assert (state.uri, state.requests) == ("/new", 2)
            assert state.request_started > first.request_started
            end(wires[2])
            state = worker.wait_for(state="idle")
            assert (state.active, state.requests) == (0, 3)
            assert state.request_started == 0.0

    def test_threads_of_fcgx(self, tmp_path: Path, board: Scoreboard) -> None:
        """Threads that call FCGX_Accept_r are counted when they come."""
        source = f"""
    import threading
    def serve():
{textwrap.indent(FCGX, "    ")}
    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
        source = source.replace("from fcgi_app.fcgiapp import *", "")
        source = "    from fcgi_app.fcgiapp import *\n" + source
        with Worker(tmp_path, board, source) as worker:
            worker.wait_for(threads=4, state="idle")
            wire = begin(worker, "/")
            worker.wait_for(state="running", active=1, threads=4)
            end(wire)

    def test_work_behind_a_request(self, tmp_path: Path, board: Scoreboard) -> None:
        """After finish() the worker is not idle, but no request runs any more."""
        source = """
    while fcgi_app.accept():
        request = fcgi_app.current_request()
        handle(sys.stdout.write, sys.stdin.read, os.environ)
        fcgi_app.finish()
        with open("fifo") as fifo:
            fifo.read()
"""
        os.mkfifo(tmp_path / "fifo")
        with Worker(tmp_path, board, source) as worker:
            assert worker.ask().body == b"ok"
            state = worker.wait_for(requests=1)
            assert (state.state, state.active) == ("running", 0)
            assert state.request_started == 0.0
            (tmp_path / "fifo").write_text("go on")
            worker.wait_for(state="idle")

    def test_callbacks(self, tmp_path: Path, board: Scoreboard) -> None:
        """What is released at a request's end is part of it."""
        source = """
    def wait():
        with open("fifo") as fifo:
            fifo.read()

    while fcgi_app.accept():
        fcgi_app.current_request().callback(wait)
        handle(sys.stdout.write, sys.stdin.read, os.environ)
"""
        os.mkfifo(tmp_path / "fifo")
        with Worker(tmp_path, board, source) as worker:
            assert worker.ask().body == b"ok"
            assert worker.slot.state == "running"
            assert worker.slot.request_started > 0
            (tmp_path / "fifo").write_text("go on")
            worker.wait_for(state="idle", requests=1)

    @pytest.mark.parametrize(
        "way", [LOOP, RUN, THREADS], ids=["loop", "run", "threads"]
    )
    def test_failure(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """A request that fails, or is aborted, has ended."""
        source = """
    def handle(write, read, params, handle=handle):
        handle(write, read, params)
        if params.get("FAIL"):
            raise SystemExit(3)
"""
        if way == LOOP:
            source = source.replace("raise SystemExit(3)", "fcgi_app.finish()")
        with Worker(tmp_path, board, source + way) as worker:
            worker.ask(("FAIL", "1"))
            worker.wait_for(state="idle", requests=1)
            wire = begin(worker, "/aborted")
            worker.wait_for(state="running", uri="/aborted")
            wire.close()
            worker.wait_for(state="idle", requests=2, active=0)
            assert worker.ask().body == b"ok"

    def test_timeout(self, tmp_path: Path, board: Scoreboard) -> None:
        """accept with a timeout keeps to it, and the worker stays idle."""
        source = """
    accepted = False
    while not accepted:
        try:
            accepted = fcgi_app.accept(timeout=0.01)
        except TimeoutError:
            open("timed out", "w").close()
    handle(sys.stdout.write, sys.stdin.read, os.environ)
"""
        with Worker(tmp_path, board, source) as worker:
            eventually((tmp_path / "timed out").exists, "a timeout")
            assert (worker.slot.state, worker.slot.threads) == ("idle", 1)
            assert worker.ask().body == b"ok"
            assert worker.wait() == 0
            assert (worker.slot.requests, worker.slot.threads) == (1, 1)


class TestMaxRequests:
    @every_way
    @pytest.mark.parametrize("most", [1, 3])
    def test_ends(self, tmp_path: Path, board: Scoreboard, way: str, most: int) -> None:
        """After so many requests the worker ends, with status 0."""
        with Worker(tmp_path, board, way, max_requests=most) as worker:
            for _ in range(most):
                assert worker.ask().body == b"ok"
            assert worker.wait() == 0
            assert (worker.slot.requests, worker.slot.state) == (most, "ending")
            assert worker.log == ""

    @every_way
    def test_last(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """While the last request runs, the worker says that it ends."""
        with Worker(tmp_path, board, way, max_requests=1) as worker:
            wire = begin(worker, "/last")
            state = worker.wait_for(state="ending")
            assert (state.active, state.uri) == (1, "/last")
            assert state.request_started > 0
            assert end(wire) == b"done"
            assert worker.wait() == 0

    @every_way
    def test_nothing_is_lost(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """What is on its way on a kept connection when the last ends is answered."""
        with Worker(tmp_path, board, way, max_requests=2) as worker:
            with worker.connect() as wire:
                wire.send(
                    whole_request(1, keep=True),
                    whole_request(2, keep=True),
                    whole_request(3, keep=True),
                    whole_request(4, keep=True),
                )
                records = wire.records(4)
                ids = {record.request_id for record in records}
                assert ids == {1, 2, 3, 4}
                assert wire.is_closed()
            assert worker.wait() == 0
            assert worker.slot.requests == 4

    def test_next_connection_is_not_taken(
        self, tmp_path: Path, board: Scoreboard
    ) -> None:
        """A connection that comes while the last request runs is left to others."""
        with Worker(tmp_path, board, LOOP, max_requests=1) as worker:
            last = begin(worker, "/last")
            worker.wait_for(state="ending")
            with worker.connect() as other:
                other.send(whole_request())
                assert end(last) == b"done"
                assert worker.wait() == 0
                worker.listener.settimeout(10)
                taken, _ = worker.listener.accept()  # it still waits for somebody
                taken.close()

    def test_never(self, tmp_path: Path, board: Scoreboard) -> None:
        """0 is no limit."""
        with Worker(tmp_path, board, LOOP) as worker:
            for _ in range(5):
                worker.ask()
            assert worker.slot.state != "ending"
            assert worker.process.poll() is None


class TestStatusPath:
    @every_way
    def test_ping(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """The runtime answers a ping itself, and it counts for nothing."""
        board.write_header(ping_path="/ping", status_path="/status")
        log = tmp_path / "access.log"
        env = {"FCGI_APP_ACCESS_LOG": str(log), "FCGI_APP_ACCESS_FORMAT": "%U"}
        with Worker(tmp_path, board, way, max_requests=3, env=env) as worker:
            for name in ("/ping", "/", "/ping", "/ping/", "/ping", "/pin"):
                answer = worker.ask(("SCRIPT_NAME", name), ("TEXT", "application"))
                assert answer.body == (b"pong" if name == "/ping" else b"application")
            assert worker.wait() == 0
            assert worker.slot.requests == 3
        # Each thread writes its line behind its answer, so they may change places.
        assert sorted(log.read_text().split()) == ["/", "/pin", "/ping/"]

    @every_way
    def test_status(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """So it does with a question for the status; the worker goes on as before."""
        board.write_header(status_path="/status")
        with Worker(tmp_path, board, way) as worker:
            for _ in range(2):
                body = worker.ask(("SCRIPT_NAME", "/status"), ("TEXT", "app")).body
                assert body.startswith(b"pool:")
                assert b"www" in body
            assert worker.ask(("SCRIPT_NAME", "/ping"), ("TEXT", "app")).body == b"app"
            worker.wait_for(state="idle", requests=1, active=0)

    def test_kept_connection(self, tmp_path: Path, board: Scoreboard) -> None:
        """The connection is kept, and the application's output is its own."""
        board.write_header(ping_path="/ping")
        with Worker(tmp_path, board, LOOP) as worker, worker.connect() as wire:
            for name in (b"/ping", b"/", b"/ping"):
                wire.send(whole_request(1, [(b"SCRIPT_NAME", name)], keep=True))
                body = wire.answer().body
                assert body == (b"pong" if name == b"/ping" else b"ok")

    def test_other_roles(self, tmp_path: Path, board: Scoreboard) -> None:
        """An authorizer is asked about the path like about any other."""
        board.write_header(ping_path="/ping")
        with Worker(tmp_path, board, LOOP) as worker:
            name = ("SCRIPT_NAME", "/ping")
            assert worker.ask(name, role=Role.AUTHORIZER).body == b"ok"

    def test_failure(self, tmp_path: Path, board: Scoreboard) -> None:
        """A page that fails is a 500, and the application goes on."""
        board.write_header(status_path="/status")
        source = """
    import fcgi_app.status.page
    def fail(request, scoreboard):
        raise ValueError("no page")
    fcgi_app.status.page.answer = fail
"""
        with Worker(tmp_path, board, source + LOOP) as worker:
            answer = worker.ask(("SCRIPT_NAME", "/status"))
            assert answer.head.startswith(b"Status: 500 ")
            assert worker.ask().body == b"ok"
            assert "ValueError: no page" in worker.log


class TestTraceback:
    @staticmethod
    def wait_for_traceback(worker: Worker, text: str, times: int) -> None:
        eventually(lambda: worker.log.count(text) == times, f"{text!r} {times} times")

    @every_way
    def test_of_a_request(self, tmp_path: Path, board: Scoreboard, way: str) -> None:
        """A signal gives the traceback of a request that runs; nothing else happens."""
        source = """
    def sleep_deeply(read):
        open("asleep", "w").close()
        return read()

    def handle(write, read, params, handle=handle):
        handle(write, lambda: sleep_deeply(read), params)
"""
        with Worker(tmp_path, board, source + way) as worker:
            wire = begin(worker, "/")
            eventually((tmp_path / "asleep").exists, "the request in its depth")
            number = worker.slot.traceback_signal
            assert signal.SIGRTMIN <= number <= signal.SIGRTMAX
            for times in (1, 2):
                os.kill(worker.process.pid, number)
                self.wait_for_traceback(worker, "in sleep_deeply", times)
                # The main thread's comes last: in the middle of one, none is begun.
                self.wait_for_traceback(worker, "in <module>", times)
            assert end(wire) == b"done"

    def test_not_in_the_request(self, tmp_path: Path, board: Scoreboard) -> None:
        """It goes to the process's log while descriptors are the request's, too."""
        env = {"FCGI_APP_DESCRIPTORS": "1"}
        source = """
    while fcgi_app.accept():
        with open("fifo") as fifo:
            print("A: b\\r\\n\\r\\n" + fifo.read())
"""
        os.mkfifo(tmp_path / "fifo")
        with Worker(tmp_path, board, source, env=env) as worker, worker.connect() as w:
            w.send(whole_request())
            with (tmp_path / "fifo").open("w") as fifo:  # the application reads it
                os.kill(worker.process.pid, worker.slot.traceback_signal)
                self.wait_for_traceback(worker, "Current thread", 1)
                fifo.write("text")
            answer = w.answer()
            assert (answer.body, answer.stderr) == (b"text\n", b"")

    def test_signals_of_the_application(
        self, tmp_path: Path, board: Scoreboard
    ) -> None:
        """One that the application has taken, even in C, stays the application's."""
        source = """
    import faulthandler, signal
    signal.signal(signal.SIGRTMAX - 2, lambda *_: print("own", file=sys.stderr))
    faulthandler.register(signal.SIGRTMAX - 3)
    signal.signal(signal.SIGRTMAX - 4, signal.SIG_IGN)
"""
        with Worker(tmp_path, board, source + LOOP) as worker:
            state = worker.wait_for(state="idle")
            assert state.traceback_signal == signal.SIGRTMAX - 5


class TestWrongVariable:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("x", "not of the form FD:SLOT"),
            ("", "not of the form FD:SLOT"),
            ("@FD@", "not of the form FD:SLOT"),
            ("@FD@:-1", "not of the form FD:SLOT"),
            ("@FD@:0:0", "not of the form FD:SLOT"),
            ("@FD@:4", "no slot 4: there are 4"),
            ("@FD@:1", "slot 1 is nobody's"),
            ("0:0", "a standard descriptor is no scoreboard"),
            ("997:0", "Bad file descriptor"),
            ("@FILE@:0", "is no scoreboard"),
        ],
    )
    def test_ignored(
        self, tmp_path: Path, board: Scoreboard, text: str, reason: str
    ) -> None:
        """A value that cannot be is told in one line, and the program serves."""
        with (tmp_path / "file").open("w+b") as file:
            text = text.replace("@FD@", str(board.fileno()))
            text = text.replace("@FILE@", str(file.fileno()))
            board.take_slot()
            with App(
                tmp_path,
                textwrap.dedent(HANDLE) + textwrap.dedent(LOOP),
                env={VARIABLE: text},
                pass_fds=[board.fileno(), file.fileno()],
            ) as app:
                assert app.ask().body == b"ok"
                assert app.log.count("\n") == 1
                assert app.log.startswith(f"{VARIABLE}={text}: ")
                assert app.log.endswith("; ignored\n")
                assert reason in app.log
        state = board.read(0)
        assert state is not None
        assert state.pid == 0

    def test_in_cgi(self, tmp_path: Path, board: Scoreboard) -> None:
        """A CGI program has no use for it."""
        env = {"FCGI_FORCE_CGI": "1", "REQUEST_METHOD": "GET"}
        with Worker(tmp_path, board, LOOP, env=env) as worker:
            assert worker.wait() == 0
            assert worker.slot.state == "starting"


class TestForks:
    def test_second_process(self, tmp_path: Path, board: Scoreboard) -> None:
        """Copies that a script makes before it serves share a slot: one has it."""
        source = """
    os.fork()
    def handle(write, read, params):
        write(f"A: b\\r\\n\\r\\n{os.getpid()}")
"""
        with Worker(tmp_path, board, source + LOOP) as worker:
            answered: list[int] = []

            def both() -> bool:
                with worker.connect() as one, worker.connect() as two:
                    for wire in (one, two):
                        wire.send(whole_request())
                    answered.extend(int(wire.answer().body) for wire in (one, two))
                return len({*answered}) == 2

            eventually(both, "an answer of each process")
            owner = worker.slot.pid
            worker.wait_for(pid=owner, requests=answered.count(owner))
            for pid in {*answered} - {worker.process.pid}:
                os.kill(pid, signal.SIGTERM)
            assert worker.stop() == 0
            assert worker.log == ""

    def test_child_of_a_request(self, tmp_path: Path, board: Scoreboard) -> None:
        """A child that is forked while a request runs writes nothing to the slot."""
        source = """
    while fcgi_app.accept():
        pid = os.fork()
        if not pid:
            assert not fcgi_app.accept()
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        os.environ["TEXT"] = str(os.waitstatus_to_exitcode(status))
        handle(sys.stdout.write, sys.stdin.read, dict(os.environ))
"""
        with Worker(tmp_path, board, source) as worker:
            idle = worker.wait_for(state="idle")
            wire = begin(worker, "/forks")
            running = worker.wait_for(state="running")
            assert end(wire) == b"done"
            state = worker.wait_for(state="idle", requests=1)
            assert state.pid == running.pid == idle.pid
            assert worker.ask().body == b"7"

    def test_detached(self, tmp_path: Path, board: Scoreboard) -> None:
        """A request that a child answers has ended for the worker."""
        source = """
    import signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while fcgi_app.accept():
        request = fcgi_app.current_request()
        request.detach()
        if not os.fork():
            request.attach()
            handle(sys.stdout.write, sys.stdin.read, os.environ)
            fcgi_app.finish()
            os._exit(0)
"""
        with Worker(tmp_path, board, source) as worker:
            wire = begin(worker, "/detached")
            state = worker.wait_for(state="idle", requests=1)
            assert state.active == 0
            wire.send(stdin(1, b"by the child"))
            assert wire.answer().body == b"by the child"
            wire.close()
            assert worker.slot == state
