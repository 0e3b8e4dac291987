#!/usr/bin/env python3
"""Guard a log file and show it: libfcgi's log-dump, one program in two roles.

As an authorizer it lets in whoever has showme_the_log in the address, as LOG_ACCESS.
As a responder it shows the file that LOG_FILE names, to those who have been let in.
The web server sets LOG_FILE (SetEnv, fastcgi_param) or the process's environment.
"""

from __future__ import annotations

import html
import os
from pathlib import Path

from fcgi_app import Request, run

HEAD = {"Content-Type": "text/html; charset=utf-8"}
ERRORS = "backslashreplace"  # a log may hold anything
let_in = 0
kept_out = 0


def page(title: str, text: str) -> str:
    """Make a page of plain text. Nothing that came in is markup."""
    title, text = html.escape(title), html.escape(text)
    return f"<!DOCTYPE html>\n<title>{title}</title>\n<h2>{title}</h2>\n<p>{text}\n"


def refuse(request: Request, title: str) -> None:
    global kept_out
    kept_out += 1
    request.deny(403, HEAD, page(title, f"Total failed accesses: {kept_out}"))


def authorize(request: Request) -> None:
    global let_in
    if "showme_the_log" in request.params.get("QUERY_STRING", ""):
        let_in += 1
        request.allow({"LOG_ACCESS": f"ACCESS_OK.{let_in}"})
    else:
        refuse(request, "You have not specified a valid password")


def respond(request: Request) -> None:
    # A client cannot set this one: its headers become HTTP_*. Where nobody has set
    # it, libfcgi's program prints a null pointer and dies.
    if not request.params.get("LOG_ACCESS", "").startswith("ACCESS_OK"):
        refuse(request, "Access to the log denied")
        return
    path = request.params.get("LOG_FILE") or os.environ.get("LOG_FILE", "")
    if not path:
        refuse(request, "No file specified")
        return
    try:  # the file is closed when the request has ended
        file = Path(path).open(encoding="utf-8", errors=ERRORS)  # noqa: SIM115
    except OSError as error:
        request.deny(404, HEAD, page("No such log", f"{path}: {error.strerror}"))
        return
    write = request.stdout.write
    write(b"Content-Type: text/html; charset=utf-8\r\n\r\n")
    write(page(f"Contents of {path}", f"Successful accesses: {let_in}").encode())
    for line in request.enter_context(file):
        # Written, never a format: whatever is in the file is only text.
        write(b"<p>" + html.escape(line).encode())


def handle(request: Request) -> None:
    role = request.params["FCGI_ROLE"]
    if role == "AUTHORIZER":
        authorize(request)
    elif role == "RESPONDER":
        respond(request)
    else:
        request.deny(501, HEAD, page("Not a filter", role))


run(handle)
