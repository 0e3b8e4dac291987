"""What fcgi_app.client adds to sending and receiving: params, statuses, times, names."""

from __future__ import annotations

import array
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fcgi_app
from fcgi_app import client
from fcgi_app.client import (
    AnswerError,
    Client,
    ExitStatus,
    build_cgi_params,
    exit_status,
    exit_status_of_error,
)
from fcgi_app.client.cgiparams import header_param
from fcgi_app.client.timing import Times, format_times
from fcgi_app.errors import ConfigError
from fcgi_app.testing import run_handler, run_script

from .scripted import HEAD, build_answer

Capture = pytest.CaptureFixture[bytes]
ECHO = """
from fcgi_app import run
def answer(request):
    print("Content-Type: text/plain\\n")
    print(request.params["REQUEST_METHOD"], request.params["REQUEST_URI"])
run(answer)
"""
MANPAGE = Path(__file__).parent.parent / "manpages" / "fcgi_app.client.3"


# ---- params


@pytest.mark.parametrize(
    ("uri", "options", "expected"),
    [
        ("/", {}, ("/", "", "/cwd/", "/cwd")),
        ("/a/b", {}, ("/a/b", "", "/cwd/a/b", "/cwd")),
        ("/a.php/b.php/c", {}, ("/a.php", "/b.php/c", "/cwd/a.php", "/cwd")),
        ("/a.phpx/b", {}, ("/a.phpx/b", "", "/cwd/a.phpx/b", "/cwd")),
        ("/a%2fb%20c", {}, ("/a/b c", "", "/cwd/a/b c", "/cwd")),
        ("*", {}, ("", "", "/cwd", "/cwd")),
        ("/a", {"document_root": "/"}, ("/a", "", "/a", "/")),
        ("/a", {"document_root": "/r/"}, ("/a", "", "/r/a", "/r")),
        ("/a", {"document_root": "r"}, ("/a", "", "/cwd/r/a", "/cwd/r")),
        ("/u/1", {"script": "/r/i.php"}, ("/i.php", "", "/r/i.php", "/r")),
        ("/i.php/u", {"script": "/r/i.php"}, ("/i.php", "/u", "/r/i.php", "/r")),
        ("/i.phpu", {"script": "/r/i.php"}, ("/i.php", "", "/r/i.php", "/r")),
        ("/u", {"script": "i.py"}, ("/i.py", "", "/cwd/i.py", "/cwd")),
        (
            "/s/i/u",
            {"script": "/r/s/i", "document_root": "/r"},
            ("/s/i", "/u", "/r/s/i", "/r"),
        ),
        (
            "/u",
            {"script": "/other/i", "document_root": "/r"},
            ("/i", "", "/other/i", "/r"),
        ),
        ("/m/u", {"mount": "/m"}, ("/m", "/u", "/cwd/m", "/cwd")),
        ("/m", {"mount": "/m/"}, ("/m", "", "/cwd/m", "/cwd")),
        ("/m/u", {"mount": "/"}, ("", "/m/u", "/cwd", "/cwd")),
        ("/m/u", {"mount": ""}, ("", "/m/u", "/cwd", "/cwd")),
        (
            "/m/u",
            {"mount": "/m", "script": "/r/i"},
            ("/m", "/u", "/r/i", "/r"),
        ),
    ],
)
def test_where_the_script_is(
    uri: str,
    options: dict[str, str],
    expected: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SCRIPT_NAME, PATH_INFO, SCRIPT_FILENAME and DOCUMENT_ROOT; /cwd is where we are."""
    monkeypatch.chdir(tmp_path)
    params = build_cgi_params(uri, **options)  # type: ignore[arg-type]
    names = ("SCRIPT_NAME", "PATH_INFO", "SCRIPT_FILENAME", "DOCUMENT_ROOT")
    found = tuple(params[name].replace(str(tmp_path), "/cwd") for name in names)
    assert found == expected
    assert ("PATH_TRANSLATED" in params) == bool(params["PATH_INFO"])


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://a.example/x?y#z", ("a.example", "80", "a.example", None, "/x?y")),
        ("HTTPS://a.example", ("a.example", "443", "a.example", "on", "/")),
        ("http://[::1]:8080?q", ("[::1]", "8080", "[::1]:8080", None, "/?q")),
        ("/x", ("localhost", "80", "localhost", None, "/x")),
    ],
)
def test_whole_url(uri: str, expected: tuple[str | None, ...]) -> None:
    """Scheme and host become params; the fragment is not sent."""
    params = build_cgi_params(uri)
    names = ("SERVER_NAME", "SERVER_PORT", "HTTP_HOST", "HTTPS", "REQUEST_URI")
    assert tuple(params.get(name) for name in names) == expected


def test_bytes_that_are_no_text() -> None:
    """Encoded bytes of any value arrive as they were, by surrogate escapes."""
    params = build_cgi_params("/%ff%E4")
    assert os.fsencode(params["SCRIPT_NAME"]) == b"/\xff\xe4"


@given(st.binary(max_size=60))
def test_any_path_arrives(path: bytes) -> None:
    """A path of any bytes but NUL, percent-encoded, is SCRIPT_NAME and PATH_INFO."""
    uri = "/" + "".join(f"%{byte:02X}" for byte in path)
    if b"\0" in path:
        with pytest.raises(ConfigError, match="NUL"):
            build_cgi_params(uri)
        return
    params = build_cgi_params(uri, document_root="/")
    whole = params["SCRIPT_NAME"] + params["PATH_INFO"]
    assert whole.encode("utf-8", "surrogateescape") == b"/" + path


@given(st.text(max_size=30))
def test_any_uri(uri: str) -> None:
    """Whatever is given, there are params of text without NUL, or a ConfigError."""
    try:
        params = build_cgi_params(uri)
    except ConfigError:
        return
    assert not any("\0" in value for value in params.values())


def test_headers() -> None:
    """They become params; those that come twice are joined."""
    headers = [("x-a", "1"), ("X-A", "2"), ("Content-Type", "t"), ("Host", "h")]
    params = build_cgi_params(headers=headers, body_length=5)
    assert (params["HTTP_X_A"], params["CONTENT_TYPE"]) == ("1, 2", "t")
    assert (params["HTTP_HOST"], params["CONTENT_LENGTH"]) == ("h", "5")
    assert header_param("Content-Length") == "CONTENT_LENGTH"
    assert "CONTENT_LENGTH" not in build_cgi_params()


# ---- exit statuses and times


def test_exit_status_of_an_answer() -> None:
    """The low eight bits, never 0 for another; a refusal is one whatever it says."""
    statuses = [exit_status(number, 0) for number in (0, 1, 255, 256, 300, -1, -256)]
    assert statuses == [0, 1, 255, 1, 44, 255, 1]
    assert [exit_status(0, refusal) for refusal in (1, 2, 3, 99)] == [9] * 4


def test_exit_status_of_errors() -> None:
    """Each kind of error has its number."""
    cut_off = AnswerError("cut off")
    cut_off.cut_off = True
    found = {exit_status_of_error(cut_off): ExitStatus.NO_ANSWER}
    cut_off.head = b"X: 1\n\n"
    found[exit_status_of_error(cut_off)] = ExitStatus.CUT_OFF
    found[exit_status_of_error(AnswerError("malformed"))] = ExitStatus.MALFORMED
    found[exit_status_of_error(TimeoutError())] = ExitStatus.TIMEOUT
    found[exit_status_of_error(ConfigError("a", "b", "c"))] = ExitStatus.USAGE
    found[exit_status_of_error(OSError(101, "?"))] = ExitStatus.NETWORK
    assert [*found] == [*found.values()] == [52, 18, 8, 28, 2, 56]


def test_table_of_times() -> None:
    """One request has a line, several have three and a count."""
    one = Times(0.001, 0.002, 0.003)
    assert format_times([]) == ""
    assert [line.split() for line in format_times([one]).splitlines()] == [
        ["ms", "connect", "first", "byte", "total"],
        ["1.000", "2.000", "3.000"],
    ]
    kept = [Times(None, 0.004, 0.01), Times(None, 0.0005, 0.005), Times(0.003, 1, 2)]
    assert [line.split() for line in format_times([one, *kept]).splitlines()[1:]] == [
        ["min", "1.000", "0.500", "3.000"],
        ["median", "2.000", "3.000", "7.500"],
        ["max", "3.000", "1000.000", "2000.000"],
        ["4", "requests", "on", "2", "connections"],
    ]
    assert format_times([Times(None, 1, 1)] * 3).splitlines()[1].split()[1] == "-"
    assert format_times([one, *kept[:2]]).endswith("3 requests on 1 connection\n")


# ---- bodies


def test_body_of_large_items() -> None:
    """All of it is sent, though it has fewer items than a record has bytes."""
    body = memoryview(array.array("I", range(20_000)))

    def count(request: fcgi_app.Request) -> None:
        size = len(request.stdin.read())
        request.stdout.write(b"Content-Type: text/plain\n\n%d" % size)

    with run_handler(count) as app:
        assert int(app.post("/", body).text) == body.nbytes


def test_body_of_text() -> None:
    """The message says what to do."""
    body: Any = "some text"
    with pytest.raises(TypeError, match="not text: encode 'some text'"):
        client.request("unix:/nowhere", {}, stdin=body)


# ---- connections


def answer(request: fcgi_app.Request) -> None:
    """Answer with the path."""
    request.stdout.write(b"Content-Type: text/plain\n\n" + b"\xe4\xff")


def test_connect_says_whether_it_was_needed() -> None:
    """A connection that is kept is used; one that was closed meanwhile is replaced."""
    with run_handler(answer) as app, app.client(keep_conn=True) as asking:
        assert asking.connect() is True
        assert asking.connect() is False
        asking.request(build_cgi_params())
        assert asking.connect() is False
        assert asking.connected
    with run_handler(answer) as other:
        asking = Client(other.address, keep_conn=True)
        asking.request(build_cgi_params())
        other.server.close()
        with pytest.raises(FileNotFoundError):
            asking.connect()


def test_answer_of_a_closed_connection() -> None:
    """Closing it late does nothing to the connection that came after."""

    def answer_much(request: fcgi_app.Request) -> None:
        request.stdout.write(b"Content-Type: text/plain\n\n" + bytes(300_000))

    with run_handler(answer_much) as app, app.client() as asking:
        old = asking.stream(build_cgi_params())
        asking.close()
        with asking.stream(build_cgi_params()) as running:
            old.close()
            assert len(running.read()) == 300_000


def ask_twice(folder: Path, method: str, last_words: bytes) -> client.Response:
    """Ask one that closes a kept connection after ``last_words``, then serves again."""

    def serve() -> None:
        for answers in ([HEAD + b"1", last_words], [HEAD + b"2"]):
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody has come a second time
                return
            with connection:
                for each in answers:
                    connection.recv(65536)
                    is_head = each.startswith(HEAD)
                    connection.sendall(build_answer(each) if is_head else each)

    params = build_cgi_params(method=method)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/twice.sock")
        listener.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            with Client(f"{folder}/twice.sock", keep_conn=True) as asking:
                assert asking.request(params).body == b"1"
                return asking.request(params)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def test_kept_connection_that_ends_while_it_is_used(tmp_path: Path) -> None:
    """As a process does that is about to go: the request is sent to another one."""
    assert ask_twice(tmp_path, "GET", b"").body == b"2"


@pytest.mark.parametrize(
    ("method", "last_words"), [("POST", b""), ("GET", b"\1"), ("LOCK", b"")]
)
def test_request_that_must_not_be_repeated(
    tmp_path: Path, method: str, last_words: bytes
) -> None:
    """It may have had an effect, or an answer has begun."""
    with pytest.raises(AnswerError, match="closed without END_REQUEST"):
        ask_twice(tmp_path, method, last_words)


def test_first_byte_and_text() -> None:
    """The moment of the first byte is between the beginning and the end."""
    with run_handler(answer) as app, app.client() as asking:
        before = time.monotonic()
        with asking.stream(build_cgi_params()) as running:
            response = running.complete()
        assert before < running.first_byte_at < time.monotonic()
    assert response.text == "\udce4\udcff"


def test_connect_touches_no_running_answer() -> None:
    """On a kept connection, too, whose next answer waits to be read."""

    def answer_much(request: fcgi_app.Request) -> None:
        request.stdout.write(b"Content-Type: text/plain\n\n" + bytes(300_000))

    with run_handler(answer_much) as app, app.client(keep_conn=True) as asking:
        asking.request(build_cgi_params())
        with asking.stream(build_cgi_params()) as running:
            assert asking.connect() is False
            assert len(running.read()) == 300_000


def test_first_byte_is_the_first() -> None:
    """What comes later does not count."""
    told = threading.Event()

    def wait(request: fcgi_app.Request) -> None:
        request.stdout.write(b"Content-Type: text/plain\n\n")
        request.stdout.flush()
        told.wait(20)
        request.stdout.write(b"rest")

    with run_handler(wait) as app, app.client() as asking:
        with asking.stream(build_cgi_params()) as running:
            now = time.monotonic()
            told.set()
            assert running.read() == b"rest"
        assert 0 < running.first_byte_at <= now


# ---- the manual page


def test_page_has_every_public_name() -> None:
    """What is public is in the manual."""
    page = MANPAGE.read_text()
    hidden = {"DEFAULT_TIMEOUT", "Body", "Params"}
    assert {n for n in client.__all__ if n not in page} - hidden == set()


def test_examples_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    """They run, but for their addresses."""
    text = MANPAGE.read_text().partition(".Sh EXAMPLES")[2]
    blocks = re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$", text, re.MULTILINE)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"picture")
    (tmp_path / "app.py").write_text(ECHO)
    found: dict[str, object] = {}
    with run_script("app.py") as app:
        for block in blocks:
            code = re.sub(r"unix:/run/app\.sock|127\.0\.0\.1:9000", app.address, block)
            assert code != block
            exec(code, found)
    assert found["healthy"] is True
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"GET /one\nGET /two\n200\n"
