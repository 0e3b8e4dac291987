"""Many connections, one loop: who is served when, what ends, and what is closed."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import select
import selectors
import signal
import socket
import stat
import struct
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from fcgi_app import _backend
from fcgi_app.acceptor import Acceptor
from fcgi_app.codec.constants import ProtocolStatus, RecordType, Role
from fcgi_app.codec.params import build_params, parse_param_map
from fcgi_app.codec.records import build_record
from fcgi_app.request import Request
from fcgi_app.settings import Settings
from fcgi_app.transport import Transport

from .webserver import (
    App,
    Record,
    Wire,
    begin_request,
    collect,
    params,
    parse_records,
    stdin,
    whole_request,
)

HEAD = b"Content-Type: text/plain\r\n\r\n"
UNIX, TCP = socket.AF_UNIX, socket.AF_INET
FAMILIES = pytest.mark.parametrize("family", [UNIX, TCP], ids=["unix", "tcp"])
KEEP = pytest.mark.parametrize("keep", [False, True], ids=["not-kept", "kept"])
LINGER = struct.pack("ii", 1, 0)  # for SO_LINGER: close with a reset


class Server:
    """An acceptor in this very process; each step of it is the test's."""

    made: type[Acceptor] = Acceptor

    def __init__(self, directory: Path, family: int = UNIX, **changes: Any) -> None:
        self.family = family
        self.directory = directory
        self.listeners = [self.listener(number) for number in range(2)]
        self.acceptor = self.made(list(self.listeners), Settings().changed(**changes))

    def listener(self, number: int) -> socket.socket:
        made = socket.socket(self.family)
        if self.family == UNIX:
            made.bind(str(self.directory / f"server{number}.sock"))
        else:
            made.bind(("127.0.0.1" if self.family == TCP else "::1", 0))
        made.listen(128)
        return made

    def connect(self, number: int = 0) -> Wire:
        sock = socket.socket(self.family)
        sock.connect(self.listeners[number].getsockname())
        return Wire(sock)

    def connections(self) -> int:
        """How many are open, in C too."""
        acceptor: Any = self.acceptor
        waiting = 0
        if hasattr(acceptor, "lane"):
            from fcgi_app._backend import lib

            waiting = lib.fcgi_lane_count(acceptor.lane)
        return len(acceptor._connections) + waiting

    def next(self) -> Request:
        """The next request, which must be there."""
        request = self.acceptor.next_request(5)
        assert request is not None
        return request

    def serve(self, number: int = 1) -> list[bytes]:
        """Answer ``number`` requests with their own QUERY_STRING; these in order."""
        served = []
        for _ in range(number):
            request = self.next()
            served.append(request.params_map.get(b"QUERY_STRING", b""))
            request.stdout.write(HEAD + served[-1])
            request.finish()
        return served

    def is_idle(self, seconds: float = 0.0) -> bool:
        """Whether no request comes; lets the acceptor do what is due meanwhile."""
        try:
            self.acceptor.next_request(seconds)
        except TimeoutError:
            return True
        return False


def asking(
    text: bytes, request_id: int = 1, *, body: bytes = b"", keep: bool = True
) -> bytes:
    """A whole request with this query string."""
    return whole_request(request_id, [(b"QUERY_STRING", text)], body, keep=keep)


def read_records(wire: Wire, ends: int) -> list[Record]:
    """Like ``wire.records``, in the time that many records take."""
    found: list[Record] = []
    while sum(record.type == RecordType.END_REQUEST for record in found) < ends:
        more, wire.received = parse_records(wire.received + wire.sock.recv(1 << 20))
        found += more
    return found


@pytest.fixture(params=["epoll", "poll", "native"])
def selector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of the acceptor runs with epoll, with poll as without epoll, and with
    the acceptor whose usual case is in C."""
    name = str(request.param)
    if name == "native":
        request.getfixturevalue("native_backend")
        from fcgi_app.lane import LaneAcceptor

        monkeypatch.setattr(Server, "made", LaneAcceptor)
    kind = {"poll": "PollSelector"}.get(name, "EpollSelector")
    monkeypatch.setattr(selectors, "DefaultSelector", getattr(selectors, kind))
    return name


IN_PYTHON = pytest.mark.parametrize("selector", ["epoll", "poll"], indirect=True)
"""Of what only the connections in Python have: their clock, their poll, their queue."""


def transport_of(request: Request) -> Any:
    """The connection of a request, in Python whoever has had it."""
    channel: Any = request._channel
    return channel if isinstance(channel, Transport) else channel._promote(request)


@pytest.fixture
def make(selector: str, tmp_path: Path) -> Iterator[Any]:
    """Makes servers; closes them, and all that was entered into its stack."""
    with ExitStack() as stack:

        def make_server(family: int = UNIX, **changes: Any) -> Server:
            server = Server(tmp_path, family, **changes)
            for listener in server.listeners:
                stack.callback(listener.close)
            stack.callback(server.acceptor.close)
            return server

        yield make_server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class _LateBytes:
    """``select.poll`` when the first bytes of a connection are on their way."""

    def __init__(self, send: Callable[[], object]) -> None:
        self.send = send
        self.waits: list[float] = []

    def __call__(self) -> _LateBytes:
        return self

    def register(self, *_what: object) -> None:
        """Take it for granted."""

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        self.waits.append(milliseconds)
        self.send()
        return [(0, select.POLLIN)]


@IN_PYTHON
def test_first_bytes_a_moment_later(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is served before the next is accepted, though it comes in two steps.

    The next one is for another process, if there is one that has nothing to do.
    """
    server: Server = make()
    with server.connect() as first:
        late = _LateBytes(lambda: first.send(asking(b"first")))
        monkeypatch.setattr("fcgi_app.outlet.select.poll", late)
        request = server.next()
        assert request.params_map[b"QUERY_STRING"] == b"first"
        with server.connect() as second:
            second.send(asking(b"second"))
            request.finish()
            assert server.serve() == [b"second"]
        assert len(late.waits) == 1
        assert late.waits[0] <= 5  # one that says nothing must not hold up the others


class TestWhoIsServed:
    @FAMILIES
    def test_64_kept_connections(
        self, make: Any, stack: ExitStack, family: int
    ) -> None:
        """One loop serves 64 connections that stay, each as often as it asks."""
        server = make(family)
        wires = [stack.enter_context(server.connect(i % 2)) for i in range(64)]
        for turn in range(3):
            for number, wire in enumerate(wires):
                wire.send(asking(b"%d.%d" % (turn, number)))
            assert len(set(server.serve(64))) == 64
            for number, wire in enumerate(wires):
                assert wire.answer().body == b"%d.%d" % (turn, number)

    def test_a_hot_connection_shuts_nobody_out(self, make: Any) -> None:
        """Where a kept connection always has its next request, new ones come in too."""
        server = make()
        with server.connect() as hot:
            hot.send(asking(b"hot"))
            for number in range(20):
                with server.connect(number % 2) as new:
                    new.send(asking(b"new", keep=False))
                    served: list[bytes] = []
                    while b"new" not in served:
                        assert len(served) < 4
                        served += server.serve()
                        if served[-1] == b"hot":
                            hot.answer()
                            hot.send(asking(b"hot"))
                    assert new.answer().body == b"new"

    def test_hot_connections_take_turns(self, make: Any, stack: ExitStack) -> None:
        """Of several hot connections none is served twice before another."""
        server = make()
        wires = {
            b"%d" % number: stack.enter_context(server.connect()) for number in range(5)
        }
        for name, wire in wires.items():
            wire.send(asking(name))
        for _ in range(10):
            turn = server.serve(5)
            assert sorted(turn) == sorted(wires)
            for name, wire in wires.items():
                assert wire.answer().body == name
                wire.send(asking(name))

    def test_new_connections_wait_while_others_do(self, make: Any) -> None:
        """A process that has work takes no new connection: another may be free."""
        server = make()
        with server.connect() as kept, server.connect() as new:
            kept.send(asking(b"1", 1) + asking(b"2", 3) + asking(b"3", 5))
            assert server.serve() == [b"1"]
            new.send(asking(b"new"))
            assert server.serve(3) == [b"2", b"3", b"new"]

    def test_a_slow_upload_holds_nobody(self, make: Any) -> None:
        """A request waits outside until its body is in, up to the read-ahead."""
        server = make()
        with server.connect() as slow, server.connect() as quick:
            slow.send(begin_request(), params(), stdin(data=b"x" * 60_000, end=False))
            assert server.is_idle()
            quick.send(asking(b"quick"))
            assert server.serve() == [b"quick"]
            slow.send(stdin(data=b"x" * 10_000, end=False))
            request = server.next()  # it has filled the read-ahead
            slow.send(stdin(data=b"rest"))
            assert len(request.stdin.read()) == 70_004
            request.finish()

    def test_without_read_ahead(self, make: Any) -> None:
        """With read_ahead=0 a request comes with its params, and not twice."""
        server = make(read_ahead=0)
        with server.connect() as wire:
            wire.send(begin_request(keep=True), params())
            request = server.next()
            wire.send(stdin(data=b"body"))
            assert request.stdin.read() == b"body"
            request.finish()
            assert server.is_idle()

    def test_authorizer(self, make: Any) -> None:
        """An authorizer comes with its params; no server sends it any STDIN."""
        server = make()
        with server.connect() as wire:
            wire.send(begin_request(role=Role.AUTHORIZER, keep=True), params())
            request = server.next()
            assert request.stdin.read() == b""
            request.stdout.write(HEAD)
            request.finish()
            assert wire.answer().stdout == HEAD
            wire.send(asking(b"next"))
            assert server.serve() == [b"next"]

    def test_no_delay(self, make: Any) -> None:
        """TCP connections send at once (rule: three small writes cost 40 ms else)."""
        server = make(TCP)
        with server.connect() as wire:
            wire.send(asking(b"1"))
            request = server.next()
            sock = transport_of(request).sock
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not os.get_inheritable(sock.fileno())
            request.finish()

    @FAMILIES
    def test_authorizer_with_stdin(self, make: Any, family: int) -> None:
        """One that sends it all the same gets its answer whole."""
        server = make(family)
        with server.connect() as wire:
            wire.send(begin_request(role=Role.AUTHORIZER), params(), stdin())
            request = server.next()
            request.stdout.write(HEAD)
            request.finish()
            assert wire.answer().stdout == HEAD

    def test_interleaved_requests_are_queued(self, make: Any) -> None:
        """Requests that a web server interleaves are served in turn, none refused."""
        server = make()
        ids = range(1, 100, 2)
        with server.connect() as wire:
            wire.send(*[begin_request(rid, keep=True) for rid in ids])
            for rid in reversed(ids):
                wire.send(params(rid, [(b"QUERY_STRING", b"%d" % rid)]))
            wire.send(*[stdin(rid, b"x") for rid in ids])
            assert server.serve(50) == [b"%d" % rid for rid in ids]
            records = wire.records(50)
            for rid in ids:
                assert collect(records, rid).body == b"%d" % rid

    def test_default_timeout_of_the_application(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """socket.setdefaulttimeout has no say over our connections."""
        server = make()
        previous = socket.getdefaulttimeout()
        socket.setdefaulttimeout(0.001)
        try:
            with server.connect() as wire:
                wire.send(begin_request(), params())
                assert server.is_idle()
                wire.send(stdin())
                assert server.serve() == [b""]
                assert wire.answer().stdout == HEAD
        finally:
            socket.setdefaulttimeout(previous)


class TestTimeout:
    def test_works_again(self, make: Any) -> None:
        """TimeoutError says how long; the next call takes what has come."""
        server = make()
        with server.connect() as wire:
            for _ in range(2):
                with pytest.raises(
                    TimeoutError, match=r"no request came within 0\.01 s"
                ):
                    server.acceptor.next_request(0.01)
            wire.send(asking(b"1"))
            assert server.serve() == [b"1"]
            wire.answer()
            with pytest.raises(TimeoutError):
                server.acceptor.next_request(0.01)
            wire.send(asking(b"2"))
            assert server.serve() == [b"2"]

    @pytest.mark.parametrize("timeout", [0, -1])
    def test_zero(self, make: Any, timeout: float) -> None:
        """A timeout of 0 takes what is there, and waits for nothing."""
        server = make()
        with pytest.raises(TimeoutError):
            server.acceptor.next_request(timeout)
        with server.connect() as wire:
            wire.send(asking(b"1"))
            assert server.acceptor.next_request(timeout).finish() is None
            wire.answer()
            wire.send(asking(b"2") * 2)
            assert server.acceptor.next_request(timeout).finish() is None
            assert server.acceptor.next_request(timeout).finish() is None

    @pytest.mark.parametrize("timeout", [1e7, 1e300])
    def test_beyond_what_poll_can_do(self, make: Any, timeout: float) -> None:
        """A timeout of months is no error."""
        server = make(
            keep_timeout=timeout,
            params_timeout=timeout,
            first_byte_timeout=timeout,
            body_timeout=timeout,
            write_timeout=timeout,
        )
        timer = threading.Timer(0.1, server.acceptor.wake)
        timer.start()
        with server.connect() as silent, server.connect() as wire:
            wire.send(asking(b"1"))
            assert server.serve() == [b"1"]
            silent.send(asking(b"2")[:30])
            stop = threading.Timer(0.1, server.acceptor.stop)
            stop.start()
            silent.send(asking(b"2")[30:])
            assert server.acceptor.next_request(timeout).finish() is None
            assert server.acceptor.next_request(timeout) is None
            stop.join()
        timer.join()

    def test_connections_go_on_meanwhile(self, make: Any) -> None:
        """What came before a TimeoutError is not lost with it."""
        server = make()
        sample = asking(b"late")
        with server.connect() as wire:
            for at in range(0, len(sample), 7):
                wire.send(sample[at : at + 7])
                if at + 7 < len(sample):
                    assert server.is_idle()
            assert server.serve() == [b"late"]


class Clock:
    """Stands in for ``time.monotonic``: time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of acceptor and transports; none of them waits for it."""
    made = Clock()
    if _backend.BACKEND == "native":
        monkeypatch.setattr("fcgi_app.lane.monotonic", made)
    for name in ("acceptor", "places", "link", "sending", "transport"):
        monkeypatch.setattr(f"fcgi_app.{name}.monotonic", made)
    return made


class TestTimeLimits:
    @IN_PYTHON
    def test_keep_timeout(
        self, make: Any, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An idle kept connection is closed, in silence; one that is used is not."""
        server = make(keep_timeout=10)
        with server.connect() as idle, server.connect() as used:
            for wire in (idle, used):
                wire.send(asking(b"1"))
            server.serve(2)
            for number in (b"2", b"3"):
                clock.now += 9
                used.answer()
                used.send(asking(number))
                assert server.serve() == [number]
                assert server.is_idle()
            idle.answer()
            assert idle.is_closed()
            clock.now += 9.9
            used.answer()
            used.send(asking(b"4"))
            assert server.serve() == [b"4"]
        assert not caplog.records

    def test_no_keep_timeout(self, make: Any, clock: Clock) -> None:
        """By default nothing closes an idle kept connection."""
        server = make()
        with server.connect() as wire:
            wire.send(asking(b"1"))
            server.serve()
            wire.answer()
            clock.now += 1e9
            assert server.is_idle()
            wire.send(asking(b"2"))
            assert server.serve() == [b"2"]

    @pytest.mark.parametrize(
        ("limit", "sent", "word"),
        [
            ("first_byte_timeout", b"", "sent nothing"),
            ("params_timeout", b"\1", "sent part of a request and then nothing"),
            (
                "params_timeout",
                begin_request() + params(end=False),
                "sent part of a request and then nothing",
            ),
            (
                "body_timeout",
                begin_request() + params() + stdin(data=b"half", end=False),
                "sent part of a body and then nothing",
            ),
            (
                "body_timeout",
                begin_request() + params(),
                "sent part of a body and then nothing",
            ),
            (
                "params_timeout",
                asking(b"1") + b"\1\1",
                "sent part of a request and then nothing",
            ),
        ],
        ids=["nothing", "byte", "params", "body", "no-body", "behind-another"],
    )
    def test_silence(
        self,
        make: Any,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        limit: str,
        sent: bytes,
        word: str,
    ) -> None:
        """Who stops in the middle is closed after its time; the log says where."""
        server = make(**{limit: 10})
        with server.connect() as silent, server.connect() as other:
            silent.send(sent)
            if sent.startswith(asking(b"1")):
                assert server.serve() == [b"1"]
                silent.answer()
            other.send(asking(b"2"))
            assert server.serve() == [b"2"]
            clock.now += 9.9
            assert server.is_idle()
            assert not caplog.records
            clock.now += 0.2
            assert server.is_idle()
            assert silent.is_closed()
            other.answer()
            other.send(asking(b"3"))
            assert server.serve() == [b"3"]
        assert f"connection from a Unix socket {word}; closed" in caplog.text

    def test_each_piece_starts_the_time_anew(self, make: Any, clock: Clock) -> None:
        """Silence is what is limited, not the whole of a slow request."""
        server = make(params_timeout=10, body_timeout=10)
        sample = begin_request() + params() + stdin(data=b"body")
        with server.connect() as wire:
            for at in range(0, len(sample), 20):
                assert server.is_idle()
                clock.now += 9
                wire.send(sample[at : at + 20])
            assert server.serve() == [b""]

    @pytest.mark.parametrize(
        "limit",
        ["first_byte_timeout", "params_timeout", "body_timeout", "keep_timeout"],
    )
    def test_zero_is_no_limit(self, make: Any, clock: Clock, limit: str) -> None:
        """A time of 0 is no limit."""
        times = ["first_byte_timeout", "params_timeout", "body_timeout"]
        server = make(**{**dict.fromkeys(times, 1e12), limit: 0})
        with server.connect() as wire:
            for part in (b"", begin_request(keep=True), params(), stdin()):
                assert server.is_idle()
                clock.now += 1e9
                assert server.is_idle()
                wire.send(part)
            assert server.serve() == [b""]
            clock.now += 1e9
            assert server.is_idle()
            assert wire.answer().stdout == HEAD
            wire.send(asking(b"next"))
            assert server.serve() == [b"next"]

    def early_answer(self, server: Server, wire: Wire) -> None:
        """An answer before the end of the body, which then comes; now it lingers."""
        wire.send(begin_request(), params(), stdin(data=bytes(70_000), end=False))
        assert server.serve() == [b""]
        wire.send(stdin())
        assert server.is_idle()
        assert wire.answer().stdout == HEAD
        assert wire.is_closed()  # this is our FIN only

    def is_open(self, server: Server, wire: Wire) -> bool:
        """Whether what is sent is still taken."""
        try:
            wire.send(b"x")
        except BrokenPipeError:
            return False
        assert server.is_idle()
        return True

    def test_linger_idle(self, make: Any, clock: Clock) -> None:
        """A peer that neither sends nor closes after an early answer is closed."""
        server = make(linger_idle=10, linger_timeout=100)
        with server.connect() as wire:
            self.early_answer(server, wire)
            for _ in range(5):
                clock.now += 9
                assert self.is_open(server, wire)
            clock.now += 10.1
            assert server.is_idle()
            assert not self.is_open(server, wire)

    @pytest.mark.parametrize("idle", [10, 0], ids=["idle-time", "no-idle-time"])
    def test_linger_timeout(self, make: Any, clock: Clock, idle: float) -> None:
        """One that goes on sending is closed after linger_timeout at the latest."""
        server = make(linger_idle=idle, linger_timeout=20)
        with server.connect() as wire:
            self.early_answer(server, wire)
            for _ in range(3):
                clock.now += 6
                assert self.is_open(server, wire)
            clock.now += 6
            assert server.is_idle()
            assert not self.is_open(server, wire)

    def test_linger_without_limits(self, make: Any, clock: Clock) -> None:
        """Without limits it lingers until the peer closes."""
        server = make(linger_idle=0, linger_timeout=0)
        with server.connect() as wire:
            self.early_answer(server, wire)
            for _ in range(3):
                clock.now += 1e9
                assert server.is_idle()
                assert self.is_open(server, wire)
        assert server.is_idle()
        assert server.connections() == 0

    def test_early_answer_to_who_sends_no_more(self, make: Any, clock: Clock) -> None:
        """The end of an early answer goes out when no more of the body comes."""
        server = make()
        with server.connect() as wire:
            wire.send(begin_request(), params(), stdin(data=bytes(70_000), end=False))
            assert server.serve() == [b""]
            assert wire.record() == (RecordType.STDOUT, 1, HEAD)
            assert wire.record() == (RecordType.STDOUT, 1, b"")
            clock.now += 1
            assert server.is_idle()
            assert wire.record() == (RecordType.END_REQUEST, 1, bytes(8))

    def test_early_answer_to_nginx(self, make: Any) -> None:
        """nginx, which sends no more of the body, gets the end of it at once."""
        server = make()
        pairs = [(b"SERVER_SOFTWARE", b"nginx/1.22.1")]
        with server.connect() as wire:
            wire.send(begin_request(keep=True), params(pairs=pairs))
            wire.send(stdin(data=bytes(70_000), end=False))
            assert server.serve() == [b""]
            assert wire.answer().stdout == HEAD

    def test_next_request_behind_an_early_answer(self, make: Any, clock: Clock) -> None:
        """A kept connection goes on behind it, with a late end of the body or not."""
        server = make()
        with server.connect() as wire:
            for late in (b"", stdin(data=b"late")):
                wire.send(begin_request(keep=True), params())
                wire.send(stdin(data=bytes(70_000), end=False))
                assert server.serve() == [b""]
                assert server.is_idle()
                clock.now += 1
                assert server.is_idle()
                assert wire.answer().stdout == HEAD
                wire.send(late, asking(b"next"))
                assert server.serve() == [b"next"]
                assert wire.answer().body == b"next"

    @FAMILIES
    def test_early_answer_to_who_shuts_down(self, make: Any, family: int) -> None:
        """It goes out too when the peer shuts its side down instead."""
        server = make(family)
        with server.connect() as wire:
            wire.send(begin_request(), params(), stdin(data=bytes(70_000), end=False))
            assert server.serve() == [b""]
            wire.sock.shutdown(socket.SHUT_WR)
            assert server.is_idle()
            assert wire.answer().stdout == HEAD

    def test_body_timeout_of_a_running_request(
        self, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A body that stops while the application reads it is given up."""
        server = make(body_timeout=0.1)
        with server.connect() as wire:
            wire.send(begin_request(), params(), stdin(data=bytes(70_000), end=False))
            request = server.next()
            assert len(request.stdin.read()) == 70_000
            assert request.incomplete
            assert request.aborted
            request.finish()
        assert "no input for 0.1 s; given up" in caplog.text

    @FAMILIES
    def test_write_timeout(self, make: Any, family: int) -> None:
        """A web server that takes nothing is waited for once, not for every write."""
        server = make(family, write_timeout=0.2)
        with server.connect() as wire:
            wire.send(asking(b""))
            request = server.next()
            out = request.stdout
            out.write(HEAD)
            started = monotonic()
            for _ in range(200):
                out.write(bytes(100_000))
            request.finish()
            assert 0.1 < monotonic() - started < 2
            assert request.aborted
            assert isinstance(out.error, ConnectionError)
            with server.connect() as other:
                other.send(asking(b"next"))
                assert server.serve() == [b"next"]


class TestLimits:
    def test_max_connections(self, make: Any, stack: ExitStack) -> None:
        """Beyond max_connections the one that is unused longest is closed."""
        server = make(max_connections=3)
        wires = [stack.enter_context(server.connect()) for _ in range(3)]
        for wire in wires:
            wire.send(asking(b"1"))
        server.serve(3)
        for wire in (wires[0], wires[2], wires[1], wires[0]):
            wire.answer()
            wire.send(asking(b"2"))
            server.serve()
        for closed in (wires[2], wires[1], wires[0]):
            closed.answer()
            new = stack.enter_context(server.connect())
            new.send(asking(b"3"))
            server.serve()
            assert new.answer().body == b"3"
            assert closed.is_closed()

    def test_max_connections_spares_the_busy(self, make: Any, stack: ExitStack) -> None:
        """No connection is closed on which anything is under way."""
        server = make(max_connections=1)
        halves = [stack.enter_context(server.connect()) for _ in range(5)]
        for wire in halves:
            wire.send(asking(b"x")[:30])
            assert server.is_idle()
        for wire in halves:
            wire.send(asking(b"x")[30:])
            server.serve()
            assert wire.answer().body == b"x"

    @FAMILIES
    @pytest.mark.parametrize("number", [10, 900])
    def test_max_queued(self, make: Any, family: int, number: int) -> None:
        """Beyond max_queued a request is answered 503 at once, the others are served.

        Also when the web server takes no answer before it has sent all of them.
        """
        server = make(family, max_queued=5)
        ids = range(1, number + 1)
        records: list[Record] = []
        with server.connect() as wire:

            def exchange() -> None:
                wire.send(*[asking(b"%d" % rid, rid) for rid in ids])
                records.extend(read_records(wire, number))

            peer = threading.Thread(target=exchange)
            peer.start()
            served = 0
            while peer.is_alive():
                with suppress(TimeoutError):
                    request = server.acceptor.next_request(0.02)
                    request.stdout.write(HEAD + request.params_map[b"QUERY_STRING"])
                    request.finish()
                    served += 1
            peer.join()
        answers = {rid: collect(records, rid) for rid in ids}
        refused = {rid for rid in ids if answers[rid].protocol_status}
        assert served == number - len(refused)
        assert refused
        assert refused.isdisjoint(range(1, 6))
        for rid, answer in answers.items():
            if rid in refused:
                assert answer.protocol_status == ProtocolStatus.OVERLOADED
                assert b"Status: 503 " in answer.head
            else:
                assert answer.body == b"%d" % rid

    def test_max_requests(self, make: Any) -> None:
        """Beyond max_requests ids of one connection a request is answered 503."""
        server = make(max_requests=2)
        with server.connect() as wire:
            wire.send(*[begin_request(rid, keep=True) for rid in (1, 3, 5)])
            for rid in (1, 3, 5):
                wire.send(params(rid, [(b"QUERY_STRING", b"%d" % rid)]), stdin(rid))
            assert sorted(server.serve(2)) == [b"1", b"3"]
            records = wire.records(3)
            refused = collect(records, 5)
            assert refused.protocol_status == ProtocolStatus.OVERLOADED
            assert b"Status: 503 " in refused.head
            wire.send(asking(b"next", 5))
            assert server.serve() == [b"next"]

    def test_get_values(self, make: Any) -> None:
        """The answers to GET_VALUES are the settings."""
        server = make(max_connections=7, max_queued=3)
        names = (b"FCGI_MAX_CONNS", b"FCGI_MAX_REQS", b"FCGI_MPXS_CONNS")
        with server.connect() as wire:
            question = build_params([(name, b"") for name in names])
            wire.send(build_record(RecordType.GET_VALUES, 0, question))
            assert server.is_idle()
            record = wire.record()
            assert record is not None
            values = dict(zip(names, (b"7", b"3", b"0"), strict=True))
            assert parse_param_map(record.content) == values

    @IN_PYTHON
    @FAMILIES
    @pytest.mark.parametrize("keep", [False, True], ids=["not-kept", "kept"])
    def test_replies_wait_for_the_web_server(
        self, make: Any, family: int, keep: bool
    ) -> None:
        """Short answers that the socket will not take go out as soon as it does."""
        server = make(family)
        with server.connect() as wire:
            wire.send(asking(b"1"))
            request = server.next()
            request.stdout.write(HEAD)
            transport: Any = request._channel
            request.finish()
            wire.answer()
            transport.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            filling = build_record(RecordType.STDERR, 9, bytes(32_000))
            while not transport.unsent:  # as unread responses may fill it
                transport._outlet.push(filling)
            wire.send(build_record(RecordType.GET_VALUES, 0) * 10)
            wire.send(whole_request(3, role=9, keep=keep))
            assert server.is_idle()
            seen: list[Record] = []
            due = [RecordType.GET_VALUES_RESULT] * 10 + [RecordType.END_REQUEST]
            while due:
                assert server.is_idle()
                record = wire.record()
                assert record is not None
                seen.append(record)
                if record.type in due:
                    due.remove(RecordType(record.type))
            assert b"Status: 501 " in collect(seen, 3).head
            if keep:
                wire.send(asking(b"next"))
                assert server.serve() == [b"next"]
            else:
                assert server.is_idle()
                assert wire.is_closed()

    def test_peer_that_only_asks(
        self, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who asks and never listens is read no more, and closed after its time."""
        server = make(write_timeout=0.2)
        question = build_record(77, 0) * 500
        with server.connect() as wire, server.connect() as other:
            wire.sock.settimeout(0.01)
            sent = 0
            while sent < 20_000_000:
                server.is_idle()
                try:
                    sent += wire.sock.send(question)
                except TimeoutError:
                    break
            assert sent < 5_000_000
            other.send(asking(b"next"))
            assert server.serve() == [b"next"]
            assert server.is_idle(0.3)
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                wire.sock.send(question)
        assert "took no answer; closed" in caplog.text


class FailingListener(socket.socket):
    """A listening socket of which accept fails as often as ``errors`` says."""

    errors: list[int]
    tried = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tried += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class FailingServer(Server):
    def listener(self, number: int) -> socket.socket:
        made = FailingListener(self.family)
        made.errors = []
        made.bind(str(self.directory / f"failing{number}.sock"))
        made.listen(128)
        return made


@pytest.fixture
def failing(selector: str, tmp_path: Path) -> Iterator[FailingServer]:
    server = FailingServer(tmp_path)
    yield server
    server.acceptor.close()
    for listener in server.listeners:
        listener.close()


class TestAcceptFails:
    @pytest.mark.parametrize(
        "number",
        [errno.ECONNABORTED, errno.EAGAIN, errno.EINTR, errno.EPERM, errno.EPROTO],
    )
    def test_passing(
        self, failing: FailingServer, caplog: pytest.LogCaptureFixture, number: int
    ) -> None:
        """Errors of one connection cost that one, and no time."""
        failing.listeners[0].errors = [number] * 3  # type: ignore[attr-defined]
        with failing.connect() as wire:
            wire.send(asking(b"1"))
            assert failing.serve() == [b"1"]
        assert not caplog.records

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS])
    def test_pause(
        self,
        failing: FailingServer,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        number: int,
    ) -> None:
        """Without descriptors it pauses, ever longer, says so once, and goes on."""
        listener: Any = failing.listeners[0]
        listener.errors = [number] * 100
        with failing.connect() as wire, failing.connect(1) as other:
            wire.send(asking(b"1"))
            for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
                tried = listener.tried
                for _ in range(3):
                    assert failing.is_idle()
                assert listener.tried == tried + 1
                clock.now += pause + 0.001
                assert failing.is_idle()
            listener.errors.clear()
            other.send(asking(b"2"))
            assert sorted(failing.serve(2)) == [b"1", b"2"]
        (record,) = caplog.records
        assert os.strerror(number) in record.getMessage()

    def test_pause_after_success(
        self, failing: FailingServer, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After a connection that was accepted it begins anew, with a line in the log."""
        listener: Any = failing.listeners[0]
        with failing.connect() as wire:
            for text in (b"1", b"2"):
                listener.errors = [errno.EMFILE] * 2
                wire.send(asking(text, keep=False))
                for pause in (0.05, 0.1):
                    assert failing.is_idle()
                    clock.now += pause + 0.001
                    assert failing.is_idle()
                assert failing.serve() == [text]
                wire.answer()
                wire.sock.close()
                wire.sock = failing.connect().sock
        assert len(caplog.records) == 2

    def test_both_listeners(self, failing: FailingServer) -> None:
        """Several listening sockets may fail at once."""
        for listener in failing.listeners:
            listener.errors = [errno.EMFILE] * 2  # type: ignore[attr-defined]
        with failing.connect() as wire, failing.connect(1) as other:
            wire.send(asking(b"1"))
            other.send(asking(b"2"))
            assert sorted(failing.serve(2)) == [b"1", b"2"]

    def test_an_idle_connection_makes_room(
        self, failing: FailingServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The kept connection that is unused longest is closed for a new one."""
        with failing.connect() as oldest, failing.connect() as newer:
            for wire in (oldest, newer):
                wire.send(asking(b"1"))
                failing.serve()
                wire.answer()
            failing.listeners[0].errors = [errno.EMFILE]  # type: ignore[attr-defined]
            with failing.connect() as new:
                new.send(asking(b"2"))
                assert failing.serve() == [b"2"]
            assert oldest.is_closed()
            newer.send(asking(b"3"))
            assert failing.serve() == [b"3"]
        assert not caplog.records

    def test_stop_in_the_pause(self, failing: FailingServer) -> None:
        """A stop while accept pauses is as prompt as any."""
        failing.listeners[0].errors = [errno.EMFILE] * 9  # type: ignore[attr-defined]
        with failing.connect():
            assert failing.is_idle(0.1)
            failing.acceptor.stop()
            assert failing.acceptor.next_request(5) is None


WAYS = pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])


@FAMILIES
@KEEP
@WAYS
class TestLostPeers:
    def go(self, wire: Wire, reset: bool) -> None:
        if reset:
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        wire.close()

    def check(self, server: Server) -> None:
        """Another one is served, and nothing is left of the lost connection."""
        with server.connect() as wire:
            wire.send(asking(b"next"))
            served: list[bytes] = []
            while b"next" not in served:
                served += server.serve()
            assert wire.answer().body == b"next"
            assert server.is_idle(0.02)
            assert server.connections() == 1

    def test_before_its_turn(
        self, make: Any, family: int, keep: bool, reset: bool
    ) -> None:
        """Who goes before the turn of its request disturbs nobody."""
        server = make(family)
        with server.connect() as wire:
            wire.send(asking(b"gone", keep=keep))
            self.go(wire, reset)
            self.check(server)

    @pytest.mark.parametrize("size", [0, 5_000_000])
    def test_while_it_runs(
        self, make: Any, family: int, keep: bool, reset: bool, size: int
    ) -> None:
        """Who goes while its request runs is noticed, its output is dropped."""
        server = make(family)
        with server.connect() as wire:
            wire.send(asking(b"gone", keep=keep))
            request = server.next()
            assert not request.aborted
            self.go(wire, reset)
            assert request.aborted
            request.stdout.write(HEAD)
            for _ in range(size // 100_000):
                request.stdout.write(bytes(100_000))
            request.finish()
            self.check(server)

    def test_in_mid_response(
        self, make: Any, family: int, keep: bool, reset: bool
    ) -> None:
        """Who goes in the middle of the response ends it; writing goes on in vain."""
        server = make(family)
        with server.connect() as wire:
            wire.send(asking(b"gone", keep=keep))
            request = server.next()
            request.stdout.write(HEAD)
            request.stdout.flush()
            assert wire.record() == (RecordType.STDOUT, 1, HEAD)
            self.go(wire, reset)
            for _ in range(50):
                request.stdout.write(bytes(100_000))
            assert isinstance(request.stdout.error, ConnectionError)
            request.finish()
            self.check(server)

    def test_in_the_body(self, make: Any, family: int, keep: bool, reset: bool) -> None:
        """Who goes in the middle of its body has sent an incomplete request."""
        server = make(family)
        with server.connect() as wire:
            wire.send(begin_request(keep=keep), params())
            wire.send(stdin(data=bytes(70_000), end=False))
            request = server.next()
            self.go(wire, reset)
            assert len(request.stdin.read()) <= 70_000
            assert request.incomplete
            request.finish()
            self.check(server)

    def test_behind_an_early_answer(
        self, make: Any, family: int, keep: bool, reset: bool
    ) -> None:
        """Who goes while the rest of its body is discarded leaves nothing behind."""
        server = make(family)
        with server.connect() as wire:
            wire.send(begin_request(keep=keep), params())
            wire.send(stdin(data=bytes(70_000), end=False))
            assert server.serve() == [b""]
            assert server.is_idle()
            self.go(wire, reset)
            self.check(server)

    def test_between_requests(
        self, make: Any, family: int, keep: bool, reset: bool
    ) -> None:
        """Who goes with its answer in hand is forgotten."""
        server = make(family)
        with server.connect() as wire:
            wire.send(asking(b"1", keep=keep))
            server.serve()
            wire.answer()
            self.go(wire, reset)
            self.check(server)

    def test_one_of_many_on_a_connection(
        self, make: Any, family: int, keep: bool, reset: bool
    ) -> None:
        """All requests of a lost connection are lost, those of others are not."""
        server = make(family)
        with server.connect() as wire, server.connect() as other:
            wire.send(*[asking(b"gone", rid, keep=True) for rid in range(1, 20)])
            request = server.next()
            other.send(asking(b"other"))
            self.go(wire, reset)
            request.stdout.write(bytes(5_000_000))
            request.finish()
            served: list[bytes] = []
            while b"other" not in served:
                served += server.serve()
            assert other.answer().body == b"other"
        self.check(server)


class TestStop:
    def test_from_a_thread(self, make: Any) -> None:
        """A stop ends the wait at once, whoever asks for it."""
        server = make()
        timer = threading.Timer(0.05, server.acceptor.stop)
        timer.start()
        assert server.acceptor.next_request(20) is None
        timer.join()

    def test_wake(self, make: Any) -> None:
        """Waking without a reason only costs a look."""
        server = make()
        for _ in range(100_000):  # more than the pipe holds
            server.acceptor.wake()
        assert server.is_idle()
        with server.connect() as wire:
            wire.send(asking(b"1"))
            assert server.serve() == [b"1"]
        server.acceptor.close()
        server.acceptor.wake()
        server.acceptor.close()

    @FAMILIES
    def test_what_was_sent_is_served(
        self, make: Any, stack: ExitStack, family: int
    ) -> None:
        """Requests sent on open connections before the stop get their answers."""
        server = make(family, stop_timeout=0.2)
        wires = [stack.enter_context(server.connect()) for _ in range(20)]
        for wire in wires:
            wire.send(asking(b"1"))
        server.serve(20)
        busy = stack.enter_context(server.connect())
        busy.send(asking(b"busy"))
        request = server.next()
        for number, wire in enumerate(wires):
            wire.answer()
            wire.send(asking(b"%d" % number, 1), asking(b"more", 3))
        server.acceptor.stop()
        request.stdout.write(HEAD + b"busy")
        request.finish()
        served = server.serve(40)
        assert served.count(b"more") == 20
        assert server.acceptor.next_request(5) is None
        assert busy.answer().body == b"busy"
        for number, wire in enumerate(wires):
            records = wire.records(2)
            assert collect(records, 1).body == b"%d" % number
            assert collect(records, 3).body == b"more"
            assert wire.is_closed()

    @FAMILIES
    def test_what_is_coming_is_served(
        self, make: Any, stack: ExitStack, family: int
    ) -> None:
        """A request of which a part is in is waited for; silence is not."""
        server = make(family, stop_timeout=1)
        wire = stack.enter_context(server.connect())
        silent = stack.enter_context(server.connect())
        sample = asking(b"x", body=b"body", keep=False)
        wire.send(sample[:50])
        assert server.is_idle()
        server.acceptor.stop()
        rest = threading.Timer(0.1, wire.send, [sample[50:]])
        rest.start()
        assert server.serve() == [b"x"]
        rest.join()
        assert wire.answer().body == b"x"
        wire.close()
        assert server.acceptor.next_request(5) is None
        assert silent.is_closed()

    def test_what_never_comes(self, make: Any) -> None:
        """A part that is never completed is waited for stop_timeout, and no longer."""
        server = make(stop_timeout=0.2)
        with server.connect() as wire:
            wire.send(asking(b"x")[:50])
            assert server.is_idle()
            server.acceptor.stop()
            assert server.acceptor.next_request(5) is None
            assert wire.is_closed()

    def test_nothing_new(self, make: Any) -> None:
        """After a stop nobody can connect."""
        server = make()
        server.acceptor.stop()
        assert server.acceptor.next_request(5) is None
        path = str(server.directory / "server0.sock")
        with socket.socket(UNIX) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(path)

    @pytest.mark.parametrize("attempt", range(10))
    def test_end_and_fin_together(self, make: Any, attempt: int) -> None:
        """On TCP the end of the last answer and our FIN come in one segment.

        A web server that saw the end alone could send its next request into the void.
        """
        server = make(TCP)
        with server.connect() as wire:
            wire.send(asking(b"1"))
            server.serve()
            wire.answer()
            wire.send(asking(b"2"))
            request = server.next()
            server.acceptor.stop()
            server.acceptor.retire()
            seen = threading.Thread(target=self.read_to_the_end, args=(wire,))
            seen.start()
            request.stdout.write(HEAD)
            request.finish()
            seen.join()
            assert wire.sock.recv(1, socket.MSG_DONTWAIT) == b""
            assert wire.answer().stdout == HEAD

    @staticmethod
    def read_to_the_end(wire: Wire) -> None:
        while not wire.received.endswith(
            bytes.fromhex("01030001000800000000000000000000")
        ):
            wire.received += wire.sock.recv(65536)

    @FAMILIES
    def test_shut_down_refuses_what_waits(
        self, make: Any, stack: ExitStack, family: int
    ) -> None:
        """A process that ends answers 503 to all that it will not serve any more."""
        server = make(family, stop_timeout=0.3)
        wires = [stack.enter_context(server.connect()) for _ in range(5)]
        for wire in wires:
            wire.send(asking(b"1"))
        server.serve(5)
        late = asking(b"late", keep=True)
        for wire in wires:
            wire.answer()
            wire.send(late[:-20] if wire is wires[-1] else late)
        request = server.next()
        rest = threading.Timer(0.1, wires[-1].send, [late[-20:]])
        rest.start()
        server.acceptor.retire()
        request.stdout.write(HEAD)
        request.finish()
        server.acceptor.shut_down()
        rest.join()
        refused = 0
        for wire in wires:
            answer = wire.answer()
            refused += answer.protocol_status == ProtocolStatus.OVERLOADED
            assert wire.is_closed()
        assert refused == 4

    @FAMILIES
    def test_shut_down_lets_answers_arrive(
        self, make: Any, stack: ExitStack, family: int
    ) -> None:
        """An early answer arrives although the process ends, and others come in."""
        server = make(family, stop_timeout=0.3)
        upload = stack.enter_context(server.connect())
        other = stack.enter_context(server.connect())
        other.send(asking(b"1"))
        server.serve()
        other.answer()
        records: list[Record] = []

        def send() -> None:
            upload.send(begin_request(), params(), stdin(data=bytes(8_000_000)))
            other.send(asking(b"2"))
            upload.send(stdin(data=bytes(8_000_000)))
            records.extend(upload.records())

        peer = threading.Thread(target=send)
        peer.start()
        server.serve()
        server.acceptor.shut_down()
        peer.join()
        assert collect(records).stdout == HEAD


class TestNames:
    @pytest.mark.parametrize(
        ("bind", "name"),
        [
            ("", "connection from a Unix socket: record version 2"),
            ("client.sock", "connection from a Unix socket bound to '"),
            ("\0fcgi-app-test", "connection from a Unix socket bound to b'"),
        ],
        ids=["unbound", "path", "abstract"],
    )
    def test_unix_peer(
        self, make: Any, caplog: pytest.LogCaptureFixture, bind: str, name: str
    ) -> None:
        """The log names a Unix peer as well as it can be named."""
        server = make()
        with socket.socket(UNIX) as sock:
            if bind:
                directory = f"{server.directory}/" if bind[0] != "\0" else ""
                sock.bind(
                    directory + bind + (str(os.getpid()) if not directory else "")
                )
            sock.connect(server.listeners[0].getsockname())
            sock.send(b"\2" + bytes(7))
            assert server.is_idle()
        assert name in caplog.text

    @pytest.mark.parametrize(
        ("family", "host", "name"),
        [(TCP, "127.0.0.1", "127.0.0.1:{}"), (socket.AF_INET6, "::1", "[::1]:{}")],
    )
    def test_tcp_peer(
        self,
        make: Any,
        caplog: pytest.LogCaptureFixture,
        family: int,
        host: str,
        name: str,
    ) -> None:
        """The log names a TCP peer by address and port."""
        server = make(family)
        with server.connect() as wire:
            wire.send(b"\2" + bytes(7))
            assert server.is_idle()
            port = wire.sock.getsockname()[1]
        assert f"connection from {name.format(port)}: record" in caplog.text


PROGRAM = """
    import hashlib, os, signal, sys
    from fcgi_app import *
    n = 0
    while accept():
        n += 1
        request = current_request()
        sys.stdout.write("Content-Type: text/plain\\r\\n\\r\\n")
        exec(os.environ["QUERY_STRING"])
"""


def code(text: str) -> list[tuple[bytes, bytes]]:
    """Params that make the program run ``text``."""
    return [(b"QUERY_STRING", text.encode())]


def limited(number: int) -> Any:
    """For preexec_fn: few descriptors."""

    def limit() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))

    return limit


def status(app: App, name: str) -> int:
    """A number of /proc/PID/status, such as VmHWM in KiB."""
    text = Path(f"/proc/{app.process.pid}/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does, and nobody tells of; 20 seconds at most."""
    latest = monotonic() + 20
    while not condition():
        assert monotonic() < latest
        sleep(0.002)


def logged(app: App, count: int) -> bool:
    """Whether the log has that many lines."""
    return app.log.count("\n") >= count


@FAMILIES
class TestBigBodies:
    @KEEP
    def test_early_answer_to_20_mb(
        self, tmp_path: Path, family: int, keep: bool
    ) -> None:
        """An answer that does not wait for 20 MB arrives whole, 10 of 10."""
        body = stdin(data=bytes(20_000_000))
        with App(tmp_path, PROGRAM, family=family) as app:
            for _ in range(10):
                with app.connect() as wire:
                    wire.send(begin_request(keep=keep), params(pairs=code("print(1)")))
                    wire.send(body)
                    assert wire.answer().body == b"1\n"
                    if keep:
                        wire.send(whole_request(pairs=code("print(2)"), keep=True))
                        assert wire.answer().body == b"2\n"
            assert app.stop() == 0
            assert app.log == ""

    def test_peer_that_sends_all_before_it_reads(
        self, tmp_path: Path, family: int
    ) -> None:
        """A 20 MB echo to a peer that reads nothing before it has sent everything."""
        text = """
while data := sys.stdin.buffer.read(65536):
    sys.stdout.buffer.write(data)
"""
        content = bytes(range(250)) * 80_000
        with App(tmp_path, PROGRAM, family=family) as app, app.connect() as wire:
            wire.send(begin_request(), params(pairs=code(text)))
            wire.send(stdin(data=content))
            records = read_records(wire, 1)
            assert collect(records).body == content
            assert status(app, "VmHWM") - status(app, "VmRSS") < 8192

    def test_interleaved(self, tmp_path: Path, family: int) -> None:
        """Bodies that are interleaved wait on disk, not in memory, and stay apart."""
        text = """
digest = hashlib.md5(usedforsecurity=False)
while data := sys.stdin.buffer.read(65536):
    digest.update(data)
print(digest.hexdigest())
"""
        ids = (1, 3, 5, 7)
        contents = {rid: bytes((rid, 0, 1)) * 5_000_000 for rid in ids}
        with App(tmp_path, PROGRAM, family=family) as app, app.connect() as wire:
            wire.send(whole_request(9, code("print(1)"), keep=True))
            wire.answer(9)
            before = status(app, "VmHWM")
            for rid in ids:
                wire.send(begin_request(rid, keep=True), params(rid, code(text)))
            for at in range(0, 15_000_000, 60_000):
                for rid in ids:
                    wire.send(stdin(rid, contents[rid][at : at + 60_000], end=False))
            wire.send(*[stdin(rid) for rid in ids])
            records = wire.records(4)
            assert status(app, "VmHWM") - before < 16_384
        for rid in ids:
            digest = hashlib.md5(contents[rid], usedforsecurity=False).hexdigest()
            assert collect(records, rid).body == digest.encode() + b"\n"


class TestFewDescriptors:
    def test_idle_connections_make_room(self, tmp_path: Path, stack: ExitStack) -> None:
        """The oldest idle connections go, in order; the application can open files."""
        text = code("print(n); open('/dev/null').close()")
        with App(tmp_path, PROGRAM, preexec_fn=limited(64)) as app:
            wires = []
            for number in range(1, 101):
                wire = stack.enter_context(app.connect())
                wire.send(whole_request(pairs=text, keep=True))
                assert wire.answer().body == b"%d\n" % number
                wires.append(wire)
            alive = 0
            for wire in reversed(wires):
                with suppress(BrokenPipeError, ConnectionResetError):
                    wire.send(whole_request(pairs=text, keep=True))
                    if wire.records(1):
                        alive += 1
                        continue
                break
            assert 25 <= alive <= 60
            for wire in wires[: 100 - alive]:
                with suppress(ConnectionResetError):
                    assert wire.is_closed()
            assert app.stop() == 0
            assert app.log == ""

    def test_all_busy(self, tmp_path: Path, stack: ExitStack) -> None:
        """With every descriptor in use it says so once, waits, and goes on."""
        half = whole_request(pairs=code("print(n)"))
        with App(tmp_path, PROGRAM, preexec_fn=limited(40)) as app:
            wires = [stack.enter_context(app.connect()) for _ in range(60)]
            for wire in wires:
                wire.send(half[:40])
            wait_until(lambda: "Too many open files" in app.log)
            for wire in wires:
                wire.send(half[40:])
            bodies = sorted(int(wire.answer().body) for wire in wires)
            assert bodies == list(range(1, 61))
            assert app.stop() == 0
            assert app.log.count("Too many open files") == 1

    def test_more_than_1500(self, tmp_path: Path, stack: ExitStack) -> None:
        """Without epoll, too, one process holds thousands of connections."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
        source = (
            "import selectors\n"
            "selectors.DefaultSelector = selectors.PollSelector\n"
            "del selectors.EpollSelector\n"
        ) + textwrap.dedent(PROGRAM)
        with App(tmp_path, source) as app:
            wires = []
            for number in range(1, 1601):
                wire = stack.enter_context(app.connect())
                wire.send(whole_request(pairs=code("print(n)"), keep=True))
                assert wire.answer().body == b"%d\n" % number
                wires.append(wire)
            for wire in (*wires[:5], *wires[-5:]):
                wire.send(whole_request(pairs=code("print(n)"), keep=True))
                assert int(wire.answer().body) > 1600
            text = "print(len(os.listdir('/proc/self/fd')))"
            assert int(app.ask(("QUERY_STRING", text)).body) > 1600
            assert app.stop() == 0
        for wire in wires:
            assert wire.is_closed()


class TestLoop:
    def test_accept_with_a_timeout(self, tmp_path: Path) -> None:
        """A loop may do other things between requests, and loses none."""
        source = """
            import sys
            from fcgi_app import accept
            idle = 0
            while True:
                try:
                    if not accept(timeout=0.02):
                        break
                except TimeoutError as error:
                    idle += 1
                    print(idle, error, sys.stdin.read(), flush=True)
                    continue
                print("Content-Type: text/plain\\r\\n\\r\\n", idle, end="")
        """
        with App(tmp_path, source) as app, app.connect() as wire:
            before = -1
            for count in (1, 3, 5):
                wait_until(partial(logged, app, count))
                wire.send(whole_request(keep=True))
                idle = int(wire.answer().body)
                assert idle > before
                before = idle
            assert app.stop() == 0
            assert app.log.startswith("1 no request came within 0.02 s \n2 no ")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_stop_with_a_queue(
        self, tmp_path: Path, stack: ExitStack, number: int
    ) -> None:
        """Requests that were sent before the signal are answered, and then it ends."""
        with App(tmp_path, PROGRAM) as app:
            wires = [stack.enter_context(app.connect()) for _ in range(10)]
            for wire in wires:
                wire.send(whole_request(pairs=code("print(n)"), keep=True))
                wire.answer()
            busy = stack.enter_context(app.connect())
            busy.send(begin_request(keep=True))
            busy.send(params(pairs=code("sys.stdout.flush(); sys.stdin.read()")))
            busy.send(stdin(data=bytes(70_000), end=False))
            assert busy.record() == (RecordType.STDOUT, 1, HEAD)
            for wire in wires:
                wire.send(whole_request(1, code("print(n)"), keep=True))
                wire.send(whole_request(3, code("print(n)"), keep=True))
            app.process.send_signal(number)
            busy.send(stdin())
            busy.records()
            bodies = []
            for wire in wires:
                records = wire.records(2)
                bodies += [int(collect(records, rid).body) for rid in (1, 3)]
                assert wire.is_closed()
                wire.close()
            assert sorted(bodies) == list(range(12, 32))
            assert busy.is_closed()
            busy.close()
            assert app.wait() == 0

    @FAMILIES
    @KEEP
    def test_sigterm_under_load(self, tmp_path: Path, family: int, keep: bool) -> None:
        """Under load, every request that the program got has its whole answer."""
        text = "os.write(2, b'.'); print('x' * 5000)"
        sample = whole_request(pairs=code(text), keep=keep)
        answered = [0] * 6
        broken: list[bytes] = []

        def exchange(wire: Wire, number: int) -> bool:
            """Whether there was an answer; a whole one, if there was any."""
            try:
                wire.send(sample)
                records = wire.records()
            except (AssertionError, ConnectionError):
                records = []
            if not records:
                broken.extend([wire.received] * bool(wire.received))
                return False
            if len(collect(records).body) == 5001:
                answered[number] += 1
            return keep

        def load(number: int) -> None:
            while True:
                with socket.socket(family) as sock:
                    try:
                        sock.connect(address)
                    except ConnectionRefusedError:
                        return
                    except ConnectionResetError:  # refused in the middle of it (TCP)
                        continue
                    wire = Wire(sock)
                    while exchange(wire, number):
                        pass

        with App(tmp_path, PROGRAM, family=family) as app:
            address = app.listener.getsockname()
            app.listener.close()
            clients = [threading.Thread(target=load, args=(i,)) for i in range(6)]
            for client in clients:
                client.start()
            wait_until(lambda: sum(answered) >= 50)
            assert app.stop() == 0
            for client in clients:
                client.join(20)
            assert broken == []
            assert app.log == "." * sum(answered)

    def test_stop_behind_an_early_answer(self, tmp_path: Path) -> None:
        """A stop does not wait for a body that never comes, and its answer is ended."""
        with App(tmp_path, PROGRAM) as app, app.connect() as wire:
            wire.send(begin_request(keep=True), params(pairs=code("print(1)")))
            wire.send(stdin(data=bytes(70_000), end=False))
            assert wire.record() == (RecordType.STDOUT, 1, HEAD + b"1\n")
            app.process.send_signal(signal.SIGTERM)
            assert wire.records()[-1] == (RecordType.END_REQUEST, 1, bytes(8))
            wire.close()
            assert app.wait() == 0

    def test_in_a_thread(self, tmp_path: Path) -> None:
        """The loop may run in any thread; signals are the main thread's business."""
        source = """
            import sys, threading
            from fcgi_app import accept, last_call
            def loop():
                while accept():
                    sys.stdout.write("Content-Type: text/plain\\r\\n\\r\\nthread")
                print("over", flush=True)
            thread = threading.Thread(target=loop)
            thread.start()
            open("fifo").read()
            last_call()
            thread.join()
        """
        os.mkfifo(tmp_path / "fifo")
        with App(tmp_path, source) as app:
            assert app.ask().body == b"thread"
            (tmp_path / "fifo").write_text("stop")
            assert app.wait() == 0
            assert app.log == "over\n"

    def test_keyboard_interrupt(self, tmp_path: Path) -> None:
        """Ctrl-C ends the wait as it ends any other program; nothing hangs."""
        with App(tmp_path, PROGRAM) as app, app.connect() as kept:
            kept.send(whole_request(pairs=code("print(1)"), keep=True))
            kept.answer()
            assert app.stop(signal.SIGINT) == -signal.SIGINT
            assert app.log.rstrip().endswith("KeyboardInterrupt")
            assert kept.is_closed()

    def test_accept_in_a_forked_child(self, tmp_path: Path) -> None:
        """A child has no requests: its accept says no, its parent's goes on."""
        text = """
print("page")
child = os.fork()
if not child:
    os.write(2, b"%d" % accept())
    os._exit(0)
os.waitpid(child, 0)
"""
        with App(tmp_path, PROGRAM) as app:
            for _ in range(2):
                assert app.ask(("QUERY_STRING", text)).body == b"page\n"
            assert app.stop() == 0
            assert app.log == "00"

    def test_end_and_fin_together(self, tmp_path: Path) -> None:
        """A kept TCP connection that a stop closes gets END_REQUEST and FIN at once."""
        text = "sys.stdout.flush(); sys.stdin.read()"
        with App(tmp_path, PROGRAM, family=TCP) as app, app.connect() as wire:
            wire.send(begin_request(keep=True), params(pairs=code(text)))
            wire.send(stdin(data=bytes(70_000), end=False))
            assert wire.record() == (RecordType.STDOUT, 1, HEAD)
            app.process.send_signal(signal.SIGTERM)
            wire.send(stdin())
            TestStop.read_to_the_end(wire)
            assert wire.sock.recv(1, socket.MSG_DONTWAIT) == b""
            wire.close()
            assert app.wait() == 0


LISTENING = """
    import os, sys
    from fcgi_app import *
    {code}
    print("ready", flush=True)
    while accept():
        sys.stdout.write("Content-Type: text/plain\\r\\n\\r\\n")
        print("page", is_cgi())
    print("over", flush=True)
"""


class TestListen:
    def start(self, tmp_path: Path, code: str, **changes: Any) -> App:
        """A program with its own sockets: what it has on descriptor 0 is not served."""
        app = App(tmp_path, LISTENING.format(code=code), **changes)
        wait_until(lambda: "ready" in app.log or app.process.poll() is not None)
        return app

    def ask(self, family: int, where: Any) -> bytes:
        with socket.socket(family) as sock:
            sock.connect(where)
            wire = Wire(sock)
            wire.send(whole_request())
            return wire.answer().body

    def test_several_addresses(self, tmp_path: Path) -> None:
        """Several addresses are served at once; the file is removed at the end."""
        name = f"\0fcgi-app-{os.getpid()}"
        code = f"""
    listen("unix:own.sock", mode=0o640)
    listen("@{name[1:]}")
    tcp = listen("127.0.0.1:0", backlog=5)
    print(tcp.getsockname()[1])
    os.chdir("/")
"""
        path = tmp_path / "own.sock"
        with self.start(tmp_path, code) as app:
            port = int(app.log.split()[0])
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            for _ in range(2):
                assert self.ask(UNIX, str(path)) == b"page False\n"
                assert self.ask(UNIX, name) == b"page False\n"
                assert self.ask(TCP, ("127.0.0.1", port)) == b"page False\n"
            assert app.stop() == 0
            assert app.log.endswith("over\n")
        assert not path.exists()

    @pytest.mark.parametrize(
        ("code", "status"),
        [("sys.exit(3)", 3), ("1/0", 1), ("accept(timeout=0.01)", 1)],
    )
    def test_file_is_removed(self, tmp_path: Path, code: str, status: int) -> None:
        """However the program ends, its socket file goes with it."""
        code = f"listen('unix:own.sock'); is_cgi(); assert os.path.exists('own.sock'); {code}"
        with self.start(tmp_path, code) as app:
            assert app.wait() == status
        assert "AssertionError" not in app.log
        assert not (tmp_path / "own.sock").exists()

    def test_file_of_a_successor_stays(self, tmp_path: Path) -> None:
        """A file that is another process's by now is left alone."""
        path = tmp_path / "own.sock"
        with self.start(tmp_path, "listen('unix:own.sock'); is_cgi()") as app:
            path.unlink()
            path.touch()
            assert app.stop() == 0
        assert path.exists()

    def test_force_cgi(self, tmp_path: Path) -> None:
        """FCGI_FORCE_CGI wins over listen; no socket and no file is left of it."""
        env = {"FCGI_FORCE_CGI": "1"}
        with self.start(tmp_path, "listen('unix:own.sock')", env=env) as app:
            assert app.wait() == 0
        assert app.log == "ready\nContent-Type: text/plain\n\npage True\nover\n"
        assert not (tmp_path / "own.sock").exists()

    @pytest.mark.parametrize("way", ["configure(spool=-1)", "1/0", "sys.exit(1)"])
    def test_error_before_the_start(self, tmp_path: Path, way: str) -> None:
        """A program that fails before its first accept leaves no file either."""
        code = f"listen('unix:own.sock'); {way}"
        with self.start(tmp_path, code) as app:
            assert app.wait() == 1
        assert not (tmp_path / "own.sock").exists()

    def test_too_late(self, tmp_path: Path) -> None:
        """After the first accept it is too late."""
        with self.start(tmp_path, "is_cgi(); listen('unix:own.sock')") as app:
            assert app.wait() == 1
        assert "CallSequenceError: listen: " in app.log
        assert not (tmp_path / "own.sock").exists()

    def test_forked_child(self, tmp_path: Path) -> None:
        """A child that ends leaves the file to its parent."""
        code = """
    listen("unix:own.sock")
    is_cgi()
    if not os.fork():
        sys.exit()
    os.wait()
"""
        with self.start(tmp_path, code) as app:
            assert (tmp_path / "own.sock").exists()
            assert self.ask(UNIX, str(tmp_path / "own.sock")) == b"page False\n"
            assert app.stop() == 0
        assert not (tmp_path / "own.sock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pure", "native"])
def test_memory_of_unique_cookies(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    """200,000 requests with unique cookies leave less than 1 MiB and no descriptor."""
    if backend == "native":
        request.getfixturevalue("native_backend")
    source = """
        import sys
        from fcgi_app import accept
        while accept():
            sys.stdout.write("Content-Type: text/plain\\r\\n\\r\\n")
    """
    batch = 100

    def send(wire: Wire, start: int) -> None:
        """``batch`` requests on a kept connection, and their answers."""
        wire.send(
            *[
                whole_request(pairs=[(b"HTTP_COOKIE", b"%0200d" % number)], keep=True)
                for number in range(start, start + batch)
            ]
        )
        due = batch * size
        while due:
            due -= len(wire.sock.recv(1 << 20))

    env = {"FCGI_APP_BACKEND": backend}
    with App(tmp_path, source, env=env) as app, app.connect() as wire:
        wire.send(whole_request(keep=True))
        wire.answer()
        descriptors = os.listdir(f"/proc/{app.process.pid}/fd")
        size = 8 + len(HEAD) + 8 + 16
        for start in range(0, 20_000, batch):
            send(wire, start)
        before = status(app, "VmRSS")
        for start in range(20_000, 220_000, batch):
            send(wire, start)
        assert status(app, "VmRSS") - before < 1024
        assert os.listdir(f"/proc/{app.process.pid}/fd") == descriptors
