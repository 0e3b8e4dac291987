"""How it ends while requests are being served: signals, ``stop``, ``close``, errors."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import threading
import time
from pathlib import Path

import pytest

from fcgi_app import CallSequenceError, Request, Server

from .threads import HEAD, PATIENCE, Served, eventually, plain, serve
from .webserver import App, Wire, begin_request, collect, params, stdin, whole_request

# A request that ends when its body does; READY says in the log that it runs.
PROGRAM = """
    import os, signal, sys, threading
    import fcgi_app

    def handler(request):
        print("Content-Type: text/plain\\r\\n\\r\\n", end="", flush=True)
        exec(request.params.get("CODE", ""))
        print("read", len(request.stdin.read()), end="")

    fcgi_app.run(handler, threads=30)
    print("ended well", file=sys.stderr)
"""
ENV = {"FCGI_APP_READ_AHEAD": "0"}


def start(app: App, count: int) -> list[Wire]:
    """Connections, each with a request that is being served."""
    wires = [app.connect() for _ in range(count)]
    for wire in wires:
        wire.send(begin_request(keep=True), params(), stdin(data=b"begin", end=False))
    for wire in wires:
        first = wire.record()
        assert first is not None
        assert first.content == HEAD
    return wires


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_while_30_run(tmp_path: Path, number: int) -> None:
    """30 of 30 requests that run at the signal are answered whole; then exit 0."""
    with App(tmp_path, PROGRAM, env=ENV) as app:
        wires = start(app, 30)
        app.process.send_signal(number)
        for wire in wires:
            wire.send(stdin(data=b"end"))
        for wire in wires:
            assert wire.answer().stdout == b"read 8"
            assert wire.is_closed()
            wire.close()
        assert app.wait() == 0
        assert app.log == "ended well\n"


def test_signal_that_does_not_end_the_wait(tmp_path: Path) -> None:
    """The main thread gets to its handlers, though the signal is not sent to it.

    So it is with one that comes at the moment when it begins to wait.
    """
    tell = """
def tell():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Timer(0.1, tell).start()  # when nothing else happens any more
"""
    with App(tmp_path, PROGRAM) as app:
        assert app.ask(("CODE", tell), body=b"x").stdout == HEAD + b"read 1"
        assert app.wait() == 0
        assert app.log == "ended well\n"


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """The second SIGTERM does not wait."""
    with App(tmp_path, PROGRAM, env=ENV) as app:
        with app.connect() as idle:
            idle.send(whole_request(keep=True))
            idle.answer()
            (wire,) = start(app, 1)
            app.process.send_signal(signal.SIGTERM)
            assert idle.is_closed()  # so it has been seen
        app.process.send_signal(signal.SIGTERM)
        assert app.wait() == -signal.SIGTERM
        wire.close()


def test_last_call(tmp_path: Path) -> None:
    """``last_call`` in a handler: it and those beside it end, then the process."""
    with App(tmp_path, PROGRAM, env=ENV) as app:
        wires = start(app, 3)
        answer = app.ask(("CODE", "fcgi_app.last_call()"))
        assert answer.body == b"read 0"
        for wire in wires:
            wire.send(stdin())
            assert wire.answer().stdout == b"read 5"
            wire.close()
        assert app.wait() == 0


def test_ctrl_c(tmp_path: Path) -> None:
    """KeyboardInterrupt in the main thread: what runs prints its answer to its end."""
    source = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    source += PROGRAM.replace("\n    ", "\n")
    with App(tmp_path, source, env=ENV) as app:
        wires = start(app, 5)
        app.process.send_signal(signal.SIGINT)
        for wire in wires:
            wire.send(stdin())
            assert wire.answer().stdout == b"read 5"
            wire.close()
        assert app.wait() == -signal.SIGINT
        assert "KeyboardInterrupt" in app.log


SERVER = """
    import os, sys, threading
    import fcgi_app

    def handler(request):
        print("Content-Type: text/plain\\r\\n\\r\\n", end="", flush=True)
        print("read", len(request.stdin.read()), end="")

    server = fcgi_app.Server(None, handler, threads=4)
    with server:
        {body}
"""


@pytest.mark.parametrize(
    ("body", "status"),
    [("raise ValueError('main fails')", 1), ("sys.exit(4)", 4), ("pass", 0)],
)
def test_main_thread_leaves(tmp_path: Path, body: str, status: int) -> None:
    """Whatever ends the ``with`` block: what has been asked is answered before."""
    wait = "sys.stdin_gate = open('gate').read(); "
    os.mkfifo(tmp_path / "gate")
    source = SERVER.format(body=wait + body)
    with App(tmp_path, source, env=ENV) as app:
        wires = start(app, 2)
        with (tmp_path / "gate").open("w") as gate:
            gate.write("go")
        for wire in wires:
            wire.send(stdin())
            assert wire.answer().stdout == b"read 5"
            wire.close()
        assert app.wait() == status


class TestClose:
    def busy(self, served: Served, gate: threading.Event) -> Wire:
        """A connection whose request waits at the gate."""
        wire = served.connect()
        wire.send(whole_request(keep=True))
        return wire

    def test_while_busy(self, tmp_path: Path) -> None:
        """``close`` returns when the last request has been answered."""
        gate, ready = threading.Event(), threading.Semaphore(0)

        def handler(request: Request) -> None:
            ready.release()
            assert gate.wait(PATIENCE)
            plain(request)

        with serve(tmp_path, handler) as served:
            wires = [self.busy(served, gate) for _ in range(4)]
            waiting = [self.busy(served, gate) for _ in range(3)]
            for _ in range(4):
                assert ready.acquire(timeout=PATIENCE)
            acceptor = served.server._acceptor
            eventually(lambda: len(acceptor._ready) == 3, "the others wait")
            closers = [threading.Thread(target=served.server.close) for _ in range(2)]
            for closer in closers:
                closer.start()
            eventually(lambda: acceptor.stopping, "it stops")
            assert all(closer.is_alive() for closer in closers)
            gate.set()
            for wire in wires + waiting:
                assert wire.answer().body == b"ok"
                assert wire.is_closed()
                wire.close()
            for closer in closers:
                closer.join(PATIENCE)
                assert not closer.is_alive()

    def test_by_a_handler(self, tmp_path: Path) -> None:
        """A handler may ``stop``; ``close`` would wait for itself, and says so."""

        def handler(request: Request) -> None:
            with pytest.raises(CallSequenceError, match="called by a handler"):
                server.close()
            server.stop()
            plain(request)

        server = Server(f"unix:{tmp_path}/s", handler)
        with server:
            served = Served(server)
            assert served.ask().body == b"ok"
            server.wait()

    def test_body_that_ends_at_the_stop(self, tmp_path: Path) -> None:
        """A reader is woken by input that arrives with the word to stop."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD + request.stdin.read())

        for _ in range(10):
            with (
                serve(tmp_path, handler, read_ahead=0) as served,
                served.connect() as wire,
            ):
                wire.send(begin_request(), params(), stdin(data=b"a", end=False))
                acceptor = served.server._acceptor
                eventually(
                    lambda a=acceptor: any(  # type: ignore[misc]
                        r.running for t in a._connections for r in t.requests
                    ),
                    "it runs",
                )
                with acceptor.lock:
                    acceptor.stop()
                    wire.send(stdin(data=b"b"))
                assert wire.answer().body == b"ab"

    def test_with_requests_that_nobody_takes(self, tmp_path: Path) -> None:
        """``shut_down`` refuses what waits in the queue, and does not hang."""
        server = Server(f"unix:{tmp_path}/s", plain)
        server._acceptor.start()
        with Served(server).connect() as wire:
            wire.send(whole_request())
            eventually(lambda: server._acceptor._ready, "it waits")
            started = time.monotonic()
            server.close()
            assert time.monotonic() - started < 5
            assert wire.answer().head.startswith(b"Status: 503 ")

    def test_descriptors(self, tmp_path: Path) -> None:
        """Nothing is left open: listener, connections, pipe, poll object."""

        def descriptors() -> int:
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        before = descriptors()
        for _ in range(5):
            with serve(tmp_path, plain) as served:
                wires = [served.connect() for _ in range(10)]
                for wire in wires:
                    wire.send(whole_request(keep=True))
                    assert wire.answer().body == b"ok"
                assert descriptors() > before
            for wire in wires:
                wire.close()
        assert descriptors() == before

    @pytest.mark.parametrize("name", ["PollSelector", "SelectSelector"])
    def test_other_selector(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A selector that takes no changes while it waits does as well."""
        kind = getattr(selectors, name)
        monkeypatch.setattr(selectors, "DefaultSelector", kind)

        def handler(request: Request) -> None:
            body = request.stdin.read()
            request.stdout.write(HEAD + body * 40)

        with serve(tmp_path, handler, read_ahead=0) as served, served.connect() as wire:
            for n in range(1, 9):
                wire.send(whole_request(n, body=bytes([n]) * 100_000, keep=True))
            records = wire.records(8)
            for n in range(1, 9):
                assert collect(records, n).body == bytes([n]) * 4_000_000
            assert served.ask(body=b"x").body == b"x" * 40
