"""A request: what was asked, its streams, its end; without any connection."""

from __future__ import annotations

import gc
import io
import os
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from fcgi_app import streams
from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import Buffer
from fcgi_app.errors import CallSequenceError, IncompleteData, RequestAborted
from fcgi_app.filepart import FileSource
from fcgi_app.request import Request
from fcgi_app.response import MAX_HEAD_BYTES, build_error
from fcgi_app.settings import Settings

from .servers import wait_until
from .webserver import (
    Answer,
    App,
    abort_request,
    begin_request,
    collect,
    data,
    params,
    parse_records,
    stdin,
    whole_request,
)

HEAD = b"Content-Type: text/plain\r\n\r\n"


class FakeChannel:
    """A web server in memory: gives input piece by piece, notes what is sent."""

    def __init__(self, *pieces: bytes, gone: bool = False) -> None:
        self.pieces = list(pieces)
        self.gone = gone
        self.log: list[tuple[str, bytes]] = []
        self.fills: list[bool] = []
        self.counts: list[int] = []  # of the pieces of each send_stdout

    def fill(self, request: Request, *, wait: bool) -> bool:
        self.fills.append(wait)
        if not wait:
            return False
        if self.pieces:
            request._body.append(self.pieces.pop(0), 1 << 20)
        elif self.gone:
            request._aborted = True
            request._body.cut_off()
        else:
            request._input_ended()
        return True

    def _send(self, name: str, pieces: list[Buffer]) -> None:
        if self.gone:
            raise BrokenPipeError("gone")
        self.log.append((name, b"".join(map(bytes, pieces))))

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        self.counts.append(len(pieces))
        self._send("stdout", pieces)

    def sizes(self) -> list[int]:
        """Of what has been sent on STDOUT, each time."""
        return [len(sent) for name, sent in self.log if name == "stdout"]

    def send_file(
        self, request: Request, pieces: list[Buffer], source: FileSource
    ) -> None:
        self.send_stdout(request, [*pieces, source.read(source.left)])

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        for piece in pieces:
            self._send("stderr", [piece])

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        self.log += [("last stderr", stderr)] * bool(stderr)
        self.log += [("last stdout", stdout)] * bool(stdout)
        self.log.append(("end", b"%d" % request.app_status))

    def refuse(self, request: Request) -> None:
        self.log.append(("refuse", b""))

    def detach(self, request: Request) -> None:
        self.log.append(("detach", b""))

    def hand_over(self, request: Request) -> None:
        self.log.append(("hand over", b""))

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        self.log.append(("wait", str(timeout).encode()))

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        self.log.append(("watch", b""))
        return nullcontext()

    def fileno(self, request: Request, descriptor: int) -> int:
        raise io.UnsupportedOperation("none")


def make(
    *pieces: bytes,
    role: int = Role.RESPONDER,
    gone: bool = False,
    settings: Settings | None = None,
    **pairs: str,
) -> tuple[Request, FakeChannel]:
    channel = FakeChannel(*pieces, gone=gone)
    encoded = {name.encode(): value.encode() for name, value in pairs.items()}
    request = Request(channel, settings or Settings(), role, 1, encoded)
    _made.append(weakref.ref(request))
    return request, channel


_made: list[weakref.ref[Request]] = []


@pytest.fixture(autouse=True)
def all_ended() -> Iterator[None]:
    """No request of a test is left to the garbage collector of another one."""
    yield
    while _made:
        request = _made.pop()()
        if request is not None:
            request.finish()


class TestAsked:
    def test_params_are_text(self) -> None:
        """params decode as os.environ does; any bytes survive the way back."""
        request, _ = make()
        request.params_map[b"PATH"] = b"/caf\xc3\xa9/\xe9\xff"
        assert request.params["PATH"] == "/café/\udce9\udcff"
        assert os.fsencode(request.params["PATH"]) == b"/caf\xc3\xa9/\xe9\xff"
        assert request.params is request.params

    @pytest.mark.parametrize("role", list(Role))
    def test_role(self, role: Role) -> None:
        """FCGI_ROLE is the role that was asked for, whatever the params say."""
        request, _ = make(role=role, FCGI_ROLE="ADMIN")
        assert request.params["FCGI_ROLE"] == role.name
        assert request.role == role

    def test_raw_params(self) -> None:
        """raw_params are the pairs of the wire in their order, repeated ones too."""
        request, _ = make(A="2")
        assert (b"A", b"2") in request.raw_params
        pairs = [(b"A", b"1"), (b"", b"x"), (b"A", b"2")]
        request.params_content = build_params(pairs)
        assert request.raw_params == pairs

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("0", 0),
            ("12", 12),
            (" 12 ", 12),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.0", None),
            ("0x1", None),
            ("1 2", None),
            ("²", None),
            ("9" * 19, int("9" * 19)),
            ("9" * 20, None),
        ],
    )
    def test_numbers(self, text: str, number: int | None) -> None:
        """A length that is no number is none; nothing is raised."""
        request, _ = make(CONTENT_LENGTH=text, FCGI_DATA_LENGTH=text)
        assert request.content_length == number
        assert request.data_length == number
        assert request.data_last_mod is None

    def test_repr(self) -> None:
        """A request is named by its id, its method and where it goes."""
        request, _ = make(REQUEST_METHOD="POST", REQUEST_URI="/x?" + "y" * 500)
        assert repr(request).startswith("<Request 1 POST '/x?yyy")
        assert len(repr(request)) < 250
        assert repr(make()[0]) == "<Request 1 - ''>"


class TestStdin:
    def test_pieces(self) -> None:
        """Reading waits for what is still to come; the end is the end."""
        request, channel = make(b"ab", b"c\nde", b"f")
        assert request.stdin.read(1) == b"a"
        assert request.stdin.readline() == b"bc\n"
        assert request.stdin.read() == b"def"
        assert request.stdin.read() == b""
        assert channel.fills == [True] * 4
        assert not request.incomplete

    @pytest.mark.parametrize("number", range(5))
    def test_all_at_once(self, number: int) -> None:
        """Whatever the number of pieces, ``read`` gives them all, and no more."""
        pieces = [bytes([n]) * (n * 40_000 + 1) for n in range(number)]
        request, _ = make(*pieces)
        content = request.stdin.read()
        assert (type(content), content) == (bytes, b"".join(pieces))
        assert request.stdin.read() == b""

    def test_nothing_waits_that_need_not(self) -> None:
        """What is there is given without waiting for more."""
        request, channel = make(b"later")
        request._body.append(b"now", 100)
        assert request.stdin.read1(100) == b"now"  # type: ignore[attr-defined]
        assert channel.fills == []

    @pytest.mark.parametrize("read", ["read", "readline", "readlines"])
    def test_cut(self, read: str) -> None:
        """A body that breaks off ends; the request says that it is incomplete."""
        request, _ = make(b"part", gone=True)
        expected: Any = [b"part"] if read == "readlines" else b"part"
        assert getattr(request.stdin, read)() == expected
        assert request.incomplete

    @pytest.mark.parametrize("times", [1, 2])
    def test_cut_under_run(self, times: int) -> None:
        """Under run it raises RequestAborted, however often it is read."""
        request, _ = make(b"part", gone=True)
        request.strict = True
        for _ in range(times):
            with pytest.raises(RequestAborted):
                request.stdin.read()

    def test_abort_that_was_seen_elsewhere(self) -> None:
        """Under run the read raises too if a write has met the abort before."""
        request, channel = make()
        request.strict = True
        request._aborted = True
        request._body.cut_off()
        with pytest.raises(RequestAborted):
            request.stdin.read()
        assert channel.fills == []

    def test_abort_behind_the_whole_body(self) -> None:
        """A body that is there whole can be read whole, abort or not."""
        request, _ = make()
        request.strict = True
        request._body.append(b"whole", 100)
        request._input_ended()
        request._aborted = True
        request._body.cut_off()
        assert request.stdin.read() == b"whole"
        assert not request.incomplete

    def test_incomplete_without_an_announced_length(self) -> None:
        """A chunked upload that breaks off is incomplete, though nobody counted it."""
        request, _ = make(b"part", gone=True)
        assert not request.incomplete
        request.stdin.read()
        assert request.incomplete

    def test_authorizer(self) -> None:
        """An authorizer has no body that could fall short of CONTENT_LENGTH."""
        request, _ = make(role=Role.AUTHORIZER, CONTENT_LENGTH="5")
        request._body.ended = True
        assert not request.incomplete

    def test_after_the_end(self) -> None:
        """After finish the stream is closed, the one held and one fetched anew."""
        request, _ = make(b"body")
        held = request.stdin
        request.stdout.write(HEAD)
        request.finish()
        for stream in (held, request.stdin):
            with pytest.raises(ValueError, match="closed file"):
                stream.read()


class TestStdout:
    def test_short(self) -> None:
        """A short response goes out with the end, in one piece."""
        request, channel = make()
        assert request.stdout.write(HEAD) == len(HEAD)
        request.stdout.write(bytearray(b"pa"))
        request.stdout.write(memoryview(b"ge"))
        assert channel.log == []
        request.finish()
        assert channel.log == [("last stdout", HEAD + b"page"), ("end", b"0")]

    def test_memoryview_of_numbers(self) -> None:
        """Any bytes-like object is taken; its size is in bytes."""
        request, _ = make()
        view = memoryview(HEAD.ljust(32)).cast("I")
        assert request.stdout.write(view) == 32

    def test_changed_afterwards(self) -> None:
        """What has been written does not change with the caller's buffer."""
        request, channel = make()
        for size in (10, 40_000, 10):
            content = bytearray(b"a" * size)
            request.stdout.write(HEAD if size == 10 else b"")
            request.stdout.write(content)
            content[:] = b"b" * size
        request.finish()
        assert b"b" not in b"".join(sent for _, sent in channel.log)

    @pytest.mark.parametrize("size", [0, 1, 100, 1 << 30])
    def test_output_buffer(self, size: int) -> None:
        """Output is held back until ``output_buffer`` bytes have gathered."""
        request, channel = make(settings=Settings(output_buffer=size))
        request.stdout.write(HEAD)
        request.stdout.write(b"x" * 200)
        sent = b"".join(data for name, data in channel.log if name == "stdout")
        assert sent == (b"" if size > 1000 else HEAD + b"x" * 200)
        request.stdout.flush()
        request.stdout.flush()
        assert b"".join(data for _, data in channel.log) == HEAD + b"x" * 200

    def test_long_response(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A long one that comes quickly goes out in greater pieces, until it is slow."""
        now = [100.0]
        monkeypatch.setattr(streams, "monotonic", lambda: now[0])
        request, channel = make(settings=Settings(output_buffer=1000))
        request.stdout.write(HEAD)
        request.stdout.flush()
        for _ in range(100):
            now[0] += 0.001
            request.stdout.write(b"x" * 500)
        assert channel.sizes() == [len(HEAD)] + [1000] * 9 + [4000] * 10
        now[0] += 1
        for _ in range(18):
            request.stdout.write(b"x" * 500)
        assert channel.sizes()[20:] == [4000] + [1000] * 6
        request.finish()
        assert sum(channel.sizes()) == len(HEAD) + 118 * 500

    def test_long_parts(self) -> None:
        """Parts that are worth a record of their own are not joined; order is kept."""
        request, channel = make(settings=Settings(output_buffer=100_000))
        request.stdout.write(HEAD)
        request.stdout.flush()
        request.stdout.write(b"a" * 40_000)
        request.stdout.write(b"b" * 40_000)
        request.stdout.write(b"c" * 40_000)
        for _ in range(50):
            request.stdout.write(b"d" * 1000)
        request.stdout.write(b"e" * 60_000)
        assert channel.counts == [1, 3, 2]
        request.finish()
        sent = b"".join(sent for name, sent in channel.log if name == "stdout")
        parts = [b"a" * 40_000, b"b" * 40_000, b"c" * 40_000, b"d" * 50_000]
        assert sent == HEAD + b"".join(parts) + b"e" * 60_000

    @pytest.mark.parametrize("kind", [bytes, bytearray])
    @pytest.mark.parametrize("cut", [0, 1, 20, MAX_HEAD_BYTES, MAX_HEAD_BYTES + 5])
    @pytest.mark.parametrize("over", [-40_000, -1, 0, 1, 40_000])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_much_behind_the_head(
        self, over: int, cut: int, kind: Callable[[bytes], Any], method: str
    ) -> None:
        """However it is cut, the response is that of one write; too long a head ends it."""
        head = b"X: %b\r\n\r\n" % (b"h" * (MAX_HEAD_BYTES + over - 7))
        assert len(head) == MAX_HEAD_BYTES + over
        page = bytes(range(256)) * 1000
        response = head + page
        request, channel = make(REQUEST_METHOD=method)
        request.stdout.write(kind(response[:cut]))
        request.stdout.write(kind(response[cut:]))
        request.stdout.write(kind(page))
        request.finish()
        sent = b"".join(data for name, data in channel.log if name.endswith("stdout"))
        if over > 0:
            refused = build_error(500)
            head, page = refused[: refused.index(b"\r\n\r\n") + 4], b""
            assert method == "HEAD" or sent == refused
        assert sent.startswith(head)
        assert method == "GET" or sent == head
        assert over > 0 or method == "HEAD" or sent == head + page + page

    def test_much_is_not_copied(self) -> None:
        """What is written behind the head goes to the channel as it is."""
        request, channel = make()
        sent: list[Any] = []
        channel.send_stdout = (  # type: ignore[method-assign]
            lambda request, pieces: sent.extend(pieces)
        )
        page = b"p" * 1_000_000
        request.stdout.write(HEAD)
        request.stdout.write(page)
        request.finish()
        of = [piece.obj for piece in sent if isinstance(piece, memoryview)]
        assert sum(len(piece) for piece in sent) == len(HEAD) + len(page)
        assert len(of) == 1
        assert of[0] is page

    @pytest.mark.parametrize("wrong", ["text", None, 5])
    def test_no_bytes(self, wrong: Any) -> None:
        """What is no bytes is a TypeError, and nothing of it goes out."""
        request, channel = make()
        request.stdout.write(HEAD)
        with pytest.raises(TypeError):
            request.stdout.write(wrong)
        request.finish()
        assert channel.log[0] == ("last stdout", HEAD)

    def test_closed(self) -> None:
        """A closed stream raises; what was written before still goes out."""
        request, channel = make()
        request.stdout.write(HEAD)
        request.stdout.close()
        request.stdout.close()
        with pytest.raises(ValueError, match="closed file"):
            request.stdout.write(b"more")
        request.stdout.flush()
        request.finish()
        assert channel.log == [("stdout", HEAD), ("end", b"0")]

    def test_gone(self) -> None:
        """Output for a web server that has gone is dropped; close tells of it."""
        request, channel = make(gone=True)
        request.stdout.write(HEAD)
        request.stdout.flush()
        request.stdout.write(b"x" * 100_000)
        assert isinstance(request.response.error, BrokenPipeError)
        with pytest.raises(BrokenPipeError):
            request.stdout.close()
        request.finish()
        assert channel.log == [("end", b"0")]

    def test_gone_under_run(self) -> None:
        """Under run the write itself raises RequestAborted, each time."""
        request, _ = make(gone=True)
        request.strict = True
        request.stdout.write(HEAD)
        for _ in range(2):
            with pytest.raises(RequestAborted) as caught:
                request.stdout.write(b"x" * 200_000)
            assert isinstance(caught.value.__cause__, BrokenPipeError)

    def test_no_descriptor(self) -> None:
        """A request's streams have no descriptor, and are no files in other ways."""
        request, _ = make()
        for stream in (request.stdin, request.stdout, request.stderr):
            with pytest.raises(io.UnsupportedOperation):
                stream.fileno()
            assert not stream.isatty()
            assert not stream.seekable()
        assert request.stdin.readable()
        assert request.stdout.writable()
        assert not request.stdout.readable()


class TestStderr:
    def test_lines(self) -> None:
        """Each line goes out at once and by itself; the rest at the end."""
        request, channel = make()
        request.stderr.write(b"one\ntwo\nth")
        request.stderr.write(b"ree\n")
        request.stderr.write(b"four")
        assert channel.log == [
            ("stderr", b"one\n"),
            ("stderr", b"two\n"),
            ("stderr", b"three\n"),
        ]
        request.stdout.write(HEAD)
        request.finish()
        assert channel.log[3:] == [
            ("last stderr", b"four"),
            ("last stdout", HEAD),
            ("end", b"0"),
        ]

    def test_long_line(self) -> None:
        """A line without end goes out in pieces, none of it is held for ever."""
        request, channel = make()
        for _ in range(30):
            request.stderr.write(b"e" * 1000)
        sent = b"".join(sent for _, sent in channel.log)
        assert 20_000 < len(sent) <= 30_000

    @pytest.mark.parametrize("moment", ["append", "join", "rfind", "insert"])
    def test_signal_handler(self, moment: str) -> None:
        """A handler that prints in the middle of a write loses and doubles nothing."""
        request, channel = make()

        def interrupt(frame: object, event: str, called: Any) -> None:
            if event == "c_return" and called.__name__ == moment:
                sys.setprofile(None)
                request.stderr.write(b"handler\n")

        request.stderr.write(b"beg")
        sys.setprofile(interrupt)
        try:
            request.stderr.write(b"in\nend")
        finally:
            sys.setprofile(None)
        request.stderr.write(b"ing\n")
        sent = b"".join(sent for _, sent in channel.log)
        assert sent.count(b"handler\n") == 1
        assert sent.replace(b"handler\n", b"") == b"begin\nending\n"

    def test_unused(self) -> None:
        """A stream that was only looked at leaves nothing on the wire."""
        request, channel = make()
        assert not request.log.used
        request.stdout.write(HEAD)
        request.finish()
        assert [name for name, _ in channel.log] == ["last stdout", "end"]


class TestEnd:
    def test_once(self) -> None:
        """A request ends once; what is written later goes nowhere."""
        request, channel = make()
        request.stdout.write(HEAD)
        request.app_status = 7
        held = request.stdout
        request.finish()
        request.finish()
        request.fail()
        assert channel.log == [("last stdout", HEAD), ("end", b"7")]
        for stream in (held, request.stdout, request.stderr):
            with pytest.raises(ValueError, match="closed file"):
                stream.write(b"late\n")
        assert request.finished

    def test_nothing_written(self) -> None:
        """A response without a head becomes a 500."""
        request, channel = make()
        request.finish()
        assert channel.log == [("last stdout", build_error(500)), ("end", b"0")]

    @pytest.mark.parametrize(
        ("written", "flush", "page"),
        [
            (b"", False, True),
            (HEAD + b"half a page", False, True),
            (b"Content-Ty", True, True),
            (HEAD + b"half a page", True, False),
        ],
    )
    def test_fail(self, written: bytes, flush: bool, page: bool) -> None:
        """A failure is answered by 500 alone, unless a head has gone out."""
        request, channel = make()
        request.stdout.write(written)
        if flush:
            request.stdout.flush()
        request.fail()
        request.stdout.write(b"more")
        request.finish()
        sent = b"".join(data for name, data in channel.log if "stdout" in name)
        assert sent == (build_error(500) if page else written + b"more")
        assert channel.log[-1] == ("end", b"1")

    def test_fail_with_another_status(self) -> None:
        """The status of the page and of the application may be chosen."""
        request, channel = make()
        request.fail(503, 9)
        request.finish()
        assert channel.log == [("stdout", build_error(503)), ("end", b"9")]

    def test_resources_come_last(self) -> None:
        """The pool is released when the web server has its answer."""
        request, channel = make()
        request.callback(lambda: channel.log.append(("released", b"")))
        request.stdout.write(HEAD)
        request.finish()
        assert channel.log[-2:] == [("end", b"0"), ("released", b"")]

    def test_detach(self) -> None:
        """A detached request sends what it has, is handed over, and sends no end."""
        request, channel = make()
        with pytest.raises(CallSequenceError, match="not been detached"):
            request.attach()
        request.stdout.write(HEAD)
        request.detach()
        request.finish()
        assert channel.log == [("stdout", HEAD), ("detach", b""), ("hand over", b"")]

    def test_forked_child(self) -> None:
        """In a forked child finish does nothing at all."""
        request, channel = make()
        request.stdout.write(HEAD)
        request._pid += 1
        request.finish()
        request._pid -= 1
        assert channel.log == []
        assert not request.finished

    @pytest.mark.parametrize("held", [False, True], ids=["dropped", "streams-held"])
    def test_leaves_no_garbage(self, held: bool) -> None:
        """Nothing of an ended request is left for the garbage collector."""
        while gc.collect():
            pass
        gc.disable()
        try:
            request, _ = make(b"body", COOKIE="x")
            streams = request.stdin, request.stdout, request.stderr
            request.stdin.read()
            request.stdout.write(HEAD)
            request.callback(int)
            request.make_subpool().callback(int)
            request.finish()
            if not held:
                del streams
            gone = weakref.ref(request)
            del request
            assert held or gone() is None
            streams = ()  # type: ignore[assignment]
            assert gone() is None
            gc.set_debug(gc.DEBUG_SAVEALL)  # other tests may leave garbage just now
            gc.collect()
            kinds = [type(thing) for thing in gc.garbage]
            assert not [k for k in kinds if k.__module__.startswith("fcgi_app")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    def test_filter_data(self) -> None:
        """A filter reads STDIN, then DATA; each misstep is told and loses nothing."""
        request, _ = make()
        with pytest.raises(CallSequenceError, match="role is not FILTER"):
            request.start_filter_data()
        request, _ = make(b"in", role=Role.FILTER, FCGI_DATA_LENGTH="9")
        with pytest.raises(CallSequenceError, match="not been read to its end"):
            request.start_filter_data()
        assert request.stdin.read() == b"in"
        request._filter_input().append(b"data", 100)
        request._filter_input().ended = True
        request.start_filter_data()
        assert request.stdin.read(4) == b"data"
        for _ in range(2):
            with pytest.raises(IncompleteData, match=r"4 bytes is shorter .* 9$"):
                request.stdin.read()
        assert request.incomplete
        with pytest.raises(CallSequenceError, match="started already"):
            request.start_filter_data()


PROGRAM = """
    import os, sys
    from fcgi_app import *
    while accept():
        request = current_request()
        print("Content-Type: text/plain\\r\\n\\r\\n", end="")
        exec(os.environ["QUERY_STRING"])
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App(tmp_path, PROGRAM) as running:
        yield running


def code(text: str) -> list[tuple[bytes, bytes]]:
    return [(b"QUERY_STRING", text.encode())]


class TestAbortOnTheWire:
    def start(self, text: str) -> bytes:
        """A request of which the body goes on, so that it is aborted in its middle."""
        return (
            begin_request(keep=True)
            + params(pairs=code("sys.stdout.flush(); " + text))
            + stdin(data=bytes(70_000), end=False)
        )

    def test_output_is_dropped(self, app: App) -> None:
        """After an abort-request no output follows, the log does, and close tells."""
        text = """sys.stdin.read(); print("late" * 99999); print("log", file=sys.stderr)
try: sys.stdout.close()
except OSError as error: print(error, file=sys.stderr)"""
        with app.connect() as wire:
            wire.send(self.start(text))
            assert wire.record() == (RecordType.STDOUT, 1, HEAD)
            wire.send(abort_request())
            records = wire.records()
            kinds = {record.type for record in records if record.content}
            assert kinds == {RecordType.STDERR, RecordType.END_REQUEST}
            log = b"".join(r.content for r in records if r.type == RecordType.STDERR)
            assert b"log\n" in log
            assert b"the web server aborted the request\n" in log
            wire.send(whole_request(pairs=code("print('next')"), keep=True))
            assert wire.answer().body == b"next\n"

    @pytest.mark.parametrize(
        "text",
        [
            "request.stdin.read(70_001)",
            "request.stdin.read(); request.stdin.read()",
            "while not request.aborted: pass\n    request.stdout.write(bytes(199_999))",
            "while not request.aborted: pass\n    request.stdin.read()",
        ],
        ids=["read", "read-twice", "write", "read-behind-it"],
    )
    def test_run_tells_the_handler(self, tmp_path: Path, text: str) -> None:
        """Under run the next read or write raises RequestAborted."""
        source = f"""
from fcgi_app import run, RequestAborted
def handler(request):
    request.stdout.write(b"Content-Type: text/plain\\r\\n\\r\\n")
    request.stdout.flush()
    if not request.content_length:
        return
    {text}
    print("never here", file=sys.__stderr__, flush=True)
run(handler)
"""
        with App(tmp_path, source) as app, app.connect() as wire:
            pairs = [(b"CONTENT_LENGTH", b"80000")]
            wire.send(begin_request(keep=True), params(pairs=pairs))
            wire.send(stdin(data=bytes(70_000), end=False))
            assert wire.record() == (RecordType.STDOUT, 1, HEAD)
            wire.send(abort_request())
            assert wire.records() == [
                (RecordType.STDOUT, 1, b""),
                (RecordType.END_REQUEST, 1, bytes(8)),
            ]
            wire.send(whole_request(keep=True))
            assert wire.answer().stdout == HEAD
            assert app.stop() == 0
            assert app.log == ""

    @pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
    @pytest.mark.parametrize("look", ["request.aborted", "sys.stdin.read()", "1"])
    def test_half_closed(self, tmp_path: Path, family: int, look: str) -> None:
        """A peer that only shuts its side down gets the answers that it is owed."""
        text = f"{look}; print('page')"
        with App(tmp_path, PROGRAM, family=family) as app, app.connect() as wire:
            wire.send(whole_request(pairs=code(text), body=b"body"))
            wire.sock.shutdown(socket.SHUT_WR)
            assert wire.answer().body == b"page\n"
            assert wire.is_closed()

    def test_half_closed_in_the_queue(self, app: App) -> None:
        """So does one whose requests wait for their turn meanwhile."""
        with app.connect() as busy, app.connect() as wire:
            busy.send(self.start("sys.stdin.read()"))
            assert busy.record() == (RecordType.STDOUT, 1, HEAD)
            asked = code("print('page', request.aborted)")
            wire.send(whole_request(1, asked, keep=True), whole_request(3, asked))
            wire.sock.shutdown(socket.SHUT_WR)
            busy.send(stdin())
            busy.records()
            assert wire.answer(1).body == b"page True\n"
            assert wire.answer(3).body == b"page True\n"
            assert wire.is_closed()

    def test_aborted_in_the_queue(self, app: App) -> None:
        """A request that is aborted before its turn ends at once, and never runs."""
        with app.connect() as wire:
            wire.send(self.start("sys.stdin.read()"))
            assert wire.record() == (RecordType.STDOUT, 1, HEAD)
            text = code("print('ran', file=sys.__stderr__)")
            wire.send(whole_request(3, text, keep=True), abort_request(3), stdin())
            ended = [r.request_id for r in wire.records(2) if r.type == 3]
            assert ended == [3, 1]
        assert app.stop() == 0
        assert app.log == ""


# Sends a signal to itself whenever a write has to wait for the web server.
SIGNALLING = """
import fcgi_app.transport, os, select, signal, sys
from fcgi_app import *
real = fcgi_app.transport.poll_socket
def poll_socket(fd, events, timeout=0.0):
    if events & select.POLLOUT:
        os.write(2, b"has to wait\\n")
        signal.raise_signal(signal.SIGALRM)
    return real(fd, events, timeout)
fcgi_app.transport.poll_socket = poll_socket
while accept():
    print("Content-Type: text/plain\\r\\n\\r\\n", end="")
    exec(os.environ["QUERY_STRING"])
"""


class TestSignalHandlers:
    @pytest.fixture
    def signalling(self, tmp_path: Path) -> Iterator[App]:
        with App(tmp_path, SIGNALLING) as running:
            yield running

    def ask(self, app: App, text: str) -> Answer:
        """Ask, and read in small bites only, from when writing has to wait."""
        received = bytearray()
        with app.connect() as wire:
            wire.send(whole_request(pairs=code(text)))
            wait_until(lambda: "has to wait" in app.log, "a write that has to wait")
            while more := wire.sock.recv(50_000):
                received += more
        records, rest = parse_records(bytes(received))
        assert rest == b""
        return collect(records)

    def test_printing(self, signalling: App) -> None:
        """A handler that prints in the middle of a write cuts and mixes nothing."""
        text = """
def tick(*_):
    print("tick", file=sys.stderr)
    print("tock")
signal.signal(signal.SIGALRM, tick)
sys.stdout.flush()
for _ in range(20): sys.stdout.buffer.write(b"x" * 500_000)
"""
        answer = self.ask(signalling, text)
        assert answer.body.count(b"x") == 10_000_000
        assert set(answer.stderr.splitlines()) == {b"tick"}
        assert answer.body.count(b"tock\n") == answer.stderr.count(b"tick\n")

    def test_raising(self, signalling: App) -> None:
        """A handler that raises may end a write's wait; no record is ever cut."""
        text = """
def alarm(*_):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    raise KeyError("enough")
signal.signal(signal.SIGALRM, alarm)
sys.stdout.flush()
try: sys.stdout.buffer.write(b"x" * 9_000_000)
except KeyError: print("raised", file=sys.stderr)
sys.stdout.buffer.write(b"end")
"""
        answer = self.ask(signalling, text)
        assert answer.stderr == b"raised\n"
        assert answer.body == b"x" * 9_000_000 + b"end"


def test_threads(tmp_path: Path) -> None:
    """Threads that log while the page is written lose nothing, nor does the page."""
    source = """
import sys, threading
from fcgi_app import accept, current_request
sys.setswitchinterval(1e-6)
while accept():
    request = current_request()
    out, err = request.stdout, request.stderr
    out.write(b"Content-Type: text/plain\\r\\n\\r\\n")
    out.flush()
    def log(name):
        for number in range(1000):
            err.write(b"%d %d\\n" % (name, number))
    threads = [threading.Thread(target=log, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        out.write(b"x" * 1000)
        out.flush()
    for thread in threads:
        thread.join()
"""
    with App(tmp_path, source) as app, app.connect() as wire:
        wire.send(whole_request())
        received = bytearray()
        while more := wire.sock.recv(100_000):
            received += more
        records, rest = parse_records(bytes(received))
        assert rest == b""
        answer = collect(records)
        assert answer.body == b"x" * 2_000_000
        assert len(set(answer.stderr.splitlines())) == 3000


class TestInTheProcess:
    def test_interleaved_filters(self, app: App) -> None:
        """Two filters whose STDIN and DATA are interleaved each get their own."""
        text = code(
            "print(sys.stdin.read()); start_filter_data(); print(sys.stdin.read())"
        )
        with app.connect() as wire:
            for rid in (1, 3):
                wire.send(begin_request(rid, Role.FILTER, keep=True), params(rid, text))
            wire.send(stdin(3, b"in3"), stdin(1, b"in1"), data(1, b"file1", end=False))
            wire.send(data(3, b"file3"), data(1, b"more"))
            answers = wire.records(2)
        bodies = dict.fromkeys((1, 3), b"")
        for record in answers:
            if record.type == RecordType.STDOUT:
                bodies[record.request_id] += record.content
        assert bodies == {1: HEAD + b"in1\nfile1more\n", 3: HEAD + b"in3\nfile3\n"}

    def test_no_garbage_in_the_loop(self, tmp_path: Path) -> None:
        """100 requests leave (nearly) nothing for the garbage collector."""
        source = """
            import gc, os, sys
            from fcgi_app import *
            gc.disable()
            while accept():
                print("Content-Type: text/plain\\r\\n\\r\\n", end="")
                print(len(sys.stdin.read()), os.environ["COOKIE"][:0], end="")
                sys.stdout.flush()
                print("log", file=sys.stderr)
                if os.environ["QUERY_STRING"] == "count":
                    print(gc.collect())
        """
        with App(tmp_path, source) as app, app.connect() as wire:

            def ask(number: int, query: bytes = b"") -> bytes:
                pairs = [(b"COOKIE", b"%d" % number), (b"QUERY_STRING", query)]
                wire.send(whole_request(1, pairs, b"body", keep=True))
                return wire.answer().body

            ask(0)
            ask(0, b"count")
            for number in range(100):
                ask(number)
            assert int(ask(0, b"count").split()[-1]) < 100

    @pytest.mark.parametrize(
        ("kind", "number"), [("keep", 1000), ("new", 200)], ids=["kept", "new"]
    )
    def test_descriptors_do_not_leak(self, app: App, kind: str, number: int) -> None:
        """After many requests the process has as many descriptors as before."""
        text = "print(len(os.listdir('/proc/self/fd')))"

        def count() -> bytes:
            return app.ask(("QUERY_STRING", text)).body

        before = count()
        if kind == "new":
            for _ in range(number):
                app.ask(("QUERY_STRING", "1"))
        else:
            with app.connect() as wire:
                for _ in range(number):
                    wire.send(whole_request(pairs=code("1"), keep=True))
                    wire.answer()
        assert count() == before
