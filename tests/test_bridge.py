"""``fcgi-app bridge`` as a CGI program: one request, and what goes wrong with it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click
import pytest

from fcgi_app.cli.bridge import bridge as command
from fcgi_app.testing import ScriptApplication, run_script

from .bridges import SCRIPT, TIMEOUT, WORDS, body_of, cgi_environment, make_folder, run
from .scripted import HEAD, Scripted, build_answer
from .servers import wait_until

pytestmark = pytest.mark.slow  # each starts an interpreter

F_SETPIPE_SZ = 1031
"""From <linux/fcntl.h>; makes a pipe of this many bytes."""
MANPAGES = Path(__file__).parent.parent / "manpages"

ONE_AT_A_TIME = """
import socket, struct
connection, _ = socket.socket(fileno=0).accept()
stream = connection.makefile("rb")
def send(kind, content):
    header = struct.pack("!BBHHBB", 1, kind, 1, len(content), 0, 0)
    connection.sendall(header + content)
send(6, b"Content-Type: text/plain\\r\\n\\r\\n")
kind = content = None
while (kind, content) != (5, b""):
    _, kind, _, length, padding, _ = struct.unpack("!BBHHBB", stream.read(8))
    content = stream.read(length + padding)[:length]
    if kind == 5:
        send(6, content)
send(3, bytes(8))
"""
"""Echoes records; while it writes it does not read, like programs of libfcgi."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with make_folder() as path:
        yield path


@pytest.fixture
def app(folder: Path) -> Iterator[ScriptApplication]:
    with run_script(folder / "app.py") as running:
        yield running


# ---- one request


def test_environment_becomes_params(app: ScriptApplication) -> None:
    """All of it, but what would steer programs."""
    more = {"HTTP_PROXY": "http://evil.example", "LD_X": "1", "OF_THE_SITE": "ä=b"}
    done = run(app.address, stdin=b"", path_info="/params", query="a=1", **more)
    params = dict(line.split("=", 1) for line in body_of(done).decode().splitlines())
    assert params.pop("FCGI_ROLE") == "RESPONDER"
    expected = cgi_environment("/params", "a=1", OF_THE_SITE="ä=b")
    expected = {k: v for k, v in expected.items() if k not in ("PATH", "PYTHONPATH")}
    assert {k: v for k, v in params.items() if not k.startswith("LC_")} == expected


@pytest.mark.parametrize("size", [0, 1, 65536, 3 << 20])
def test_body(app: ScriptApplication, size: int) -> None:
    """As many bytes as CONTENT_LENGTH says reach the program, and come back."""
    body = hashlib.shake_128(b"bridge").digest(size)
    length = str(size)
    done = run(
        app.address, stdin=body + b"more", path_info="/echo", CONTENT_LENGTH=length
    )
    assert body_of(done) == body


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, b""),
        ({"CONTENT_LENGTH": ""}, b""),
        ({"CONTENT_LENGTH": "-1"}, b"body"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, b"body"),
        ({"CONTENT_LENGTH": "9"}, b"body"),
    ],
)
def test_body_of_unknown_length(
    app: ScriptApplication, environ: dict[str, str], expected: bytes
) -> None:
    """Without a length there is none, unless the request says that there is one."""
    done = run(app.address, stdin=b"body", path_info="/echo", **environ)
    assert body_of(done) == expected


def test_open_input_without_a_length(app: ScriptApplication) -> None:
    """Descriptor 0 that never ends holds up nothing."""
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [*WORDS, app.address],
            stdin=read,
            env=cgi_environment("/echo"),
            capture_output=True,
            timeout=TIMEOUT,
        )
    finally:
        os.close(read)
        os.close(write)
    assert body_of(done) == b""


def test_both_directions_at_once(folder: Path) -> None:
    """The answer to one line is read before the next is written."""
    with (
        run_script(folder / "app.py", env={"FCGI_APP_READ_AHEAD": "0"}) as app,
        subprocess.Popen(
            [*WORDS, app.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=cgi_environment("/lines", CONTENT_LENGTH="12"),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(len(HEAD)) == HEAD
        for line in (b"first\n", b"other\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line.upper()
        assert process.wait(TIMEOUT) == 0


def wait_until_full(pipe: IO[bytes]) -> None:
    """Wait until so much is in a pipe that a write to it would have to wait."""

    def is_full() -> bool:
        waiting = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(waiting, sys.byteorder) >= 12_000

    wait_until(is_full, "a full pipe")


@pytest.mark.parametrize("source", [SCRIPT, ONE_AT_A_TIME], ids=["ours", "blocking"])
def test_web_server_that_reads_nothing_before_the_body_is_out(
    folder: Path, source: str
) -> None:
    """4 MB are echoed though nobody reads until all of it has been written."""
    (folder / "app.py").write_text(source)
    body = hashlib.shake_128(b"late").digest(4 << 20)
    with (
        run_script(folder / "app.py") as app,
        subprocess.Popen(
            [*WORDS, app.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=cgi_environment("/echo", CONTENT_LENGTH=str(len(body))),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        guard = threading.Timer(TIMEOUT, process.kill)
        guard.start()
        half = len(body) // 2
        fcntl.fcntl(process.stdout, F_SETPIPE_SZ, 16384)
        process.stdin.write(body[:half])
        wait_until_full(process.stdout)
        process.stdin.write(body[half:])
        process.stdin.flush()
        answer = process.stdout.read()
        guard.cancel()
    assert answer == HEAD + body


def test_slow_reader_holds_up_the_application(app: ScriptApplication) -> None:
    """Nobody stores what could wait in the application."""
    with subprocess.Popen(
        [*WORDS, app.address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=cgi_environment("/much", str(64 << 20)),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(10)
        wait_until_full(process.stdout)
        # What it stored beyond a mebibyte would be in a file without a name.
        for _ in range(25):  # it takes 0.2 s to fill one
            time.sleep(0.02)
            files = Path(f"/proc/{process.pid}/fd").iterdir()
            open_files = [os.readlink(f) for f in files if int(f.name) > 2]
            assert not [name for name in open_files if "(deleted)" in name]
        assert len(process.stdout.read()) == len(HEAD) + (64 << 20) - 10
        assert process.wait(TIMEOUT) == 0


def test_answer_that_nobody_reads(app: ScriptApplication) -> None:
    """It waits for --timeout, not for ever, when the application has long ended."""
    with subprocess.Popen(
        [*WORDS, "--timeout", "0.5", app.address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cgi_environment("/much", "100000"),  # more than a pipe takes
    ) as process:
        assert process.wait(TIMEOUT) == 23
        assert process.stderr is not None
        told = process.stderr.read()
    assert told == (
        b"fcgi-app: error: cannot write the answer: nobody has read it for 0.5 seconds\n"
    )


def test_body_that_nobody_reads(app: ScriptApplication) -> None:
    """The answer comes, and the body is taken from the web server."""
    done = run(
        app.address,
        stdin=bytes(1 << 20),
        path_info="/argv",
        CONTENT_LENGTH=str(1 << 20),
    )
    assert int(body_of(done)) == app.pid


@pytest.mark.parametrize(("query", "expected"), [("0", 0), ("7", 7), ("256", 1)])
def test_exit_status(app: ScriptApplication, query: str, expected: int) -> None:
    """It is the application's."""
    done = run(app.address, path_info="/status", query=query)
    assert done.returncode == expected
    assert done.stdout == HEAD


def test_stderr(app: ScriptApplication) -> None:
    """FCGI_STDERR is standard error."""
    done = run(app.address, path_info="/stderr")
    assert (done.stdout, done.stderr) == (HEAD, b"a complaint\n")


def test_closed_stderr(app: ScriptApplication) -> None:
    """Nobody who reads standard error is no reason to spin or to fail."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*WORDS, app.address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=write,
            env=cgi_environment("/stderr"),
            timeout=TIMEOUT,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stdout) == (0, HEAD)


def test_reader_that_goes_away(app: ScriptApplication) -> None:
    """The request is aborted at once, while the application has nothing to say."""
    process = subprocess.Popen(
        [*WORDS, app.address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cgi_environment("/wait"),
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(len(HEAD) + 6) == HEAD + b"begun\n"
        process.stdout.close()
        assert process.wait(TIMEOUT) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
    wait_until(lambda: "aborted" in app.log, "the abort")


# ---- what goes wrong


def test_nobody_listens(folder: Path) -> None:
    """A page with 503, and the reason in the log; also with a body under way."""
    with subprocess.Popen(
        [*WORDS, f"{folder}/nobody"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cgi_environment(CONTENT_LENGTH=str(1 << 20)),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(1 << 20))  # it is taken, all of it
        process.stdin.flush()
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 7
    assert stdout.startswith(
        b"Status: 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\n503 "
    )
    message = f"fcgi-app: error: {folder}/nobody: No such file or directory\n"
    assert stderr.decode() == message


@pytest.mark.parametrize(
    ("sent", "page", "status", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"502 Bad Gateway", 8, "version 72"),
        (build_answer(b"no head"), b"502 Bad Gateway", 8, "no response head"),
        (build_answer(b""), b"502 Bad Gateway", 8, "without any output"),
        (b"", b"502 Bad Gateway", 52, "closed without END_REQUEST"),
        (build_answer(b"", 0, 2), b"503 Service Unavailable", 9, ""),
        (build_answer(b"", 0, 3), b"501 Not Implemented", 9, ""),
    ],
    ids=["no FastCGI", "no head", "no output", "nothing", "overloaded", "no such role"],
)
def test_strange_answers(
    folder: Path, sent: bytes, page: bytes, status: int, told: str
) -> None:
    """A page says so to the client, a line to the log."""
    with Scripted(folder, sent) as path:
        done = run(path)
    assert done.returncode == status
    assert done.stdout.startswith(b"Status: " + page + b"\r\n")
    assert done.stdout.endswith(b"\r\n\r\n" + page + b"\n")
    assert told in done.stderr.decode()


def test_cut_off_answer(folder: Path) -> None:
    """What has come is passed on."""
    with Scripted(folder, build_answer(HEAD + b"half", end=False)) as path:
        done = run(path)
    assert (done.returncode, done.stdout) == (18, HEAD + b"half")
    assert b"closed without END_REQUEST" in done.stderr


def test_timeout(folder: Path) -> None:
    """504 if nothing came; else the answer ends there."""
    with Scripted(folder, b"", close=False) as path:
        done = run("--timeout", "0.2", path)
    assert done.returncode == 28
    assert done.stdout.startswith(b"Status: 504 Gateway Timeout\r\n")
    assert b"nothing moved for 0.2 seconds" in done.stderr
    os.unlink(path)
    with Scripted(
        folder, build_answer(HEAD + b"begun", end=False), close=False
    ) as path:
        done = run("--timeout", "0.2", path)
    assert (done.returncode, done.stdout) == (28, HEAD + b"begun")


def test_status_line(app: ScriptApplication, folder: Path) -> None:
    """A status line is not for a CGI program to write."""
    with Scripted(
        folder, build_answer(b"HTTP/1.1 404 Gone Fishing\nX: 1\n\nbody")
    ) as path:
        done = run(path)
    assert done.stdout == b"Status: 404 Gone Fishing\r\nX: 1\r\n\r\nbody"


def test_full_disk(app: ScriptApplication) -> None:
    """23, when the answer cannot be written."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*WORDS, app.address],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=cgi_environment("/argv"),
            timeout=TIMEOUT,
        )
    assert done.returncode == 23
    assert done.stderr == (
        b"fcgi-app: error: cannot write the answer: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Missing argument 'ADDRESS'"),
        (["nonsense"], "address: 'nonsense'"),
        (["--start", "unix:/x"], "needs a command"),
        (["-f"], "needs a file"),
        (["--timeout", "1", "-f", "x"], "must come first"),
        (["-f", "/nobody/nowhere"], "/nobody/nowhere: No such file"),
        (["--start-timeout", "0", "unix:/x"], "not in the range"),
    ],
)
def test_wrong_usage(words: list[str], told: str) -> None:
    """An error for the log, and no answer: the web server makes a 500 of it."""
    done = run(*words)
    assert done.returncode in (1, 2)
    assert done.stdout == b""
    assert told in done.stderr.decode()


def test_page_and_help_have_the_same_options() -> None:
    """Each option of --help is in the man page, and no other."""
    page = (MANPAGES / "fcgi-app-bridge.1").read_text()
    documented = set(re.findall(r"^\.It Fl (?:\w , Fl )?-?([\w-]+)", page, re.M))
    names = {
        max(param.opts, key=len).lstrip("-")
        for param in command.params
        if isinstance(param, click.Option)
    }
    assert documented == names | {"help"}
