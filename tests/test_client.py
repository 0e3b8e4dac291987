"""fcgi_app.client, against programs that use the C library and against raw bytes."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.client import (
    AnswerError,
    Client,
    Response,
    parse_head,
    request,
)
from fcgi_app.client.answer import Answer
from fcgi_app.codec.constants import ProtocolStatus, RecordType, Role
from fcgi_app.codec.params import build_params, parse_params
from fcgi_app.codec.records import (
    STREAM_CHUNK,
    build_end_request,
    build_record,
    build_stream,
    build_unknown_type,
    parse_begin_request,
    parse_header,
)
from fcgi_app.errors import CallSequenceError, ConfigError, RemoteProtocolError
from fcgi_app.sockets import bound_address, open_socket

WAIT = 30.0
HEAD = b"Content-Type: text/plain\r\n\r\n"
PARAMS = {"REQUEST_METHOD": "GET"}

C_PROGRAM = r"""
#include <fcgiapp.h>
#include <stdlib.h>
#include <string.h>

static void echo(FCGX_Stream *in, FCGX_Stream *out) {
    static char buffer[20000];
    int count;
    while ((count = FCGX_GetStr(buffer, sizeof buffer, in)) > 0)
        FCGX_PutStr(buffer, count, out);
}

int main(void) {
    FCGX_Stream *in, *out, *err;
    FCGX_ParamArray envp;
    int requests = 0;
    while (FCGX_Accept(&in, &out, &err, &envp) >= 0) {
        char **variable;
        const char *what = FCGX_GetParam("QUERY_STRING", envp);
        if (what == NULL) what = "";
        FCGX_FPrintF(out, "Content-Type: text/plain\r\nX-Request: %d\r\n\r\n",
                     ++requests);
        if (!strcmp(what, "env"))
            for (variable = envp; *variable; variable++)
                FCGX_FPrintF(out, "%s\n", *variable);
        else if (!strcmp(what, "echo"))
            echo(in, out);
        else if (!strcmp(what, "status"))
            FCGX_SetExitStatus(-2, out);
        else if (!strcmp(what, "stderr"))
            FCGX_PutS("it went wrong\n", err);
        else if (!strcmp(what, "flush")) {
            FCGX_PutS("first\n", out);
            FCGX_FFlush(out);
            echo(in, out);
        } else if (!strcmp(what, "filter")) {
            echo(in, out);
            if (FCGX_StartFilterData(in) == 0) {
                FCGX_PutS("|", out);
                echo(in, out);
            }
        } else if (!strcmp(what, "crash")) {
            FCGX_FFlush(out);
            abort();
        }
    }
    return 0;
}
"""


def build_c_program(folder: Path) -> Path:
    """Compile the program above with the C library, Debian's libfcgi."""
    source = folder / "program.c"
    source.write_text(C_PROGRAM)
    program = folder / "program"
    command = ["cc", "-o", str(program), str(source), "-lfcgi"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, f"libfcgi-dev and cc are needed: {built.stderr}"
    return program


@pytest.fixture(scope="module")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of the C library, compiled once."""
    return build_c_program(tmp_path_factory.mktemp("libfcgi"))


@pytest.fixture(params=["unix", "tcp"])
def application(
    request: pytest.FixtureRequest, c_program: Path, tmp_path: Path
) -> Iterator[str]:
    """The address of a running program of the C library."""
    where = "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/app.sock"
    with open_socket(where) as listener:
        process = subprocess.Popen(
            [str(c_program)], stdin=listener.fileno(), stderr=subprocess.DEVNULL
        )
        address = bound_address(listener)
    try:
        yield address
    finally:
        process.kill()
        process.wait(WAIT)


Serve = Callable[[socket.socket], object]


class StartServer(Protocol):
    def __call__(self, *connections: Serve) -> str: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a thread that serves connections, one after the other, byte by byte.

    The function takes one function for each connection, and returns the address. What
    they raise fails the test, except that the client has gone away.
    """
    running: list[tuple[threading.Thread, Future[None]]] = []

    def start(*connections: Serve) -> str:
        address = f"unix:{tmp_path}/bytes{len(running)}.sock"
        listener = open_socket(address)
        listener.settimeout(WAIT)
        result: Future[None] = Future()

        def run() -> None:
            try:
                with listener:
                    for serve in connections:
                        connection = listener.accept()[0]
                        with connection:
                            connection.settimeout(WAIT)
                            with contextlib.suppress(ConnectionError):
                                serve(connection)
                result.set_result(None)
            except BaseException as error:  # noqa: BLE001 - raised in the test
                result.set_exception(error)

        thread = threading.Thread(target=run)
        thread.start()
        running.append((thread, result))
        return address

    yield start
    for thread, result in running:
        thread.join(WAIT)
        result.result(0)


def records(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Read (type, id, content) of each record that the client sends."""
    with connection.makefile("rb") as stream:
        while head := stream.read(8):
            header = parse_header(head)
            content = stream.read(header.content_length)
            stream.read(header.padding_length)
            yield header.record_type, header.request_id, content


def read_request(connection: socket.socket) -> list[tuple[int, bytes]]:
    """Read a responder's request to its end; (type, content) of its records."""
    found = []
    for kind, _, content in records(connection):
        found.append((kind, content))
        if kind == RecordType.STDIN and not content:
            break
    return found


def stdout(data: bytes) -> bytes:
    return build_stream(RecordType.STDOUT, 1, data)


def end(app_status: int = 0, protocol_status: int = 0) -> bytes:
    return build_end_request(1, app_status, protocol_status)


def answer_with(*pieces: bytes) -> Serve:
    """Read one request, then send these bytes and close."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        for piece in pieces:
            connection.sendall(piece)

    return serve


# ---- the response head -----------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status", "reason", "headers"),
    [
        pytest.param(b"A: b\r\n\r\n", 200, "", [("A", "b")], id="no-status"),
        pytest.param(b"Status: 404 Not Found\n\n", 404, "Not Found", [], id="status"),
        pytest.param(b"STATUS:404\n\n", 404, "", [], id="status-bare"),
        pytest.param(b"Location: /x\n\n", 302, "", [("Location", "/x")], id="location"),
        pytest.param(
            b"location: /x\r\nStatus: 201 Made\r\n\r\n",
            201,
            "Made",
            [("location", "/x")],
            id="location-and-status",
        ),
        pytest.param(b"HTTP/1.1 203 So\nA: b\n\n", 203, "So", [("A", "b")], id="nph"),
        pytest.param(
            b"Set-Cookie: a=1\nSet-Cookie: b=2\r\nE:\n\n",
            200,
            "",
            [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("E", "")],
            id="repeated-and-empty",
        ),
        pytest.param(b"A: b\r\n\t c\r\n\r\n", 200, "", [("A", "b c")], id="folded"),
        pytest.param(b"A:  \xe9  \n\n", 200, "", [("A", "\xe9")], id="latin-1"),
    ],
)
def test_parse_head(
    head: bytes, status: int, reason: str, headers: list[tuple[str, str]]
) -> None:
    """A head gives status, reason and headers; lines end with LF or CRLF."""
    assert parse_head(head) == (status, reason, headers)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"\r\n", "no header line"),
        (b"no colon\n\n", "'no colon'"),
        (b"Na me: x\n\n", "'Na me: x'"),
        (b": x\n\n", "': x'"),
        (b"A: \0\n\n", "header line"),
        (b"A: x\ry\n\n", "header line"),
        (b"Status: ok\n\n", "'ok'"),
        (b"Status: 099\n\n", "'099'"),
        (b"Status: 2000\n\n", "'2000'"),
        (b"Status:\n\n", "Status: ''"),
    ],
)
def test_parse_head_malformed(head: bytes, told: str) -> None:
    """The error of a malformed head shows what is wrong."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_head(head)
    assert told in str(caught.value)


def test_parse_head_of_much_white_space() -> None:
    """Time grows with the size, not with its square, which would be seconds here."""
    value = "x" + 60_000 * " " + "y"
    before = time.process_time()
    assert parse_head(f"A: {value} \n".encode()).headers == [("A", value)]
    assert time.process_time() - before < 1


@given(st.binary(max_size=200))
def test_parse_head_any_bytes(head: bytes) -> None:
    """Bytes of an application raise nothing but RemoteProtocolError."""
    with contextlib.suppress(RemoteProtocolError):
        parse_head(head)


# ---- the records of an answer ----------------------------------------------------

SAMPLE = (
    build_stream(RecordType.STDERR, 1, b"oh", end=True)
    + build_record(RecordType.STDOUT, 1, b"abc", 5)
    + stdout(b"d" * 70000)
    + build_record(RecordType.STDOUT, 1)
    + end(7)
)


@given(st.lists(st.integers(0, len(SAMPLE)), max_size=6).map(sorted))
def test_answer_split_anywhere(cuts: list[int]) -> None:
    """How an answer is cut into reads never changes it."""
    answer = Answer()
    for start, stop in zip([0, *cuts], [*cuts, len(SAMPLE)], strict=True):
        answer.feed(SAMPLE[start:stop])
    assert answer.take_stdout() == b"abc" + b"d" * 70000
    assert answer.take_stderr() == b"oh"
    assert answer.end == (7, 0)
    assert not answer.surplus


@given(st.binary(max_size=100), st.integers(0, 255), st.integers(0, 3))
def test_answer_any_bytes(content: bytes, kind: int, request_id: int) -> None:
    """Bytes of an application raise nothing but RemoteProtocolError."""
    for received in (content, build_record(kind, request_id, content)):
        with contextlib.suppress(RemoteProtocolError):
            Answer().feed(received)


# ---- what is sent ----------------------------------------------------------------


def sent_by(
    server: StartServer, call: Callable[[str], object], until: tuple[int, bytes]
) -> list[tuple[int, int, bytes]]:
    """The records that a call sends, up to the one of that type and content."""
    got: list[tuple[int, int, bytes]] = []

    def serve(connection: socket.socket) -> None:
        for record in records(connection):
            got.append(record)
            if (record[0], record[2]) == until:
                break
        connection.sendall(stdout(HEAD) + end())

    call(server(serve))
    return got


def test_responder_records(server: StartServer) -> None:
    """A responder gets BEGIN, PARAMS, STDIN, each stream with its end."""
    sent = sent_by(
        server,
        lambda address: request(
            address, {"A": "1", "B": "ä\udcff"}, stdin=b"body", keep_conn=True
        ),
        (RecordType.STDIN, b""),
    )
    assert [(kind, number) for kind, number, _ in sent] == [
        (RecordType.BEGIN_REQUEST, 1),
        (RecordType.PARAMS, 1),
        (RecordType.PARAMS, 1),
        (RecordType.STDIN, 1),
        (RecordType.STDIN, 1),
    ]
    assert parse_begin_request(sent[0][2]) == (Role.RESPONDER, 1)
    assert parse_params(sent[1][2]) == [
        (b"A", b"1"),
        (b"B", "ä".encode() + b"\xff"),
    ]
    assert sent[3][2] == b"body"


def test_params_as_pairs(server: StartServer) -> None:
    """Pairs are sent in their order, a name may repeat, bytes and text may mix."""
    pairs: list[tuple[str | bytes, str | bytes]] = [("A", b"1"), (b"A", "2"), ("", "")]
    sent = sent_by(
        server, lambda address: request(address, pairs), (RecordType.STDIN, b"")
    )
    assert parse_params(sent[1][2]) == [(b"A", b"1"), (b"A", b"2"), (b"", b"")]


def test_authorizer_gets_no_stdin(server: StartServer) -> None:
    """An authorizer gets no STDIN record, as from every web server."""
    sent = sent_by(
        server,
        lambda address: request(address, PARAMS, role=Role.AUTHORIZER),
        (RecordType.PARAMS, b""),
    )
    assert parse_begin_request(sent[0][2]) == (Role.AUTHORIZER, 0)
    assert len(sent) == 3


def test_filter_records(server: StartServer) -> None:
    """DATA of a filter follows the end of STDIN."""
    sent = sent_by(
        server,
        lambda address: request(
            address, PARAMS, role=Role.FILTER, stdin=iter([b"in"]), data=b"data"
        ),
        (RecordType.DATA, b""),
    )
    assert [(kind, content) for kind, _, content in sent[3:]] == [
        (RecordType.STDIN, b"in"),
        (RecordType.STDIN, b""),
        (RecordType.DATA, b"data"),
        (RecordType.DATA, b""),
    ]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"x" * 200000, id="bytes"),
        pytest.param(bytearray(b"x" * 200000), id="bytearray"),
        pytest.param(memoryview(b"x" * 200000), id="memoryview"),
        pytest.param([b"", b"x" * 150000, b"", b"x" * 50000], id="list"),
        pytest.param((b"x" * 100 for _ in range(2000)), id="generator"),
        pytest.param(io.BytesIO(b"x" * 200000), id="file"),
    ],
)
def test_kinds_of_bodies(server: StartServer, body: bytes) -> None:
    """Bytes, iterables and files are sent whole; an empty piece does not end them."""
    sent = sent_by(
        server,
        lambda address: request(address, PARAMS, stdin=body),
        (RecordType.STDIN, b""),
    )
    pieces = [content for _, _, content in sent[3:]]
    assert b"".join(pieces) == b"x" * 200000
    assert max(map(len, pieces)) <= STREAM_CHUNK


def test_abort(server: StartServer) -> None:
    """abort() sends ABORT_REQUEST after the record on its way, and reads the end."""
    seen = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(stdout(HEAD))
        for kind, _, content in records(connection):
            seen.append(kind)
            if kind == RecordType.ABORT_REQUEST:
                assert content == b""
                break
        connection.sendall(end(1))

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * STREAM_CHUNK

    with (
        Client(server(serve)) as client,
        client.stream(PARAMS, stdin=endless()) as answer,
    ):
        answer.abort()
        assert answer.complete().app_status == 1
    assert seen[:3] == [1, 4, 4]
    assert set(seen[3:-1]) <= {RecordType.STDIN}


# ---- the answer ------------------------------------------------------------------


def test_whole_answer(server: StartServer) -> None:
    """A complete answer has all that the records say."""
    head = b"Status: 418 Teapot\nSet-Cookie: a\nSet-Cookie: b\n\n"
    address = server(
        answer_with(
            build_record(RecordType.STDERR, 1, b"one "),
            stdout(head[:10]),
            stdout(head[10:] + b"bo") + build_record(RecordType.STDERR, 1, b"two"),
            stdout(b"dy") + build_record(RecordType.STDERR, 1),
            build_record(RecordType.STDOUT, 1) + end(-2),
        )
    )
    answer = request(address, PARAMS)
    assert answer == Response(
        status=418,
        reason="Teapot",
        headers=[("Set-Cookie", "a"), ("Set-Cookie", "b")],
        body=b"body",
        stderr=b"one two",
        app_status=-2,
        protocol_status=ProtocolStatus.REQUEST_COMPLETE,
        head=head,
    )
    assert answer.header("set-cookie") == "a"
    assert answer.header("None") is None


@pytest.mark.parametrize(
    ("protocol_status", "status"),
    [
        (ProtocolStatus.CANT_MPX_CONN, 503),
        (ProtocolStatus.OVERLOADED, 503),
        (ProtocolStatus.UNKNOWN_ROLE, 501),
    ],
)
def test_refusal_without_output(
    server: StartServer, protocol_status: int, status: int
) -> None:
    """A bare END_REQUEST that refuses gives the HTTP status that says so."""
    answer = request(server(answer_with(end(0, protocol_status))), PARAMS)
    assert (answer.status, answer.protocol_status) == (status, protocol_status)
    assert (answer.headers, answer.body) == ([], b"")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param(b"\x02" + stdout(b"x")[1:], "version 2, not 1", id="version"),
        pytest.param(b"HTTP/1.1 400 Bad\r\n\r\n", "version 72", id="http-server"),
        pytest.param(
            build_stream(RecordType.STDOUT, 2, HEAD), "was not made", id="other-id"
        ),
        pytest.param(
            build_record(RecordType.PARAMS, 1, b"x"), "record of type 4", id="params"
        ),
        pytest.param(build_record(99, 1), "record of type 99", id="unknown-type"),
        pytest.param(
            build_record(RecordType.STDOUT, 0, b"x"), "without a request id", id="id-0"
        ),
        pytest.param(
            build_record(RecordType.END_REQUEST, 1, b"1234"), "4 bytes", id="end-short"
        ),
        pytest.param(
            stdout(b"A: b") + build_record(RecordType.STDOUT, 1) + stdout(b"c"),
            "STDOUT goes on after its end",
            id="after-end",
        ),
        pytest.param(end(), "without any output", id="no-output"),
        pytest.param(stdout(b"A: b\n") + end(), r"b'A: b\n'", id="head-unfinished"),
        pytest.param(stdout(b"\nHello"), r"b'\nHello'", id="blank-line-first"),
        pytest.param(stdout(b"<p>Hello\n\n"), "'<p>Hello'", id="page-without-head"),
        pytest.param(stdout(b"A: b\n" * 14000), "no response head", id="head-too-long"),
    ],
)
def test_malformed_answer(server: StartServer, sent: bytes, told: str) -> None:
    """The error of a malformed answer names the address and what is wrong."""
    address = server(answer_with(sent))
    with pytest.raises(AnswerError) as caught:
        request(address, PARAMS)
    assert address in str(caught.value)
    assert told in str(caught.value)
    assert not caught.value.cut_off


@pytest.mark.parametrize(
    ("sent", "head", "body"),
    [
        pytest.param(b"", b"", b"", id="nothing"),
        pytest.param(stdout(b"Stat")[:-1], b"", b"", id="in-record"),
        pytest.param(stdout(b"Status: 2"), b"Status: 2", b"", id="in-head"),
        pytest.param(stdout(HEAD + b"half"), HEAD, b"half", id="in-body"),
        pytest.param(
            stdout(HEAD + b"all") + build_record(RecordType.STDOUT, 1),
            HEAD,
            b"all",
            id="no-end-request",
        ),
    ],
)
def test_cut_off_answer(
    server: StartServer, sent: bytes, head: bytes, body: bytes
) -> None:
    """An answer that ends before END_REQUEST is an error that keeps what came."""
    stderr = build_record(RecordType.STDERR, 1, b"dying")
    address = server(answer_with(stderr, sent))
    with pytest.raises(AnswerError, match="closed without END_REQUEST") as caught:
        request(address, PARAMS)
    error = caught.value
    assert address in str(error)
    assert (error.head, error.body, error.stderr) == (head, body, b"dying")
    assert error.cut_off


def test_reset_connection() -> None:
    """A connection that is reset in the answer is an answer cut off."""
    with open_socket("127.0.0.1:0") as listener:

        def serve() -> None:
            connection = listener.accept()[0]
            with connection:
                read_request(connection)
                # The rest of the request is unread, and no lingering: RST.
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AnswerError, match="Connection reset by peer") as caught:
            request(bound_address(listener), PARAMS, timeout=WAIT)
        thread.join(WAIT)
    assert caught.value.cut_off


# ---- connections -----------------------------------------------------------------


def test_cannot_connect(tmp_path: Path) -> None:
    """Where nobody listens the system's error names the address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionRefusedError, match=address):
            request(address, PARAMS)
    missing = f"unix:{tmp_path}/missing.sock"
    with pytest.raises(FileNotFoundError, match=r"missing\.sock"):
        request(missing, PARAMS)
    with pytest.raises(ConfigError):
        request("nonsense", PARAMS)


def test_silent_application(server: StartServer) -> None:
    """An application that does not answer is a TimeoutError with the address."""
    over = threading.Event()
    address = server(lambda connection: over.wait(WAIT))
    with pytest.raises(TimeoutError) as caught:
        request(address, PARAMS, timeout=0.05)
    over.set()
    assert address in str(caught.value)
    assert "0.05 seconds" in str(caught.value)


def test_kept_connection(server: StartServer) -> None:
    """With keep_conn several requests use one connection."""

    def serve(connection: socket.socket) -> None:
        for number in range(3):
            sent = read_request(connection)
            assert parse_begin_request(sent[0][1]).keep_conn
            connection.sendall(stdout(HEAD + b"%d" % number) + end())
        assert connection.recv(1) == b""

    with Client(server(serve), keep_conn=True) as client:
        bodies = [client.request(PARAMS, stdin=b"x").body for _ in range(3)]
        assert client.connected
    assert bodies == [b"0", b"1", b"2"]
    assert not client.connected


def test_kept_connection_lost(server: StartServer) -> None:
    """A kept connection that was closed while idle is replaced, unnoticed."""
    closed = threading.Event()

    def serve_and_close(connection: socket.socket) -> None:
        answer_with(stdout(HEAD) + end())(connection)
        connection.close()
        closed.set()

    address = server(serve_and_close, answer_with(stdout(HEAD + b"2") + end()))
    with Client(address, keep_conn=True) as client:
        client.request(PARAMS)
        assert closed.wait(WAIT)
        assert client.request(PARAMS).body == b"2"


def test_bytes_after_the_end(server: StartServer) -> None:
    """Bytes between two answers on a kept connection are an error."""
    ended, sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        answer_with(stdout(HEAD) + end())(connection)
        assert ended.wait(WAIT)
        connection.sendall(b"more")
        sent.set()
        connection.recv(1)

    with Client(server(serve), keep_conn=True) as client:
        client.request(PARAMS)
        ended.set()
        assert sent.wait(WAIT)
        with pytest.raises(AnswerError, match="b'more' came after END_REQUEST"):
            client.request(PARAMS)


def test_connection_closed_without_keep_conn(server: StartServer) -> None:
    """Without keep_conn each request has a connection of its own."""
    serve = answer_with(stdout(HEAD) + end())
    with Client(server(serve, serve)) as client:
        client.request(PARAMS)
        assert not client.connected
        client.request(PARAMS)


def test_one_answer_at_a_time(server: StartServer) -> None:
    """A second request while an answer is coming is refused, and harms nothing."""
    go_on = threading.Event()

    def serve(connection: socket.socket) -> None:
        answer_with(stdout(HEAD))(connection)
        assert go_on.wait(WAIT)
        connection.sendall(stdout(b"rest") + end())

    with Client(server(serve)) as client, client.stream(PARAMS) as answer:
        with pytest.raises(CallSequenceError):
            client.request(PARAMS)
        go_on.set()
        assert answer.read() == b"rest"


def test_answer_closed_early(server: StartServer) -> None:
    """Leaving an answer before its end closes the connection; it cannot be read on."""

    def serve(connection: socket.socket) -> None:
        answer_with(stdout(HEAD + b"some"))(connection)
        assert connection.recv(1) == b""

    with Client(server(serve), keep_conn=True) as client:
        with client.stream(PARAMS) as answer:
            assert next(iter(answer)) == b"some"
            assert not answer.ended
            assert answer.app_status is None
            assert answer.protocol_status is None
        assert not client.connected
        with pytest.raises(CallSequenceError):
            answer.read()


# ---- streams ---------------------------------------------------------------------


def test_body_and_answer_at_once(application: str) -> None:
    """A body that is echoed as it comes, bigger than every buffer, never deadlocks."""
    body = bytes(range(256)) * 65536  # 16 MiB
    params = {"REQUEST_METHOD": "POST", "QUERY_STRING": "echo"}
    answer = request(application, params, stdin=body, timeout=WAIT)
    assert answer.body == body


def test_answer_before_body(server: StartServer) -> None:
    """An answer that comes before the body was read arrives, and ends the sending."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(stdout(HEAD + b"early") + end())

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * STREAM_CHUNK

    address = server(serve, serve)
    with Client(address, keep_conn=True, timeout=WAIT) as client:
        assert client.request(PARAMS, stdin=endless()).body == b"early"
        # The request was not sent whole, so the connection is of no use any more.
        assert not client.connected
        assert client.request(PARAMS, stdin=endless()).body == b"early"


class PipeBody:
    """A body that somebody else writes to, by and by."""

    def __init__(self, reader: socket.socket) -> None:
        reader.setblocking(False)
        self._reader = reader

    def fileno(self) -> int:
        return self._reader.fileno()

    def read_some(self) -> bytes | None:
        try:
            return self._reader.recv(65536)
        except BlockingIOError:
            return None


def test_body_source(application: str) -> None:
    """A body that has nothing yet does not hold up the answer."""
    ours, theirs = socket.socketpair()
    params = {"REQUEST_METHOD": "POST", "QUERY_STRING": "flush"}
    with (
        ours,
        theirs,
        Client(application, timeout=WAIT) as client,
        client.stream(params, stdin=PipeBody(theirs)) as answer,
    ):
        pieces = iter(answer)
        assert next(pieces) == b"first\n"
        ours.sendall(b"second")
        ours.close()
        assert b"".join(pieces) == b"second"


def test_stderr_as_it_comes(server: StartServer) -> None:
    """on_stderr gets FCGI_STDERR in time; the answer does not collect it."""
    seen = threading.Event()

    def serve(connection: socket.socket) -> None:
        answer_with(stdout(HEAD) + build_record(RecordType.STDERR, 1, b"note"))(
            connection
        )
        assert seen.wait(WAIT)
        connection.sendall(end())

    notes = []

    def note(text: bytes) -> None:
        notes.append(text)
        seen.set()

    with (
        Client(server(serve), timeout=WAIT) as client,
        client.stream(PARAMS, on_stderr=note) as answer,
    ):
        assert answer.complete().stderr == b""
    assert notes == [b"note"]


# ---- GET_VALUES ------------------------------------------------------------------


def test_get_values(server: StartServer) -> None:
    """GET_VALUES gives what the application knows; UNKNOWN_TYPE nothing."""
    result = build_record(
        RecordType.GET_VALUES_RESULT, 0, build_params([(b"FCGI_MAX_REQS", b"7")])
    )

    def serve(connection: socket.socket) -> None:
        queries = records(connection)
        kind, number, content = next(queries)
        assert (kind, number) == (RecordType.GET_VALUES, 0)
        assert parse_params(content) == [(b"FCGI_MAX_REQS", b""), (b"X", b"")]
        connection.sendall(result)
        next(queries)
        connection.sendall(build_unknown_type(RecordType.GET_VALUES))
        queries.close()  # type: ignore[attr-defined]

    with Client(server(serve), keep_conn=True, timeout=WAIT) as client:
        assert client.get_values(b"FCGI_MAX_REQS", b"X") == {b"FCGI_MAX_REQS": b"7"}
        assert client.get_values(b"FCGI_MAX_REQS") == {}


def test_get_values_unanswered(server: StartServer) -> None:
    """A connection that is closed instead of an answer is an AnswerError."""
    address = server(lambda connection: next(records(connection)))
    with pytest.raises(AnswerError), Client(address) as client:
        client.get_values(b"FCGI_MAX_REQS")


# ---- the C library as the other side ---------------------------------------------


def test_c_params(application: str) -> None:
    """The C library reads our params, long ones too."""
    params = {"QUERY_STRING": "env", "SHORT": "", "LONG": "ä" * 40000}
    answer = request(application, params, timeout=WAIT)
    assert answer.status == 200
    assert answer.body.decode().splitlines() == [
        "FCGI_ROLE=RESPONDER",
        *(f"{name}={value}" for name, value in params.items()),
    ]


def test_c_status_and_stderr(application: str) -> None:
    """The C library's exit status and FCGI_STDERR are read."""
    answer = request(application, {"QUERY_STRING": "stderr"}, timeout=WAIT)
    assert (answer.stderr, answer.app_status) == (b"it went wrong\n", 0)
    answer = request(application, {"QUERY_STRING": "status"}, timeout=WAIT)
    assert (answer.stderr, answer.app_status) == (b"", -2)


def test_c_kept_connection(application: str) -> None:
    """The C library keeps a connection for us, with and without a body."""
    params = {"QUERY_STRING": "echo"}
    with Client(application, keep_conn=True, timeout=WAIT) as client:
        for number, body in enumerate([b"", b"one", b"", b"x" * 100000], start=1):
            answer = client.request(params, stdin=body)
            assert (answer.header("X-Request"), answer.body) == (str(number), body)
            assert client.connected


def test_c_roles(application: str) -> None:
    """The C library's authorizer and filter get what they wait for."""
    answer = request(
        application, {"QUERY_STRING": "env"}, role=Role.AUTHORIZER, timeout=WAIT
    )
    assert b"FCGI_ROLE=AUTHORIZER" in answer.body
    answer = request(
        application,
        {"QUERY_STRING": "filter", "FCGI_DATA_LENGTH": "4"},
        role=Role.FILTER,
        stdin=b"in",
        data=b"data",
        timeout=WAIT,
    )
    assert answer.body == b"in|data"


def test_c_get_values(application: str) -> None:
    """The C library answers GET_VALUES, which it does only if the query is padded."""
    with Client(application, timeout=WAIT) as client:
        values = client.get_values(b"FCGI_MAX_CONNS", b"FCGI_MPXS_CONNS", b"OTHER")
    assert values == {b"FCGI_MAX_CONNS": b"1", b"FCGI_MPXS_CONNS": b"0"}


def test_c_crash(application: str) -> None:
    """A program that dies in its answer leaves an answer that is cut off."""
    with pytest.raises(AnswerError) as caught:
        request(application, {"QUERY_STRING": "crash"}, timeout=WAIT)
    assert caught.value.head.startswith(b"Content-Type: text/plain\r\n")
    assert caught.value.cut_off
