"""The examples, run whole: as CGI, as FastCGI on fd 0, on a socket of their own.

Every test works on real processes. How a script is started differs, what it answers
must not, so most tests run in all three lives.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

import fcgi_app
from fcgi_app import client

EXAMPLES = Path(__file__).parent.parent / "examples"
FDPASS = "fdpass_clock"  # no CGI program: see test_e2e_fdpass.py
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {FDPASS})
PATIENCE = 30  # seconds that a process may take before the test fails
FORM = "application/x-www-form-urlencoded"

# The package under test, be it the checkout or an installed wheel.
PACKAGE_HOME = str(Path(fcgi_app.__file__).parent.parent)

RUN_ON_OWN_SOCKET = """\
import runpy, sys
from fcgi_app import listen
listen(sys.argv[1])
print("listening", flush=True)
runpy.run_path(sys.argv[2], run_name="__main__")
"""

# time.sleep() becomes "wait for a byte on a descriptor": no clock takes part.
RUN_WITH_SLEEP_ON_PIPE = """\
import os, runpy, sys, time
time.sleep = lambda seconds: os.read(int(sys.argv[1]), 1)
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@dataclass(frozen=True)
class Answer:
    """A response, whichever way it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


Ask = Callable[..., Answer]
"""``ask(body=b"", **params)`` sends one request."""
Start = Callable[..., AbstractContextManager[Ask]]
"""``start(name, **environment)`` brings an example to life."""
Running = Callable[[str], Ask]


def answer_of(head: client.Head, body: bytes, stderr: bytes) -> Answer:
    headers = {name.lower(): value for name, value in head.headers}
    return Answer(head.status, headers, body, stderr)


def process_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment that a script's process starts with."""
    # Without COVERAGE_* the examples would not count for the package's coverage.
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME") or name.startswith("COVERAGE_")
    }
    # A file left open would be a line on stderr, which the tests refuse.
    return {**kept, "PYTHONPATH": PACKAGE_HOME, "PYTHONWARNINGS": "error", **extra}


def request_params(body: bytes, params: Mapping[str, str]) -> dict[str, str]:
    """The meta-variables (RFC 3875) that a web server sends; ``params`` come last."""
    usual = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": "POST" if body else "GET",
        "SCRIPT_NAME": "/example",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "192.0.2.7",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    if body:
        usual["CONTENT_LENGTH"] = str(len(body))
    return {**usual, **params}


def start_cgi(name: str, **environment: str) -> AbstractContextManager[Ask]:
    """Make every request a process of its own, as a web server does for CGI."""

    def ask(body: bytes = b"", **params: str) -> Answer:
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py"],
            env=process_environment(environment) | request_params(body, params),
            input=body,
            capture_output=True,
            timeout=PATIENCE,
        )
        head, blank_line, content = done.stdout.partition(b"\r\n\r\n")
        assert (done.returncode, blank_line) == (0, b"\r\n\r\n"), done.stderr.decode()
        return answer_of(client.parse_head(head), content, done.stderr)

    return nullcontext(ask)


def ask_at(address: str) -> Ask:
    def ask(body: bytes = b"", **params: str) -> Answer:
        params = request_params(body, params)
        done = client.request(address, params, stdin=body, timeout=PATIENCE)
        assert (done.app_status, done.protocol_status) == (0, 0)
        head = client.Head(done.status, done.reason, done.headers)
        return answer_of(head, done.body, done.stderr)

    return ask


@contextmanager
def stopped_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop it as a web server does; it must end by itself and without an error."""
    with process:
        try:
            yield
            assert process.poll() is None, "the example did not wait for more requests"
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@contextmanager
def socket_directory() -> Iterator[str]:
    # Not tmp_path: a socket's name can be 107 bytes long, tmp_path longer.
    with tempfile.TemporaryDirectory(prefix="fcgi-") as directory:
        yield directory


@contextmanager
def running_on_fd0(
    command: list[str],
    environment: Mapping[str, str],
    *,
    pass_fds: tuple[int, ...] = (),
) -> Iterator[tuple[str, int]]:
    """Run Python with a listening socket on fd 0; give its address and process id."""
    with socket_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/socket")
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=listener.fileno(),
            env=process_environment(environment),
            pass_fds=pass_fds,
        )
        listener.close()  # only the example has it now
        with stopped_at_the_end(process):
            yield f"unix:{directory}/socket", process.pid


@contextmanager
def start_fastcgi(name: str, **environment: str) -> Iterator[Ask]:
    """Start the example as a web server or a launcher does."""
    script = str(EXAMPLES / f"{name}.py")
    with running_on_fd0([script], environment) as (address, _):
        yield ask_at(address)


@contextmanager
def start_listening(name: str, **environment: str) -> Iterator[Ask]:
    """Start the example in a process that has called ``listen()``."""
    with socket_directory() as directory:
        address = f"unix:{directory}/socket"
        script = str(EXAMPLES / f"{name}.py")
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_ON_OWN_SOCKET, address, script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=process_environment(environment),
        )
        with stopped_at_the_end(process):
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            yield ask_at(address)


LIVES: dict[str, Start] = {
    "cgi": start_cgi,
    "fastcgi": start_fastcgi,
    "listen": start_listening,
}


@pytest.fixture(params=["cgi", "fastcgi"])
def start(request: pytest.FixtureRequest) -> Start:
    """Give an example a life of its own, as CGI and on fd 0."""
    return LIVES[request.param]


UPLOAD_MAX_BYTES = 1_000_000


@pytest.fixture(scope="module", params=["cgi", "fastcgi"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Give ``running(name)``: the same process for all tests, if it is FastCGI.

    So each test also shows that the requests before it have left nothing behind.
    """
    environment = {
        "AT_START": "yes",
        "GUESTBOOK_DB": str(tmp_path_factory.mktemp("guestbook") / "db"),
        "UPLOAD_MAX_BYTES": str(UPLOAD_MAX_BYTES),
    }
    asks: dict[str, Ask] = {}
    with ExitStack() as lives:

        def ask_example(name: str) -> Ask:
            if name not in asks:
                life = LIVES[request.param](name, **environment)
                asks[name] = lives.enter_context(life)
            return asks[name]

        yield ask_example


def text_of(page: str) -> str:
    """What a reader sees of an HTML page: no tags, no entities."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process refer to (proc(5))."""
    directory = Path(f"/proc/{pid}/fd")
    return [os.readlink(link) for link in directory.iterdir()]


# hello


def test_hello_greets_the_address_that_asks(running: Running) -> None:
    """hello.py prints the address of each client."""
    ask = running("hello")
    first, second = ask(), ask(REMOTE_ADDR="2001:db8::2")
    assert first == Answer(
        200,
        {"content-type": "text/plain; charset=utf-8"},
        b"Hello 192.0.2.7\n",
        b"",
    )
    assert second.body == b"Hello 2001:db8::2\n"


def test_hello_runs_from_a_shell() -> None:
    """hello.py is executable and greets the world without a web server."""
    script = EXAMPLES / "hello.py"
    assert os.access(script, os.X_OK)
    done = subprocess.run(
        [sys.executable, script],
        env=process_environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    expected = b"Content-Type: text/plain; charset=utf-8\r\n\r\nHello world\n"
    assert (done.stdout, done.stderr) == (expected, b"")


# echo


def block(page: str, label: str) -> str:
    """The preformatted block under a label, as text."""
    found = re.search(rf"{label}:<br>\n<pre>\n(.*?)</pre>", page, re.DOTALL)
    assert found, page
    return html.unescape(found[1])


def test_echo_without_a_body_says_so(running: Running) -> None:
    """A GET shows number, process id, the lack of data and the request's params."""
    ask = running("echo")
    answer = ask(HTTP_X_LAST="a<b")
    assert answer.headers == {"content-type": "text/html; charset=utf-8"}
    text = text_of(answer.text).splitlines()
    assert text[1:3] == ["FastCGI echo", "FastCGI echo"]
    assert re.fullmatch(r"Request number \d+,  Process ID: \d+", text[3])
    assert text[4] == "No data from standard input."
    assert answer.stderr == b""
    assert "HTTP_X_LAST=a<b" in block(answer.text, "Request environment").splitlines()
    assert "AT_START=yes" in block(answer.text, "Initial environment").splitlines()


def test_echo_lists_the_params_in_wire_order() -> None:
    """Over FastCGI the list is FCGI_ROLE and the params as sent, and nothing else."""
    with start_fastcgi("echo", AT_START="yes") as ask:
        page = ask(ZULU="1", ALPHA="2").text
    sent = request_params(b"", {"ZULU": "1", "ALPHA": "2"})
    expected = ["FCGI_ROLE=RESPONDER", *(f"{n}={v}" for n, v in sent.items())]
    assert block(page, "Request environment").splitlines() == expected
    assert "ZULU" not in block(page, "Initial environment")


def test_echo_counts_the_requests_of_its_process() -> None:
    """The second request has number 2, the same process, none of the first's params."""
    script = str(EXAMPLES / "echo.py")
    with running_on_fd0([script], {}) as (address, pid):
        ask = ask_at(address)
        first, second = ask(b"one", HTTP_COOKIE="secret=1").text, ask().text
    assert f"Request number 1,  Process ID: {pid}<" in first
    assert f"Request number 2,  Process ID: {pid}<" in second
    assert "secret=1" in first
    assert "secret=1" not in second
    assert "No data from standard input." in second


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        pytest.param(b"hello", "hello", id="text"),
        pytest.param(
            b"<script>alert(1)</script>", "<script>alert(1)</script>", id="tag"
        ),
        pytest.param(b"caf\xc3\xa9 \xff\xfe", "café \\xff\\xfe", id="not-utf-8"),
        pytest.param(b"a\r\nb\n", "a\r\nb\n", id="line-ends"),
        pytest.param("€".encode() * 50_000, "€" * 50_000, id="cut-characters"),
    ],
)
def test_echo_shows_the_body(running: Running, body: bytes, shown: str) -> None:
    """The body comes back as text that no browser takes for markup."""
    ask = running("echo")
    answer = ask(body)
    assert block(answer.text, "Standard input") == f"{shown}\n"
    assert b"<script>" not in answer.body
    assert answer.stderr == b""


def test_echo_names_a_body_that_is_too_short(running: Running) -> None:
    """Five bytes of nine: they are shown, then the error."""
    ask = running("echo")
    answer = ask(b"hello", CONTENT_LENGTH="9")
    error = "Error: Not enough bytes received on standard input"
    assert block(answer.text, "Standard input") == f"hello{error}\n\n"


def test_echo_names_a_body_that_never_comes(running: Running) -> None:
    """No byte of nine is an error too, not "no data"."""
    ask = running("echo")
    page = ask(b"", CONTENT_LENGTH="9").text
    assert "Error: Not enough bytes received" in block(page, "Standard input")


def test_echo_takes_a_body_without_a_length() -> None:
    """Over FastCGI the end of STDIN is enough (chunked uploads have no length)."""
    with start_fastcgi("echo") as ask:
        page = ask(b"chunked", CONTENT_LENGTH="").text
    assert block(page, "Standard input") == "chunked\n"


# size


@pytest.mark.parametrize(
    ("path_info", "size"),
    [("", 500), ("/", 500), ("/0", 500), ("/1", 1), ("/20000", 20000), ("/900", 900)],
)
def test_size_dumps_what_libfcgi_dumps(
    running: Running, path_info: str, size: int
) -> None:
    """The body is a line of 25 bytes and (N - 26) / 80 lines of 86 bytes."""
    ask = running("size")
    answer = ask(PATH_INFO=path_info)
    assert answer.headers == {"content-type": "text/plain; charset=utf-8"}
    lines = answer.body.split(b"\n")
    assert lines.pop() == b""
    assert lines.pop(0) == b"Dumping %6d Bytes ..." % size
    assert len(lines) == max(0, (size - 26) // 80)
    for number, line in enumerate(lines):
        assert line == b"%4d:%s" % (number, lines[0][5:])
        assert len(line) == 85
    assert answer.stderr == b""


def test_size_gives_the_known_total() -> None:
    """/20000 gives 21,439 bytes of body, as libfcgi's program does."""
    with start_cgi("size") as ask:
        assert len(ask(PATH_INFO="/20000").body) == 21_439


def test_size_of_several_records_arrives_whole() -> None:
    """Three megabytes come over FastCGI as over CGI."""
    with start_cgi("size") as by_cgi, start_fastcgi("size") as by_fastcgi:
        bodies = [ask(PATH_INFO="/3000000").body for ask in (by_cgi, by_fastcgi)]
    assert len(bodies[0]) > 3_000_000
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(
    "path_info",
    ["/x", "/-1", "/1.5", "/²", "/٣", "/1/2", "/ 1", "/1073741825", "/" + "9" * 5000],
)
def test_size_refuses_what_is_no_size(running: Running, path_info: str) -> None:
    """A bad PATH_INFO is a 400 with an explanation."""
    refused = running("size")(PATH_INFO=path_info)
    assert (refused.status, refused.stderr) == (400, b"")
    assert refused.text.startswith("Bad size: use a number up to 1073741824")


# guestbook


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "guestbook.sqlite3"


def form(**fields: str) -> bytes:
    return urlencode(fields).encode()


def test_guestbook_shows_what_was_signed(start: Start, database: Path) -> None:
    """An entry is answered with a redirect and then stands on the page, as text."""
    with start("guestbook", GUESTBOOK_DB=str(database)) as ask:
        empty = ask()
        message = "Grüße\r\n& \"'"
        entry = form(name="<script>alert(1)</script>", message=message)
        signed = ask(entry, CONTENT_TYPE=f"{FORM}; charset=utf-8")
        page = ask(QUERY_STRING="signed")
    assert '<form method="post">' in empty.text
    assert "<h2>" not in empty.text
    assert signed == Answer(303, {"location": "?signed"}, b"", b"")
    assert page.headers == {"content-type": "text/html; charset=utf-8"}
    assert "<script>" not in page.text
    assert "<h2>&lt;script&gt;alert(1)&lt;/script&gt;</h2>" in page.text
    assert "Grüße\r\n&amp; &quot;&#x27;\n" in page.text
    assert empty.stderr == page.stderr == b""


def test_guestbook_keeps_sql_as_text(database: Path) -> None:
    """A message that is SQL is stored as it is."""
    message = "'); DROP TABLE entry; --"
    with start_fastcgi("guestbook", GUESTBOOK_DB=str(database)) as ask:
        ask(form(name="Bobby", message=message), CONTENT_TYPE=FORM)
        assert html.escape(message) in ask().text


BAD_FORMS = [
    pytest.param(form(name="A"), {}, 400, id="field-missing"),
    pytest.param(form(name=" ", message="x"), {}, 400, id="field-blank"),
    pytest.param(form(name="A" * 81, message="x"), {}, 400, id="name-long"),
    pytest.param(form(name="A", message="x" * 2001), {}, 400, id="message-long"),
    pytest.param(b"name=%FF&message=x", {}, 400, id="not-utf-8-escaped"),
    pytest.param(b"name=\xff&message=x", {}, 400, id="not-utf-8"),
    pytest.param(b"a=1&" * 11 + b"name=A&message=x", {}, 400, id="many-fields"),
    pytest.param(b"name=A&message=x", {"CONTENT_LENGTH": "99"}, 400, id="cut-off"),
    pytest.param(form(name="A", message="x" * 17_000), {}, 413, id="too-large"),
    pytest.param(b"{}", {"CONTENT_TYPE": "application/json"}, 415, id="not-a-form"),
    pytest.param(b"", {"REQUEST_METHOD": "DELETE"}, 405, id="method"),
]


@pytest.mark.parametrize(("body", "params", "status"), BAD_FORMS)
def test_guestbook_refuses_bad_input(
    running: Running, body: bytes, params: dict[str, str], status: int
) -> None:
    """What is no form of ours gets its status and a page; nothing is stored."""
    ask = running("guestbook")
    refused, page = ask(body, **{"CONTENT_TYPE": FORM, **params}), ask()
    assert refused.status == status
    assert refused.headers["allow"] == "GET, HEAD, POST"
    assert f"<h1>{status} " in refused.text
    assert page.status == 200
    assert "<h2>" not in page.text


def test_guestbook_processes_share_the_file(database: Path) -> None:
    """Twelve entries through several processes at once: all there, none twice."""
    names = [f"visitor{number}" for number in range(12)]
    bodies = [form(name=name, message="hi") for name in names]
    started = []
    for body in bodies:
        params = request_params(body, {"CONTENT_TYPE": FORM})
        environment = process_environment({"GUESTBOOK_DB": str(database)})
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / "guestbook.py"],
            env=environment | params,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
    outputs = [
        process.communicate(body, timeout=PATIENCE)[0]
        for process, body in zip(started, bodies, strict=True)
    ]
    assert all(b"\r\nStatus: 303 " in output for output in outputs)
    with start_cgi("guestbook", GUESTBOOK_DB=str(database)) as ask:
        assert sorted(re.findall("<h2>(.*)</h2>", ask().text)) == sorted(names)


def test_guestbook_follows_the_web_server_to_another_file(tmp_path: Path) -> None:
    """GUESTBOOK_DB may also be a param, for that request."""
    with start_fastcgi("guestbook", GUESTBOOK_DB=str(tmp_path / "a")) as ask:
        ask(form(name="A", message="x"), CONTENT_TYPE=FORM)
        assert "<h2>" not in ask(GUESTBOOK_DB=str(tmp_path / "b")).text
        assert "<h2>A</h2>" in ask().text


def test_guestbook_closes_its_file(database: Path) -> None:
    """No request leaves the database open."""
    script = str(EXAMPLES / "guestbook.py")
    environment = {"GUESTBOOK_DB": str(database)}
    with running_on_fd0([script], environment) as (address, pid):
        ask = ask_at(address)
        assert ask(form(name="A", message="x"), CONTENT_TYPE=FORM).status == 303
        assert "<h2>A</h2>" in ask().text
        # Resources go after the answer has gone. A request that needs no database
        # is answered when those of the requests before it have been released.
        assert ask(REQUEST_METHOD="DELETE").status == 405
        assert str(database) not in open_files(pid)


def test_guestbook_survives_a_broken_database(tmp_path: Path) -> None:
    """A file that is no database is a 500 with a traceback in the log, each time."""
    database = tmp_path / "notes.txt"
    database.write_text("not a database " * 100)
    script = str(EXAMPLES / "guestbook.py")
    with running_on_fd0([script], {"GUESTBOOK_DB": str(database)}) as (address, _):
        params = request_params(b"", {})
        for _ in range(2):
            answer = client.request(address, params, timeout=PATIENCE)
            assert (answer.status, answer.app_status) == (500, 1)
            assert b"sqlite3.DatabaseError: file is not a database" in answer.stderr
            assert b"sqlite3" not in answer.body
        database.unlink()
        assert ask_at(address)().status == 200


def test_guestbook_has_a_place_of_its_own_without_a_setting(tmp_path: Path) -> None:
    """Without GUESTBOOK_DB the file is in the directory for temporary files."""
    with start_cgi("guestbook", TMPDIR=str(tmp_path)) as ask:
        ask(form(name="A", message="x"), CONTENT_TYPE=FORM)
    (database,) = tmp_path.iterdir()
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute("SELECT name, message FROM entry").fetchall()
    finally:
        connection.close()
    assert (database.name, rows) == (f"guestbook-{os.getuid()}.sqlite3", [("A", "x")])


# upload

BOUNDARY = "----fcgi-app-0123456789"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
BINARY = bytes(range(256)) * 3 + b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\n\0"


def multipart(*files: tuple[str, bytes]) -> bytes:
    """A form with files, built by hand (RFC 7578)."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
        f'filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def row(name: str, content: bytes) -> str:
    """The table row that upload.py prints for a file."""
    checksum = hashlib.sha256(content).hexdigest()
    shown = html.escape(name)
    return f"<tr><td>{shown}<td>{len(content)}<td><code>{checksum}</code>"


def test_upload_offers_a_form(running: Running) -> None:
    """A GET shows a form that sends files."""
    ask = running("upload")
    answer = ask()
    assert (answer.status, answer.stderr) == (200, b"")
    assert '<form method="post" enctype="multipart/form-data">' in answer.text


def test_upload_tells_size_and_checksum(running: Running) -> None:
    """Binary files arrive byte for byte, small and large; their names are only text."""
    files = [
        ("<script>.bin", BINARY),
        ("../../etc/passwd", b""),
        ("groß.dat", BINARY * 400),
    ]
    ask = running("upload")
    answer = ask(multipart(*files), CONTENT_TYPE=MULTIPART)
    assert (answer.status, answer.stderr) == (200, b"")
    rows = re.findall("<tr><td>.*</code>", answer.text)
    assert rows == [row(*file) for file in files]
    assert "<script>" not in answer.text


def test_upload_needs_no_length() -> None:
    """A chunked upload, whose CONTENT_LENGTH is empty or -1, is received whole."""
    body = multipart(("a.bin", BINARY))
    with start_fastcgi("upload") as ask:
        for length in ("", "-1"):
            page = ask(body, CONTENT_TYPE=MULTIPART, CONTENT_LENGTH=length).text
            assert row("a.bin", BINARY) in page


WHOLE = multipart(("a", BINARY))
BAD_UPLOADS = [
    pytest.param(WHOLE[:500], {}, 400, id="no-end"),
    pytest.param(WHOLE[:500], {"CONTENT_LENGTH": "9999"}, 400, id="cut-off"),
    pytest.param(WHOLE, {"CONTENT_LENGTH": "twelve"}, 400, id="length"),
    pytest.param(b"nothing of the kind", {}, 400, id="no-boundary"),
    pytest.param(WHOLE, {"CONTENT_TYPE": "multipart/form-data"}, 400, id="unnamed"),
    pytest.param(multipart(("a", b"")).replace(b"form-data", b"x"), {}, 400, id="kind"),
    pytest.param(multipart(*[("a", b"")] * 17), {}, 413, id="many-parts"),
    pytest.param(
        multipart(("a", bytes(UPLOAD_MAX_BYTES + 1))), {}, 413, id="too-large"
    ),
    pytest.param(multipart(*[("a", bytes(600_000))] * 2), {}, 413, id="sum-too-large"),
    pytest.param(b"a=b", {"CONTENT_TYPE": FORM}, 415, id="other-form"),
]


@pytest.mark.parametrize(("body", "params", "status"), BAD_UPLOADS)
def test_upload_refuses_bad_input(
    running: Running, body: bytes, params: dict[str, str], status: int
) -> None:
    """What is damaged or too large gets its status and a page."""
    refused = running("upload")(body, **{"CONTENT_TYPE": MULTIPART, **params})
    assert refused.status == status
    assert refused.headers == {"content-type": "text/html; charset=utf-8"}
    assert '<form method="post"' in refused.text


def test_upload_closes_its_temporary_files(tmp_path: Path) -> None:
    """A large file lies in the directory for temporary files, and only meanwhile."""
    script = str(EXAMPLES / "upload.py")
    body = multipart(("large", bytes(2_000_000)))
    with running_on_fd0([script], {"TMPDIR": str(tmp_path)}) as (address, pid):
        ask = ask_at(address)
        for upload, status in ((body, 200), (body[:-100], 400)):
            assert ask(upload, CONTENT_TYPE=MULTIPART).status == status
        ask()  # the request before has been released when this one is answered
        assert [name for name in open_files(pid) if str(tmp_path) in name] == []
    assert list(tmp_path.iterdir()) == []


# stream


@pytest.mark.parametrize(
    ("query", "ticks"),
    [
        ("pause=0", 5),
        ("ticks=1", 1),
        ("ticks=3&pause=-1", 3),
        ("ticks=-5&pause=nan", 1),
        ("ticks=99999&pause=0", 1000),
    ],
)
def test_stream_ticks_within_its_bounds(
    running: Running, query: str, ticks: int
) -> None:
    """The number of ticks comes from the query and stays within 1 and 1,000."""
    ask = running("stream")
    answer = ask(QUERY_STRING=query)
    expected = [f"tick {number} of {ticks}" for number in range(1, ticks + 1)]
    assert answer.text.splitlines() == expected
    assert (answer.status, answer.stderr) == (200, b"")
    assert answer.headers == {
        "cache-control": "no-store",
        "x-accel-buffering": "no",
        "content-type": "text/plain; charset=utf-8",
    }


def test_stream_speaks_server_sent_events(running: Running) -> None:
    """A client that accepts text/event-stream gets events."""
    ask = running("stream")
    answer = ask(QUERY_STRING="ticks=2&pause=0", HTTP_ACCEPT="text/event-stream")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text == "data: tick 1 of 2\n\ndata: tick 2 of 2\n\n"


@pytest.mark.parametrize("query", ["ticks=x", "pause=x", "ticks=1.5"])
def test_stream_refuses_what_is_no_number(running: Running, query: str) -> None:
    """A bad query is a 400 with an explanation."""
    ask = running("stream")
    answer = ask(QUERY_STRING=query)
    assert (answer.status, answer.stderr) == (400, b"")
    assert answer.text.startswith("ticks and pause must be numbers")


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def next_line(chunks: Iterator[bytes]) -> bytes:
    """Read until a line is complete; nothing of the next one may have come."""
    line = b""
    while not line.endswith(b"\n"):
        line += next(chunks)
    return line


def test_stream_arrives_tick_by_tick_over_fastcgi() -> None:
    """Each tick can be read before the script goes on to the next."""
    script = str(EXAMPLES / "stream.py")
    params = request_params(b"", {"QUERY_STRING": "ticks=3"})
    with (
        pipe() as (waiting, release),
        running_on_fd0(
            ["-c", RUN_WITH_SLEEP_ON_PIPE, str(waiting), script],
            {},
            pass_fds=(waiting,),
        ) as (address, _),
        client.Client(address, timeout=PATIENCE) as web_server,
        web_server.stream(params) as answer,
    ):
        body = iter(answer)
        assert next_line(body) == b"tick 1 of 3\n"
        os.write(release, b".")
        assert next_line(body) == b"tick 2 of 3\n"
        assert not answer.ended
        os.write(release, b".")
        assert b"".join(body) == b"tick 3 of 3\n"


def test_stream_arrives_tick_by_tick_over_cgi() -> None:
    """The same on the process's own standard output."""
    command = [sys.executable, "-c", RUN_WITH_SLEEP_ON_PIPE]
    params = request_params(b"", {"QUERY_STRING": "ticks=2"})
    with pipe() as (waiting, release):
        process = subprocess.Popen(
            [*command, str(waiting), EXAMPLES / "stream.py"],
            env=process_environment({}) | params,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(waiting,),
        )
        with process:
            try:
                assert process.stdout is not None
                while process.stdout.readline() != b"\r\n":
                    assert process.poll() is None
                assert process.stdout.readline() == b"tick 1 of 2\n"
                assert process.poll() is None
                os.write(release, b".")
                assert process.stdout.read() == b"tick 2 of 2\n"
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()


def test_stream_stops_when_the_client_has_left() -> None:
    """After a lost connection the script waits at most once more, then serves."""
    script = str(EXAMPLES / "stream.py")
    params = request_params(b"", {"QUERY_STRING": "ticks=1000"})
    with (
        pipe() as (waiting, release),
        running_on_fd0(
            ["-c", RUN_WITH_SLEEP_ON_PIPE, str(waiting), script],
            {},
            pass_fds=(waiting,),
        ) as (address, _),
        client.Client(address, timeout=PATIENCE) as web_server,
    ):
        with web_server.stream(params) as answer:
            assert next_line(iter(answer)) == b"tick 1 of 1000\n"
        os.write(release, b".")  # ends the one pause that may have begun
        assert ask_at(address)(QUERY_STRING="ticks=1").body == b"tick 1 of 1\n"


# all of them


def comparable(answer: Answer) -> Answer:
    """Take away what a life is known by: the environment, process id and count."""
    body = answer.body.partition(b"Request environment")[0]
    counts = rb"Request number \d+,  Process ID: \d+|Total failed accesses: \d+"
    body = re.sub(counts, b"", body)
    body = re.sub(rb"Thread \d+, Process \d+|(?<=<code>)[ \d]+", b"", body)
    return replace(answer, body=body)


@pytest.mark.parametrize("name", NAMES)
def test_example_answers_the_same_in_every_life(name: str, tmp_path: Path) -> None:
    """Status, headers, body and log of GET and POST are those of CGI everywhere."""
    body, params = multipart(("a", BINARY)), {"CONTENT_TYPE": MULTIPART}
    if name == "guestbook":
        body, params = form(name="A", message="x"), {"CONTENT_TYPE": FORM}
    answers = {}
    for life, start in LIVES.items():
        with start(name, GUESTBOOK_DB=str(tmp_path / life)) as ask:
            got = ask(QUERY_STRING="ticks=2&pause=0")
            posted = ask(body, QUERY_STRING="ticks=2&pause=0", **params)
        answers[life] = (comparable(got), comparable(posted))
    assert answers["fastcgi"] == answers["cgi"]
    assert answers["listen"] == answers["cgi"]


@pytest.mark.parametrize("name", NAMES)
def test_example_answers_head_without_a_body(name: str, tmp_path: Path) -> None:
    """HEAD over FastCGI gets the head of GET and no body."""
    with start_fastcgi(name, GUESTBOOK_DB=str(tmp_path / "db")) as ask:
        params = {"QUERY_STRING": "ticks=2&pause=0"}
        got, head = ask(**params), ask(REQUEST_METHOD="HEAD", **params)
    assert (head.status, head.headers) == (got.status, got.headers)
    # A challenge has no page.
    assert (bool(got.body), head.body) == (name != "authorizer", b"")


@pytest.mark.parametrize("name", [*NAMES, FDPASS])
def test_example_can_be_started_by_its_name(name: str) -> None:
    """Each example is executable and names Python 3 in its first line."""
    script = EXAMPLES / f"{name}.py"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env python3\n")


def test_readme_lists_the_examples_with_their_lines() -> None:
    """The table of examples/README.md has a row for each file, with its length."""
    readme = (EXAMPLES / "README.md").read_text()
    rows = re.findall(r"(?m)^\| \[(\w+\.py)\]\(\1\) \|.*\| (\d+) \|$", readme)
    files = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    lengths = {name: text.count("\n") for name, text in files.items()}
    assert {name: int(lines) for name, lines in rows} == lengths
