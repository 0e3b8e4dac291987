"""Connections in C and in Python: the same requests, answers, ends and log lines."""

from __future__ import annotations

import os
import resource
import socket
import stat
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcgi_app import _backend
from fcgi_app.acceptor import Acceptor
from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import build_record
from fcgi_app.settings import Settings

from .native import CLIENTS, DO, Seen, Step, play
from .webserver import (
    abort_request,
    begin_request,
    collect,
    data,
    params,
    parse_records,
    stdin,
    whole_request,
)

if _backend.BACKEND == "native":
    from fcgi_app.lane import LaneAcceptor

UNIX = socket.AF_UNIX

pytestmark = pytest.mark.usefixtures("native_backend")


@pytest.fixture(autouse=True)
def _still_clock(native_backend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes: what is due in a fifth of a second is due in neither, or both."""
    for name in ("acceptor", "places", "link", "sending", "transport", "lane"):
        monkeypatch.setattr(f"fcgi_app.{name}.monotonic", lambda: 1000.0)


def both(trace: list[Step], **changes: Any) -> tuple[Seen, Seen]:
    return play(LaneAcceptor, trace, **changes), play(Acceptor, trace, **changes)


def check(trace: list[Step], **changes: Any) -> Seen:
    """Play it to both; they must agree. Requests of several connections may come in
    another order: that of each is seen by its answers."""
    native, pure = both(trace, **changes)
    assert native.wires == pure.wires
    assert sorted(map(repr, native.requests)) == sorted(map(repr, pure.requests))
    assert sorted(native.log) == sorted(pure.log)
    return native


DOINGS = st.sampled_from(
    [b"", b"r", b"f", b"e", b"s", b"a", b"b", b"c", b"n", b"x", b"l", b"m"]
) | st.lists(st.sampled_from([*b"rfesabcnx"]), max_size=4).map(bytes)
IDS = st.sampled_from([1, 1, 1, 2, 7, 65535])
LENGTHS = st.sampled_from([None, None, b"", b"0", b"4", b"4", b"5", b"x", b"-1"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """What a web server may send in one go, most of it whole requests."""
    request_id = draw(IDS)
    keep = draw(st.booleans())
    pairs = [(DO, draw(DOINGS)), (b"N", draw(st.binary(max_size=4)))]
    length = draw(LENGTHS)
    if length is not None:
        pairs.append((b"CONTENT_LENGTH", length))
    if draw(st.integers(0, 5)) == 0:
        pairs.append((b"REQUEST_METHOD", b"HEAD"))
    match draw(st.sampled_from(["whole"] * 6 + ["body", "role", "part", "other"])):
        case "whole":
            return whole_request(request_id, pairs, keep=keep)
        case "body":
            body = draw(st.sampled_from([b"body", b"body", b"b" * 3000]))
            return whole_request(request_id, pairs, body, keep=keep)
        case "role":
            role = draw(st.sampled_from([Role.AUTHORIZER, Role.FILTER, 9]))
            return whole_request(request_id, pairs, role=role, keep=keep) + (
                data(request_id, b"data") if role == Role.FILTER else b""
            )
        case "part":
            return draw(
                st.sampled_from(
                    [
                        begin_request(request_id, keep=keep),
                        params(request_id, pairs),
                        params(request_id, pairs, end=False),
                        stdin(request_id),
                        stdin(request_id, b"body", end=False),
                        abort_request(request_id),
                    ]
                )
            )
        case _:
            return draw(
                st.sampled_from(
                    [
                        build_record(
                            RecordType.GET_VALUES,
                            0,
                            build_params([(b"FCGI_MAX_CONNS", b"")]),
                        ),
                        build_record(99, 0, b"x"),
                        b"GET / HTTP/1.0\r\n\r\n",
                        b"\1",
                        bytes(8),
                    ]
                )
            )


@st.composite
def traces(draw: st.DrawFn) -> list[Step]:
    """Messages cut anywhere, on some connections, with a look at them now and then."""
    trace: list[Step] = []
    for _ in range(draw(st.integers(1, 6))):
        client = draw(st.integers(0, CLIENTS - 1))
        trace.append(("connect", client, b""))
        sent = b"".join(draw(st.lists(messages(), min_size=1, max_size=3)))
        if draw(st.integers(0, 3)) == 0:
            at = draw(st.integers(0, len(sent)))
            trace += [("send", client, sent[:at]), ("serve", 0, b"")]
            sent = sent[at:]
        if sent and draw(st.integers(0, 9)) == 0:
            spoilt = bytearray(sent)
            spoilt[draw(st.integers(0, min(len(sent), 80) - 1))] ^= 1 << draw(
                st.integers(0, 7)
            )
            sent = bytes(spoilt)
        trace.append(("send", client, sent))
        end = draw(st.sampled_from(["serve"] * 5 + ["shut", "close", "reset", ""]))
        if end:
            trace.append((end, client, b""))
        if draw(st.booleans()):
            trace.append(("serve", 0, b""))
    if draw(st.integers(0, 4)) == 0:
        trace += [("serve", 0, b""), ("retire", 0, b"")]
    return trace


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    traces(),
    st.sampled_from([{}, {"max_params": 3}, {"read_ahead": 2000}, {"spool": 3}]),
)
def test_any_trace(trace: list[Step], changes: dict[str, int]) -> None:
    """Whatever web servers send, cut anywhere, both acceptors make the same of it."""
    check(trace, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True], ids=["not-kept", "kept"])
@pytest.mark.parametrize("doing", [b"r", b"f", b"e", b"s", b"m", b"x"])
def test_every_cut(keep: bool, doing: bytes) -> None:
    """A request, and another behind it, cut in two at any byte are the same to both."""
    sent = whole_request(1, [(DO, doing)], keep=True) + whole_request(2, keep=keep)
    for at in range(1, len(sent)):
        trace: list[Step] = [
            ("connect", 0, b""),
            ("send", 0, sent[:at]),
            ("serve", 0, b""),
            ("send", 0, sent[at:]),
            ("serve", 0, b""),
        ]
        assert len(check(trace).requests) == 2


SITUATIONS: dict[str, tuple[list[bytes], str]] = {
    "multiplexed": (
        [
            begin_request(1, keep=True) + begin_request(2, keep=True),
            params(2) + params(1) + stdin(2) + stdin(1),
        ],
        "",
    ),
    "whole-behind-a-part": ([begin_request(1, keep=True) + whole_request(2)], ""),
    "aborted-in-the-queue": (
        [whole_request(1, keep=True) + abort_request(1) + whole_request(2, keep=True)],
        "",
    ),
    "aborted-early": ([begin_request(keep=True) + params(), abort_request()], ""),
    "get-values": (
        [
            build_record(
                RecordType.GET_VALUES, 0, build_params([(b"FCGI_MPXS_CONNS", b"")])
            )
            + whole_request(keep=True)
        ],
        "",
    ),
    "body": ([whole_request(body=b"body", keep=True)], ""),
    "body-length-wrong": (
        [whole_request(pairs=[(b"CONTENT_LENGTH", b"9")], keep=True)],
        "",
    ),
    "early-answer": (
        [begin_request(keep=True) + params(pairs=[(DO, b"s")]), stdin(data=b"late")],
        "",
    ),
    "half-closed": ([whole_request(keep=True)], "shut"),
    "half-closed-flushed": ([whole_request(pairs=[(DO, b"fe")], keep=True)], "shut"),
    "half-closed-asked": ([whole_request(pairs=[(DO, b"a")], keep=True)], "shut"),
    "gone": ([whole_request(keep=True)], "close"),
    "gone-flushed": ([whole_request(pairs=[(DO, b"fb")], keep=True)], "reset"),
    "gone-asked": ([whole_request(pairs=[(DO, b"a")], keep=True)], "close"),
    "head": ([whole_request(pairs=[(b"REQUEST_METHOD", b"HEAD")], keep=True)], ""),
    "three-in-one": ([whole_request(n, keep=True) for n in (1, 2, 3)], ""),
    "three-in-one-piece": (
        [b"".join(whole_request(n, keep=True) for n in (1, 2, 3))],
        "",
    ),
    "not-kept-and-another": ([whole_request(1) + whole_request(2)], ""),
    "same-id-twice": ([whole_request(1, keep=True) * 2], ""),
    "empty-name": ([whole_request(pairs=[(b"", b"x")], keep=True)], ""),
    "role-on-the-wire": (
        [whole_request(pairs=[(b"FCGI_ROLE", b"FILTER")], keep=True)],
        "",
    ),
    "nul": ([whole_request(pairs=[(b"A\0", b"x"), (b"B", b"\0")], keep=True)], ""),
    "malformed-params": (
        [
            begin_request(keep=True)
            + build_record(RecordType.PARAMS, 1, b"\x05\x05A")
            + build_record(RecordType.PARAMS, 1)
            + stdin()
        ],
        "",
    ),
}


@pytest.mark.parametrize("served", [False, True], ids=["at-once", "one-by-one"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name: str, served: bool) -> None:
    """Each situation that somebody has thought of is the same to both."""
    pieces, end = SITUATIONS[name]
    trace: list[Step] = [("connect", 0, b"")]
    for piece in pieces:
        trace.append(("send", 0, piece))
        if served:
            trace.append(("serve", 0, b""))
    if end:
        trace += [(end, 0, b""), ("serve", 0, b"")]
    check(trace)


def test_filter_that_is_dropped() -> None:
    """Nobody serves it any more: what came of its file is closed, not just forgotten."""
    asked = whole_request(2, role=Role.FILTER, keep=True) + data(2, b"in a file")
    trace: list[Step] = [("connect", 0, b""), ("send", 0, whole_request() + asked)]
    trace += [("reset", 0, b""), ("serve", 0, b"")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert len(check(trace, spool=3).requests) == 1


def test_peer_that_goes_between_requests() -> None:
    """A kept connection that ends unused is closed by both, and others are served."""
    sent = whole_request(keep=True)
    for end in ("shut", "close", "reset"):
        trace: list[Step] = []
        for client in range(CLIENTS):
            trace += [("connect", client, b""), ("send", client, sent)]
        trace += [("serve", 0, b""), (end, 1, b""), ("serve", 0, b"")]
        trace += [("send", 0, sent), ("send", 2, sent), ("serve", 0, b"")]
        assert len(check(trace).requests) == 5


@pytest.mark.parametrize("doing", [b"r", b"f", b"e", b"m", b"s", b"x"])
def test_oldest_goes(doing: bytes) -> None:
    """Whatever its last request was, the connection that is unused longest goes first."""
    trace: list[Step] = []
    for client, what in enumerate((doing, b"r", b"r")):
        sent = whole_request(pairs=[(DO, what)], keep=True)
        trace += [("connect", client, b""), ("send", client, sent), ("serve", 0, b"")]
    seen = check(trace, max_connections=2)
    ends = [seen.wires[client][0].rpartition(b" ")[2] for client in range(3)]
    assert ends == [b"end", b"BlockingIOError", b"BlockingIOError"]


def test_second_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When descriptors are lacking again, long after, the log says so again."""
    now = 1000.0
    for name in ("acceptor", "places", "lane"):
        monkeypatch.setattr(f"fcgi_app.{name}.monotonic", lambda: now)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(UNIX) as listener:
        listener.bind("")
        listener.listen(8)
        acceptor = LaneAcceptor([listener], Settings())
        for _ in range(2):
            now += 10
            with socket.socket(UNIX) as client:
                client.connect(listener.getsockname())
                client.send(whole_request())
                with open("/dev/null", "rb") as lowest:
                    free = lowest.fileno()
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
                for _ in range(3):
                    with pytest.raises(TimeoutError):
                        acceptor.next_request(0)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                now += 0.051
                with pytest.raises(TimeoutError):
                    acceptor.next_request(0)
                request = acceptor.next_request(0)
                assert request is not None
                request.finish()
        acceptor.close()
    assert sum("accept: " in record.getMessage() for record in caplog.records) == 2


# --- Who is slow to take its answer -----------------------------------------------------


def _slowly(acceptor_of: type[Acceptor], size: int, small: bool) -> bytes:
    """What a web server receives that reads a little of each answer at a time."""
    got = bytearray()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(UNIX) as client:
        listener.bind("")
        listener.listen(8)
        acceptor = acceptor_of([listener], Settings())
        client.settimeout(20)
        client.connect(listener.getsockname())
        for number in (1, 2, 3):
            client.send(whole_request(number, keep=True))
            request = acceptor.next_request(5)
            assert request is not None
            if small:
                _shrink()
            page = b"Content-Type: text/plain\r\n\r\n" + bytes([number]) * size
            reader = threading.Thread(target=_read, args=(client, got, number))
            reader.start()
            request.stdout.write(page[:20])
            request.stdout.write(page[20:])
            request.finish()
            reader.join()
        acceptor.close()
    return bytes(got)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 30_000, 65_000, 500_000])
@pytest.mark.parametrize("small", [False, True], ids=["usual-buffer", "small-buffer"])
def test_slow_reader(size: int, small: bool) -> None:
    """An answer that is sent in parts is whole, and the next one comes behind it."""
    native = _slowly(LaneAcceptor, size, small)
    same = native == _slowly(Acceptor, size, small)
    assert same  # without showing all of it
    records, rest = parse_records(native)
    assert not rest
    for number in (1, 2, 3):
        assert collect(records, number).body.count(number) == size


def _shrink() -> None:
    """Let every connection of this process take as little at a time as it can."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # of listdir itself
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family == UNIX and sock.type == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def _read(client: socket.socket, got: bytearray, number: int) -> None:
    end = build_record(RecordType.END_REQUEST, number, bytes(8))
    while not got.endswith(end):
        got += client.recv(3000)


def test_answers_are_seen() -> None:
    """The comparison compares something: requests, bytes and lines are there."""
    trace: list[Step] = [
        ("connect", 0, b""),
        ("send", 0, whole_request(1, keep=True) + whole_request(2, keep=True)),
        ("serve", 0, b""),
        ("send", 0, b"GET /\r\n\r\n"),
    ]
    seen = check(trace)
    assert len(seen.requests) == 2
    assert seen.wires[0][0].count(b"Content-Type") == 2
    assert len(seen.log) == 1


@pytest.mark.parametrize("spare", [0, 1, 3, 4, 16])
def test_params_that_fill_the_buffer(tmp_path: Path, spare: int) -> None:
    """Nothing is cut off the longest params that still come whole in one read."""
    value = b"v" * (65536 - 5 * 8 - 6 - spare)
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as web,
    ):
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        acceptor = LaneAcceptor([listener], Settings())
        web.connect(str(tmp_path / "s"))
        web.sendall(
            begin_request()
            + build_record(RecordType.PARAMS, 1, build_params([(b"A", value)]))
            + build_record(RecordType.PARAMS, 1, b"")
            + build_record(RecordType.STDIN, 1, b"")
        )
        request = acceptor.next_request(5)
        assert request is not None
        assert request.params_list is not None  # it was C that took it
        assert request.params_map == {b"A": value, b"FCGI_ROLE": b"RESPONDER"}
        assert request.raw_params == [(b"A", value)]
        request.drop()
        acceptor.close()
