"""CGI meta-variables (RFC 3875 §4.1) of an HTTP/1.1 request; no I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

__all__ = ["BadRequest", "HttpRequest", "Site", "build_meta_variables"]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~-]+)(?::[0-9]*)?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")
_UNPASSED = frozenset({"content-type", "content-length", "transfer-encoding", "proxy"})
"""The first two have variables of their own, the body is decoded, and HTTP_PROXY would
steer HTTP libraries in the script ("httpoxy")."""


class BadRequest(Exception):
    """The HTTP client broke the rules, or asks for what is not there.

    Attributes:
        status: the HTTP status that says so.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class HttpRequest:
    """An HTTP request without its body; text is latin-1, as http.server gives it.

    Attributes:
        method: in its case, such as ``"GET"``.
        target: the second word of the request line.
        version: the third word, such as ``"HTTP/1.1"``.
        headers: (name, value) in their order.
        client: address and port of the client.
    """

    method: str
    target: str
    version: str
    headers: Sequence[tuple[str, str]]
    client: tuple[str, int]

    def header(self, name: str) -> str | None:
        """Give the values of all headers of that name, as one; None without any."""
        values = [value for n, value in self.headers if n.lower() == name]
        separator = "; " if name == "cookie" else ", "
        return separator.join(values) if values else None


@dataclass(frozen=True)
class Site:
    """What all requests of a gateway have in common.

    Attributes:
        address: host and port that it listens on.
        mount: SCRIPT_NAME: empty, or ``/`` and a path without ``/`` at its end.
        script: absolute path of the script, SCRIPT_FILENAME.
        document_root: absolute path, DOCUMENT_ROOT.
        software: SERVER_SOFTWARE.
    """

    address: tuple[str, int]
    mount: str
    script: str
    document_root: str
    software: str


def build_meta_variables(
    request: HttpRequest, site: Site, body_length: int | None
) -> list[tuple[bytes, bytes]]:
    """Give the params of a request.

    Args:
        request: the request.
        site: where it arrived.
        body_length: in bytes; None without a body, or if only its end tells.

    Raises:
        BadRequest: the target or the Host header is malformed (400), or the target is
            not below the mount (404).
    """
    path, query, uri = _split_target(request)
    path_info = _path_info(path, site.mount)
    variables: list[tuple[str | bytes, str | bytes]] = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_SOFTWARE", site.software),
        ("SERVER_PROTOCOL", request.version),
        ("SERVER_NAME", _server_name(request, site)),
        ("SERVER_ADDR", site.address[0]),
        ("SERVER_PORT", str(site.address[1])),
        ("REQUEST_SCHEME", "http"),
        ("REQUEST_METHOD", request.method),
        ("REQUEST_URI", uri.encode("latin-1")),
        ("SCRIPT_NAME", site.mount),
        ("SCRIPT_FILENAME", site.script),
        ("DOCUMENT_ROOT", site.document_root),
        ("PATH_INFO", path_info),
        ("QUERY_STRING", query.encode("latin-1")),
        ("REMOTE_ADDR", request.client[0]),
        ("REMOTE_PORT", str(request.client[1])),
    ]
    if path_info:
        root = os.fsencode(site.document_root).rstrip(b"/")
        variables.append(("PATH_TRANSLATED", root + path_info))
    content_type = request.header("content-type")
    if content_type is not None:
        variables.append(("CONTENT_TYPE", content_type.encode("latin-1")))
    if body_length is not None:
        variables.append(("CONTENT_LENGTH", str(body_length)))
    variables += _header_variables(request)
    return [(_encode(name), _encode(value)) for name, value in variables]


def _encode(text: str | bytes) -> bytes:
    return os.fsencode(text)


def _header_variables(request: HttpRequest) -> Iterator[tuple[str, bytes]]:
    names = dict.fromkeys(name.lower() for name, _ in request.headers)
    for name in names:
        # "A_B" and "A-B" would become one variable; httpd and nginx drop the former.
        if name in _UNPASSED or not _HEADER_NAME.fullmatch(name):
            continue
        value = request.header(name)
        assert value is not None
        yield "HTTP_" + name.upper().replace("-", "_"), value.encode("latin-1")


def _server_name(request: HttpRequest, site: Site) -> str:
    host = request.header("host")
    if host is None:
        if request.version != "HTTP/1.0":
            raise BadRequest("The request has no Host header.")
        return site.address[0]
    match = _HOST.fullmatch(host)
    if match is None:
        raise BadRequest(f"The Host header {host!r} is malformed.")
    return match[1]


def _split_target(request: HttpRequest) -> tuple[str, str, str]:
    """Give the path, still encoded, the query, and the two as they came."""
    target = request.target
    if target == "*" and request.method == "OPTIONS":
        return "", "", target
    if target.lower().startswith(("http://", "https://")):  # a client of a proxy
        _, _, rest = target.partition("://")
        slash = min((rest + "/").index("/"), (rest + "?").index("?"))
        target = rest[slash:]
        target = target if target.startswith("/") else "/" + target
    if not target.startswith("/"):
        raise BadRequest(f"The request target {target!r} is no path.")
    path, _, query = target.partition("?")
    return path, query, target


def _path_info(path: str, mount: str) -> bytes:
    """Decode a path, resolve its dots as web servers do, and take the mount away."""
    decoded = unquote_to_bytes(path.encode("latin-1"))
    if b"\0" in decoded:
        raise BadRequest("The path has a NUL byte.")
    segments: list[bytes] = []
    parts = decoded.split(b"/")
    for part in parts:
        if part == b"..":
            if len(segments) <= 1:
                raise BadRequest("The path leads above the root.")
            segments.pop()
        elif part != b".":
            segments.append(part)
    if parts[-1] in (b".", b".."):
        segments.append(b"")
    resolved = b"/".join(segments)
    prefix = os.fsencode(mount)
    if resolved != prefix and not resolved.startswith(prefix + b"/") and path:
        raise BadRequest(f"The script is at {mount}/.", 404)
    return resolved[len(prefix) :]
