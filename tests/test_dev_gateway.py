"""The HTTP side of ``fcgi-app dev``: meta-variables, bodies, responses, error pages."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.codec.constants import RecordType
from fcgi_app.codec.params import parse_params
from fcgi_app.codec.records import build_end_request, build_stream, parse_header
from fcgi_app.launcher.dev.body import ChunkedDecoder
from fcgi_app.launcher.dev.gateway import Backend, Gateway
from fcgi_app.launcher.dev.params import (
    BadRequest,
    HttpRequest,
    Site,
    build_meta_variables,
)
from fcgi_app.sockets import open_socket

WAIT = 20.0
SITE = Site(("127.0.0.1", 8000), "", "/srv/app.py", "/srv", "test/1")


def variables(
    target: str = "/",
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    headers: Sequence[tuple[str, str]] = (("Host", "example.org:8000"),),
    length: int | None = None,
    mount: str = "",
) -> dict[str, str]:
    request = HttpRequest(method, target, version, headers, ("192.0.2.7", 4711))
    site = Site(SITE.address, mount, SITE.script, SITE.document_root, SITE.software)
    pairs = build_meta_variables(request, site, length)
    found = {name.decode(): value.decode("latin-1") for name, value in pairs}
    assert len(found) == len(pairs)
    return found


# ---- meta-variables --------------------------------------------------------------


def test_meta_variables() -> None:
    """A request gives all variables of CGI/1.1 that it has a value for."""
    headers = [
        ("Host", "example.org:8000"),
        ("Content-Type", "text/plain"),
        ("Content-Length", "5"),
        ("X-Some-Thing", "1"),
    ]
    assert variables("/a%20b/c?x=%31&y", method="POST", headers=headers, length=5) == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "test/1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "example.org",
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": "8000",
        "REQUEST_SCHEME": "http",
        "REQUEST_METHOD": "POST",
        "REQUEST_URI": "/a%20b/c?x=%31&y",
        "SCRIPT_NAME": "",
        "SCRIPT_FILENAME": "/srv/app.py",
        "DOCUMENT_ROOT": "/srv",
        "PATH_INFO": "/a b/c",
        "PATH_TRANSLATED": "/srv/a b/c",
        "QUERY_STRING": "x=%31&y",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "4711",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "5",
        "HTTP_HOST": "example.org:8000",
        "HTTP_X_SOME_THING": "1",
    }


@pytest.mark.parametrize(
    ("target", "path_info", "query"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("/%C3%A4%ff", "/\xc3\xa4\xff", ""),
        ("/a//b/", "/a//b/", ""),
        ("/a/./b/../c", "/a/c", ""),
        ("/a/..", "/", ""),
        ("/a/.", "/a/", ""),
        ("/a%2fb?c?d", "/a/b", "c?d"),
        ("http://example.org/a?b", "/a", "b"),
        ("http://example.org?b", "/", "b"),
        ("http://example.org", "/", ""),
    ],
)
def test_request_target(target: str, path_info: str, query: str) -> None:
    """The path is decoded and its dots are resolved; the query stays as it is."""
    found = variables(target)
    assert (found["PATH_INFO"], found["QUERY_STRING"]) == (path_info, query)


def test_request_target_asterisk() -> None:
    """OPTIONS * has no path."""
    found = variables("*", method="OPTIONS")
    assert (found["PATH_INFO"], found["REQUEST_URI"]) == ("", "*")
    assert "PATH_TRANSLATED" not in found


@pytest.mark.parametrize(
    "target", ["a", "*", "/../a", "/a/../..", "/%2e%2e/a", "/a%00b", "example.org:80"]
)
def test_request_target_malformed(target: str) -> None:
    """A target that is no path, or leads out of the root, is a 400."""
    with pytest.raises(BadRequest) as caught:
        variables(target)
    assert caught.value.status == 400


def test_mount() -> None:
    """Below a mount SCRIPT_NAME is the mount and PATH_INFO what follows; else 404."""
    for target, path_info in [("/app", ""), ("/app/", "/"), ("/app/x", "/x")]:
        found = variables(target, mount="/app")
        assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/app", path_info)
    for target in ["/", "/application", "/x/app", "/app/../x"]:
        with pytest.raises(BadRequest) as caught:
            variables(target, mount="/app")
        assert caught.value.status == 404


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("example.org", "example.org"),
        ("example.org:80", "example.org"),
        ("[::1]:80", "[::1]"),
        ("127.0.0.1:", "127.0.0.1"),
    ],
)
def test_server_name(host: str, name: str) -> None:
    """SERVER_NAME is the host of the Host header."""
    assert variables(headers=[("Host", host)])["SERVER_NAME"] == name


def test_server_name_without_host() -> None:
    """Without a Host header SERVER_NAME is the address; HTTP/1.1 needs the header."""
    assert variables(headers=[], version="HTTP/1.0")["SERVER_NAME"] == "127.0.0.1"
    for headers in ([], [("Host", "a b")], [("Host", "a"), ("Host", "b")]):
        with pytest.raises(BadRequest):
            variables(headers=headers)


def test_header_variables() -> None:
    """Repeated headers are joined; what would deceive a script is left out."""
    found = variables(
        headers=[
            ("Host", "a"),
            ("Accept", "x"),
            ("accept", "y"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
            ("Proxy", "http://evil.example"),
            ("Remote_User", "root"),
            ("Authorization", "Basic eA=="),
        ]
    )
    assert {n: v for n, v in found.items() if n.startswith("HTTP_")} == {
        "HTTP_HOST": "a",
        "HTTP_ACCEPT": "x, y",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_AUTHORIZATION": "Basic eA==",
    }


# ---- the chunked coding ----------------------------------------------------------

CHUNKED = b"5\r\nhello\r\n00a;x=y\r\n, chunked!\r\n0\r\nTrailer: 1\r\n\r\nGET /"


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=8).map(sorted))
def test_chunked_split_anywhere(cuts: list[int]) -> None:
    """How the bytes are cut never changes the body, nor what follows it."""
    decoder = ChunkedDecoder()
    decoded = b""
    rest = b""
    for start, stop in zip([0, *cuts], [*cuts, len(CHUNKED)], strict=True):
        if decoder.ended:
            rest += CHUNKED[start:stop]
        else:
            decoded += decoder.feed(CHUNKED[start:stop])
    assert decoded == b"hello, chunked!"
    assert decoder.ended
    assert decoder.surplus + rest == b"GET /"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"x\r\n", id="no-number"),
        pytest.param(b"-1\r\n", id="negative"),
        pytest.param(b"\r\n", id="empty"),
        pytest.param(b"1" * 16 + b"\r\n", id="too-big"),
        pytest.param(b"5\nhello", id="lf-only"),
        pytest.param(b"2\r\nabc\r\n", id="goes-on"),
        pytest.param(b"1;" + b"x" * 9000, id="line-too-long"),
        pytest.param(b"0\r\n" + b"a: b\r\n" * 101, id="too-many-trailers"),
    ],
)
def test_chunked_malformed(data: bytes) -> None:
    """What is not chunked is a bad request."""
    with pytest.raises(BadRequest):
        ChunkedDecoder().feed(data)


@given(st.binary(max_size=100))
def test_chunked_any_bytes(data: bytes) -> None:
    """Bytes of a client raise nothing but BadRequest."""
    with contextlib.suppress(BadRequest):
        ChunkedDecoder().feed(data)


# ---- a gateway with an application made of bytes ---------------------------------


def read_records(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    with connection.makefile("rb") as stream:
        while head := stream.read(8):
            header = parse_header(head)
            content = stream.read(header.content_length)
            stream.read(header.padding_length)
            yield header.record_type, content


def read_body(connection: socket.socket) -> bytes:
    """Read a request; give its body."""
    body = b""
    for kind, content in read_records(connection):
        if kind == RecordType.STDIN:
            if not content:
                break
            body += content
    return body


def output(data: bytes) -> bytes:
    return build_stream(RecordType.STDOUT, 1, data)


def whole(data: bytes) -> bytes:
    return output(data) + build_stream(RecordType.STDOUT, 1, b"", end=True) + END


END = build_end_request(1)
TEXT = b"Content-Type: text/plain\r\n\r\n"


@dataclass
class Running:
    """A gateway in front of a function that serves FastCGI connections."""

    port: int
    lines: list[str] = field(default_factory=list)
    reported: threading.Condition = field(default_factory=threading.Condition)
    answers: int = 0

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def get(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes | Iterator[bytes] | None = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response, response.read()

    def raw(self, data: bytes) -> bytes:
        """Send bytes, give all that comes until the gateway closes."""
        with socket.create_connection(("127.0.0.1", self.port), WAIT) as connection:
            connection.sendall(data)
            with connection.makefile("rb") as stream:
                return stream.read()

    def report(self, line: str) -> None:
        with self.reported:
            self.lines.append(line)
            self.reported.notify_all()

    def wait_for_line(self, part: str) -> str:
        with self.reported:
            assert self.reported.wait_for(
                lambda: any(part in line for line in self.lines), WAIT
            ), self.lines
            return next(line for line in self.lines if part in line)


Serve = Callable[[socket.socket], object]
StartGateway = Callable[..., Running]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Start a gateway; ``serve`` gets each of the connections that it makes."""
    with contextlib.ExitStack() as stack:

        def start(serve: Serve, timeout: float | None = WAIT) -> Running:
            address = f"unix:{tmp_path}/app.sock"
            listener = stack.enter_context(open_socket(address))
            http_side = Gateway("127.0.0.1", 0)
            running = Running(http_side.address[1])

            def note_answer() -> None:
                running.answers += 1

            http_side.backend = Backend(
                address=address,
                site=Site(http_side.address, "", "/srv/app.py", "/srv", "test/1"),
                timeout=timeout,
                report=running.report,
                on_request=lambda: None,
                on_answer=note_answer,
            )
            stopping = threading.Event()

            def run_http() -> None:
                http_side.timeout = 0.02  # type: ignore[assignment]
                while not stopping.is_set():
                    http_side.handle_request()

            def run_application() -> None:
                while True:
                    try:
                        connection = listener.accept()[0]
                    except OSError:
                        return
                    with connection, contextlib.suppress(ConnectionError):
                        connection.settimeout(WAIT)
                        serve(connection)

            threads = [threading.Thread(target=t) for t in (run_http, run_application)]
            for thread in threads:
                thread.start()

            def stop() -> None:
                stopping.set()
                listener.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join(WAIT)
                assert http_side.wait_idle(WAIT)
                http_side.close()

            stack.callback(stop)
            return running

        yield start


def answering(*pieces: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        read_body(connection)
        for piece in pieces:
            connection.sendall(piece)

    return serve


def test_answer_without_length(gateway: StartGateway) -> None:
    """An answer without Content-Length is chunked, and the connection is kept."""
    running = gateway(answering(whole(TEXT + b"hello")))
    with contextlib.closing(running.connect()) as connection:
        for _ in range(3):
            connection.request("GET", "/x")
            response = connection.getresponse()
            assert (response.status, response.reason) == (200, "OK")
            assert response.getheader("Transfer-Encoding") == "chunked"
            assert response.getheader("Date")
            assert response.read() == b"hello"
    assert running.answers == 3
    assert running.wait_for_line("GET /x 200 5 bytes ").endswith(" ms")


def test_answer_with_length(gateway: StartGateway) -> None:
    """Content-Length of the answer is passed on."""
    running = gateway(answering(whole(b"Content-Length: 5\n\nhello")))
    response, body = running.get()
    assert response.getheader("Content-Length") == "5"
    assert response.getheader("Transfer-Encoding") is None
    assert body == b"hello"


def test_answer_headers(gateway: StartGateway) -> None:
    """Headers are passed on in their order; those of the connection are ours."""
    head = (
        b"Status: 404 No Such Thing\nSet-Cookie: a=1\nSet-Cookie: b=2\n"
        b"Connection: upgrade\nKeep-Alive: x\nTransfer-Encoding: gzip\nDate: then\n\n"
    )
    response, _ = gateway(answering(whole(head))).get()
    assert (response.status, response.reason) == (404, "No Such Thing")
    assert response.getheaders() == [
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Date", "then"),
        ("Transfer-Encoding", "chunked"),
    ]


def test_redirect(gateway: StartGateway) -> None:
    """Location without Status is a 302."""
    response, _ = gateway(answering(whole(b"Location: /there\n\n"))).get()
    assert (response.status, response.reason) == (302, "Found")


@pytest.mark.parametrize("head", [TEXT, b"Content-Length: 5\n\n"])
def test_head_request(gateway: StartGateway, head: bytes) -> None:
    """The body of an answer to HEAD is dropped, its Content-Length is not."""
    running = gateway(answering(whole(head + b"hello")))
    with contextlib.closing(running.connect()) as connection:
        for _ in range(2):
            connection.request("HEAD", "/")
            response = connection.getresponse()
            assert response.read() == b""
            length = "5" if head != TEXT else None
            assert response.getheader("Content-Length") == length


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_status_without_body(gateway: StartGateway, status: bytes) -> None:
    """204 and 304 have no body, whatever the script prints."""
    running = gateway(answering(whole(b"Status: " + status + b"\n\nsurplus")))
    with contextlib.closing(running.connect()) as connection:
        for _ in range(2):
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == int(status)
            assert response.read() == b""


def test_http_1_0(gateway: StartGateway) -> None:
    """An HTTP/1.0 client gets no chunks; the end of the connection ends the body."""
    running = gateway(answering(whole(TEXT + b"hello")))
    received = running.raw(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in head
    assert b"chunked" not in head
    assert body == b"hello"


def test_body_with_length(gateway: StartGateway) -> None:
    """A body with Content-Length arrives whole, with its length in the params."""
    params: dict[bytes, bytes] = {}

    def serve(connection: socket.socket) -> None:
        body = b""
        for kind, content in read_records(connection):
            if kind == RecordType.PARAMS:
                params.update(parse_params(content))
            if kind == RecordType.STDIN:
                if not content:
                    break
                body += content
        connection.sendall(whole(TEXT + body[::-1]))

    running = gateway(serve)
    body = bytes(range(256)) * 4000
    assert running.get(method="POST", body=body)[1] == body[::-1]
    assert params[b"CONTENT_LENGTH"] == b"1024000"
    assert params[b"REQUEST_METHOD"] == b"POST"


def test_chunked_body(gateway: StartGateway) -> None:
    """A chunked body is decoded; the connection can take the next request."""
    params: list[tuple[bytes, bytes]] = []

    def serve(connection: socket.socket) -> None:
        body = b""
        for kind, content in read_records(connection):
            if kind == RecordType.PARAMS:
                params.extend(parse_params(content))
            if kind == RecordType.STDIN:
                if not content:
                    break
                body += content
        connection.sendall(whole(TEXT + body))

    running = gateway(serve)
    with contextlib.closing(running.connect()) as connection:
        for _ in range(2):
            connection.request("PUT", "/", iter([b"one ", b"two ", b"three"]))
            assert connection.getresponse().read() == b"one two three"
    names = [name for name, _ in params]
    assert b"CONTENT_LENGTH" not in names
    assert b"HTTP_TRANSFER_ENCODING" not in names


def test_pipelined_requests(gateway: StartGateway) -> None:
    """A request that follows another in the same segment is served after it."""
    running = gateway(answering(whole(b"Content-Length: 2\n\nok")))
    received = running.raw(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\n\r\n"
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert received.count(b"\r\n\r\nok") == 2


def test_upload_while_answering(gateway: StartGateway) -> None:
    """Body and answer run at once: each piece comes back before the next is sent."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(output(TEXT))
        for kind, content in read_records(connection):
            if kind == RecordType.STDIN:
                if not content:
                    break
                connection.sendall(output(content))
        connection.sendall(END)

    running = gateway(serve)
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        for number in range(3):
            piece = b"piece %d" % number
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            assert response.read1(100) == piece
        connection.sendall(b"0\r\n\r\n")
        assert response.read() == b""
        response.close()


def test_continue(gateway: StartGateway) -> None:
    """A client that waits for 100 Continue gets it when the body is wanted."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(whole(TEXT + read_body(connection)))

    running = gateway(serve)
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
            b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        with connection.makefile("rb") as stream:
            assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert stream.readline() == b"\r\n"
            connection.sendall(b"body")
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            assert b"body" in stream.read()


def test_early_answer(gateway: StartGateway) -> None:
    """An answer that comes before a big body was read arrives whole."""
    running = gateway(lambda connection: connection.sendall(whole(TEXT + b"enough")))
    size = 20_000_000
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as connection:
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode())
        received = bytearray()

        def read() -> None:
            with connection.makefile("rb") as stream:
                received.extend(stream.read())

        reader = threading.Thread(target=read)
        reader.start()
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes(size))
        reader.join(WAIT)
    assert b"Connection: close" in received
    assert b"enough" in received


def test_stderr(gateway: StartGateway) -> None:
    """FCGI_STDERR is reported in whole lines."""
    pieces = [
        build_stream(RecordType.STDERR, 1, b"one\ntw"),
        build_stream(RecordType.STDERR, 1, b"o\nthree"),
    ]
    running = gateway(answering(*pieces, whole(TEXT)))
    running.get()
    running.wait_for_line("GET / 200")
    assert running.lines[:3] == ["one", "two", "three"]


# ---- what goes wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param([b""], "The script ended, or closed", id="nothing"),
        pytest.param([output(b"Stat")], "The script ended, or closed", id="half-head"),
        pytest.param([whole(b"<p>\n\n")], "'<p>' is not a response", id="no-head"),
        pytest.param([END], "ended without any output", id="no-output"),
        pytest.param([b"HTTP/1.1 200 OK"], "version 72", id="no-fastcgi"),
        pytest.param(
            [whole(b"Status: 101 Switch\n\n")], "status 101 is not a final", id="101"
        ),
        pytest.param(
            [whole(b"Content-Length: x\n\n")], "Content-Length 'x'", id="length"
        ),
    ],
)
def test_bad_answer(gateway: StartGateway, sent: list[bytes], told: str) -> None:
    """No answer, or none that HTTP can express, is a 502 page that says what it is."""
    running = gateway(answering(*sent))
    response, body = running.get()
    assert response.status == 502
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"
    assert body.startswith(b"502 Bad Gateway\n\nThe script ")
    assert told in body.decode()
    assert "unix:" not in body.decode()
    assert told in running.wait_for_line("GET / 502 ")


def test_cut_off_answer(gateway: StartGateway) -> None:
    """An answer that is cut off in its body looks cut off to the client, too."""
    running = gateway(answering(output(TEXT + b"half")))
    with pytest.raises(http.client.IncompleteRead):
        running.get()
    with pytest.raises(ConnectionResetError):
        running.raw(b"GET /old HTTP/1.0\r\n\r\n")
    for path in ("/", "/old"):
        line = running.wait_for_line(f"GET {path} 200 4 bytes")
        assert "The script ended, or closed the connection" in line


def test_length_mismatch(gateway: StartGateway) -> None:
    """A body that does not keep to its Content-Length is reported, never stretched."""
    running = gateway(answering(whole(b"Content-Length: 2\n\nlonger")))
    assert running.get("/long")[1] == b"lo"
    assert "longer than its Content-Length" in running.wait_for_line("GET /long 200 2")


def test_length_mismatch_short(gateway: StartGateway) -> None:
    """A body shorter than its Content-Length is cut off by the end of connection."""
    running = gateway(answering(whole(b"Content-Length: 9\n\nshort")))
    with pytest.raises(http.client.IncompleteRead):
        running.get("/short")
    assert "4 bytes short" in running.wait_for_line("GET /short 200 5 bytes")


def test_timeout(gateway: StartGateway) -> None:
    """A script that does not go on is a 504."""
    over = threading.Event()
    running = gateway(lambda connection: over.wait(WAIT), 0.1)
    response, body = running.get()
    over.set()
    assert response.status == 504
    assert b"did not go on for 0.1 seconds" in body


def test_client_timeout(gateway: StartGateway) -> None:
    """A client that does not go on with its body is told so: 408."""
    running = gateway(lambda connection: read_body(connection), 0.1)
    received = running.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"The body of the request did not go on for 0.1 seconds" in received


def test_unreachable(gateway: StartGateway, tmp_path: Path) -> None:
    """Where nothing listens any more the page says so."""
    running = gateway(answering())
    (tmp_path / "app.sock").unlink()
    response, body = running.get()
    assert response.status == 502
    assert b"The script cannot be reached" in body


def test_client_gone_in_answer(gateway: StartGateway) -> None:
    """A client that leaves ends the request of the application."""
    gone = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_body(connection)
        connection.sendall(output(TEXT))
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(output(b"x" * 60000))
        gone.set()

    running = gateway(serve)
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(10)
    assert gone.wait(WAIT)
    assert "the client is gone in the answer" in running.wait_for_line("GET / 200")


def test_client_gone_in_body(gateway: StartGateway) -> None:
    """A client that leaves in its body ends the request of the application."""
    bodies: list[bytes] = []
    running = gateway(lambda connection: bodies.append(read_body(connection)))
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
    assert "the client is gone in its request" in running.wait_for_line("POST / -")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="one-word"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, id="http-2"),
        pytest.param(b"GET /\r\n\r\n", 505, id="http-0.9"),
        pytest.param(b"G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="method"),
        pytest.param(b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="target"),
        pytest.param(b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n", 414, id="long"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 200, 431, id="headers"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nbad\r\n\r\n", 400, id="no-colon"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
            400,
            id="space-before-colon",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400, id="folded"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n", 400, id="nul"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            400,
            id="both-lengths",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
            b"Content-Length: 2\r\n\r\n",
            400,
            id="two-lengths",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            400,
            id="length",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            id="coding",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            400,
            id="chunk",
        ),
    ],
)
def test_bad_request(gateway: StartGateway, sent: bytes, status: int) -> None:
    """A malformed request is refused with a page, and the connection is closed."""
    running = gateway(answering(whole(TEXT)))
    received = running.raw(sent)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    assert body.startswith(b"%d " % status)
    running.wait_for_line(f" {status} ")
    assert running.answers == 0


def test_cut_off_head(gateway: StartGateway) -> None:
    """A head that the client did not finish is no request."""
    running = gateway(answering(whole(TEXT)))
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert "the client is gone" in running.wait_for_line("GET / -")
    assert running.answers == 0


def test_unprintable_target(gateway: StartGateway) -> None:
    """What a client sends cannot steer the terminal."""
    running = gateway(answering(whole(TEXT)))
    running.raw(b"GET /\x1b[2J\xff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    running.wait_for_line("GET /%1B[2J%FF 200")
