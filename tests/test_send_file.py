"""Files in responses: what may be asked, what goes out, and what becomes of a bad one."""

from __future__ import annotations

import errno
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fcgi_app import Server, filepart
from fcgi_app.acceptor import Acceptor
from fcgi_app.accesslog import Sent
from fcgi_app.cgi import CgiChannel
from fcgi_app.codec.constants import HEADER_LEN, RecordType, Role
from fcgi_app.codec.records import STREAM_CHUNK, build_header
from fcgi_app.errors import RequestAborted
from fcgi_app.filepart import FilePart, FileSource
from fcgi_app.outlet import Outlet
from fcgi_app.request import Request
from fcgi_app.settings import Settings
from fcgi_app.streams import _SHORT_FILE

from .threads import PATIENCE, eventually
from .webserver import (
    PACKAGE_PARENT,
    Answer,
    App,
    Record,
    Wire,
    abort_request,
    begin_request,
    collect,
    params,
    parse_records,
    stdin,
    whole_request,
)

HEAD = b"Content-Type: text/plain\r\n\r\n"
LONG = 3 * _SHORT_FILE + 1001
"""More than is read, and no whole number of records."""
BIG = 8 << 20
"""More than a socket's buffer takes."""
HEADER = partial(build_header, RecordType.STDOUT, 1)
UNIX, TCP = socket.AF_UNIX, socket.AF_INET
Handler = Callable[[Request], object]


def content(size: int, start: int = 0) -> bytes:
    """Bytes of a file, no two records of which are the same."""
    pattern = bytes(range(251))
    return (pattern * ((start + size) // 251 + 1))[start : start + size]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of LONG bytes."""
    made = tmp_path / "file"
    made.write_bytes(content(LONG))
    return made


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of BIG bytes."""
    made = tmp_path / "big"
    made.write_bytes(content(BIG))
    return made


@pytest.fixture(autouse=True)
def no_file_left() -> Iterator[None]:
    """No descriptor of a file stays open: the suite looks at sockets and pipes only."""

    def regular() -> int:
        links = map(Path, (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")))
        return sum(link.is_file() for link in links)

    before = regular()
    yield
    eventually(lambda: regular() <= before, "files are closed")


# What may be asked, of a request that writes to a file


class Written:
    """A request whose response goes to a file of its own."""

    def __init__(self, directory: Path, **params: str) -> None:
        self._out = (directory / "response").open("w+b")
        channel = CgiChannel()
        channel.stdout = self._out.fileno()
        channel.expect(0)
        encoded = {n.encode(): v.encode() for n, v in params.items()}
        self.request = Request(channel, Settings(), Role.RESPONDER, 0, encoded)

    def response(self) -> bytes:
        """All that has been written, when the request has ended."""
        self.request.finish()
        return Path(self._out.name).read_bytes()

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.request.finish()
        self._out.close()


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    """A request that writes to a file."""
    with Written(tmp_path) as made:
        yield made


class TestArguments:
    @pytest.mark.parametrize(
        ("offset", "count", "sent"),
        [
            (0, None, (0, LONG)),
            (0, LONG, (0, LONG)),
            (0, LONG + 1, (0, LONG)),
            (5, None, (5, LONG)),
            (7, 10, (7, 17)),
            (LONG - 1, None, (LONG - 1, LONG)),
            (LONG, None, (0, 0)),
            (LONG + 1, 5, (0, 0)),
            (1 << 70, 1 << 70, (0, 0)),
            (0, 0, (0, 0)),
            (3, 2 * _SHORT_FILE, (3, 2 * _SHORT_FILE + 3)),
        ],
    )
    def test_pieces(
        self,
        written: Written,
        path: Path,
        offset: int,
        count: int | None,
        sent: tuple[int, int],
    ) -> None:
        """What there is of ``count`` bytes from ``offset`` on goes out, and is told."""
        written.request.stdout.write(HEAD)
        with path.open("rb") as file:
            assert written.request.send_file(file, offset, count) == sent[1] - sent[0]
        assert written.response() == HEAD + content(LONG)[slice(*sent)]

    @pytest.mark.parametrize("size", [1000, LONG])
    def test_position(self, written: Written, path: Path, size: int) -> None:
        """The file stays open, its position is neither used nor changed."""
        with path.open("rb") as file:
            file.seek(100)
            written.request.stdout.write(HEAD)
            assert written.request.send_file(file, count=size) == size
            assert file.tell() == 100
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 100
        assert written.response() == HEAD + content(size)

    def test_descriptor(self, written: Written, path: Path) -> None:
        """A bare descriptor will do; it stays open, too."""
        descriptor = os.open(path, os.O_RDONLY)
        written.request.stdout.write(HEAD)
        written.request.send_file(descriptor)
        os.close(descriptor)
        assert written.response() == HEAD + content(LONG)

    @pytest.mark.parametrize(
        "make",
        [
            tempfile.TemporaryFile,
            tempfile.NamedTemporaryFile,
            tempfile.SpooledTemporaryFile,
        ],
    )
    def test_temporary_files(self, written: Written, make: Any) -> None:
        """What ``tempfile`` gives are files like others."""
        written.request.stdout.write(HEAD)
        with make() as file:
            file.write(b"abc")
            file.flush()
            assert written.request.send_file(file) == 3
        assert written.response() == HEAD + b"abc"

    def test_compressed(self, written: Written, tmp_path: Path) -> None:
        """It is the descriptor that counts: of a compressed file as it stands there."""
        packed = tmp_path / "file.gz"
        packed.write_bytes(gzip.compress(b"text"))
        written.request.stdout.write(HEAD)
        with gzip.open(packed) as file:
            written.request.send_file(file)
        assert written.response() == HEAD + packed.read_bytes()

    @pytest.mark.parametrize(
        ("offset", "count", "kind", "message"),
        [
            (-1, None, ValueError, "send_file: offset: -1 is negative"),
            (0, -5, ValueError, "send_file: count: -5 is negative"),
            ("0", None, TypeError, "send_file: offset: '0' is not an integer"),
            (0, 1.5, TypeError, "send_file: count: 1.5 is not an integer"),
        ],
    )
    def test_bad_numbers(
        self,
        written: Written,
        path: Path,
        offset: Any,
        count: Any,
        kind: type[Exception],
        message: str,
    ) -> None:
        """A number that is none, or negative, is an error that names it."""
        with path.open("rb") as file, pytest.raises(kind) as caught:
            written.request.send_file(file, offset, count)
        assert str(caught.value) == message

    def refuses(self, written: Written, file: Any, kind: type[Exception]) -> str:
        """What it says of a file that it does not take."""
        with pytest.raises(kind) as caught:
            written.request.send_file(file)
        assert str(caught.value).startswith("send_file: file: ") or kind is OSError
        return str(caught.value)

    def test_text_file(self, written: Written, path: Path) -> None:
        """A file that is open as text may hold back and translate: ValueError."""
        with path.open() as file:
            assert "binary mode" in self.refuses(written, file, ValueError)

    def test_closed_file(self, written: Written, path: Path) -> None:
        """A closed file is a ValueError, as for all that files are asked."""
        with path.open("rb") as file:
            pass
        assert "is closed" in self.refuses(written, file, ValueError)

    def test_writing_only(self, written: Written, tmp_path: Path) -> None:
        """So is a file that cannot be read."""
        with (tmp_path / "new").open("wb") as file:
            assert "not open for reading" in self.refuses(written, file, ValueError)

    def test_pipe(self, written: Written) -> None:
        """A pipe has no offsets."""
        reading, writing = os.pipe()
        assert "is a pipe" in self.refuses(written, reading, ValueError)
        os.close(reading)
        os.close(writing)

    def test_other_kinds(self, written: Written, tmp_path: Path) -> None:
        """Sockets, directories and devices are no files to be sent either."""
        with socket.socket() as sock:
            assert "is a socket" in self.refuses(written, sock, ValueError)
        folder = os.open(tmp_path, os.O_RDONLY)
        assert "a directory" in self.refuses(written, folder, ValueError)
        os.close(folder)
        with Path("/dev/zero").open("rb") as device:
            assert "a character device" in self.refuses(written, device, ValueError)

    def test_without_descriptor(self, written: Written) -> None:
        """What has no descriptor is to be written."""
        memory = io.BytesIO(b"x")
        assert "BytesIO" in self.refuses(written, memory, io.UnsupportedOperation)
        assert "'name'" in self.refuses(written, "name", TypeError)

    def test_no_such_descriptor(self, written: Written) -> None:
        """A descriptor that is not open is the system's error, and named."""
        for number in (-1, 99_999):
            told = self.refuses(written, number, OSError)
            assert told.endswith(f": 'descriptor {number}'")

    def test_finished(self, written: Written, path: Path) -> None:
        """The response has ended: ValueError, as for ``write``."""
        written.request.finish()
        with path.open("rb") as file, pytest.raises(ValueError, match="closed file"):
            written.request.send_file(file)


# Over a connection


@contextmanager
def alone(
    directory: Path,
    handler: Handler,
    family: int = UNIX,
    number: int = 1,
    **changes: Any,
) -> Iterator[Callable[[], Wire]]:
    """Serve so many requests in one thread; gives what connects."""
    listener = socket.socket(family)
    listener.bind(str(directory / "socket") if family == UNIX else ("127.0.0.1", 0))
    listener.listen()
    acceptor = Acceptor([listener], Settings().changed(**changes))

    def serve() -> None:
        for _ in range(number):
            request = acceptor.next_request(PATIENCE)
            assert request is not None
            handler(request)
            request.finish()

    def connect() -> Wire:
        sock = socket.socket(family)
        sock.connect(listener.getsockname())
        return Wire(sock)

    with ThreadPoolExecutor(1) as pool:
        done: Future[None] = pool.submit(serve)
        try:
            yield connect
            done.result(PATIENCE)
        finally:
            acceptor.close()
            listener.close()


@contextmanager
def threaded(
    directory: Path, handler: Handler, family: int = UNIX, number: int = 1
) -> Iterator[Callable[[], Wire]]:
    """Serve with threads; gives what connects."""
    address = f"unix:{directory}/socket" if family == UNIX else "127.0.0.1:0"

    with Server(address, handler, threads=4) as server:

        def connect() -> Wire:
            sock = socket.socket(family)
            sock.connect(server.socket.getsockname())
            return Wire(sock)

        yield connect


Serve = Callable[..., AbstractContextManager[Callable[[], Wire]]]
LIVES = pytest.mark.parametrize("serve", [alone, threaded])
FAMILIES = pytest.mark.parametrize("family", [UNIX, TCP], ids=["unix", "tcp"])


def receive(wire: Wire, ends: int = 1, bite: int = 1 << 20) -> list[Record]:
    """Records up to the end-request number ``ends``, in the time that many take."""
    found: list[Record] = []
    received = bytearray(wire.received)
    parsed = 0
    while parsed < ends:
        data = wire.sock.recv(bite)
        assert data, "the connection ended"
        received += data
        records, rest = parse_records(bytes(received))
        received[:] = rest
        found += records
        parsed += sum(record.type == RecordType.END_REQUEST for record in records)
    wire.received = bytes(received)
    return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The results of all calls of sendfile(2) in FastCGI responses."""
    results: list[int] = []

    def sendfile(out: int, file: int, offset: int, count: int) -> int:
        results.append(os.sendfile(out, file, offset, count))
        return results[-1]

    monkeypatch.setattr(filepart, "_SENDFILE", sendfile)
    return results


class TestWire:
    @LIVES
    @FAMILIES
    def test_in_order(
        self, tmp_path: Path, path: Path, kernel: list[int], serve: Serve, family: int
    ) -> None:
        """It stands where it was sent, the kernel sent it, and all are records."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD + b"before")
            with path.open("rb") as file:
                request.send_file(file)
                request.stdout.write(b"between")
                request.send_file(file, 1, _SHORT_FILE + 1)
                request.stdout.write(b"behind")

        with serve(tmp_path, handler, family) as connect, connect() as wire:
            wire.send(whole_request())
            records = receive(wire)
            assert wire.is_closed()
        body = content(LONG)
        again = body[1 : _SHORT_FILE + 2]
        assert collect(records).stdout == (
            HEAD + b"before" + body + b"between" + again + b"behind"
        )
        assert sum(kernel) == LONG + _SHORT_FILE + 1
        assert max(len(record.content) for record in records) == STREAM_CHUNK

    def test_short_file(self, tmp_path: Path, path: Path, kernel: list[int]) -> None:
        """A short one is read, and leaves with what else there is in one record."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            with path.open("rb") as file:
                request.send_file(file, 5, 1000)

        with alone(tmp_path, handler) as connect, connect() as wire:
            wire.send(whole_request())
            records = receive(wire)
        assert records[0].content == HEAD + content(1000, 5)
        assert not kernel

    @LIVES
    @FAMILIES
    def test_kept_connection(
        self, tmp_path: Path, path: Path, serve: Serve, family: int
    ) -> None:
        """The connection serves more requests afterwards, files and others."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            if request.request_id % 2:
                with path.open("rb") as file:
                    request.send_file(file)

        with serve(tmp_path, handler, family, 4) as connect, connect() as wire:
            for number in (1, 2, 3, 4):
                wire.send(whole_request(number, keep=True))
                body = collect(receive(wire), number).body
                assert body == (content(LONG) if number % 2 else b"")

    @LIVES
    @FAMILIES
    @pytest.mark.slow
    def test_slow_reader(
        self, tmp_path: Path, big: Path, kernel: list[int], serve: Serve, family: int
    ) -> None:
        """Where the web server is slow, sending waits, and nothing is lost."""
        with big.open("rb") as file:

            def handler(request: Request) -> None:
                request.stdout.write(HEAD)
                request.send_file(file)

            with serve(tmp_path, handler, family) as connect, connect() as wire:
                wire.send(whole_request())
                eventually(lambda: len(kernel) > 1, "the file is on its way")
                records = receive(wire, bite=30_000)
        assert collect(records).body == content(BIG)
        assert any(0 < sent < STREAM_CHUNK for sent in kernel)

    def test_head_in_the_file(
        self, tmp_path: Path, path: Path, kernel: list[int]
    ) -> None:
        """A head that the file begins or ends is mended as any other one."""
        path.write_bytes(b"/x\n\n" + content(LONG))

        def handler(request: Request) -> None:
            request.stdout.write(b"Location: ")
            with path.open("rb") as file:
                request.send_file(file)

        with alone(tmp_path, handler) as connect, connect() as wire:
            wire.send(whole_request())
            answer = collect(receive(wire))
        assert answer.head == b"Location: /x\r\nStatus: 302 Found"
        assert answer.body == content(LONG)
        assert sum(kernel) == LONG + 4 - 65536

    def test_passthrough(self, tmp_path: Path, path: Path) -> None:
        """Under passthrough it goes as it is, whatever it begins with."""

        def handler(request: Request) -> None:
            request.passthrough = True
            with path.open("rb") as file:
                request.send_file(file)

        with alone(tmp_path, handler) as connect, connect() as wire:
            wire.send(whole_request())
            assert collect(receive(wire)).stdout == content(LONG)

    def test_no_head(self, tmp_path: Path, path: Path) -> None:
        """A file that is no response at all is answered with 500."""

        def handler(request: Request) -> None:
            with path.open("rb") as file:
                assert request.send_file(file) == LONG

        with alone(tmp_path, handler) as connect, connect() as wire:
            wire.send(whole_request())
            assert collect(receive(wire)).head.startswith(b"Status: 500 ")

    def test_head_request(self, tmp_path: Path, path: Path, kernel: list[int]) -> None:
        """For HEAD nothing of the file is sent; what is told is the same."""
        told = []

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            with path.open("rb") as file:
                told.append(request.send_file(file))
                told.append(request.send_file(file, 1))

        with alone(tmp_path, handler) as connect, connect() as wire:
            wire.send(whole_request(1, [(b"REQUEST_METHOD", b"HEAD")]))
            assert collect(receive(wire)).stdout == HEAD
        assert told == [LONG, LONG - 1]
        assert not kernel

    def test_not_by_the_kernel(
        self, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a file system knows no sendfile(2), the file is read."""

        def cannot(*_: int) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(filepart, "_SENDFILE", cannot)

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            with path.open("rb") as file:
                request.send_file(file)

        with alone(tmp_path, handler) as connect, connect() as wire:
            wire.send(whole_request())
            assert collect(receive(wire)).body == content(LONG)

    def test_wanting_sigpipe(self, path: Path) -> None:
        """Whoever does not ignore SIGPIPE gets it by no web server that has gone."""
        before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            assert not FileSource(-1, "", 0, 1).by_kernel
        finally:
            signal.signal(signal.SIGPIPE, before)
        assert FileSource(-1, "", 0, 1).by_kernel


class TestAborted:
    @LIVES
    @pytest.mark.parametrize("strict", [False, True], ids=["loop", "run"])
    @pytest.mark.slow
    def test_in_the_middle(
        self, tmp_path: Path, big: Path, serve: Serve, strict: bool
    ) -> None:
        """An abort ends it after some more records; the connection stays usable."""
        result: list[object] = []
        begun = threading.Event()
        seen: list[Request] = []

        def handler(request: Request) -> None:
            seen.append(request)
            request.strict = strict
            request.stdout.write(HEAD)
            request.stdout.flush()
            if request.request_id == 1:
                with big.open("rb") as file:
                    begun.set()
                    try:
                        result.append(request.send_file(file))
                    except RequestAborted:
                        result.append("aborted")

        with serve(tmp_path, handler, number=2) as connect, connect() as wire:
            wire.send(begin_request(1, keep=True), params(), stdin())
            begun.wait(PATIENCE)
            wire.sock.recv(100, socket.MSG_PEEK)
            wire.send(abort_request(1))
            # It has to wait until somebody reads, and looks around meanwhile.
            eventually(lambda: seen[0].unwanted, "the abort is noticed")
            records = receive(wire)
            assert len(collect(records).body) < BIG
            wire.send(whole_request(2, keep=True))
            assert collect(receive(wire), 2).stdout == HEAD
        assert result == ["aborted" if strict else BIG]

    @LIVES
    @FAMILIES
    @pytest.mark.slow
    def test_connection_lost(
        self, tmp_path: Path, big: Path, serve: Serve, family: int
    ) -> None:
        """A web server that goes away in the middle is an abort, as for ``write``."""
        result: list[object] = []

        def handler(request: Request) -> None:
            request.strict = True
            request.stdout.write(HEAD)
            with big.open("rb") as file, pytest.raises(RequestAborted):
                request.send_file(file)
            result.append(request.aborted)

        with serve(tmp_path, handler, family) as connect:
            with connect() as wire:
                wire.send(whole_request())
                wire.sock.recv(100)
            eventually(lambda: result, "the handler has ended")
        assert result == [True]

    @pytest.mark.slow
    def test_web_server_takes_nothing(self, tmp_path: Path, big: Path) -> None:
        """``write_timeout`` ends the wait, and the request is as aborted."""

        def handler(request: Request) -> None:
            request.strict = True
            request.stdout.write(HEAD)
            with big.open("rb") as file, pytest.raises(RequestAborted) as caught:
                request.send_file(file)
            assert isinstance(caught.value.__cause__, TimeoutError)
            over.set()

        over = threading.Event()
        with (
            alone(tmp_path, handler, write_timeout=0.05) as connect,
            connect() as wire,
        ):
            wire.send(whole_request())
            assert over.wait(PATIENCE)


# Sends a signal to itself whenever a write has to wait for the web server.
SIGNALLING = """
    import fcgi_app.transport, os, select, signal, sys
    from fcgi_app import requests
    real = fcgi_app.transport.poll_socket
    def poll_socket(fd, events, timeout=0.0):
        if events & select.POLLOUT:
            os.write(2, b"has to wait\\n")
            signal.raise_signal(signal.SIGALRM)
        return real(fd, events, timeout)
    fcgi_app.transport.poll_socket = poll_socket
    for request in requests():
        print("Content-Type: text/plain\\r\\n\\r\\n", end="")
        with open("big", "rb") as file:
            exec(request.params["QUERY_STRING"])
"""


class TestSignalHandlers:
    def ask(self, directory: Path, text: str) -> Answer:
        """Ask, and read from when writing has to wait."""
        with App(directory, SIGNALLING) as app, app.connect() as wire:
            wire.send(whole_request(1, [(b"QUERY_STRING", text.encode())]))
            assert app.logged("has to wait")
            return collect(receive(wire, bite=50_000))

    @pytest.mark.slow
    @pytest.mark.usefixtures("big")
    def test_printing(self, tmp_path: Path) -> None:
        """A handler that prints meanwhile, or sends files, cuts and mixes nothing."""
        text = """
left = [1] * 5
def tick(*_):
    if left:
        left.pop()
        print("tick", file=sys.stderr)
        request.send_file(file, 0, 200_001)
signal.signal(signal.SIGALRM, tick)
request.send_file(file)
"""
        answer = self.ask(tmp_path, text)
        ticks = answer.stderr.count(b"tick\n")
        assert 1 <= ticks <= 5
        body = answer.body
        # What was printed comes behind the mebibyte that is on its way.
        assert len(body) == BIG + ticks * 200_001
        rest = content(BIG)
        short = content(200_001)
        share = 16 * STREAM_CHUNK
        while body:
            if rest and body.startswith(rest[:share]):
                body, rest = body[len(rest[:share]) :], rest[share:]
            else:
                assert body.startswith(short)
                body = body[len(short) :]
        assert not rest

    @pytest.mark.slow
    @pytest.mark.usefixtures("big")
    def test_raising(self, tmp_path: Path) -> None:
        """A handler that raises ends the wait; what was begun still comes whole."""
        text = """
def alarm(*_):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    raise KeyError("enough")
signal.signal(signal.SIGALRM, alarm)
try: request.send_file(file)
except KeyError: print("raised", file=sys.stderr)
file.close()
request.stdout.write(b"end")
"""
        answer = self.ask(tmp_path, text)
        assert answer.stderr == b"raised\n"
        body = answer.body.removesuffix(b"end")
        assert 0 < len(body) < len(answer.body)
        assert len(body) % (16 * STREAM_CHUNK) == 0
        assert body == content(len(body))


# A way out, and parts of files in it


@pytest.fixture
def pair() -> Iterator[tuple[Outlet, socket.socket]]:
    """A way out that takes files, and the other end of it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with ours, theirs:
        outlet = Outlet(ours)
        outlet.admit_files()
        yield outlet, theirs


def source_of(path: Path, offset: int = 0, count: int | None = None) -> FileSource:
    """What ``send_file`` makes of a file."""
    size = path.stat().st_size - offset if count is None else count
    return FileSource(os.open(path, os.O_RDONLY), str(path), offset, size)


def drain(outlet: Outlet, peer: socket.socket) -> bytes:
    """Everything that waits."""
    received = bytearray()
    peer.setblocking(False)
    while True:
        outlet.push()
        try:
            received += peer.recv(1 << 20)
        except BlockingIOError:
            if not outlet.queue:
                return bytes(received)


def mixed(*buffers: bytes | FilePart) -> list[Any]:
    """What goes to an outlet that takes files."""
    return list(buffers)


class TestParts:
    @pytest.mark.parametrize("size", [1, STREAM_CHUNK, STREAM_CHUNK + 1, 300_000])
    def test_length(self, path: Path, size: int) -> None:
        """A part is as long as its records, headers and all."""
        source = source_of(path, count=size)
        part = source.take(size, HEADER)
        assert len(part) == size + -(-size // STREAM_CHUNK) * HEADER_LEN
        source.close()

    def test_length_is_what_goes(
        self, pair: tuple[Outlet, socket.socket], big: Path
    ) -> None:
        """It becomes less by what has been sent."""
        outlet, peer = pair
        source = source_of(big)
        part = source.take(BIG, HEADER)
        whole = len(part)
        outlet.queue.append(part)
        outlet.push()
        assert 0 < len(part) == outlet.pending < whole
        waiting = len(peer.recv(1 << 25))
        while waiting < whole - len(part):
            waiting += len(peer.recv(1 << 25))
        assert waiting == whole - len(part)
        source.close()

    def test_released_while_waiting(
        self, pair: tuple[Outlet, socket.socket], big: Path
    ) -> None:
        """Whoever leaves early leaves the descriptor to what still waits."""
        outlet, peer = pair
        source = source_of(big)

        def wait() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            outlet.send(mixed(source.take(BIG, HEADER), b"behind"), wait)
        outlet.release(source)
        assert source.fd >= 0
        received = drain(outlet, peer)
        assert source.fd == -1
        records, rest = parse_records(received)
        assert b"".join(record.content for record in records) == content(BIG)
        assert rest == b"behind"

    def test_lost_while_waiting(
        self, pair: tuple[Outlet, socket.socket], big: Path
    ) -> None:
        """The descriptor is closed as well when the web server goes away."""
        outlet, peer = pair
        source = source_of(big)
        outlet.queue.append(source.take(BIG, HEADER))
        outlet.release(source)
        outlet.push()
        assert source.fd >= 0
        peer.close()
        outlet.push()
        assert outlet.lost
        assert source.fd == -1

    def test_send_within_a_send(
        self, pair: tuple[Outlet, socket.socket], big: Path, path: Path
    ) -> None:
        """What a signal handler sends meanwhile, files too, comes whole and behind."""
        outlet, peer = pair
        received = bytearray()
        inner = source_of(path)
        outer = source_of(big)

        def wait() -> None:
            if not received:
                buffers = mixed(b"", inner.take(LONG, HEADER), HEADER(2), b"ab")
                outlet.send(buffers, wait)
                outlet.release(inner)
            received.extend(peer.recv(1 << 20))

        outlet.send(mixed(outer.take(BIG, HEADER)), wait)
        outlet.release(outer)
        assert inner.fd == outer.fd == -1
        records, rest = parse_records(bytes(received) + drain(outlet, peer))
        assert not rest
        body = b"".join(record.content for record in records)
        assert body == content(BIG) + content(LONG) + b"ab"


def shrinking(path: Path, at: int, size: int) -> Callable[[int], bytes]:
    """Makes headers, and the file shorter behind the header number ``at``."""
    made = 0

    def header(length: int) -> bytes:
        nonlocal made
        made += 1
        if made == at:
            os.truncate(path, size)
        return HEADER(length)

    return header


class TestShrunk:
    @pytest.mark.parametrize("by_kernel", [True, False])
    @pytest.mark.parametrize("size", [0, 10, STREAM_CHUNK, STREAM_CHUNK + 10])
    def test_behind_a_header(
        self,
        pair: tuple[Outlet, socket.socket],
        path: Path,
        size: int,
        by_kernel: bool,
    ) -> None:
        """The record that was promised comes, with NUL for what is not there."""
        outlet, peer = pair
        source = source_of(path)
        source.by_kernel = by_kernel
        at = size // STREAM_CHUNK + 1
        outlet.queue.append(source.take(LONG, shrinking(path, at, size)))
        outlet.queue.append(HEADER(4) + b"next")
        records, rest = parse_records(drain(outlet, peer))
        source.close()
        assert not rest
        assert records.pop().content == b"next"
        sent = b"".join(record.content for record in records)
        assert sent == content(size) + bytes(at * STREAM_CHUNK - size)
        assert source.sent == len(sent)
        assert source.error is not None
        assert source.error.filename == str(path)
        assert f"{size} of {LONG} bytes" in str(source.error)

    def test_before_a_header(
        self, pair: tuple[Outlet, socket.socket], path: Path
    ) -> None:
        """Nothing is promised that is known not to be there."""
        outlet, peer = pair
        source = source_of(path, 5)
        outlet.queue.append(source.take(LONG, HEADER))
        os.truncate(path, STREAM_CHUNK + 15)
        records, rest = parse_records(drain(outlet, peer))
        source.close()
        assert [len(record.content) for record in records] == [STREAM_CHUNK, 10]
        assert not rest
        assert f"{STREAM_CHUNK + 10} of {LONG - 5} bytes" in str(source.error)

    def test_unreadable(
        self,
        pair: tuple[Outlet, socket.socket],
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A disk that fails in the middle is the same as a file that ends there."""
        outlet, peer = pair
        source = source_of(path)

        def broken(*_: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(filepart, "_SENDFILE", broken)
        monkeypatch.setattr(os, "pread", broken)
        outlet.queue.append(source.take(LONG, HEADER))
        records, rest = parse_records(drain(outlet, peer))
        source.close()
        assert [record.content for record in records] == [bytes(STREAM_CHUNK)]
        assert not rest
        assert source.error is not None
        assert source.error.errno == errno.EIO

    def test_nobody_waits(
        self,
        pair: tuple[Outlet, socket.socket],
        path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The log tells it where whoever sent it has gone on."""
        outlet, peer = pair
        source = source_of(path)
        outlet.queue += [source.take(STREAM_CHUNK, HEADER) for _ in range(3)]
        outlet.release(source)
        os.truncate(path, 10)
        records, _ = parse_records(drain(outlet, peer))
        assert [record.content for record in records] == [content(10)]
        assert source.fd == -1
        assert f"10 of {LONG} bytes" in caplog.text

    @LIVES
    @pytest.mark.slow
    def test_handler_is_told(self, tmp_path: Path, big: Path, serve: Serve) -> None:
        """``send_file`` raises it; no other request of the connection is harmed."""
        told: list[OSError] = []
        waiting = threading.Event()

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            if request.request_id == 1:
                waiting.set()
                with big.open("rb") as file:
                    try:
                        request.send_file(file)
                    except OSError as error:
                        told.append(error)

        with serve(tmp_path, handler, number=2) as connect, connect() as wire:
            wire.send(whole_request(1, keep=True))
            waiting.wait(PATIENCE)
            wire.sock.recv(1, socket.MSG_PEEK)
            os.truncate(big, BIG // 2 + 5)
            body = collect(receive(wire)).body
            kept = body.rstrip(b"\0")
            assert content(BIG).startswith(kept)
            assert BIG // 2 <= len(body) < BIG // 2 + STREAM_CHUNK
            wire.send(whole_request(2, keep=True))
            assert collect(receive(wire), 2).stdout == HEAD
        assert told[0].filename == str(big)
        assert f"{BIG // 2 + 5} of {BIG} bytes" in str(told[0])

    def test_read_only_to_its_end(self, written: Written, path: Path) -> None:
        """So it is where the file is read: the rest of it is an error."""
        source = source_of(path, count=100)
        os.truncate(path, 10)
        assert source.read(100) == content(10)
        with pytest.raises(OSError, match="10 of 100 bytes"):
            source.read(100)
        source.close()


class TestThreads:
    @pytest.mark.slow
    def test_side_by_side(self, tmp_path: Path, big: Path) -> None:
        """Files of several requests on one connection come whole, and interleaved."""

        together = threading.Barrier(3)

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            together.wait(PATIENCE)
            with big.open("rb") as file:
                request.send_file(file, request.request_id, 2 << 20)

        with threaded(tmp_path, handler) as connect, connect() as wire:
            wire.send(*(whole_request(number, keep=True) for number in (1, 2, 3)))
            records = receive(wire, 3)
        for number in (1, 2, 3):
            assert collect(records, number).body == content(2 << 20, number)
        turns = [record.request_id for record in records]
        assert len({*turns[: len(turns) // 2]}) == 3

    @pytest.mark.slow
    def test_nobody_else_waits(self, tmp_path: Path, big: Path) -> None:
        """Another connection is served while a web server takes nothing of a file."""

        def handler(request: Request) -> None:
            request.stdout.write(HEAD)
            if request.params.get("FILE"):
                with big.open("rb") as file:
                    request.send_file(file)

        with threaded(tmp_path, handler) as connect, connect() as stuck:
            stuck.send(whole_request(1, [(b"FILE", b"1")]))
            stuck.sock.recv(1, socket.MSG_PEEK)
            for _ in range(5):
                with connect() as wire:
                    wire.send(whole_request())
                    assert wire.answer().stdout == HEAD
            assert collect(receive(stuck)).body == content(BIG)


# Other lives


class TestCgi:
    SOURCE = """
        import os, sys
        from fcgi_app import accept, current_request
        while accept():
            print("Content-Type: text/plain\\n\\nbefore")
            with open(os.environ["FILE"], "rb") as file:
                print(current_request().send_file(file, 3), file=sys.stderr)
            print("behind")
    """

    def run(self, path: Path, out: int, source: str = SOURCE) -> str:
        """Run a script as CGI; its response goes to the descriptor ``out``."""
        lines = source.replace("\n        ", "\n")
        done = subprocess.run(
            [sys.executable, "-c", lines],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            env={
                "PYTHONPATH": PACKAGE_PARENT,
                "GATEWAY_INTERFACE": "CGI/1.1",
                "REQUEST_METHOD": "GET",
                "FILE": str(path),
            },
            check=False,
            timeout=PATIENCE,
        )
        return done.stderr.decode()

    EXPECTED = (
        b"Content-Type: text/plain\r\n\r\nbefore\n" + content(LONG)[3:] + b"behind\n"
    )

    @pytest.mark.slow
    def test_pipe(self, path: Path) -> None:
        """In CGI it goes to descriptor 1, in order."""
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as pool, open(reading, "rb") as response:
            body = pool.submit(response.read)
            assert self.run(path, writing) == f"{LONG - 3}\n"
            os.close(writing)
            assert body.result() == self.EXPECTED

    @pytest.mark.slow
    def test_appending(self, tmp_path: Path, path: Path) -> None:
        """A descriptor that sendfile(2) does not take is written to."""
        out = tmp_path / "out"
        with out.open("ab") as response:
            assert self.run(path, response.fileno()) == f"{LONG - 3}\n"
        assert out.read_bytes() == self.EXPECTED

    def test_shrunk(
        self, written: Written, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that becomes shorter ends there: there is nothing to be filled."""
        real = os.sendfile

        def sendfile(out: int, file: int, offset: int, count: int) -> int:
            os.truncate(path, 200_000)
            return real(out, file, offset, count)

        monkeypatch.setattr(os, "sendfile", sendfile)
        written.request.stdout.write(HEAD)
        with (
            path.open("rb") as file,
            pytest.raises(OSError, match=f"200000 of {LONG} bytes"),
        ):
            written.request.send_file(file)
        assert written.response() == HEAD + content(200_000)

    def test_reader_gone(self, path: Path) -> None:
        """A web server that has gone is an abort."""
        reading, writing = os.pipe()
        os.close(reading)
        channel = CgiChannel()
        channel.stdout = writing
        channel.expect(0)
        request = Request(channel, Settings(), Role.RESPONDER, 0, {})
        request.strict = True
        request.stdout.write(HEAD)
        with path.open("rb") as file, pytest.raises(RequestAborted):
            request.send_file(file)
        assert request.aborted
        request.finish()
        os.close(writing)


@pytest.mark.slow
def test_descriptors(tmp_path: Path, path: Path) -> None:
    """With descriptors of its own, it stands among what children have written."""
    source = """
        import os
        from fcgi_app import configure, requests
        configure(descriptors=True)
        for request in requests():
            request.stdout.write(b"Content-Type: text/plain\\r\\n\\r\\n")
            os.system("echo before")
            with open("file", "rb") as file:
                request.send_file(file)
            os.system("echo behind")
    """
    with App(tmp_path, source) as app, app.connect() as wire:
        wire.send(whole_request())
        assert collect(receive(wire)).body == b"before\n" + content(LONG) + b"behind\n"


class TestAccessLog:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_bytes(self, tmp_path: Path, path: Path, threads: int) -> None:
        """The bytes of a file count as the body's."""

        def handler(request: Request) -> None:
            request.stdout.write(b"Status: 404 Not Found\r\n" + HEAD + b"ab")
            with path.open("rb") as file:
                request.send_file(file)
                request.send_file(file, 0, 100)

        log = tmp_path / "log"
        with Server(
            f"unix:{tmp_path}/socket",
            handler,
            threads=threads,
            access_log=str(log),
            access_format="%s %B",
        ) as server:
            sock = socket.socket(UNIX)
            sock.connect(server.socket.getsockname())
            with Wire(sock) as wire:
                wire.send(whole_request())
                receive(wire)
            eventually(log.read_bytes, "a line is there")
        assert log.read_text() == f"404 {LONG + 102}\n"

    def test_no_head(self) -> None:
        """A head that a file ends unseen is not looked for any more."""
        sent = Sent()
        sent.add([b"Status: "])
        sent.add_file(1000)
        sent.add([b"404\n\n"])
        assert (sent.status, sent.size) == (None, 1013)


def test_part_is_fixed() -> None:
    """A part needs no copy when its sender goes on."""
    from fcgi_app.outlet import is_fixed

    part: Any = FilePart(FileSource(-1, "", 0, 1), 0, 1, HEADER)
    assert is_fixed(part)
