"""``fcgi-app request``: real processes on both sides, as a shell starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fcgi_app.cli.request import request as command
from fcgi_app.testing import ScriptApplication, run_script

from .scripted import HEAD, Scripted, build_answer
from .webserver import PACKAGE_PARENT

pytestmark = pytest.mark.slow  # each starts an interpreter

MANPAGES = Path(__file__).parent.parent / "manpages"

SCRIPT = """
import os, sys
from fcgi_app import requests, set_exit_status
for number, request in enumerate(requests(), 1):
    what = request.params.get("SCRIPT_NAME")
    query = request.params.get("QUERY_STRING", "")
    if what == "/die":
        sys.stdout.write("Content-Type: text/plain\\n\\nhalf" if query else "")
        sys.stdout.flush()
        os._exit(1)
    print("Status: 404 Nothing Here" if what == "/404" else "X-Number: %d" % number)
    print("Content-Type: text/plain\\n")
    if what == "/params":
        for item in sorted(request.params.items()):
            print(*item, sep="=")
    elif what == "/echo":
        sys.stdout.buffer.write(sys.stdin.buffer.read())
    elif what == "/filter":
        body = sys.stdin.read()
        request.start_filter_data()
        print(body, request.params["FCGI_DATA_LENGTH"], sys.stdin.read(), end="")
    elif what == "/stderr":
        print("a complaint", file=sys.stderr)
    else:
        print("hello", end="")
    if what == "/status":
        set_exit_status(int(query))
    if what == "/odd":
        set_exit_status(number % 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("request")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ScriptApplication]:
    """One application for all tests that leave it alive."""
    (folder / "app.py").write_text(SCRIPT)
    with run_script(folder / "app.py") as app:
        yield app


@pytest.fixture
def address(running: ScriptApplication) -> str:
    return running.address


@pytest.fixture
def mortal(folder: Path, running: ScriptApplication) -> Iterator[str]:
    """The address of an application that may die."""
    with run_script(folder / "app.py") as app:
        yield app.address


def run(
    *words: str, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fcgi_app", "request", *words],
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=30,
    )


def output(*words: str, stdin: bytes = b"") -> bytes:
    """The standard output of a command that succeeds, with nothing else to say."""
    done = run(*words, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def sent_params(*words: str, cwd: Path | None = None) -> dict[str, str]:
    """The params that the application got."""
    done = run(*words, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


# ---- what is sent


def test_body_of_the_answer_alone(address: str) -> None:
    """Without options it is a GET of /, and the body comes out."""
    assert output(address) == b"hello"


def test_usual_params(address: str, tmp_path: Path) -> None:
    """What a web server of this host would send, the current directory as root."""
    params = sent_params(address, "/params?a=1&b=%20", cwd=tmp_path)
    assert params["SERVER_SOFTWARE"].startswith("fcgi-app/")
    assert params.pop("HTTP_USER_AGENT") == params.pop("SERVER_SOFTWARE")
    assert params == {
        "FCGI_ROLE": "RESPONDER",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_SCHEME": "http",
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/params?a=1&b=%20",
        "QUERY_STRING": "a=1&b=%20",
        "DOCUMENT_ROOT": str(tmp_path),
        "SCRIPT_NAME": "/params",
        "SCRIPT_FILENAME": f"{tmp_path}/params",
        "PATH_INFO": "",
        "REDIRECT_STATUS": "200",
        "HTTP_HOST": "localhost",
        "HTTP_ACCEPT": "*/*",
    }


def test_headers_and_params_of_ones_own(address: str) -> None:
    """-H and -p win over what would be sent; an empty header is taken away."""
    words = ["-H", "X-A: 1", "-H", "x-a: 2", "-H", "User-Agent: me", "-H", "Accept:"]
    words += ["-H", "X-Empty;", "-p", "REMOTE_USER=a=b", "-p", "SERVER_NAME="]
    params = sent_params(*words, address, "/params")
    assert params["HTTP_X_A"] == "1, 2"
    assert params["HTTP_USER_AGENT"] == "me"
    assert params["HTTP_X_EMPTY"] == ""
    assert "HTTP_ACCEPT" not in params
    assert (params["REMOTE_USER"], params["SERVER_NAME"]) == ("a=b", "")


def test_script_root_and_mount(address: str) -> None:
    """The three options that say where the script is."""
    params = sent_params(
        address,
        "/params",
        "--script",
        "/srv/app/index.php",
        "-p",
        "SCRIPT_NAME=/params",
    )
    assert params["SCRIPT_FILENAME"] == "/srv/app/index.php"
    assert params["DOCUMENT_ROOT"] == "/srv/app"
    params = sent_params(address, "/params/x", "--mount", "/params")
    assert (params["SCRIPT_NAME"], params["PATH_INFO"]) == ("/params", "/x")
    params = sent_params(address, "/params", "--document-root", "/srv/www/")
    assert params["SCRIPT_FILENAME"] == "/srv/www/params"
    assert params["DOCUMENT_ROOT"] == "/srv/www"


@pytest.mark.parametrize("word", ["text", "@file", "-", "@-"])
def test_data(address: str, tmp_path: Path, word: str) -> None:
    """-d is text, a file or standard input: a POST that says its length and type."""
    (tmp_path / "file").write_bytes(b"\0\xff" * 70000)
    given = {"text": b"text", "@file": b"\0\xff" * 70000}.get(word, b"from stdin\n")
    word = f"@{tmp_path}/file" if word == "@file" else word
    assert output(address, "/echo", "-d", word, stdin=b"from stdin\n") == given
    shown = output(address, "/params", "--data", word, stdin=b"from stdin\n")
    assert {
        b"CONTENT_LENGTH=%d" % len(given),
        b"CONTENT_TYPE=application/x-www-form-urlencoded",
        b"REQUEST_METHOD=POST",
    } <= set(shown.split(b"\n"))


def test_method_and_type_of_data(address: str) -> None:
    """-X and -H win."""
    params = sent_params(
        address, "/params", "-d", "{}", "-X", "PUT", "-H", "Content-Type: text/json"
    )
    assert (params["REQUEST_METHOD"], params["CONTENT_TYPE"]) == ("PUT", "text/json")


def test_roles(address: str, tmp_path: Path) -> None:
    """An authorizer gets no body; a filter gets its file, and what it should know."""
    params = sent_params(address, "/params", "--role", "authorizer")
    assert params["FCGI_ROLE"] == "AUTHORIZER"
    file = tmp_path / "page"
    file.write_text("page")
    words = ["--role", "filter", "--filter-data", str(file), "-d", "body"]
    assert output(address, "/filter", *words) == b"body 4 page"
    os.utime(file, (5, 5))
    params = sent_params(address, "/params", *words)
    assert params["FCGI_DATA_LAST_MOD"] == "5"


# ---- what comes back


def test_include(address: str) -> None:
    """-i shows the head as it came."""
    number = re.sub(rb"X-Number: \d+", b"X-Number: N", output(address, "-i"))
    assert number == b"X-Number: N\r\nContent-Type: text/plain\r\n\r\nhello"


def test_output_file(address: str, tmp_path: Path) -> None:
    """-o takes the answer; the file is not touched when there is none."""
    file = tmp_path / "answer"
    assert output(address, "-o", str(file)) == b""
    assert file.read_bytes() == b"hello"
    assert run(str(tmp_path / "nobody"), "-o", str(file)).returncode == 7
    assert file.read_bytes() == b"hello"
    assert run(address, "/stderr", "-o", str(file)).returncode == 0
    assert file.read_bytes() == b""


def test_stderr_of_the_application(address: str) -> None:
    """It goes to standard error, as it is."""
    done = run(address, "/stderr")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"a complaint\n")


@pytest.mark.parametrize(
    ("app_status", "expected"),
    [(0, 0), (1, 1), (7, 7), (255, 255), (300, 44), (256, 1), (-1, 255)],
)
def test_exit_status(address: str, app_status: int, expected: int) -> None:
    """It is the application's, as exit(3) would take it; never 0 for another."""
    done = run(address, f"/status?{app_status}")
    assert (done.returncode, done.stdout, done.stderr) == (expected, b"hello", b"")


def test_fail(address: str) -> None:
    """With -f, a status from 400 on is an error, and its page is not shown."""
    done = run(address, "/404")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"hello"
    done = run(address, "/404", "-f")
    assert (done.returncode, done.stdout) == (22, b"")
    assert done.stderr.endswith(b": HTTP status 404 Nothing Here\n")
    assert output(address, "-f") == b"hello"


# ---- repeating and timing


def numbers(shown: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"X-Number: (\d+)", shown)]


def test_repeat_and_time(address: str) -> None:
    """All answers are shown; the table has three times and what is extreme of them."""
    done = run(address, "-i", "--repeat", "5", "--time")
    assert done.returncode == 0
    first = numbers(done.stdout)[0]
    assert numbers(done.stdout) == list(range(first, first + 5))
    assert done.stdout.count(b"hello") == 5
    lines = done.stderr.decode().splitlines()
    assert lines[0].split() == ["ms", "connect", "first", "byte", "total"]
    assert [line.split()[0] for line in lines[1:4]] == ["min", "median", "max"]
    for line in lines[1:4]:
        connect, first_byte, total = map(float, line.split()[1:])
        assert connect > 0
        assert 0 < first_byte <= total
    assert lines[4] == "5 requests on 1 connection"


def test_new_connection(address: str) -> None:
    """Each request has its own connection."""
    done = run(address, "--repeat", "3", "--new-connection", "--time")
    assert done.stderr.endswith(b"3 requests on 3 connections\n")


def test_time_of_one(address: str) -> None:
    """One request has one line."""
    _, line = run(address, "--time").stderr.decode().splitlines()
    connect, first_byte, total = map(float, line.split())
    assert 0 < connect < first_byte <= total


def test_repeated_file(address: str, tmp_path: Path) -> None:
    """A body from a file is sent whole each time."""
    (tmp_path / "file").write_bytes(b"abc" * 50000)
    words = ["--repeat", "3", "-d", f"@{tmp_path}/file"]
    assert output(address, "/echo", *words) == b"abc" * 150000


def test_repeat_gives_the_first_status(address: str, mortal: str) -> None:
    """The exit status is the first that is not 0; what cannot be sent ends it all."""
    assert run(mortal, "/odd", "--repeat", "2").returncode == 1
    done = run(mortal, "/die", "--repeat", "3", "--time")
    assert done.returncode == 52
    assert done.stderr.count(b"error") == 1


# ---- what goes wrong


def test_nobody_listens(tmp_path: Path) -> None:
    """7, and the reason."""
    done = run(f"unix:{tmp_path}/nobody")
    assert (done.returncode, done.stdout) == (7, b"")
    message = f"fcgi-app: error: unix:{tmp_path}/nobody: No such file or directory\n"
    assert done.stderr == message.encode()


def test_cut_off(mortal: str) -> None:
    """52 without any answer."""
    done = run(mortal, "/die")
    assert (done.returncode, done.stdout) == (52, b"")
    assert b"closed without END_REQUEST" in done.stderr


def test_cut_off_in_the_body(mortal: str) -> None:
    """18, and what came is shown."""
    done = run(mortal, "/die?half")
    assert (done.returncode, done.stdout) == (18, b"half")


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", 8, "record of version 72"),
        (build_answer(b"no head"), 8, "no response head: b'no head'"),
        (build_answer(b"", 0, 2), 9, "refused: OVERLOADED"),
        (build_answer(HEAD + b"busy", 5, 3), 9, "refused: UNKNOWN_ROLE"),
        (build_answer(b""), 8, "without any output"),
    ],
    ids=["no FastCGI", "no head", "overloaded", "no such role", "no output"],
)
def test_strange_answers(tmp_path: Path, sent: bytes, status: int, told: str) -> None:
    """8 for what is no FastCGI, 9 for a refusal."""
    with Scripted(tmp_path, sent) as path:
        done = run(path)
    assert done.returncode == status
    assert told in done.stderr.decode()


def test_timeout(tmp_path: Path) -> None:
    """28 when nothing moves; what came until then is shown."""
    with Scripted(
        tmp_path, build_answer(HEAD + b"begun", end=False), close=False
    ) as path:
        done = run(path, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (28, b"begun")
    assert b"nothing moved for 0.2 seconds" in done.stderr


def test_output_that_cannot_be_written(address: str, tmp_path: Path) -> None:
    """23 for a full disk and for a file that cannot be made."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fcgi_app", "request", address],
            env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    assert done.returncode == 23
    assert done.stderr == (
        b"fcgi-app: error: cannot write to standard output: No space left on device\n"
    )
    done = run(address, "-o", f"{tmp_path}/no/file")
    assert done.returncode == 23
    assert b"/no/file: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("closed", "words", "status", "stdout", "told"),
    [
        ("<&-", "/echo -d -", 2, b"", b"'--data': -: Bad file descriptor"),
        (">&-", "/echo -d body", 23, b"", b"standard output: Bad file descriptor"),
        ("2>&-", "/echo -d body --time", 0, b"body", b""),
        ("2>&-", "/stderr", 0, None, b""),
        ("2>&-", "/die", 52, b"", b""),
    ],
)
def test_closed_streams(
    mortal: str,
    closed: str,
    words: str,
    status: int,
    stdout: bytes | None,
    told: bytes,
) -> None:
    """None of our files takes their place, and no message goes astray."""
    command = f"exec {sys.executable} -m fcgi_app request {mortal} {words} {closed}"
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == status
    assert stdout is None or done.stdout == stdout
    assert told in done.stderr
    assert bool(told) == bool(done.stderr)


def test_fail_shows_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    """The text of a status is the application's, or its client's."""
    with Scripted(tmp_path, build_answer(b"Status: 404 \x1b[31mRed\n\n")) as path:
        done = run(path, "-f")
    assert done.returncode == 22
    assert done.stderr.endswith(b": HTTP status 404 \\x1b[31mRed\n")


def test_output_that_does_not_block(address: str) -> None:
    """A pipe that somebody has set to non-blocking takes all the same."""
    words = [sys.executable, "-m", "fcgi_app", "request", address, "/echo", "-d", "-"]
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(write)
        assert process.stdin is not None
        process.stdin.write(bytes(1 << 20))
        process.stdin.close()
        with open(read, "rb") as pipe:
            assert len(pipe.read()) == 1 << 20
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nonsense"], "address: 'nonsense'"),
        (["unix:/x", "path"], "'path': must begin with /"),
        (["unix:/x", "http://:80/"], "no host"),
        (["unix:/x", "/a b"], "white space"),
        (["unix:/x", "/%00"], "NUL"),
        (["unix:/x", "/a", "--mount", "/b"], "is not below /b"),
        (["unix:/x", "/a", "--mount", "b"], "must begin with /"),
        (["unix:/x", "-H", "no colon"], "is not NAME: VALUE"),
        (["unix:/x", "-H", "a b: c"], "is no name of a header"),
        (["unix:/x", "-H", "a: b\nc"], "control character"),
        (["unix:/x", "-X", "A B"], "is no HTTP method"),
        (["unix:/x", "-p", "name"], "is not NAME=VALUE"),
        (["unix:/x", "-d", "1", "-d", "2"], "only once"),
        (["unix:/x", "-d", "@/nobody/nowhere"], "No such file"),
        (["unix:/x", "--role", "filter"], "belong together"),
        (["unix:/x", "--filter-data", "x"], "belong together"),
        (["unix:/x", "--role", "filter", "--filter-data", "-", "-d-"], "both read"),
        (["unix:/x", "--repeat", "0"], "0 is not in the range"),
        ([], "Missing argument 'ADDRESS'"),
    ],
)
def test_wrong_usage(words: list[str], told: str) -> None:
    """2, before anything is sent."""
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in done.stderr.decode()


def test_page_and_help_have_the_same_options() -> None:
    """Each option of --help is in the man page, and no other."""
    page = (MANPAGES / "fcgi-app-request.1").read_text()
    documented = set(re.findall(r"^\.It Fl (?:\w , Fl )?-?([\w-]+)", page, re.M))
    names = {
        max(param.opts, key=len).lstrip("-")
        for param in command.params
        if isinstance(param, click.Option)
    }
    assert documented == names | {"help"}
    for param in command.params:
        for option in param.opts if isinstance(param, click.Option) else ():
            if len(option) == 2:
                assert f".It Fl {option[1]} , Fl -" in page
