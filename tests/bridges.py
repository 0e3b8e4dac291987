"""``fcgi-app bridge`` as a CGI program of the tests, and what answers it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .webserver import PACKAGE_PARENT

__all__ = ["SCRIPT", "TIMEOUT", "WORDS", "body_of", "cgi_environment", "find_pids"]
__all__ += ["make_folder", "run"]

TIMEOUT = 30
WORDS = [sys.executable, "-m", "fcgi_app", "bridge"]

SCRIPT = """
import os, socket, sys
from fcgi_app import requests, set_exit_status
started = dict(os.environ)
for request in requests():
    what, query = os.environ["PATH_INFO"], os.environ.get("QUERY_STRING", "")
    if what == "/die":
        os._exit(1)
    if what == "/nph":
        sys.stdout.write("HTTP/1.1 404 Gone Fishing\\r\\n")
    print("Content-Type: text/plain\\n", flush=True)
    if what == "/params":
        for item in sorted(request.params.items()):
            print(*item, sep="=")
    elif what == "/started":
        for item in sorted(started.items()):
            print(*item, sep="=")
    elif what == "/argv":
        print(os.getpid(), *sys.argv[1:])
    elif what == "/echo":
        while piece := sys.stdin.buffer.read1(65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
    elif what == "/lines":
        while line := sys.stdin.readline():
            print(line.upper(), end="", flush=True)
    elif what == "/much":
        print("x" * int(query), end="")
    elif what == "/gate":
        print("begun", flush=True)
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(query)
            gate.recv(1)
        print("ended")
    elif what == "/stderr":
        print("a complaint", file=sys.stderr)
    elif what == "/wait":
        print("begun", flush=True)
        request.wait_aborted()
        print("aborted", file=sys.__stderr__, flush=True)
    elif what == "/status":
        set_exit_status(int(query))
"""


@contextmanager
def make_folder() -> Iterator[Path]:
    """A directory with a short name and the script, for a socket's has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    path.chmod(0o755)
    (path / "app.py").write_text(SCRIPT)
    yield path
    shutil.rmtree(path)


def cgi_environment(
    path_info: str = "", query: str = "", **more: str
) -> dict[str, str]:
    """The environment of a CGI program."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": PACKAGE_PARENT,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/app",
        "PATH_INFO": path_info,
        "QUERY_STRING": query,
        "HTTP_COOKIE": "secret=1",
        **more,
    }


def run(
    *words: str, stdin: bytes = b"", **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a CGI program."""
    return subprocess.run(
        [*WORDS, *words],
        input=stdin,
        env=cgi_environment(**environ),
        capture_output=True,
        timeout=TIMEOUT,
    )


def body_of(
    done: subprocess.CompletedProcess[bytes], *, started: bool = False
) -> bytes:
    """The body of an answer that is as it should be.

    ``started``: and it has started a pool, which has said so.
    """
    assert done.returncode == 0, done.stderr
    assert (b"listening on" if started else b"") in done.stderr
    assert started or not done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert head == b"Content-Type: text/plain"
    return body


def find_pids(mark: Path) -> list[int]:
    """The processes whose command line names this directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(mark) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]
