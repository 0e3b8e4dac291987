"""The measured program with 16 threads, or one at a time if told so."""

from __future__ import annotations

import sys

from fcgi_app import Request, run


def hello(request: Request) -> None:
    """Read two variables, write a head and a line."""
    _ = request.params_map[b"REQUEST_METHOD"], request.params_map[b"REMOTE_ADDR"]
    request.stdout.write(b"Content-Type: text/plain\n\nHello, world\n")


run(hello, threads=int(sys.argv[1]) or None)
