#!/usr/bin/env python3
"""Show all that a request brings: libfcgi's echo example, in Python.

Made for looking at a new set-up. It also prints the environment of the process,
so do not leave it where strangers can call it.
"""

from __future__ import annotations

import codecs
import html
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from fcgi_app import Request, requests


def readable(pieces: Iterable[bytes]) -> Iterator[str]:
    """Turn bytes into HTML text; what is not UTF-8 shows as \\xNN."""
    for text in codecs.iterdecode(pieces, "utf-8", "backslashreplace"):
        yield html.escape(text)


def print_standard_input(request: Request) -> None:
    # In pieces, because a body may be larger than the memory.
    body = readable(iter(lambda: request.stdin.read(65536), b""))
    first = next(body, "")
    if not first and not request.incomplete:
        print("No data from standard input.<p>")
        return
    print("Standard input:<br>\n<pre>")
    for text in chain([first], body):
        print(text, end="")
    if request.incomplete:  # fewer bytes came than CONTENT_LENGTH promised
        print("Error: Not enough bytes received on standard input")
    print("\n</pre><p>")


def print_environment(label: str, variables: Mapping[str, str]) -> None:
    print(f"{label}:<br>\n<pre>")
    for name, value in variables.items():
        # fsencode() gives back the very bytes that the web server sent.
        print(*readable([os.fsencode(f"{name}={value}")]), sep="")
    print("</pre><p>")


initial_environment = dict(os.environ)  # before the first request

for number, request in enumerate(requests(), start=1):
    print("Content-Type: text/html; charset=utf-8", end="\r\n\r\n")
    print("<!DOCTYPE html>\n<title>FastCGI echo</title>")
    print("<h1>FastCGI echo</h1>")
    print(f"Request number {number},  Process ID: {os.getpid()}<p>")
    print_standard_input(request)
    # What the web server said. os.environ has it too, between PATH, HOME and others.
    role = request.params["FCGI_ROLE"]
    print_environment("Request environment", {"FCGI_ROLE": role, **request.params})
    print_environment("Initial environment", initial_environment)
