"""The params of a request as a web server makes them: CGI meta-variables (RFC 3875)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from .._version import __version__
from ..errors import ConfigError

__all__ = ["build_cgi_params", "header_param"]

_URL = re.compile(r"(https?)://([^/?#@]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::([0-9]+))?")
_PHP = re.compile(r"(.*?\.php)(/.*)?", re.DOTALL)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNPREFIXED = ("CONTENT_TYPE", "CONTENT_LENGTH")


def build_cgi_params(
    uri: str = "/",
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body_length: int | None = None,
    script: str | None = None,
    document_root: str | None = None,
    mount: str | None = None,
) -> dict[str, str]:
    """Give the params of a request, as a web server on this host would send them.

    The path of the URI is SCRIPT_NAME, up to the first ``.php/``; the rest is
    PATH_INFO, as web servers are set up for PHP. SCRIPT_FILENAME is SCRIPT_NAME below
    the document root. ``script`` and ``mount`` change that.

    Args:
        uri: path and query, or a whole http or https URL, which gives SERVER_NAME,
            SERVER_PORT, HTTP_HOST and HTTPS as well. It becomes REQUEST_URI.
        method: REQUEST_METHOD.
        headers: names and values; they become ``HTTP_*``, CONTENT_TYPE and
            CONTENT_LENGTH. Values of a name that comes twice are joined by commas.
        body_length: CONTENT_LENGTH in bytes; None sends none.
        script: SCRIPT_FILENAME. SCRIPT_NAME is its path below the document root; a
            URI that does not begin with that is one that the script was chosen for,
            and has no PATH_INFO.
        document_root: DOCUMENT_ROOT; if not given, the directory of the script, or
            the current one.
        mount: SCRIPT_NAME, whatever the script is called; what follows it in the path
            of the URI is PATH_INFO. Empty or ``/``: all of the path.

    Raises:
        ConfigError: the URI, a header or the method is malformed, or the URI is not
            below the mount.
    """
    from urllib.parse import unquote_to_bytes  # not for those that only relay

    scheme, host, target = _split_uri(uri)
    server, port = _split_host(uri, host, scheme)
    if not _TOKEN.fullmatch(method):
        raise ConfigError("method", method, "is no HTTP method")
    path, _, query = target.partition("?")
    decoded = unquote_to_bytes(path.encode("utf-8", "surrogateescape"))
    name = decoded.decode("utf-8", "surrogateescape")
    if "\0" in name:
        raise ConfigError("URI", uri, "has a NUL character")
    root = os.path.abspath(document_root or os.path.dirname(script or "") or ".")
    script_name, path_info = _split_path(uri, name, script, root, mount)
    below = root.rstrip("/")
    file = os.path.abspath(script) if script else below + script_name
    params = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": f"fcgi-app/{__version__}",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": server,
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": port,
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_SCHEME": scheme,
        "REQUEST_METHOD": method,
        "REQUEST_URI": target,
        "QUERY_STRING": query,
        "DOCUMENT_ROOT": root,
        "SCRIPT_NAME": script_name,
        "SCRIPT_FILENAME": file,
        "PATH_INFO": path_info,
        "REDIRECT_STATUS": "200",  # without it php-cgi refuses to run
    }
    if path_info:
        params["PATH_TRANSLATED"] = below + path_info
    if scheme == "https":
        params["HTTPS"] = "on"
    if body_length is not None:
        params["CONTENT_LENGTH"] = str(body_length)
    params["HTTP_HOST"] = host
    given: dict[str, str] = {}
    for name, value in headers:
        param = header_param(name)
        if any(character in value for character in "\0\r\n"):
            raise ConfigError("header", f"{name}: {value}", "has a control character")
        given[param] = f"{given[param]}, {value}" if param in given else value
    return params | given


def header_param(name: str) -> str:
    """Give the param of a request header: ``HTTP_X_Y`` of ``X-Y``.

    Raises:
        ConfigError: this is no name of a header.
    """
    if not _TOKEN.fullmatch(name):
        raise ConfigError("header", name, "is no name of a header")
    param = name.upper().replace("-", "_")
    return param if param in _UNPREFIXED else "HTTP_" + param


def _split_uri(uri: str) -> tuple[str, str, str]:
    """Give scheme, host with port, and the path with its query."""
    scheme, host, target = "http", "localhost", uri
    if match := _URL.fullmatch(uri):
        scheme, host, target = match[1].lower(), match[2], match[3]
        if not target.startswith("/"):
            target = "/" + target
    target = target.partition("#")[0]
    if any(character.isspace() or character == "\0" for character in target):
        raise ConfigError("URI", uri, "has white space or NUL in it: write %20")
    if not target.startswith("/") and target != "*":
        raise ConfigError("URI", uri, "must begin with / or http://")
    return scheme, host, target


def _split_host(uri: str, host: str, scheme: str) -> tuple[str, str]:
    match = _HOST.fullmatch(host)
    if match is None or int(match[2] or 0) > 65535:
        raise ConfigError("URI", uri, "has no host, or a malformed one")
    return match[1], match[2] or ("443" if scheme == "https" else "80")


def _split_path(
    uri: str, path: str, script: str | None, root: str, mount: str | None
) -> tuple[str, str]:
    """Give SCRIPT_NAME and PATH_INFO."""
    if path == "*":
        return "", ""
    if mount is not None:
        mount = mount.rstrip("/")
        if mount and not mount.startswith("/"):
            raise ConfigError("mount", mount, "must begin with /")
        if path != mount and not path.startswith(mount + "/"):
            raise ConfigError("URI", uri, f"is not below {mount}")
        return mount, path[len(mount) :]
    if script is None:
        match = _PHP.fullmatch(path)
        return (match[1], match[2] or "") if match else (path, "")
    name = "/" + os.path.relpath(os.path.abspath(script), root)
    if name.startswith("/../"):
        name = "/" + os.path.basename(script)
    return name, path[len(name) :] if path.startswith(name + "/") else ""
