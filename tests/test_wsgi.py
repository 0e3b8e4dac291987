"""WSGI applications: what they see, what goes out, and how files are sent."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from fcgi_app.body import InputBuffer
from fcgi_app.calling import call
from fcgi_app.cgi import CgiChannel
from fcgi_app.codec.constants import Role
from fcgi_app.request import Request
from fcgi_app.settings import Settings
from fcgi_app.streams import _SHORT_FILE
from fcgi_app.wsgi import FileWrapper, WSGIHandler

from .webserver import App, collect, whole_request

TYPE = ("Content-Type", "text/plain")
SIZE = 3 * _SHORT_FILE + 1001
"""Of a file that the kernel sends."""
PARAMS = {
    "REQUEST_METHOD": "GET",
    "SERVER_NAME": "example.org",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
}
Start = Callable[..., Any]


class Asked:
    """A request that writes to files, and what came of it."""

    def __init__(self, directory: Path, body: bytes = b"", **params: str) -> None:
        self._out = (directory / "out").open("w+b")
        self._err = (directory / "err").open("w+b")
        channel = CgiChannel()
        channel.stdout = self._out.fileno()
        channel.stderr = self._err.fileno()
        channel.expect(0)
        source = InputBuffer()
        source.append(body, 1 << 20)
        source.ended = True
        given = {**PARAMS, **params}
        encoded = {name.encode(): os.fsencode(text) for name, text in given.items()}
        self.request = Request(channel, Settings(), Role.RESPONDER, 0, encoded, source)

    def serve(self, app: Any, script_name: str | None = None) -> tuple[bytes, bytes]:
        """Serve it as ``run`` does: the head and the body of the response."""
        call(WSGIHandler(app, script_name), self.request)
        self.request.finish()
        head, _, body = self.sent.partition(b"\r\n\r\n")
        return head, body

    @property
    def sent(self) -> bytes:
        """What has gone out so far."""
        return Path(self._out.name).read_bytes()

    @property
    def log(self) -> str:
        """What went to the web server's log."""
        return Path(self._err.name).read_text()

    def close(self) -> None:
        self.request.finish()
        self._out.close()
        self._err.close()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    made: list[Asked] = []

    def make(body: bytes = b"", **params: str) -> Asked:
        made.append(Asked(tmp_path, body, **params))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Asked]


def hello(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200 OK", [TYPE])
    return [b"hello"]


# What an application sees


def seen(asked: Asked, script_name: str | None = None) -> dict[str, Any]:
    """The environ of an application."""
    found: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        found.update(environ)
        return hello(environ, start_response)

    asked.serve(app, script_name)
    return found


def test_validated(asked: Make) -> None:
    """The reference implementation's own check finds nothing."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        assert environ["wsgi.input"].read(100) == b"the body"
        environ["wsgi.errors"].write("a line é\n")
        start_response("201 Created", [TYPE])
        yield b"one, "
        yield b"two"

    one = asked(b"the body", REQUEST_METHOD="POST", CONTENT_LENGTH="8")
    assert one.serve(validator(app)) == (
        b"Content-Type: text/plain\r\nStatus: 201 Created",
        b"one, two",
    )
    assert one.log == "a line é\n"


def test_environ(asked: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the params, as latin-1, and nothing of the process."""
    monkeypatch.setenv("SECRET", "of the process")
    found = seen(asked(HTTP_X="é", QUERY_STRING="a=\udcff"))
    assert found["HTTP_X"] == "é".encode().decode("latin-1")
    assert found["QUERY_STRING"] == "a=\xff"
    assert found["FCGI_ROLE"] == "RESPONDER"
    assert "SECRET" not in found
    assert "PATH" not in found
    assert found["wsgi.version"] == (1, 0)
    assert found["wsgi.multithread"] is False
    assert found["wsgi.multiprocess"] is True
    assert found["wsgi.run_once"] is True  # it is CGI
    assert found["wsgi.file_wrapper"] is FileWrapper


def test_other_thread(asked: Make) -> None:
    """Outside of the main thread there may be others."""
    found: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: found.update(seen(asked())))
    thread.start()
    thread.join()
    assert found["wsgi.multithread"] is True


@pytest.mark.parametrize(
    ("params", "scheme"),
    [
        ({}, "http"),
        ({"HTTPS": "on"}, "https"),
        ({"HTTPS": "off"}, "http"),
        ({"REQUEST_SCHEME": "https"}, "https"),
        ({"REQUEST_SCHEME": "http"}, "http"),
    ],
)
def test_scheme(asked: Make, params: dict[str, str], scheme: str) -> None:
    """HTTPS (CGI's way) and REQUEST_SCHEME (nginx's, httpd's) tell it."""
    assert seen(asked(**params))["wsgi.url_scheme"] == scheme


@pytest.mark.parametrize(
    ("script_name", "name", "info", "expected"),
    [
        (None, "/app/x", "", ("/app/x", "")),
        (None, "/app", "/x", ("/app", "/x")),
        ("", "/app/x", "", ("", "/app/x")),
        ("", "", "/", ("", "/")),
        ("", "/", "", ("", "/")),
        ("/app", "/app/x", "", ("/app", "/x")),
        ("/app", "/app", "", ("/app", "")),
        ("/app", "/app/", "", ("/app", "/")),
        ("/app", "", "/app/x/y", ("/app", "/x/y")),
        ("/app", "/app", "/x", ("/app", "/x")),
        ("/app", "/application", "/x", ("/application", "/x")),
        ("/é", "/é/x", "", ("/\xc3\xa9", "/x")),
    ],
)
def test_path(
    asked: Make,
    script_name: str | None,
    name: str,
    info: str,
    expected: tuple[str, str],
) -> None:
    """The path is divided where the application is mounted."""
    found = seen(asked(SCRIPT_NAME=name, PATH_INFO=info), script_name)
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == expected


def test_no_path(asked: Make) -> None:
    """nginx has no PATH_INFO in its stock params."""
    one = asked(SCRIPT_NAME="/page")
    del one.request.params_map[b"PATH_INFO"]
    found = seen(one, "")
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("", "/page")


@pytest.mark.parametrize("script_name", ["app", "/", "/app/"])
def test_bad_script_name(script_name: str) -> None:
    with pytest.raises(ValueError, match=f"script_name: '{script_name}' is neither"):
        WSGIHandler(hello, script_name)


# What goes out


def test_single_block(asked: Make) -> None:
    """The length of a whole response is told."""
    head, body = asked().serve(hello)
    assert head == b"Content-Type: text/plain\r\nContent-Length: 5"
    assert body == b"hello"


def test_write(asked: Make) -> None:
    """The callable that start_response returns writes at once."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        write = start_response("200 OK", [TYPE])
        write(b"one")
        assert one.sent.endswith(b"\r\n\r\none")
        return [b"two"]

    one = asked()
    assert one.serve(app)[1] == b"onetwo"


def test_blocks_go_out(asked: Make) -> None:
    """No block waits for the next one; an empty one sends no head."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("404 Not Found", [TYPE])
        yield b""
        assert not one.sent
        try:
            raise KeyError("late")
        except KeyError:
            start_response("200 OK", [TYPE], True)
        yield b"first"
        assert one.sent.endswith(b"first")
        yield b"second"

    one = asked()
    head, body = one.serve(app)
    assert (head, body) == (b"Content-Type: text/plain", b"firstsecond")


class Closing:
    """An iterable with ``close``."""

    def __init__(self, blocks: Iterable[bytes], fails: type[Exception] | None) -> None:
        self._blocks = blocks
        self._fails = fails
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self._blocks
        if self._fails:
            raise self._fails("in the middle")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("fails", [None, ValueError, ConnectionResetError])
@pytest.mark.parametrize("blocks", [[], [b"block"]])
def test_close(asked: Make, blocks: list[bytes], fails: type[Exception] | None) -> None:
    """The result is closed once, and the traceback of whatever fails is in the log."""
    result = Closing(blocks, fails)

    def app(environ: dict[str, Any], start_response: Start) -> Closing:
        start_response("200 OK", [TYPE])
        return result

    one = asked()
    head, body = one.serve(app)
    assert result.closed == 1
    assert (b"Status: 500" in head) == (fails is not None and not blocks)
    assert b"middle" not in body
    if fails is None:
        assert body == b"".join(blocks)
        assert one.log == ""
    else:
        assert f"{fails.__name__}: in the middle" in one.log


def test_exception(asked: Make) -> None:
    """An application that raises is answered with 500, without its traceback."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", [TYPE])
        raise ZeroDivisionError("secret")

    one = asked()
    head, body = one.serve(app)
    assert b"Status: 500" in head
    assert b"secret" not in head + body
    assert "ZeroDivisionError: secret" in one.log


def _no_start(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    return [b"x"]


def _no_start_of_file(environ: dict[str, Any], start_response: Start) -> Any:
    return environ["wsgi.file_wrapper"](io.FileIO(__file__))


def _bad_status(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200", [TYPE])
    return [b"x"]


def _hop_by_hop(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200 OK", [TYPE, ("Connection", "close")])
    return [b"x"]


def _text(environ: dict[str, Any], start_response: Start) -> Any:
    start_response("200 OK", [TYPE])
    return ["text"]


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (_no_start, "write() before start_response()"),
        (_no_start_of_file, "a file is returned before start_response()"),
        (_bad_status, "Status must be at least 4 characters"),
        (_hop_by_hop, "Hop-by-hop header, 'Connection: close', not allowed"),
        (_text, "write() argument must be a bytes instance"),
    ],
)
def test_wrong_application(asked: Make, app: Any, message: str) -> None:
    """What PEP 3333 forbids is told in the log, and answered with 500."""
    one = asked()
    assert b"Status: 500" in one.serve(app)[0]
    assert f"AssertionError: {message}" in one.log


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "200 OK"])
@pytest.mark.parametrize("blocks", [[], [b""], [b"", b""]])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_content(asked: Make, status: str, blocks: list[bytes], method: str) -> None:
    """A response that has no content by its kind tells no length of it."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response(status, [TYPE])
        return blocks

    head, body = asked(REQUEST_METHOD=method).serve(app)
    told = status == "200 OK" and method == "GET"
    assert (b"Content-Length: 0" in head) == told
    assert body == b""


def test_errors(asked: Make) -> None:
    """wsgi.errors can be closed, and takes text; the log has nothing if it is unused."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        errors = environ["wsgi.errors"]
        print("a line", file=errors)
        errors.writelines(["two ", "more\n"])
        errors.flush()
        errors.write("\udcff\n")
        errors.close()
        with pytest.raises(TypeError):
            errors.write(b"bytes")
        return hello(environ, start_response)

    one = asked()
    assert one.serve(app)[1] == b"hello"
    assert one.log == "a line\ntwo more\n\\udcff\n"
    two = asked()
    assert two.serve(hello)[1] == b"hello"
    assert two.request._stderr is None  # a record of it would be one more to send


# Files


@pytest.fixture
def content() -> bytes:
    return bytes(range(251)) * (SIZE // 251) + b"end"


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    made = tmp_path / "file"
    made.write_bytes(content)
    return made


class Files:
    """Notes what the kernel sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[int, int]] = []
        original = Request.send_file

        def send_file(
            request: Request, file: Any, offset: int = 0, count: int | None = None
        ) -> int:
            size = original(request, file, offset, count)
            self.sent.append((offset, size))
            return size

        monkeypatch.setattr(Request, "send_file", send_file)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(monkeypatch)


def sending(
    file: Any, *headers: tuple[str, str], status: str = "200 OK"
) -> Callable[..., Any]:
    """An application that sends a file."""

    def app(environ: dict[str, Any], start_response: Start) -> Any:
        start_response(status, [TYPE, *headers])
        return environ["wsgi.file_wrapper"](file, 1000)

    return app


@pytest.mark.parametrize("buffering", [0, -1], ids=["raw", "buffered"])
@pytest.mark.parametrize("mode", ["rb", "r+b"])
@pytest.mark.parametrize("start", [0, 5000, SIZE + 9])
def test_file(
    asked: Make,
    path: Path,
    content: bytes,
    files: Files,
    buffering: int,
    mode: str,
    start: int,
) -> None:
    """A file is sent from its position on, with its length, and closed."""
    file = path.open(mode, buffering=buffering)
    file.seek(start)
    head, body = asked().serve(sending(file))
    rest = content[start:]
    assert body == rest
    assert f"Content-Length: {len(rest)}".encode() in head
    assert files.sent == [(start, len(rest))]
    assert file.closed


def test_read_before(asked: Make, path: Path, content: bytes, files: Files) -> None:
    """What has been read already, out of a buffer, is not sent."""
    file = path.open("rb")
    file.readline(7)
    assert asked().serve(sending(file))[1] == content[7:]
    assert files.sent == [(7, len(content) - 7)]


def test_written_before(asked: Make, path: Path, content: bytes, files: Files) -> None:
    """What a buffer still has to write is sent, too."""
    file = path.open("r+b")
    file.seek(0, os.SEEK_END)
    file.write(b"more")
    file.seek(10)
    file.write(b"X")
    file.seek(0)
    expected = content[:10] + b"X" + content[11:] + b"more"
    assert asked().serve(sending(file))[1] == expected
    assert files.sent == [(0, len(expected))]


@pytest.mark.parametrize("told", ["7", "0", str(SIZE + 100), "1" * 5000, "seven"])
def test_length(asked: Make, path: Path, content: bytes, told: str) -> None:
    """No more is sent than the application has announced."""
    head, body = asked().serve(sending(path.open("rb"), ("Content-Length", told)))
    assert f"Content-Length: {told}".encode() in head
    assert body == content[: int(told) if len(told) < 10 and told.isdigit() else None]


@pytest.mark.parametrize("written", [b"abc", b"abcdefghijkl"])
def test_length_of_the_rest(
    asked: Make, path: Path, content: bytes, written: bytes
) -> None:
    """What has been written before counts."""

    def app(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", [TYPE, ("Content-Length", "10")])(written)
        return environ["wsgi.file_wrapper"](path.open("rb"))

    assert asked().serve(app)[1] == (written + content[:7])[: max(10, len(written))]


def test_file_without_a_size(asked: Make, files: Files) -> None:
    """Files of /proc have a content, and no size."""
    file = open("/proc/self/status", "rb")  # noqa: SIM115 - whoever sends it closes it
    head, body = asked().serve(sending(file))
    assert body.startswith(b"Name:")
    assert b"Content-Length" not in head
    assert files.sent == []


def test_head(asked: Make, path: Path, content: bytes) -> None:
    """The answer to HEAD has the length, and no body."""
    head, body = asked(REQUEST_METHOD="HEAD").serve(sending(path.open("rb")))
    assert f"Content-Length: {len(content)}".encode() in head
    assert body == b""


def _zipped(path: Path) -> Any:
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return gzip.open(packed)


def _piped(path: Path) -> Any:
    reader, writer = os.pipe()
    content = path.read_bytes()

    def fill() -> None:
        with open(writer, "wb") as file:
            file.write(content)

    threading.Thread(target=fill).start()
    return open(reader, "rb")


def _socket(path: Path) -> Any:
    near, far = socket.socketpair()

    def fill() -> None:
        with far:
            far.sendall(path.read_bytes())

    threading.Thread(target=fill).start()
    file = near.makefile("rb")
    near.close()
    return file


def _spooled(path: Path) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 - the application's
    file.write(path.read_bytes())
    file.seek(0)
    return file


class OnlyReads:
    """The least that PEP 3333 asks for."""

    def __init__(self, path: Path) -> None:
        self._file = io.BytesIO(path.read_bytes())

    def read(self, size: int) -> bytes:
        return self._file.read(size)


@pytest.mark.parametrize(
    "make",
    [
        _zipped,
        _piped,
        _socket,
        _spooled,
        OnlyReads,
        lambda path: io.BytesIO(path.read_bytes()),
    ],
    ids=["gzip", "pipe", "socket", "spooled", "read-only", "memory"],
)
def test_no_file(
    asked: Make,
    path: Path,
    content: bytes,
    files: Files,
    make: Callable[[Path], Any],
) -> None:
    """What is no file on the disk, or reads otherwise than its descriptor, is read."""
    file = make(path)
    head, body = asked().serve(sending(file))
    assert body == content
    assert b"Content-Length" not in head
    assert files.sent == []
    assert getattr(file, "closed", True)


def test_closed_file(asked: Make, path: Path) -> None:
    """A file that is closed already is an error of the application."""
    file = path.open("rb")
    file.close()
    one = asked()
    assert b"Status: 500" in one.serve(sending(file))[0]
    assert "ValueError" in one.log


# In a process

PROGRAM = """
    from fcgi_app import run
    from fcgi_app.wsgi import WSGIHandler
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/fail":
            raise KeyError(path)
        start_response("200 OK", [("Content-Type", "text/plain")])
        if path == "/file":
            return environ["wsgi.file_wrapper"](open("big", "rb"))
        return [environ["SCRIPT_NAME"].encode(), b"|", environ["wsgi.input"].read()]
    run(WSGIHandler(app, ""), threads=THREADS)
"""


@pytest.mark.parametrize("threads", [None, 3])
def test_served(tmp_path: Path, content: bytes, threads: int | None) -> None:
    """It serves under ``run``, with and without threads, and goes on after a failure."""
    source = PROGRAM.replace("THREADS", str(threads))
    (tmp_path / "big").write_bytes(content)
    with App(tmp_path, source) as app, app.connect() as wire:
        for path, status, body in (
            (b"/", b"", b"|body"),
            (b"/fail", b"Status: 500", None),
            (b"/file", b"", content),
            (b"/again", b"", b"|body"),
        ):
            pairs = [
                (b"SCRIPT_NAME", path),
                (b"REQUEST_METHOD", b"POST"),
                (b"CONTENT_LENGTH", b"4"),
            ]
            wire.send(whole_request(1, pairs, b"body", keep=True))
            answer = collect(wire.records())
            head, _, page = answer.stdout.partition(b"\r\n\r\n")
            assert head.startswith(status or b"Content-")
            assert body is None or page == body
    assert "KeyError" not in app.log  # it went to the web server
