"""Aborts reach the application while it computes: in every state, role and mode."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app import Request
from fcgi_app.codec.constants import RecordType, Role

from .threads import HEAD, PATIENCE, eventually, param, plain, serve
from .webserver import (
    PACKAGE_PARENT,
    App,
    abort_request,
    begin_request,
    data,
    params,
    stdin,
    whole_request,
)

# Tells how a request went, in the log; WAY says how it looks for an abort.
PROGRAM = """
    import sys, threading, time
    import fcgi_app

    def look(request):
        way = request.params.get("WAY")
        if way == "wait":
            return request.wait_aborted(15)
        if way == "poll":
            until = time.monotonic() + 15
            while not request.aborted and time.monotonic() < until:
                sum(range(1000))
            return request.aborted
        if way == "callback":
            called = threading.Event()
            request.on_abort(called.set)
            return called.wait(15)
        return None

    def handler(request):
        if "WAY" in request.params:
            print("ready", file=sys.__stderr__, flush=True)
            print("saw", look(request), file=sys.__stderr__, flush=True)
        print("Content-Type: text/plain\\r\\n\\r\\n", end="")
        print(len(request.stdin.read()), end="")

    fcgi_app.run(handler, threads=THREADS)
"""


@pytest.fixture(scope="module", params=["None", "4"], ids=["one", "threads"])
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[App]:
    """One process that lives through all aborts."""
    source = PROGRAM.replace("THREADS", request.param)
    with App(tmp_path_factory.mktemp("abort"), source) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


STATES = {
    "begun": b"",
    "params": params(end=False),
    "params-ended": params(),
    "stdin": params() + stdin(data=b"some", end=False),
    "stdin-ahead": params() + stdin(data=bytes(70000), end=False),
    "stdin-ended": params() + stdin(data=b"some"),
    "data": params() + stdin() + data(content=b"some", end=False),
    "data-ended": params() + stdin() + data(content=b"some"),
}


class TestEveryState:
    @pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name.lower())
    @pytest.mark.parametrize("state", STATES)
    def test_end_request_comes(self, app: App, state: str, role: int) -> None:
        """ABORT_REQUEST is answered once; the kept connection serves the next."""
        if "data" in state and role != Role.FILTER:
            role = Role.FILTER  # no other role has the state
        if "stdin" in state and role == Role.AUTHORIZER:
            state = "params-ended"
        with app.connect() as wire:
            wire.send(begin_request(7, role, keep=True))
            wire.send(renumbered(STATES[state], 7), abort_request(7))
            records = wire.records()
            assert records[-1].type == RecordType.END_REQUEST
            assert records[-1].request_id == 7
            wire.send(whole_request(8, body=b"next", keep=True))
            assert wire.answer(8).body == b"4"

    @pytest.mark.parametrize("way", ["wait", "poll", "callback"])
    @pytest.mark.parametrize("how", ["abort", "close", "reset", "half"])
    @pytest.mark.parametrize("body", [b"", bytes(100_000)], ids=["no-body", "body"])
    def test_handler_sees_it(self, app: App, way: str, how: str, body: bytes) -> None:
        """A handler that computes learns of an abort, and of a lost connection."""
        if body and way == "callback" and "threads=None" in script(app):
            body = b""  # what is behind an unread body nobody looks at: documented
        ready, saw = app.log.count("ready"), app.log.count("saw True")
        with app.connect() as wire:
            wire.send(begin_request(keep=True), params(pairs=[(b"WAY", way.encode())]))
            wire.send(stdin(data=body, end=not body))
            eventually(lambda: app.log.count("ready") > ready, "the handler runs")
            if how == "abort":
                wire.send(abort_request())
                assert wire.records()[-1].type == RecordType.END_REQUEST
                wire.send(whole_request(2, body=b"next", keep=True))
                assert wire.answer(2).body == b"4"
            elif how == "reset":
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            elif how == "half":
                wire.sock.shutdown(socket.SHUT_WR)
                while wire.record() is not None:
                    pass
        eventually(lambda: app.log.count("saw True") > saw, "the handler sees it")
        assert app.ask(body=b"next").body == b"4"


def renumbered(records: bytes, request_id: int) -> bytes:
    """Records of request 1 with another id."""
    found = bytearray(records)
    at = 0
    while at < len(found):
        found[at + 2 : at + 4] = request_id.to_bytes(2, "big")
        at += 8 + int.from_bytes(found[at + 4 : at + 6], "big") + found[at + 6]
    return bytes(found)


def script(app: App) -> str:
    """The source of the program."""
    return (app.log_path.parent / "app.py").read_text()


def test_at_once_on_a_new_connection(tmp_path: Path) -> None:
    """The first request of a connection is watched like any other."""
    ready, seen = threading.Event(), threading.Event()

    def handler(request: Request) -> None:
        ready.set()
        if param(request, "WAIT") and request.wait_aborted(PATIENCE):
            seen.set()

    with serve(tmp_path, handler) as served:
        served.ask()  # its thread runs
        ready.clear()
        # So that the request is there when its connection is accepted.
        served.server._acceptor.lock.acquire()
        with served.connect() as wire:
            wire.send(whole_request(1, [(b"WAIT", b"1")]))
            served.server._acceptor.lock.release()
            assert ready.wait(PATIENCE)
        assert seen.wait(PATIENCE)


def test_wait_ends_in_time(tmp_path: Path) -> None:
    """Without an abort ``wait_aborted`` says so when its time is up."""

    def handler(request: Request) -> None:
        plain(request, str(request.wait_aborted(0.01)))

    with serve(tmp_path, handler) as served:
        assert served.ask().body == b"False"


def test_callback_after_the_end_is_not_called(tmp_path: Path) -> None:
    """What comes after the end of the request is none of its callbacks' business."""
    called: list[int] = []

    def handler(request: Request) -> None:
        request.on_abort(lambda: called.append(1))
        plain(request)

    with serve(tmp_path, handler) as served, served.connect() as wire:
        wire.send(whole_request(keep=True))
        assert wire.answer().body == b"ok"
        wire.send(abort_request())
        wire.send(whole_request(2, keep=True))
        assert wire.answer(2).body == b"ok"
    assert called == []


def test_callback_of_an_aborted_request(tmp_path: Path) -> None:
    """Registered too late, a callback is called at once; what it raises is logged."""
    ready, called = threading.Event(), threading.Event()

    def fail() -> None:
        called.set()
        raise RuntimeError("callback fails")

    def handler(request: Request) -> None:
        ready.set()
        assert request.wait_aborted(PATIENCE)
        request.on_abort(fail)

    with serve(tmp_path, handler, threads=1) as served:
        with served.connect() as wire:
            wire.send(whole_request())
            assert ready.wait(PATIENCE)
        assert called.wait(PATIENCE)


def test_no_thread_left_for_the_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there can be no more threads, callbacks are called all the same."""
    called, ready = threading.Event(), threading.Event()

    def handler(request: Request) -> None:
        request.on_abort(called.set)
        ready.set()
        assert called.wait(PATIENCE)

    def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with serve(tmp_path, handler, threads=1) as served:
        with served.connect() as wire:
            wire.send(whole_request())
            assert ready.wait(PATIENCE)
            monkeypatch.setattr("fcgi_app.threaded.Thread", no_thread)
        assert called.wait(PATIENCE)


def test_others_of_the_connection_go_on(tmp_path: Path) -> None:
    """An abort concerns one id; those beside it are served to their end."""
    gate = threading.Event()

    def handler(request: Request) -> None:
        if param(request, "WAIT"):
            request.wait_aborted(PATIENCE)
        else:
            assert gate.wait(PATIENCE)
        plain(request, str(request.aborted))

    with serve(tmp_path, handler) as served, served.connect() as wire:
        wire.send(whole_request(1, [(b"WAIT", b"1")], keep=True))
        wire.send(whole_request(2, keep=True), abort_request(1))
        first = wire.records()
        assert [(r.type, r.request_id) for r in first][-1] == (3, 1)
        gate.set()
        answer = wire.answer(2)
        assert answer.stdout == HEAD + b"False"


@pytest.mark.parametrize("way", ["wait", "callback"])
def test_cgi(way: str) -> None:
    """A CGI program sees that nobody reads its standard output any more."""
    source = textwrap.dedent(PROGRAM).replace("THREADS", "4")
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": PACKAGE_PARENT,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "WAY": way,
    }
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        process.stdout.close()
        assert process.stderr.readline() == b"saw True\n"
        process.stderr.read()
        assert process.wait(PATIENCE) is not None
