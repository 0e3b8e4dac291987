#!/usr/bin/env python3
"""Serve a WSGI application: as CGI, as FastCGI, with threads, from the same file.

The page shows where the application is mounted; /source sends this file, by the kernel.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

from fcgi_app import run
from fcgi_app.wsgi import WSGIHandler


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/source":
        start_response("200 OK", [("Content-Type", "text/x-python; charset=utf-8")])
        file = open(__file__, "rb")  # noqa: SIM115 - whoever sends it closes it
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped
    if path not in ("", "/"):
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"Nothing is here but / and /source\n"]
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    # environ has bytes, each as the character of that number (PEP 3333).
    mount = environ["SCRIPT_NAME"].encode("latin-1").decode(errors="replace")
    link = html.escape(f"{mount}/source", quote=True)
    return [f'<!DOCTYPE html>\n<p>Hello from <a href="{link}">{link}</a>\n'.encode()]


run(WSGIHandler(app), threads=4)
