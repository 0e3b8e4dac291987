"""A program with many faces, picked by PATH_INFO: what no example has a use for.

It is the bare loop, or ``run(handler)`` if PROBE_RUN is set.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from urllib.parse import parse_qs

from fcgi_app import Request, accept, current_request, run

PLAIN = "Content-Type: text/plain\r\n\r\n"
BINARY = bytes(range(256)) * 64
FILE = bytes(range(251)) * 12_000
SHOWN = (
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
    "HTTP_COOKIE",
    "HTTP_X_PROBE",
    "HTTP_AUTHORIZATION",
    "HTTP_PROXY",
    "FCGI_ROLE",
)


def query(name: str) -> str:
    """One value of the query string."""
    return parse_qs(os.environ["QUERY_STRING"])[name][0]


def wait_at_gate() -> None:
    """Tell the test that this request has come here, and wait for its word."""
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect(query("gate"))
        gate.recv(1)


def show_environment() -> None:
    """The variables that must be the same everywhere."""
    print("Content-Type: application/json", end="\r\n\r\n")
    print(json.dumps({name: os.environ.get(name) for name in SHOWN}))


def echo() -> None:
    """The body as it came, its length in a header."""
    body = sys.stdin.buffer.read()
    print("Content-Type: application/octet-stream")
    print(f"X-Received: {len(body)}", end="\n\n")
    sys.stdout.buffer.write(body)


def echo_as_it_comes() -> None:
    """The body piece by piece, the answer half out before the body is in."""
    print("Content-Type: application/octet-stream", end="\r\n\r\n")
    while piece := sys.stdin.buffer.read(8192):
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()


def not_found() -> None:
    """A status and headers of our own, one of them twice."""
    print("Status: 404 Nothing Here")
    print("Content-Type: text/plain; charset=utf-8")
    print("X-Probe: one two")
    print("Set-Cookie: a=1; Path=/")
    print("Set-Cookie: b=2", end="\r\n\r\n")
    print("nothing here: ä")


def redirect_path() -> None:
    """Location without Status, a path."""
    print("Location: /elsewhere?x=1", end="\r\n\r\n")


def redirect_url() -> None:
    """Location without Status, a URL."""
    print("Location: https://example.org/elsewhere", end="\r\n\r\n")


def binary() -> None:
    """Every byte value."""
    print("Content-Type: application/octet-stream", end="\r\n\r\n")
    sys.stdout.buffer.write(BINARY)


def early_head() -> None:
    """Head and first line go out before the rest is known."""
    print("Content-Type: text/plain\r\nX-Early: yes", end="\r\n\r\n")
    print("first", flush=True)
    wait_at_gate()
    print("last")


def gate() -> None:
    """Everything after the gate."""
    wait_at_gate()
    print(PLAIN + "through the gate " * 1000)


def log_line() -> None:
    """A line for the web server's error log."""
    print(f"probe says {query('word')}", file=sys.stderr)
    print(PLAIN + "logged")


def log_before() -> None:
    """16 KiB on standard error, then the answer."""
    for _ in range(64):
        print("before " + "x" * 248, file=sys.stderr)
    print(PLAIN + "logged much")


def log_after() -> None:
    """The head, then more on standard error than any buffer holds."""
    print(PLAIN, end="", flush=True)
    for _ in range(512):
        print("after  " + "x" * 248, file=sys.stderr)
    print("logged much")


def log_only() -> None:
    """Standard error and no answer at all."""
    print("probe says nothing else", file=sys.stderr)


def child_environment() -> None:
    """What a child process finds in its environment."""
    command = 'echo "$PATH_INFO|$HTTP_COOKIE|$HTTP_PROXY"'
    shown = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=True)
    print(PLAIN + shown.stdout.decode(), end="")


def child_output() -> None:
    """A child that writes to descriptor 1, between two prints."""
    print(PLAIN + "before")
    sys.stdout.flush()
    os.system("echo from the child")
    print("after")


def child_input() -> None:
    """A child that reads the body from descriptor 0 and sends it back."""
    print(PLAIN, end="", flush=True)
    os.system("cat")


def early_answer() -> None:
    """A whole answer, and not one byte of the body read."""
    print("Content-Type: text/plain", end="\r\n\r\n")
    print("no thanks\n" * 5000, end="")


def much() -> None:
    """8 MiB, in pieces that are flushed."""
    print(PLAIN, end="", flush=True)
    for _ in range(128):
        sys.stdout.buffer.write(b"m" * 65536)
        sys.stdout.flush()


def file() -> None:
    """A file of 3 MB that the kernel sends, with text before and behind it."""
    request = current_request()
    assert request is not None
    with tempfile.TemporaryFile() as sent:
        sent.write(FILE)
        sent.flush()
        print("Content-Type: application/octet-stream", end="\r\n\r\n")
        print("before")
        request.send_file(sent)
        print("behind")


def raise_before() -> None:
    """An exception before anything was written."""
    raise RuntimeError(f"probe raises {query('word')}")


def raise_deep(depth: int = 500) -> None:
    """An exception with a traceback of more than 16 KiB."""
    if depth == 0:
        raise_before()
    if depth % 2:
        raise_deep(depth - 1)
    else:  # another line, or Python would print "previous line repeated"
        raise_deep(depth - 1)


def raise_in_head() -> None:
    """An exception in the middle of the head."""
    print("Content-Type: text/plain")
    print("X-Half: ", end="", flush=True)
    raise RuntimeError(f"probe raises {query('word')}")


def raise_after() -> None:
    """An exception when head and part of the body are out."""
    print(PLAIN + "first", flush=True)
    raise RuntimeError(f"probe raises {query('word')}")


def exit_before() -> None:
    """sys.exit before anything was written."""
    sys.exit(3)


def exit_after() -> None:
    """sys.exit after a whole answer."""
    print(PLAIN + "leaving")
    sys.exit(3)


def crash_before() -> None:
    """The process is gone without a word."""
    os._exit(4)


def crash_in_head() -> None:
    """The process is gone in the middle of the head."""
    print("Content-Type: text/plain", flush=True)
    os._exit(4)


def crash_after() -> None:
    """The process is gone in the middle of the body."""
    print(PLAIN + "first", flush=True)
    os._exit(4)


def open_head() -> None:
    """A head that never ends."""
    print("Content-Type: text/plain\r\nX-Open: yes\r\n", end="")


def no_head() -> None:
    """A body without any head."""
    print("<p>this is no head</p>")


def nothing() -> None:
    """No output at all."""


def close_streams() -> None:
    """Both output streams closed by the program."""
    print(PLAIN + "closed")
    sys.stderr.close()
    sys.stdout.close()


def serve(_: Request | None = None) -> None:
    """One request: the last part of the path names the face."""
    name = os.environ.get("PATH_INFO", "").rpartition("/")[2].replace("-", "_")
    FACES.get(name, show_environment)()


FACES: dict[str, Callable[[], None]] = {
    face.__name__: face
    for face in (
        show_environment,
        echo,
        echo_as_it_comes,
        not_found,
        redirect_path,
        redirect_url,
        binary,
        early_head,
        gate,
        log_line,
        log_before,
        log_after,
        log_only,
        child_environment,
        child_output,
        child_input,
        early_answer,
        much,
        file,
        raise_before,
        raise_deep,
        raise_in_head,
        raise_after,
        exit_before,
        exit_after,
        crash_before,
        crash_in_head,
        crash_after,
        open_head,
        no_head,
        nothing,
        close_streams,
    )
}

if "PROBE_RUN" in os.environ:
    run(serve)
while accept():
    serve()
