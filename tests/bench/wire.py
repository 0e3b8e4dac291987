"""The bytes of a request as nginx sends it, and a client for one answer."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from fcgi_app.codec.constants import HEADER_LEN, RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import build_begin_request, build_stream, parse_header

__all__ = ["MANY_PARAMS", "MARK", "NGINX_PARAMS", "build_request", "fetch"]

MARK = "@" * 24
"""The load generator puts other digits here in each request."""

USER_AGENT = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/128.0.0.0 Safari/537.36"
)

COOKIE = (
    "session=4f0c2b9e8d7a6153b1a2c3d4; theme=dark; "
    "_ga=GA1.1.1093217649.1724659200; consent=necessary,statistics"
)
NGINX_PARAMS = (
    ("QUERY_STRING", "page=2&order=date"),
    ("REQUEST_METHOD", "GET"),
    ("CONTENT_TYPE", ""),
    ("CONTENT_LENGTH", ""),
    ("SCRIPT_NAME", "/app"),
    ("REQUEST_URI", "/app/articles/list?page=2&order=date"),
    ("DOCUMENT_URI", "/app/articles/list"),
    ("DOCUMENT_ROOT", "/usr/share/nginx/html"),
    ("SERVER_PROTOCOL", "HTTP/1.1"),
    ("REQUEST_SCHEME", "http"),
    ("GATEWAY_INTERFACE", "CGI/1.1"),
    ("SERVER_SOFTWARE", "nginx/1.22.1"),
    ("REMOTE_ADDR", "127.0.0.1"),
    ("REMOTE_PORT", "51734"),
    ("REMOTE_USER", ""),
    ("SERVER_ADDR", "127.0.0.1"),
    ("SERVER_PORT", "8080"),
    ("SERVER_NAME", "www.example.org"),
    ("REDIRECT_STATUS", "200"),
    ("SCRIPT_FILENAME", "/usr/share/nginx/html/app"),
    ("PATH_INFO", "/articles/list"),
    ("HTTP_HOST", "www.example.org:8080"),
    ("HTTP_USER_AGENT", USER_AGENT),
    ("HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5"),
    ("HTTP_ACCEPT_ENCODING", "gzip, deflate, br, zstd"),
    ("HTTP_CONNECTION", "keep-alive"),
    ("HTTP_REFERER", "http://www.example.org:8080/app/articles/list?page=1"),
    ("HTTP_COOKIE", COOKIE),
    ("HTTP_UPGRADE_INSECURE_REQUESTS", "1"),
)
"""30 params of 1.1 KB: nginx's fastcgi_params and a browser's header fields."""

_MORE = 90
_SIZE = 30 * 1024
"""Bytes of the PARAMS stream, near enough."""
_HEADER = "a header field of an application behind a gateway; "


def _many_params() -> tuple[tuple[str, str], ...]:
    """Add header fields of equal length to nginx's params."""
    used = sum(len(name) + len(value) + 2 for name, value in NGINX_PARAMS)
    names = [f"HTTP_X_APPLICATION_FIELD_{number:02d}" for number in range(_MORE)]
    # 5: one byte says how long the name is, four how long the value
    length = (_SIZE - used) // _MORE - len(names[0]) - 5
    value = (_HEADER * (length // len(_HEADER) + 1))[:length]
    return *NGINX_PARAMS, *((name, value) for name in names)


MANY_PARAMS = _many_params()
"""120 params of 30 KB: nginx's 30 and 90 ``X-`` header fields."""


def build_request(
    *,
    keep: bool,
    body: bytes = b"",
    marked: bool = False,
    pairs: Sequence[tuple[str, str]] = NGINX_PARAMS,
) -> bytes:
    """Build every byte of one request with id 1.

    Args:
        keep: ask for the connection to be kept.
        body: content of STDIN; not empty makes it a POST.
        marked: put ``MARK`` into the cookie.
        pairs: names and values of the params.
    """
    params = dict(pairs)
    if body:
        params["REQUEST_METHOD"] = "POST"
        params["CONTENT_TYPE"] = "application/octet-stream"
        params["CONTENT_LENGTH"] = str(len(body))
    if marked:
        params["HTTP_COOKIE"] = f"{COOKIE}; token={MARK}"
    encoded = ((name.encode(), value.encode()) for name, value in params.items())
    return (
        build_begin_request(1, Role.RESPONDER, keep_conn=keep)
        + build_stream(RecordType.PARAMS, 1, build_params(encoded), end=True)
        + build_stream(RecordType.STDIN, 1, body, end=True)
    )


def fetch(path: str, *, seconds: float = 20.0) -> bytes:
    """Send one request to the Unix socket ``path``; give the answer's body.

    Raises:
        OSError: no connection, or nothing came for ``seconds``.
        RemoteProtocolError: the answer ended early.
        ValueError: it holds no CGI head.
    """
    answer = bytearray()
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as file:
        connection.settimeout(seconds)
        connection.connect(path)
        connection.sendall(build_request(keep=False))
        while True:
            header = parse_header(file.read(HEADER_LEN))
            content = file.read(header.content_length + header.padding_length)
            if header.record_type == RecordType.END_REQUEST:
                break
            if header.record_type == RecordType.STDOUT:
                answer += content[: header.content_length]
    head, found, body = bytes(answer).replace(b"\r\n", b"\n").partition(b"\n\n")
    if not found:
        raise ValueError(f"no CGI head in the answer {head[:80]!r}")
    return body
