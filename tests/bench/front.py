"""A real nginx before a measured program, and wrk, which asks it."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from .cache import find_tool
from .comparisons import HELLO
from .load import LoadError
from .processes import LOAD_CPU, end, pinned
from .wire import NGINX_PARAMS

__all__ = ["CLIENTS", "HEADERS", "Asked", "Front", "ask_with_wrk", "build_config"]

SCRIPT = Path(__file__).with_name("wrk.lua")
CLIENTS = 16
TARGET = "/app/articles/list?page=2&order=date"

PARAMS = """
fastcgi_param QUERY_STRING $query_string;
fastcgi_param REQUEST_METHOD $request_method;
fastcgi_param CONTENT_TYPE $content_type;
fastcgi_param CONTENT_LENGTH $content_length;
fastcgi_param SCRIPT_NAME /app;
fastcgi_param REQUEST_URI $request_uri;
fastcgi_param DOCUMENT_URI $document_uri;
fastcgi_param DOCUMENT_ROOT $document_root;
fastcgi_param SERVER_PROTOCOL $server_protocol;
fastcgi_param REQUEST_SCHEME $scheme;
fastcgi_param GATEWAY_INTERFACE CGI/1.1;
fastcgi_param SERVER_SOFTWARE nginx/$nginx_version;
fastcgi_param REMOTE_ADDR $remote_addr;
fastcgi_param REMOTE_PORT $remote_port;
fastcgi_param REMOTE_USER $remote_user;
fastcgi_param SERVER_ADDR $server_addr;
fastcgi_param SERVER_PORT $server_port;
fastcgi_param SERVER_NAME $server_name;
fastcgi_param REDIRECT_STATUS 200;
fastcgi_param SCRIPT_FILENAME $document_root/app;
fastcgi_param PATH_INFO /articles/list;
"""
"""The first 21 of ``NGINX_PARAMS``; the others are the client's header fields."""

HEADERS = {
    name.removeprefix("HTTP_").replace("_", "-").title(): value
    for name, value in NGINX_PARAMS
    if name.startswith("HTTP_") and name != "HTTP_HOST"
}
"""What wrk sends, besides Host."""


def build_config(folder: str, port: int, socket_path: str, *, keep: bool) -> str:
    """Write nginx's configuration: one worker, one program behind it."""
    paths = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "fastcgi", "proxy", "scgi", "uwsgi")
    )
    kept = "keepalive 32;" if keep else ""
    # as root, nginx would let its worker be somebody who may not enter our folders
    user = "" if os.geteuid() else f"user {pwd.getpwuid(0).pw_name};"
    return f"""
daemon off;
{user}
pid {folder}/nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
access_log off;
keepalive_requests 100000000;
{paths}
upstream program {{ server unix:{socket_path}; {kept} }}
server {{
listen 127.0.0.1:{port};
server_name www.example.org;
location /app {{
fastcgi_pass program;
fastcgi_keep_conn {"on" if keep else "off"};
fastcgi_read_timeout 1s;
{PARAMS}
}} }} }}
"""


def _free_port() -> int:
    """Give a loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


class Front:
    """nginx before the program on a Unix socket, on ``LOAD_CPU``."""

    def __init__(self, socket_path: str, *, keep: bool) -> None:
        """Start it; it answers when this returns.

        Raises:
            LoadError: it does not start, or the answer is not as expected.
            NoPeer: it is not installed.
        """
        nginx = find_tool("nginx")
        self._folder = tempfile.TemporaryDirectory(prefix="fcgi_app-bench-")
        self._log = Path(self._folder.name, "log")
        self.port = _free_port()
        config = Path(self._folder.name, "nginx.conf")
        text = build_config(self._folder.name, self.port, socket_path, keep=keep)
        config.write_text(text)
        with pinned(LOAD_CPU), self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [nginx, "-e", "stderr", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise

    def _wait(self) -> None:
        said: object = "no answer"
        until = time.monotonic() + 10
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError, HTTPException):
                status, body = self._ask()
                if body == HELLO:
                    return
                said = f"status {status}"
            time.sleep(0.01)
        log = self._log.read_text(errors="replace").splitlines()
        raise LoadError(f"behind nginx: {said}", *log[-5:])

    def _ask(self) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", TARGET)
            with connection.getresponse() as answer:
                return answer.status, answer.read()
        finally:
            connection.close()

    def _stop(self) -> None:
        end(self._process)
        self._folder.cleanup()

    def __enter__(self) -> Front:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()


class Asked(NamedTuple):
    """What ``wrk.lua`` reports."""

    requests: int
    errors: int
    seconds: float
    p50_us: float
    p99_us: float


def ask_with_wrk(port: int, seconds: int) -> Asked:
    """Ask for so long, on ``LOAD_CPU``.

    Raises:
        LoadError: not every answer was right, or wrk failed.
    """
    command = [find_tool("wrk"), "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency"]
    command += ["--timeout", "2s", "-s", str(SCRIPT)]
    for name, value in HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    with pinned(LOAD_CPU):
        ended = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{TARGET}"],
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            check=False,
        )
    if ended.returncode:
        raise LoadError(f"wrk failed: {ended.stderr.strip()}")
    asked = Asked(**json.loads(ended.stdout.splitlines()[-1]))
    if asked.errors or not asked.requests:
        raise LoadError(f"{asked.errors} of {asked.requests} requests failed")
    return asked
