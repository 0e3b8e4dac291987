#!/usr/bin/env python3
"""A guestbook: a form, a database, and nothing that a visitor writes is trusted.

GUESTBOOK_DB names the SQLite file. The default is in the directory for temporary
files: outside of what the web server publishes, but perhaps gone tomorrow.
"""

from __future__ import annotations

import html
import os
import sqlite3
import tempfile
from contextlib import closing
from urllib.parse import parse_qsl

from fcgi_app import Request, run

MAX_BODY = 16 * 1024  # bytes of a whole form
MAX_LENGTH = {"name": 80, "message": 2000}  # characters
SHOWN = 50  # entries on the page

FORM = f"""<form method="post">
<p><label for="name">Name:</label>
<input id="name" name="name" maxlength="{MAX_LENGTH["name"]}" required>
<p><label for="message">Message:</label><br>
<textarea id="message" name="message" rows="4" cols="60"
 maxlength="{MAX_LENGTH["message"]}" required></textarea>
<p><button>Sign</button>
</form>"""


class BadInput(Exception):
    """What came is not a form of ours; the text of the answer's Status line."""


def send_page(title: str, *body: str, head: tuple[str, ...] = ()) -> None:
    print(*head, "Content-Type: text/html; charset=utf-8", sep="\r\n", end="\r\n\r\n")
    print(f"<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>")
    print(*body, sep="\n")


def open_database(request: Request) -> sqlite3.Connection:
    """Open the database until the end of the request, which closes it."""
    default = os.path.join(tempfile.gettempdir(), f"guestbook-{os.getuid()}.sqlite3")
    path = os.environ.get("GUESTBOOK_DB") or default
    # Several processes may serve this script. SQLite's locks keep them apart;
    # the timeout (seconds) makes one wait for another instead of failing.
    db = request.enter_context(closing(sqlite3.connect(path, timeout=10)))
    db.execute(
        "CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, name TEXT NOT NULL,"
        " message TEXT NOT NULL, signed TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
    )
    return db


def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that was sent with POST.

    Raises:
        BadInput: it is too large, cut off, of another kind or not well-formed.
    """
    kind = request.params.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadInput("415 Unsupported Media Type")
    # One byte more than allowed is enough to know; never read without a limit.
    body = request.stdin.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise BadInput("413 Content Too Large")
    if request.incomplete:
        raise BadInput("400 Bad Request")
    try:
        return dict(parse_qsl(body.decode(), errors="strict", max_num_fields=10))
    except ValueError as error:  # too many fields, or not UTF-8
        raise BadInput("400 Bad Request") from error


def sign(request: Request, db: sqlite3.Connection) -> None:
    form = read_form(request)
    entry = {field: form.get(field, "").strip() for field in MAX_LENGTH}
    if not all(0 < len(text) <= MAX_LENGTH[field] for field, text in entry.items()):
        raise BadInput("400 Bad Request")
    with db:  # commits, or rolls back if something is raised
        # Placeholders, never an f-string: the values stay values.
        db.execute("INSERT INTO entry (name, message) VALUES (:name, :message)", entry)
    # Post, redirect, get: a reload then repeats the GET, not the signature. 303 says
    # that the next request is a GET, which 302 (what Location alone would become)
    # does not promise. "?" is this very address, wherever the server put us.
    print("Status: 303 See Other", "Location: ?signed", sep="\r\n", end="\r\n\r\n")


def show(db: sqlite3.Connection) -> None:
    rows = db.execute(
        "SELECT name, message, signed FROM entry ORDER BY id DESC LIMIT ?", (SHOWN,)
    )
    entries = (
        # Escape at the moment of printing: "<script>" is then only text.
        f"<h2>{html.escape(name)}</h2>\n<p><small>{signed} UTC</small>\n"
        f'<p style="white-space: pre-wrap">{html.escape(message)}'
        for name, message, signed in rows
    )
    send_page("Guestbook", FORM, *entries)


def handle(request: Request) -> None:
    method = request.params.get("REQUEST_METHOD", "GET")
    try:
        if method == "POST":
            sign(request, open_database(request))
        elif method in ("GET", "HEAD"):
            show(open_database(request))
        else:
            raise BadInput("405 Method Not Allowed")
    except BadInput as error:
        limits = " and ".join(f"{field} up to {n}" for field, n in MAX_LENGTH.items())
        send_page(
            str(error),
            f"<p>Please send the form with {limits} characters.",
            '<p><a href="?">Back to the guestbook</a>',
            head=(f"Status: {error}", "Allow: GET, HEAD, POST"),
        )


# run() calls handle for each request. If it raises, the client gets a plain 500,
# the log gets the traceback, and the next request is served.
run(handle)
