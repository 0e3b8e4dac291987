#!/usr/bin/env python3
"""Receive files from a form and tell their sizes and checksums.

Python has no parser for uploads of its own any more; ``multipart`` is a small and
careful one: ``pip install 'multipart>=2'``.
"""

from __future__ import annotations

import gc
import hashlib
import html
import os
from typing import BinaryIO

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    ParserLimitReached,
    parse_form_data,
)

from fcgi_app import Request, run

# Bytes of all large files of a form together.
MAX_BYTES = int(os.environ.get("UPLOAD_MAX_BYTES", 64 * 1024 * 1024))
MAX_PARTS = 16

FORM = """<form method="post" enctype="multipart/form-data">
<p><input type="file" name="file" multiple required>
<p><button>Upload</button>
</form>"""


def send_page(title: str, *body: str, status: str = "200 OK") -> None:
    # 200 goes without saying; a Status line would only tie the server's hands.
    if not status.startswith("200"):
        print("Status:", status, end="\r\n")
    print("Content-Type: text/html; charset=utf-8", end="\r\n\r\n")
    print(f"<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>")
    print(*body, sep="\n")


def sha256(file: BinaryIO) -> str:
    """Return the checksum of a file that may be larger than the memory."""
    digest = hashlib.sha256()
    while block := file.read(65536):
        digest.update(block)
    return digest.hexdigest()


def receive(request: Request) -> None:
    """Read the uploaded files and print one table row for each.

    Raises:
        MultipartError: the body is damaged, cut off, or larger than allowed.
    """
    environ = {
        **request.params,
        # Empty or absent when the client sent a chunked body: then "to the end".
        "CONTENT_LENGTH": request.params.get("CONTENT_LENGTH") or "-1",
        "wsgi.input": request.stdin,
    }
    _, files = parse_form_data(
        environ,
        strict=True,
        part_limit=MAX_PARTS,
        disk_limit=MAX_BYTES,
    )
    rows = []
    for _, part in files.iterallitems():
        # Large parts lie in temporary files. The request closes them when it ends,
        # in whichever way it ends.
        request.callback(part.close)
        # The name is the client's word: show it escaped, never open a path with it.
        name = html.escape(part.filename or "(no name)")
        rows.append(
            f"<tr><td>{name}<td>{part.size}<td><code>{sha256(part.file)}</code>"
        )
    head = "<tr><th>File<th>Bytes<th>SHA-256"
    send_page("Received", "<table>", head, *rows, "</table>")


def handle(request: Request) -> None:
    kind = request.params.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if request.params.get("REQUEST_METHOD") != "POST":
        send_page("Upload", FORM)
    elif kind != "multipart/form-data":
        send_page("Not an upload", FORM, status="415 Unsupported Media Type")
    else:
        try:
            receive(request)
        except MultipartError as error:
            # The temporary file of a part that never ended is garbage now, in a circle
            # of references. Collect it when the answer has gone, not some time.
            request.callback(gc.collect)
            too_large = isinstance(error, ParserLimitReached)
            status = "413 Content Too Large" if too_large else "400 Bad Request"
            send_page(
                "Upload refused", f"<p>{html.escape(str(error))}", FORM, status=status
            )


run(handle)
