"""Input that has come and has not been read: order, disk, and what goes wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.body import InputBuffer
from fcgi_app.codec.constants import RecordType
from fcgi_app.codec.records import build_record

from .webserver import App, begin_request, params, stdin, whole_request

STEPS = st.lists(
    st.one_of(st.binary(min_size=1, max_size=40), st.integers(0, 60)),
    max_size=30,
)


def open_files() -> set[str]:
    """The targets of all descriptors that are temporary files."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the descriptor of listdir itself
            continue
        if "(deleted)" in target or tempfile.gettempdir() in target:
            found.add(f"{entry} {target}")
    return found


class TestInputBuffer:
    @given(STEPS, st.integers(0, 50))
    def test_is_a_queue(self, steps: list[bytes | int], spool: int) -> None:
        """Whatever is appended and taken in between, bytes keep their order."""
        buffer = InputBuffer()
        taken, received = b"", b""
        for step in steps:
            if isinstance(step, bytes):
                buffer.append(step, spool)
                received += step
            else:
                data = buffer.take(step)
                assert len(data) <= step
                assert bool(data) == bool(step and len(received) > len(taken))
                taken += data
            assert (buffer.size, buffer.received) == (
                len(received) - len(taken),
                len(received),
            )
        while data := buffer.take(7):
            taken += data
        assert taken == received
        buffer.clear()

    def test_disk(self) -> None:
        """Beyond ``spool`` bytes a file takes it all, until it has been read."""
        before = open_files()
        buffer = InputBuffer()
        buffer.append(b"a" * 100, 100)
        assert open_files() == before
        buffer.append(b"b", 100)
        assert len(open_files() - before) == 1
        assert buffer.take(1000) == b"a" * 100
        assert buffer.take(1000) == b"b"
        assert open_files() == before
        buffer.append(b"c", 100)
        assert open_files() == before
        assert buffer.take(1000) == b"c"

    def test_clear(self) -> None:
        """Clearing forgets what was not read, and closes the file."""
        before = open_files()
        buffer = InputBuffer()
        for _ in range(3):
            buffer.append(b"x" * 100, 100)
        buffer.clear()
        assert (buffer.take(10), buffer.size, buffer.received) == (b"", 0, 300)
        assert open_files() == before
        buffer.clear()

    @pytest.mark.parametrize("size", [0, 10, 200_000])
    @pytest.mark.parametrize("spool", [0, 100_000, 1 << 20])
    def test_to_file(self, size: int, spool: int) -> None:
        """What can be read moves to a file, positioned at its start."""
        content = os.urandom(size)
        buffer = InputBuffer()
        for start in range(0, size, 50_000):
            buffer.append(content[start : start + 50_000], spool)
        with buffer.to_file() as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
            assert file.read() == content
        assert (buffer.size, buffer.take(1)) == (0, b"")

    def test_the_file_has_no_name(self, tmp_path: Path, monkeypatch: Any) -> None:
        """Nobody else finds the file, and nothing remains of it."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        buffer = InputBuffer()
        buffer.append(b"x" * 10, 0)
        assert list(tmp_path.iterdir()) == []
        assert buffer.take(10) == b"x" * 10


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


class TestFullDisk:
    def test_append(self) -> None:
        """What does not fit is told, is not counted, and spoils nothing before it."""
        buffer = InputBuffer()
        buffer.append(b"a" * 900, 0)
        with full_disk(), pytest.raises(OSError, match="too large") as caught:
            buffer.append(b"b" * 200, 0)
        assert caught.value.errno == errno.EFBIG
        assert (buffer.size, buffer.received) == (900, 900)
        buffer.append(b"c", 0)
        assert buffer.take(2000) == b"a" * 900 + b"c"
        buffer.clear()

    def test_to_file(self) -> None:
        """A file that cannot be filled is closed again."""
        before = open_files()
        buffer = InputBuffer()
        buffer.append(b"a" * 2000, 10_000)
        with full_disk(), pytest.raises(OSError, match="too large"):
            buffer.to_file()
        assert open_files() == before

    def test_no_directory(self, monkeypatch: Any) -> None:
        """Where there can be no temporary file, the error passes."""
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        buffer = InputBuffer()
        with pytest.raises(FileNotFoundError):
            buffer.append(b"x", 0)
        assert buffer.take(1) == b""


PROGRAM = """
    import os, sys
    from fcgi_app import *
    while accept():
        request = current_request()
        sys.stdout.write("Content-Type: text/plain\\n\\n")
        exec(os.environ["QUERY_STRING"])
"""
READ = b"sys.stdout.flush(); print(len(sys.stdin.read()), request.incomplete)"


def reading(*pairs: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"QUERY_STRING", READ), *pairs]


class TestInTheProcess:
    def fill(self, app: App) -> bytes:
        """Two interleaved requests, the body of the second to be kept; the log."""
        with app.connect() as wire:
            wire.send(begin_request(1, keep=True), params(1, reading()))
            wire.send(stdin(1, bytes(70_000), end=False))
            assert wire.record() is not None  # the first one reads now
            wire.send(begin_request(3, keep=True), params(3, reading()))
            with suppress(BrokenPipeError, ConnectionResetError):
                wire.send(stdin(3, bytes(3_000_000)), stdin(1, b"rest"))
            records = wire.records(2)
        return b"".join(r.content for r in records if r.type == RecordType.STDERR)

    def test_full_disk(self, tmp_path: Path) -> None:
        """A body that cannot be kept costs its request a 503; the next is served."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        with App(tmp_path, PROGRAM, preexec_fn=limit) as app:
            log = self.fill(app)
            assert app.ask(("QUERY_STRING", "print('next')")).body == b"next\n"
            assert app.stop() == 0
        assert b"its body could not be kept: [Errno 27] File too large\n" in log

    def test_no_temporary_directory(self, tmp_path: Path) -> None:
        """The same where no temporary file can be made at all."""
        source = "import tempfile; tempfile.tempdir = '/nowhere'\n"
        with App(tmp_path, source + textwrap.dedent(PROGRAM)) as app:
            log = self.fill(app)
            assert app.ask(("QUERY_STRING", "print('next')")).body == b"next\n"
            assert app.stop() == 0
        assert (
            b"could not be kept: [Errno 2] No such file or directory: '/nowhere" in log
        )

    def test_whole_body_without_room(self, tmp_path: Path) -> None:
        """The same of a body that has come with its request; its connection stays."""
        source = "import tempfile; tempfile.tempdir = '/nowhere'\n"
        env = {"FCGI_APP_SPOOL": "3"}
        with App(tmp_path, source + textwrap.dedent(PROGRAM), env=env) as app:
            with app.connect() as wire:
                pairs = [(b"QUERY_STRING", READ)]
                wire.send(whole_request(1, pairs, b"body", keep=True))
                assert wire.answer().head.startswith(b"Status: 503 ")
                wire.send(whole_request(1, pairs, b"bod", keep=True))
                assert wire.answer().body == b"3 False\n"
            assert app.stop() == 0

    @pytest.mark.parametrize(
        ("length", "body", "incomplete", "word"),
        [
            ("10", b"short", True, "body of 5 bytes is shorter than CONTENT_LENGTH 10"),
            ("4", b"longer", False, "body of 6 bytes is longer than CONTENT_LENGTH 4"),
            ("5", b"", True, "body of 0 bytes is shorter than CONTENT_LENGTH 5"),
            ("5", b"exact", False, ""),
            ("", b"any", False, ""),
            ("-1", b"any", False, ""),
            ("many", b"any", False, ""),
            ("00003", b"any", False, ""),
            ("9" * 30, b"any", False, ""),
        ],
    )
    def test_length(
        self, tmp_path: Path, length: str, body: bytes, incomplete: bool, word: str
    ) -> None:
        """The end of STDIN decides; a body that is not as announced is in the log."""
        with App(tmp_path, PROGRAM) as app:
            answer = app.ask(
                ("QUERY_STRING", READ.decode()), ("CONTENT_LENGTH", length), body=body
            )
            assert answer.body == f"{len(body)} {incomplete}\n".encode()
            assert app.stop() == 0
        assert (word in app.log) if word else (app.log == "")

    def test_announced_length_is_not_waited_for(self, tmp_path: Path) -> None:
        """An absurd CONTENT_LENGTH costs no memory and no time."""
        with App(tmp_path, PROGRAM) as app:
            text = READ.decode()
            answer = app.ask(
                ("QUERY_STRING", text), ("CONTENT_LENGTH", "999999999999"), body=b"x"
            )
            assert answer.body == b"1 True\n"

    def test_big_upload_with_a_small_reader(self, tmp_path: Path) -> None:
        """20 MB that the application reads in small bites arrive unharmed."""
        text = """
import hashlib
digest = hashlib.md5(usedforsecurity=False)
while data := sys.stdin.buffer.read(1000):
    digest.update(data)
print(digest.hexdigest())
"""
        body = bytes(range(251)) * 80_000
        with App(tmp_path, PROGRAM) as app, app.connect() as wire:
            wire.send(
                whole_request(pairs=[(b"QUERY_STRING", text.encode())], body=body)
            )
            digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
            assert wire.answer().body == f"{digest}\n".encode()


FAULTS = """
import resource, sys
from fcgi_app import accept
while accept():
    sys.stdout.buffer.write(b"Content-Type: text/plain\\n\\n" + sys.stdin.buffer.read())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt, end="")
"""


def test_the_next_body_finds_the_memory_of_the_last(tmp_path: Path) -> None:
    """No request with a long body has to get its pages from the system anew."""
    body = bytes(1 << 20)
    per_request = []
    for number in range(4):  # where the heap begins is chance
        directory = tmp_path / str(number)
        directory.mkdir()
        with App(directory, FAULTS) as app:
            counts = [int(app.ask(body=body).body[len(body) :]) for _ in range(15)]
        per_request.append((counts[-1] - counts[4]) / 10)
    assert max(per_request) < 20


RECEIVED_ELSEWHERE = """
import hashlib, os, signal
from fcgi_app import accept, current_request

def look(*_):
    now = request
    if now is not None:
        now.aborted

def say(*_):
    if request is not None:
        request.stdout.write(bytes(9_000))

request = None
who = os.environ["WHO"]
signal.signal(signal.SIGALRM, {"look": look, "say": say}[who])
while accept():
    request = current_request()
    request.stdout.write(b"Content-Type: text/plain\\n\\n")
    size = int(request.params["SIZE"])
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    digest = hashlib.sha256()
    while piece := request.stdin.read(size):
        digest.update(piece)
    signal.setitimer(signal.ITIMER_REAL, 0)
    reader, request = request, None
    reader.stdout.write(digest.hexdigest().encode())
"""


@pytest.mark.parametrize("size", [30_000, 300_000, -1])
@pytest.mark.parametrize("who", ["look", "say"])
def test_received_elsewhere(tmp_path: Path, who: str, size: int) -> None:
    """A signal handler that receives in the middle of it loses nothing."""
    body = os.urandom(3_000_000)
    sent = b"".join(
        build_record(RecordType.STDIN, 1, body[at : at + 8192])
        for at in range(0, len(body), 8192)
    )
    pairs = [(b"SIZE", b"%d" % size)]
    env = {"WHO": who, "FCGI_APP_SPOOL": "100000"}
    with App(tmp_path, RECEIVED_ELSEWHERE, env=env) as app:
        for _ in range(5):
            with app.connect() as wire:
                sender = Thread(
                    target=wire.sock.sendall,
                    args=(begin_request() + params(pairs=pairs) + sent + stdin(),),
                )
                sender.start()
                answer = wire.answer().body.lstrip(b"\0")
                sender.join()
            assert answer == hashlib.sha256(body).hexdigest().encode()


OUTPUT_FIRST = """
import hashlib, sys
from fcgi_app import accept
while accept():
    print("Content-Type: text/plain\\n")
    sys.stdout.buffer.write(bytes(5_000_000))
    print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), end="")
"""


def test_web_server_that_reads_nothing_before_its_body_is_out(tmp_path: Path) -> None:
    """A long answer makes room for the body that must come first (mod_fcgid)."""
    body = os.urandom(900_000)
    env = {"FCGI_APP_WRITE_TIMEOUT": "5"}
    with App(tmp_path, OUTPUT_FIRST, env=env) as app, app.connect() as wire:
        wire.sock.settimeout(20)
        wire.send(begin_request(), params(), stdin(data=body))
        answer = wire.answer().body
    assert answer.lstrip(b"\0") == hashlib.sha256(body).hexdigest().encode()


IN_THE_MIDDLE = """
import os, sys
from fcgi_app import accept, current_request
from fcgi_app.transport import Transport

def feed(transport, data, then=Transport._feed):
    if request is not None and not told:  # a signal handler would come here
        told.append(None)
        exec(os.environ["DO"])
    then(transport, data)

request = None
told = []
Transport._feed = feed
while accept():
    request = current_request()
    request.stdin.peek()
    print("Content-Type: text/plain\\n", flush=True)
    del told[:]
    try:
        body = request.stdin.read()
    except ZeroDivisionError:
        body = request.stdin.read()
    print(len(body), *told[1:], end="")
    request = None
"""


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("told.append(request.aborted)", b"100000 False"),
        (
            """try: request.stdin.raw.read(1)
except RuntimeError as error: told.append(str(error)[-12:])""",
            b"100000 middle of it",
        ),
        ("told.append(request.wait_aborted(0.01))", b"100000 False"),
        ("request.stdout.write(bytes(5_000_000))", bytes(5_000_000) + b"100000"),
        ("1/0", None),
    ],
    ids=["aborted", "read", "wait", "print", "raise"],
)
def test_handler_in_the_middle_of_receiving(
    tmp_path: Path, do: str, said: bytes | None
) -> None:
    """It learns nothing new, waits for nothing, and takes nothing away."""
    env = {"DO": do, "FCGI_APP_WRITE_TIMEOUT": "5", "FCGI_APP_BODY_TIMEOUT": "3"}
    with App(tmp_path, IN_THE_MIDDLE, env=env) as app, app.connect() as wire:
        wire.send(begin_request(), params(), stdin(data=bytes(66_000), end=False))
        assert wire.record() is not None
        wire.send(stdin(data=bytes(34_000)))
        answer = wire.answer().stdout
    if said is not None:
        assert answer == said
