"""Requests side by side: ``Server``, its threads, many ids on one connection."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgi_app import CallSequenceError, ConfigError, Request, Server
from fcgi_app.codec.constants import HEADER_LEN, ProtocolStatus, RecordType
from fcgi_app.codec.params import build_params, parse_params
from fcgi_app.codec.records import build_record, parse_header

from .threads import (
    HEAD,
    PATIENCE,
    eventually,
    param,
    plain,
    records_of,
    resident,
    serve,
)
from .webserver import (
    App,
    Wire,
    begin_request,
    collect,
    params,
    stdin,
    whole_request,
)

SIZES = """
    import fcgi_app

    def handler(request):
        head = b"Content-Type: text/plain\\r\\n\\r\\n"
        request.stdout.write(head + bytes(int(request.params["SIZE"])))

    fcgi_app.run(handler, threads=8)
"""


IDS = range(1, 5)


def echo(request: Request) -> None:
    request.stdout.write(HEAD + request.stdin.read())


class TestParallel:
    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["connections", "ids"])
    def test_twenty_at_once(self, tmp_path: Path, way: str) -> None:
        """20 requests that take T each take about T, however they come."""
        everybody = threading.Barrier(20)

        def handler(request: Request) -> None:
            everybody.wait(PATIENCE)  # or nobody would be answered
            time.sleep(0.3)
            plain(request)

        with serve(tmp_path, handler, threads=20) as served:
            started = time.monotonic()
            if way == "connections":
                wires = [served.connect() for _ in range(20)]
                for wire in wires:
                    wire.send(whole_request())
                answers = [wire.answer() for wire in wires]
            else:
                wires = [served.connect()]
                ids = range(1, 21)
                wires[0].send(*[whole_request(n, keep=True) for n in ids])
                records = wires[0].records(20)
                answers = [collect(records, n) for n in ids]
            took = time.monotonic() - started
            for wire in wires:
                wire.close()
        assert [answer.body for answer in answers] == [b"ok"] * 20
        assert took < 2.0

    def test_one_thread(self, tmp_path: Path) -> None:
        """One thread serves one request after the other."""
        running: list[int] = []
        most: list[int] = []

        def handler(request: Request) -> None:
            running.append(1)
            most.append(len(running))
            echo(request)
            running.pop()

        with serve(tmp_path, handler, threads=1) as served:
            wires = [served.connect() for _ in range(10)]
            for number, wire in enumerate(wires):
                wire.send(whole_request(body=b"%d" % number))
            for number, wire in enumerate(wires):
                assert wire.answer().body == b"%d" % number
                wire.close()
        assert max(most) == 1

    def test_slow_upload_stalls_nobody(self, tmp_path: Path) -> None:
        """A body that comes byte by byte holds one thread; the others serve on."""
        with (
            serve(tmp_path, echo, threads=2, read_ahead=0) as served,
            served.connect() as slow,
        ):
            slow.send(begin_request(), params())
            for byte in b"slowly":
                slow.send(stdin(data=bytes([byte]), end=False))
                assert served.ask(body=b"quick").body == b"quick"
            slow.send(stdin())
            assert slow.answer().body == b"slowly"

    def test_slow_upload_holds_no_thread(self, tmp_path: Path) -> None:
        """With the usual read-ahead it does not even hold the only thread."""
        with serve(tmp_path, echo, threads=1) as served, served.connect() as slow:
            slow.send(begin_request(), params())
            for byte in b"slowly":
                slow.send(stdin(data=bytes([byte]), end=False))
                assert served.ask(body=b"quick").body == b"quick"
            slow.send(stdin())
            assert slow.answer().body == b"slowly"

    def test_slow_download_stalls_nobody(self, tmp_path: Path) -> None:
        """Who takes no output holds his own thread only, and gets all in the end."""

        def handler(request: Request) -> None:
            plain(request, param(request, "SIZE") and "x" * int(param(request, "SIZE")))

        with serve(tmp_path, handler, threads=2) as served, served.connect() as slow:
            slow.send(whole_request(1, [(b"SIZE", b"20000000")]))
            for _ in range(50):
                assert served.ask([(b"SIZE", b"3")]).body == b"xxx"
            assert len(slow.answer().body) == 20_000_000

    def test_no_output_taken_for_too_long(self, tmp_path: Path) -> None:
        """Beyond ``write_timeout`` the request counts as aborted; its thread is free."""
        outcome: list[str] = []

        def handler(request: Request) -> None:
            if param(request, "MUCH"):
                try:
                    for _ in range(1000):
                        request.stdout.write(HEAD + bytes(1 << 20))
                except Exception as error:
                    outcome.append(type(error).__name__)
                    raise
            plain(request)

        with (
            serve(tmp_path, handler, threads=1, write_timeout=0.3) as served,
            served.connect() as slow,
        ):
            slow.send(whole_request(1, [(b"MUCH", b"1")]))
            assert served.ask().body == b"ok"  # when the only thread is free
        assert outcome == ["RequestAborted"]

    def test_reader_of_a_stuck_connection(self, tmp_path: Path) -> None:
        """A thread that waits for input is told when its connection is given up."""
        done: list[object] = []

        def handler(request: Request) -> None:
            try:
                if request.request_id == 1:
                    request.stdout.write(HEAD + bytes(8 << 20))
                request.stdin.read()
            finally:
                done.append(request.aborted)

        with (
            serve(
                tmp_path, handler, threads=2, write_timeout=0.3, read_ahead=0
            ) as served,
            served.connect() as wire,
        ):
            wire.send(begin_request(2, keep=True), params(2))
            wire.send(begin_request(1, keep=True), params(1))
            eventually(lambda: len(done) == 2, "both handlers end")
        assert done == [True, True]

    def test_late_body(self, tmp_path: Path) -> None:
        """A body that does not come within ``body_timeout`` ends the wait for it."""
        with (
            serve(tmp_path, echo, threads=1, read_ahead=0, body_timeout=0.2) as served,
            served.connect() as late,
        ):
            late.send(begin_request(keep=True), params())
            records = late.records()
            assert records[-1].type == RecordType.END_REQUEST
            assert served.ask(body=b"next").body == b"next"


class TestServer:
    def test_threads_below_one(self, tmp_path: Path) -> None:
        """No thread is a wrong number, which the message names."""
        with pytest.raises(ConfigError, match="threads: 0: must be a number from 1"):
            Server(f"unix:{tmp_path}/s", plain, threads=0)

    def test_descriptors(self, tmp_path: Path) -> None:
        """Descriptors 0 to 2 cannot belong to several requests at a time."""
        with pytest.raises(ConfigError, match="not possible with threads"):
            Server(f"unix:{tmp_path}/s", plain, descriptors=True)

    def test_second_start(self, tmp_path: Path) -> None:
        """A server starts once, also after its end."""
        server = Server(f"unix:{tmp_path}/s", plain)
        with server, pytest.raises(CallSequenceError, match="started before"):
            server.start()
        with pytest.raises(CallSequenceError, match="started before"):
            server.start()

    def test_never_started(self, tmp_path: Path) -> None:
        """Closing what never started closes the socket and removes its file."""
        server = Server(f"unix:{tmp_path}/s", plain)
        assert server.address == f"unix:{tmp_path}/s"
        server.close()
        server.close()
        assert server.socket.fileno() == -1
        assert not (tmp_path / "s").exists()

    def test_own_socket(self) -> None:
        """A listening socket may be given; the address names its port."""
        listener = socket.create_server(("127.0.0.1", 0))
        with Server(listener, plain) as server:
            host, port = server.socket.getsockname()
            assert server.address == f"{host}:{port}"
            with socket.create_connection((host, port)) as sock:
                wire = Wire(sock)
                wire.send(whole_request())
                assert wire.answer().body == b"ok"

    def test_two_servers(self, tmp_path: Path) -> None:
        """Two servers in one process do not know of each other."""
        (tmp_path / "b").mkdir()
        with serve(tmp_path, lambda r: plain(r, "a")) as first:
            with serve(tmp_path / "b", lambda r: plain(r, "b")) as second:
                assert (first.ask().body, second.ask().body) == (b"a", b"b")
            assert first.ask().body == b"a"

    def test_idle_connections_are_left(self, tmp_path: Path) -> None:
        """Kept connections without a request do not hold up the end."""
        with serve(tmp_path, plain) as served:
            wires = [served.connect() for _ in range(20)]
            for wire in wires:
                wire.send(whole_request(keep=True))
                assert wire.answer().body == b"ok"
            started = time.monotonic()
            served.server.close()
            assert time.monotonic() - started < 5
            for wire in wires:
                assert wire.is_closed()
                wire.close()


def get_values(*names: bytes) -> bytes:
    query = build_params([(name, b"") for name in names])
    return build_record(RecordType.GET_VALUES, 0, query)


class TestMultiplexing:
    def test_get_values(self, tmp_path: Path) -> None:
        """FCGI_MPXS_CONNS is 1, and the numbers are those of the settings."""
        with (
            serve(tmp_path, plain, max_connections=70, max_queued=30) as served,
            served.connect() as wire,
        ):
            names = (b"FCGI_MAX_CONNS", b"FCGI_MAX_REQS", b"FCGI_MPXS_CONNS")
            wire.send(get_values(*names))
            record = wire.record()
        assert record is not None
        values = dict(parse_params(record.content))
        assert [values[name] for name in names] == [b"70", b"30", b"1"]

    def test_answers_overtake(self, tmp_path: Path) -> None:
        """An id that came later is answered first if it is done first."""
        gate = threading.Event()

        def handler(request: Request) -> None:
            if request.request_id == 1:
                assert gate.wait(PATIENCE)
            plain(request)

        with serve(tmp_path, handler) as served, served.connect() as wire:
            wire.send(whole_request(1, keep=True), whole_request(2, keep=True))
            assert collect(wire.records(), 2).body == b"ok"
            gate.set()
            assert collect(wire.records(), 1).body == b"ok"

    def test_same_id_again(self, tmp_path: Path) -> None:
        """Requests of one id, sent at once, are answered one after the other."""
        running: list[bytes] = []

        def handler(request: Request) -> None:
            running.append(request.stdin.read())
            assert len(running) == 1
            request.stdout.write(HEAD + running[0])
            request.stdout.flush()
            time.sleep(0.001)
            running.pop()

        with serve(tmp_path, handler) as served, served.connect() as wire:
            bodies = [b"%d" % n for n in range(20)]
            wire.send(*[whole_request(body=body, keep=True) for body in bodies])
            assert [wire.answer().body for _ in bodies] == bodies

    def test_second_id_while_the_first_is_served(self, tmp_path: Path) -> None:
        """The connection is read while its first request, the very first, is served."""
        busy, gate = threading.Event(), threading.Event()

        def handler(request: Request) -> None:
            if request.request_id == 1:
                busy.set()
                assert gate.wait(PATIENCE)
            plain(request)

        with serve(tmp_path, handler) as served, served.connect() as wire:
            # All of it is there when the connection is accepted.
            with served.server._acceptor.lock:
                wire.send(whole_request(1, keep=True))
            assert busy.wait(PATIENCE)
            wire.send(whole_request(2, keep=True))
            assert collect(wire.records(), 2).body == b"ok"
            gate.set()
            assert collect(wire.records(), 1).body == b"ok"

    @pytest.mark.slow
    def test_fair_output(self, tmp_path: Path) -> None:
        """Short answers come early between the records of a 64 MiB one."""
        size = 64 << 20
        with App(tmp_path, SIZES) as app, app.connect() as wire:
            wire.send(whole_request(1, [(b"SIZE", b"%d" % size)], keep=True))
            read = records_of(wire)
            total = len(next(read).content)
            between = []
            for number in range(2, 22):
                wire.send(whole_request(number, [(b"SIZE", b"100")], keep=True))
                before = total
                for record in read:
                    if record.request_id == number:
                        if record.type == RecordType.END_REQUEST:
                            break
                    else:
                        assert record.type == RecordType.STDOUT, "the long one is over"
                        total += len(record.content)
                between.append(total - before)
            for record in read:
                total += len(record.content)
                if record.type == RecordType.END_REQUEST:
                    break
            assert total == len(HEAD) + size + 8
        # What the socket held already comes in front of each of them.
        assert sorted(between)[10] < 1 << 20
        assert sum(between) < size // 2

    @pytest.mark.parametrize("size", [65520, 65525, 65536, 100_000])
    def test_records_stay_whole(self, tmp_path: Path, size: int) -> None:
        """Nothing gets between the header and the content of a long one's record."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            block = request.params["ID"].encode() * size
            for _ in range(60):
                request.stdout.write(block)

        with serve(tmp_path, handler) as served, served.connect() as wire:
            wire.send(*[whole_request(n, [(b"ID", b"%d" % n)], keep=True) for n in IDS])
            records = wire.records(len(IDS))
        for number in IDS:
            assert collect(records, number).body == b"%d" % number * (60 * size)

    def test_end_stays_behind_its_output(self, tmp_path: Path) -> None:
        """An end-request that is owed never overtakes the output of its request."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD + bytes(3 << 20))

        # The answer ends, in one piece, before the body has come; then that comes
        # while the connection takes no output.
        with (
            serve(tmp_path, handler, read_ahead=0, output_buffer=4 << 20) as served,
            served.connect() as wire,
        ):
            wire.send(begin_request(keep=True), params())
            wire.sock.recv(1, socket.MSG_PEEK)
            wire.send(stdin(data=b"body"))
            records = wire.records()
            answer = collect(records)
            assert len(answer.body) == 3 << 20
            wire.send(whole_request(2, keep=True))
            assert collect(wire.records(), 2).body == bytes(3 << 20)

    @pytest.mark.slow
    def test_memory_with_no_reader(self, tmp_path: Path) -> None:
        """What nobody reads is not piled up: 16 times 32 MiB wait in the threads."""
        block = bytes(32 << 20)

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            request.stdout.flush()  # the head goes through a copy
            request.stdout.write(block)

        started = threading.Semaphore(0)

        def counted(request: Request) -> None:
            started.release()
            handler(request)

        with serve(tmp_path, counted, threads=16) as served, served.connect() as wire:
            before = resident()
            wire.send(*[whole_request(n, keep=True) for n in range(1, 17)])
            for _ in range(16):
                assert started.acquire(timeout=PATIENCE)
            wire.sock.recv(1, socket.MSG_PEEK)
            acceptor = served.server._acceptor
            (transport,) = acceptor._connections
            eventually(lambda: transport.unsent > 65536, "they have to wait")
            assert transport.unsent < 16 * 2 * 65536 + 100_000
            assert resident() - before < 40 << 20

    @pytest.mark.slow
    @pytest.mark.parametrize("alone", [True, False], ids=["alone", "with-another"])
    def test_memory_with_unread_body(self, tmp_path: Path, alone: bool) -> None:
        """A body of 200 MiB that nobody reads waits outside, or in a file."""
        gate = threading.Event()

        def handler(request: Request) -> None:
            assert gate.wait(PATIENCE)
            plain(request)

        with serve(tmp_path, handler, threads=2) as served, served.connect() as wire:
            if not alone:
                wire.send(whole_request(2, keep=True))
            wire.send(begin_request(1, keep=True), params(1))
            before = resident()
            chunk = stdin(1, bytes(1 << 20), end=False)
            sent = 0
            wire.sock.settimeout(0.5)
            try:
                for _ in range(200):
                    wire.sock.sendall(chunk)
                    sent += 1
            except TimeoutError:
                pass
            wire.sock.settimeout(PATIENCE)
            assert resident() - before < 30 << 20
            if alone:
                assert sent < 10, "it was not read any more"
            else:
                assert sent == 200, "it was read on, for the other's sake"
            gate.set()
            if not alone:
                assert collect(wire.records(), 2).body == b"ok"

    def test_beyond_max_queued(self, tmp_path: Path) -> None:
        """A request for which there is no room gets a 503 and OVERLOADED at once."""
        gate, busy = threading.Event(), threading.Event()

        def handler(request: Request) -> None:
            busy.set()
            assert gate.wait(PATIENCE)
            plain(request)

        with (
            serve(tmp_path, handler, threads=1, max_queued=3) as served,
            served.connect() as wire,
        ):
            wire.send(whole_request(1, keep=True))
            assert busy.wait(PATIENCE)
            wire.send(*[whole_request(n, keep=True) for n in range(2, 6)])
            refused = collect(wire.records(), 5)
            assert refused.head.startswith(b"Status: 503 ")
            assert refused.protocol_status == ProtocolStatus.OVERLOADED
            gate.set()
            records = wire.records(4)
        assert [collect(records, n).body for n in (1, 2, 3, 4)] == [b"ok"] * 4

    @pytest.mark.slow
    def test_every_id_opened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """65,535 ids that are never finished: OVERLOADED beyond the limit; no harm."""
        caplog.set_level(logging.ERROR, "fcgi_app")  # pytest would keep each line
        with serve(tmp_path, plain, max_requests=64) as served:
            with served.connect() as wire:
                before = resident()
                refused = 0
                read = records_of(wire)
                for start in range(1, 65536, 255):
                    ids = range(start, start + 255)
                    wire.send(*[begin_request(n, keep=True) for n in ids])
                    left = sum(n > 64 for n in ids)
                    while left:
                        record = next(read)
                        left -= record.type == RecordType.END_REQUEST
                        if record.type == RecordType.END_REQUEST:
                            assert record.content[4] == ProtocolStatus.OVERLOADED
                            refused += 1
                assert refused == 65535 - 64
                assert resident() - before < 20 << 20
                wire.send(params(1), stdin(1))
                assert collect(read, 1).body == b"ok"
            assert served.ask().body == b"ok"


def split_records(stream: bytes) -> list[bytes]:
    """A stream of records, cut at every record boundary."""
    found = []
    while stream:
        header = parse_header(stream)
        size = HEADER_LEN + header.content_length + header.padding_length
        found.append(stream[:size])
        stream = stream[size:]
    return found


def small_request(request_id: int, body: bytes, pieces: int) -> list[bytes]:
    """A request in many records."""
    cuts = [len(body) * n // pieces for n in range(pieces + 1)]
    parts = [body[a:b] for a, b in itertools.pairwise(cuts) if b > a]
    return split_records(
        begin_request(request_id, keep=True)
        + params(request_id, cut_at=[3, 9])
        + b"".join(stdin(request_id, part, end=False) for part in parts)
        + stdin(request_id)
    )


REQUESTS = st.lists(
    st.tuples(st.binary(max_size=300), st.integers(1, 4)), min_size=2, max_size=6
)


class TestInterleaved:
    @pytest.mark.slow
    @settings(max_examples=60)
    @given(
        REQUESTS, st.randoms(use_true_random=False), st.sampled_from([0, 100, 65536])
    )
    def test_any_order(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        requests: list[tuple[bytes, int]],
        random: object,
        read_ahead: int,
    ) -> None:
        """Ids may change at every record boundary: each gets its own body back."""
        queues = [
            small_request(number, body, pieces)
            for number, (body, pieces) in enumerate(requests, 1)
        ]
        stream = b""
        while any(queues):
            open_ones = [queue for queue in queues if queue]
            stream += random.choice(open_ones).pop(0)  # type: ignore[attr-defined]
        directory = tmp_path_factory.mktemp("ids")
        with (
            serve(directory, echo, read_ahead=read_ahead) as served,
            served.connect() as wire,
        ):
            wire.send(stream)
            records = wire.records(len(requests))
        for number, (body, _) in enumerate(requests, 1):
            assert collect(records, number).body == body
