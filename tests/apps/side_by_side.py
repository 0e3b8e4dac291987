"""A program for the tests of threads: one at a time, or THREADS at a time.

PATH_INFO picks what a request does; what it learns of an abort goes to the file that
the query string names.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from urllib.parse import parse_qs

from fcgi_app import Request, run

HEAD = b"Content-Type: text/plain\r\n\r\n"


def query(request: Request, name: str) -> str:
    """One value of the query string."""
    return parse_qs(request.params["QUERY_STRING"])[name][0]


def tell(request: Request, word: str) -> None:
    """Add a line to the file that the test reads."""
    with Path(query(request, "file")).open("a") as file:
        file.write(f"{word}\n")


def wait(request: Request) -> None:
    """Wait for the abort, and tell how long it took since the request began."""
    tell(request, "began")
    aborted = request.wait_aborted(15)
    tell(request, f"aborted {aborted} {time.monotonic()}")


def gate(request: Request) -> None:
    """Wait for the test's word."""
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(query(request, "gate"))
        waiting.recv(1)
    request.stdout.write(HEAD + b"through " + query(request, "name").encode())


def echo(request: Request) -> None:
    """The body as it came."""
    request.stdout.write(HEAD + request.stdin.read())


def handler(request: Request) -> None:
    """One request: the last part of the path names what it does."""
    name = request.params.get("PATH_INFO", "").rpartition("/")[2]
    {"wait": wait, "gate": gate}.get(name, echo)(request)


threads = os.environ.get("THREADS")
run(handler, threads=int(threads) if threads else None)
