"""The measured handlers as WSGI applications, for the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

BLOCK = b"x" * 65536
TEXT = [("Content-Type", "text/plain")]
BYTES = [("Content-Type", "application/octet-stream")]

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read two variables, answer with a line."""
    environ["REQUEST_METHOD"]
    environ["REMOTE_ADDR"]
    start_response("200 OK", TEXT)
    return [b"Hello, world\n"]


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Give the whole body back."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", BYTES)
    return [body]


def download(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with 64 MiB in pieces of 64 KiB."""
    start_response("200 OK", BYTES)
    return (BLOCK for _ in range(1024))


HANDLERS: dict[str, Application] = {"hello": hello, "echo": echo, "download": download}
