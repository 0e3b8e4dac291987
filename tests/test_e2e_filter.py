"""The filter role, with our own client: no common web server sends it today.

nginx, Apache's modules, lighttpd and HAProxy know responders, and some of them
authorizers; none of them has a way to ask a filter.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fcgi_app.client import Response, request
from fcgi_app.codec.constants import Role

from .servers import EXAMPLES
from .webserver import PACKAGE_PARENT, App

SERVED = 1_700_000_000  # seconds since 1970: when the file was changed last

Ask = Callable[..., Response]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """``ask(data, **params)`` sends filter.py one request; it has to survive all."""
    script = (EXAMPLES / "filter.py").read_text()
    with App(tmp_path, script) as app:
        address = f"unix:{tmp_path}/app.sock"

        def send(
            file: bytes, *, body: bytes = b"", role: int = 3, **more: str
        ) -> Response:
            params = {
                "REQUEST_METHOD": "POST" if body else "GET",
                "CONTENT_LENGTH": str(len(body)),
                "PATH_TRANSLATED": "/srv/www/a.txt",
                "FCGI_DATA_LENGTH": str(len(file)),
                "FCGI_DATA_LAST_MOD": str(SERVED),
                **more,
            }
            sent = file if role == Role.FILTER else None
            return request(
                address, params, stdin=body, role=role, data=sent, timeout=20
            )

        yield send
        assert app.stop() == 0


def page_of(*lines: str) -> bytes:
    rows = [f"{n:5}  {line}" for n, line in enumerate(lines, start=1)]
    return "\n".join(("<!DOCTYPE html>", "<pre>", *rows, "</pre>", "")).encode()


def test_a_file_is_filtered(ask: Ask) -> None:
    """A file in, the file with numbered lines out, its markup shown as text."""
    answer = ask("one\n<b>zwö</b>\n".encode() + b"\xff\n")
    assert (answer.status, answer.stderr) == (200, b"")
    assert dict(answer.headers) == {"Content-Type": "text/html; charset=utf-8"}
    assert answer.body == page_of("one", "&lt;b&gt;zwö&lt;/b&gt;", "\\xff")


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 3_000_000])
def test_any_size(ask: Ask, size: int) -> None:
    """The file may have any number of records, none among them."""
    line = "x" * size
    assert ask(line.encode()).body == (page_of(line) if size else page_of())


def test_the_body_comes_first(ask: Ask) -> None:
    """What a client has posted is no part of the file."""
    answer = ask(b"the file", body=b"posted " * 100_000)
    assert answer.body == page_of("the file")


def test_an_unchanged_file_is_filtered_once(ask: Ask) -> None:
    """Name, length and FCGI_DATA_LAST_MOD tell that a page can be sent again."""
    assert ask(b"first").body == page_of("first")
    # Another content under the same three: seen only where it is read again.
    assert ask(b"other").body == page_of("first")
    assert ask(b"other", FCGI_DATA_LAST_MOD=str(SERVED + 1)).body == page_of("other")
    assert ask(b"longer file").body == page_of("longer file")
    assert ask(b"other", PATH_TRANSLATED="/srv/www/b.txt").body == page_of("other")
    assert ask(b"first").body == page_of("first")


def test_a_large_file_that_is_not_read(ask: Ask) -> None:
    """An early answer: megabytes of DATA that nobody reads are thrown away."""
    size = 5_000_000
    assert len(ask(bytes(size)).body) > size
    for _ in range(3):
        assert len(ask(b"x" * size).body) > size


@pytest.mark.parametrize(
    "unknown",
    [
        {"FCGI_DATA_LAST_MOD": ""},
        {"FCGI_DATA_LENGTH": ""},
        {"FCGI_DATA_LAST_MOD": "yesterday"},
        {"PATH_TRANSLATED": ""},
    ],
    ids=["no-time", "no-length", "nonsense", "no-name"],
)
def test_a_file_that_is_not_known_is_not_kept(
    ask: Ask, unknown: dict[str, str]
) -> None:
    """Where one of the three is missing, each file is read."""
    assert ask(b"first", **unknown).body == page_of("first")
    assert ask(b"other", **unknown).body == page_of("other")


def test_many_files(ask: Ask) -> None:
    """The pages that are kept are bounded in number; the others are made again."""
    for number in range(100):
        name = f"/srv/{number}"
        assert ask(b"%d" % number, PATH_TRANSLATED=name).body == page_of(str(number))
    assert ask(b"x", PATH_TRANSLATED="/srv/0").body == page_of("x")
    assert ask(b"xx", PATH_TRANSLATED="/srv/99").body == page_of(
        "xx".replace("xx", "99")
    )


def test_a_file_that_is_too_large(ask: Ask) -> None:
    """It is refused, and costs no memory for good."""
    answer = ask(b"x" * ((16 << 20) + 1))
    assert answer.status == 500
    assert answer.body == b"The file is larger than 16777216 bytes.\n"
    assert ask(b"next").body == page_of("next")


@pytest.mark.parametrize("role", [Role.RESPONDER, Role.AUTHORIZER])
def test_other_roles(ask: Ask, role: int) -> None:
    """What is asked as a responder or an authorizer says that it is neither."""
    answer = ask(b"", role=role)
    assert (answer.status, answer.body) == (501, b"This program is a FastCGI filter.\n")


def test_as_cgi() -> None:
    """A CGI program is a responder, and has no file to filter."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "filter.py")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE_PARENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert b"Status: 501 " in done.stdout


def test_a_kept_connection(tmp_path: Path) -> None:
    """One connection serves filters and responders in turn."""
    source = """
        from fcgi_app import *
        for request in requests():
            text = request.stdin.read()
            if request.role == 3:
                start_filter_data()
                text += b"+" + request.stdin.read()
            print("Content-Type: text/plain", end="\\r\\n\\r\\n")
            print(text.decode(), request.data_length, request.data_last_mod)
    """
    from fcgi_app.client import Client

    with (
        App(tmp_path, source, family=socket.AF_INET) as app,
        Client(f"127.0.0.1:{app.listener.getsockname()[1]}", keep_conn=True) as client,
    ):
        about = {"FCGI_DATA_LENGTH": "4", "FCGI_DATA_LAST_MOD": str(SERVED)}
        for _ in range(3):
            filtered = client.request(about, stdin=b"in", role=3, data=b"file")
            assert filtered.body == b"in+file 4 %d\n" % SERVED
            assert client.request({}, stdin=b"in").body == b"in None None\n"
