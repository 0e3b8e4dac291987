"""``fcgi-app bridge`` as the CGI program of real web servers."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .bridges import SCRIPT, TIMEOUT, find_pids
from .servers import Apache, Gate, Lighttpd, WebServer, ask, wait_until
from .servers.http import open_request
from .servers.programs import program_environment
from .webserver import PACKAGE_PARENT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class CgiSite:
    """A web server whose CGI program is a command file of ``fcgi-app bridge``.

    ``fcgi-app`` is a script in the same directory, found by PATH of the #! line's env.
    """

    def __init__(self, kind: type[WebServer], template: str, line: str, text: str = ""):
        self.folder = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
        self.folder.chmod(0o777)
        (self.folder / "app.py").write_text(SCRIPT)
        run_folder = self.folder / "run"
        run_folder.mkdir()
        run_folder.chmod(0o777)
        program = self.folder / "fcgi-app"
        exports = [
            f"export {k}={shlex.quote(v)}\n" for k, v in program_environment({}).items()
        ]
        run = shlex.join([sys.executable, "-m", "fcgi_app"])
        program.write_text("#!/bin/sh\n" + "".join(exports) + f'exec {run} "$@"\n')
        program.chmod(0o755)
        script = self.folder / "app.cgi"
        line = line.replace("fcgi-app", str(program), 1)
        text = text.replace("@HERE@", str(self.folder))
        script.write_text(line.replace("@HERE@", str(self.folder)) + "\n" + text)
        script.chmod(0o755)
        values: dict[str, object] = {"CMD": script, "BRIDGE": script}
        try:
            self.server = kind(run_folder, template, values)
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def __enter__(self) -> CgiSite:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.server.stop()
            for pid_file in self.folder.glob("*.pid"):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
            wait_until(
                lambda: not find_pids(self.folder),
                "the end of the pool",
                seconds=TIMEOUT,
            )
        finally:
            shutil.rmtree(self.folder)


FILE = """# starts a pool at the first request
--start unix:@HERE@/app.sock --workers 2
--pid-file @HERE@/pool.pid
-- @HERE@/app.py 'an argument'
"""
SERVERS: Sequence[tuple[type[WebServer], str]] = (
    (Apache, "apache-cgi.conf"),
    (Lighttpd, "lighttpd-cgi.conf"),
)


@pytest.fixture(scope="module", params=SERVERS, ids=["apache", "lighttpd"])
def site(request: pytest.FixtureRequest) -> Iterator[CgiSite]:
    kind, template = request.param
    with CgiSite(kind, template, "#!/usr/bin/env -S fcgi-app bridge -f", FILE) as made:
        yield made


def test_starts_the_pool(site: CgiSite) -> None:
    """The first requests, at once, start one pool, which serves all that follow."""
    answers: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(ask(site.server.port, "/app/argv").body)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4, site.server.log()
    assert {answer.split(b" ", 1)[1] for answer in answers} == {b"an argument\n"}
    assert len({answer.split()[0] for answer in answers}) <= 2
    workers = find_pids(site.folder / "app.py")
    assert len(workers) == 2 + 1  # and the supervisor


def test_params(site: CgiSite) -> None:
    """The application sees the web server's variables."""
    shown = ask(
        site.server.port, "/app/params?a=1", headers={"X-Y": "1", "Proxy": "evil"}
    ).text
    params = dict(line.split("=", 1) for line in shown.splitlines())
    expected = {
        "SCRIPT_NAME": "/app",
        "PATH_INFO": "/params",
        "QUERY_STRING": "a=1",
        "HTTP_X_Y": "1",
        "REMOTE_ADDR": "127.0.0.1",
    }
    assert expected.items() <= params.items()
    assert "HTTP_PROXY" not in params


@pytest.mark.parametrize("size", [0, 1, 200_000, 4 << 20])
def test_body(site: CgiSite, size: int) -> None:
    """A body of any size is echoed as it comes, and nobody waits for the other."""
    body = hashlib.shake_128(b"server").digest(size)
    answer = ask(site.server.port, "/app/echo", method="POST", body=body)
    assert (answer.status, answer.body == body) == (200, True)


def test_chunked_body(site: CgiSite) -> None:
    """A body without a length is echoed."""
    headers = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    chunks = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    answer = ask(
        site.server.port, "/app/echo", method="POST", body=chunks, headers=headers
    )
    assert (answer.status, answer.body) == (200, b"hello world")


def test_status_line_and_head(site: CgiSite) -> None:
    """Statuses reach the client; HEAD has no body; stderr is in the error log."""
    answer = ask(site.server.port, "/app/nph")
    assert answer.status == 404
    assert ask(site.server.port, "/app/much?9", method="HEAD").body == b""
    ask(site.server.port, "/app/stderr")
    wait_until(lambda: "a complaint" in site.server.log(), "the complaint in the log")


def test_streams(site: CgiSite) -> None:
    """Output reaches the client as it is flushed."""
    path = site.folder / "gate"
    with (
        Gate(path) as gate,
        open_request(site.server.port, f"/app/gate?{path}") as connection,
    ):
        path.chmod(0o777)
        received = b""
        while b"begun" not in received:
            received += connection.recv(65536)
        gate.wait_for_arrival()
        assert b"ended" not in received
        gate.open()
        while b"ended" not in received:
            received += connection.recv(65536)


def test_appends_words_of_the_query(site: CgiSite) -> None:
    """Apache appends them to the command line; nothing becomes of it."""
    for query in ("--help", "-f+/etc/passwd", "--start+unix:/x+--+/bin/false"):
        answer = ask(site.server.port, f"/app/argv?{query}")
        assert answer.status == 200
        assert answer.body.endswith(b" an argument\n")


def test_without_a_pool() -> None:
    """An address alone in the #! line: a 503 until somebody listens."""
    line = "#!/usr/bin/env -S fcgi-app bridge unix:@HERE@/app.sock"
    with CgiSite(Apache, "apache-cgi.conf", line) as site:
        for query in ("", "?--start+--+/bin/false"):
            answer = ask(site.server.port, f"/app/argv{query}")
            assert (answer.status, answer.body) == (503, b"503 Service Unavailable\n")
        assert "app.sock: No such file" in site.server.log()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(site.folder / "app.sock"))
        listener.listen()
        (site.folder / "app.sock").chmod(0o777)
        environ = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
        program = subprocess.Popen(
            [sys.executable, str(site.folder / "app.py")],
            stdin=listener.fileno(),
            env=environ,
        )
        listener.close()
        try:
            assert ask(site.server.port, "/app/argv").status == 200
        finally:
            program.terminate()
            program.wait(TIMEOUT)
