#!/usr/bin/env python3
"""Turn a file of the web server's into a page with numbered lines: a FastCGI filter.

No common web server asks filters any more; fcgi_app.client does:
request(address, params, role=Role.FILTER, data=file). The page of a file that has not
changed since is not made again, which is what FCGI_DATA_LAST_MOD is for.
"""

from __future__ import annotations

import html
from collections import OrderedDict

from fcgi_app import Request, run

LARGEST = 16 << 20  # bytes of a file; the whole of it and of its page are in memory
MOST_PAGES = 64  # that are kept

Key = tuple[str, int, int]
pages: OrderedDict[Key, bytes] = OrderedDict()  # the one used longest ago is first


def key_of(request: Request) -> Key | None:
    """What the file is known by: name, length, time of its last change."""
    asked = request.params
    name = asked.get("PATH_TRANSLATED") or asked.get("SCRIPT_FILENAME")
    if not name or request.data_length is None or request.data_last_mod is None:
        return None
    return name, request.data_length, request.data_last_mod


def number_lines(content: bytes) -> bytes:
    """Filter the file: every line with its number, and as text, not as markup."""
    text = html.escape(content.decode("utf-8", "backslashreplace"))
    rows = (f"{n:5}  {line}" for n, line in enumerate(text.splitlines(), start=1))
    return "\n".join(("<!DOCTYPE html>", "<pre>", *rows, "</pre>", "")).encode()


def filtered(request: Request) -> bytes | None:
    """Return the page; None if the file is too large.

    Raises:
        IncompleteData: less of the file came than was announced. Nothing has been
            printed then and nothing kept: the client gets a 500.
    """
    while request.stdin.read(65536):
        pass  # the body of the client's request comes first, and is of no use here
    key = key_of(request)
    if key is not None and key in pages:
        pages.move_to_end(key)
        return pages[key]  # the file is on its way, but need not be read
    request.start_filter_data()
    content = request.stdin.read(LARGEST + 1)
    if len(content) > LARGEST:
        return None
    page = number_lines(content)
    if key is not None:
        pages[key] = page
        if len(pages) > MOST_PAGES:
            pages.popitem(last=False)
    return page


def handle(request: Request) -> None:
    if request.params["FCGI_ROLE"] != "FILTER":
        request.deny(501, text="This program is a FastCGI filter.\n")
        return
    page = filtered(request)
    if page is None:
        request.deny(500, text=f"The file is larger than {LARGEST} bytes.\n")
        return
    request.stdout.write(b"Content-Type: text/html; charset=utf-8\r\n\r\n" + page)


run(handle)
