"""nginx, Apache, lighttpd and HAProxy, each on a file of examples/servers."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .http import ask
from .process import (
    START_SECONDS,
    Foreground,
    as_web_user,
    free_port,
    require,
    web_user,
)
from .programs import EXAMPLES

__all__ = ["Apache", "HAProxy", "Lighttpd", "Nginx", "WebServer", "render"]

PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
PORT_TAKEN = re.compile(r"address already in use|cannot bind socket", re.IGNORECASE)
PORT_TRIES = 5


def render(template: str, values: Mapping[str, object]) -> str:
    """A file of examples/servers with its placeholders filled in."""
    text = (EXAMPLES / "servers" / template).read_text()
    try:
        return PLACEHOLDER.sub(lambda found: str(values[found[1]]), text)
    except KeyError as error:
        raise AssertionError(
            f"{template} needs a value for @{error.args[0]}@"
        ) from None


class WebServer:
    """A web server in the foreground on an ephemeral loopback port.

    It answers HTTP when the constructor returns.

    Args:
        run: empty directory for its files.
        template: name of the file in examples/servers.
        values: what the placeholders of the file stand for, besides PORT, RUN, USER
            and WWW.
        options: more words for its command line.
    """

    names: tuple[str, ...]
    exit_statuses: tuple[int, ...] = (0,)

    def __init__(
        self,
        run: Path,
        template: str,
        values: Mapping[str, object],
        options: Sequence[str] = (),
    ) -> None:
        self.run = run
        self.console = run / "console.log"
        self.template = template
        self._options = list(options)
        self._values = {
            "APP_HOST": "127.0.0.1",
            "APP_PORT": 1,
            "SOCK": run / "nobody.sock",
            "CMD": "/bin/false",
            **values,
            "RUN": run,
            "USER": web_user(),
            "WWW": run / "www",
        }
        (run / "www").mkdir()
        (run / "www" / "ready.txt").write_text("ready\n")
        self.port, self._process = self._start()

    def command(self, config: Path) -> list[str]:
        """The command line that serves this file in the foreground."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The pid of the main process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the main process still runs."""
        return self._process.alive()

    def log(self) -> str:
        """Everything that it has logged so far."""
        files = (self.run / "error.log", self.console)
        return "".join(f.read_text(errors="replace") for f in files if f.exists())

    def stop(self) -> None:
        """SIGTERM, an orderly end, and no process left behind."""
        alive = self.alive()
        status = self._process.stop()
        assert alive, f"{self.names[0]} had ended with status {status}:\n{self.log()}"
        assert status in self.exit_statuses, f"{self.names[0]} left with {status}"

    def _start(self) -> tuple[int, Foreground]:
        """Start it; again on another port if somebody took the one we saw free."""
        for _ in range(PORT_TRIES):
            port = free_port()
            process = self._start_on(port)
            if self._answers(port, process):
                return port, process
            process.kill()
            if PORT_TAKEN.search(self.log()) is None:
                break
        raise AssertionError(f"{self.names[0]} does not start:\n{self.log()}")

    def _start_on(self, port: int) -> Foreground:
        config = self.run / self.template
        config.write_text(render(self.template, {**self._values, "PORT": port}))
        return Foreground(
            [*self.command(config), *self._options],
            self.console,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            privileges=as_web_user(),
        )

    def _answers(self, port: int, process: Foreground) -> bool:
        """Whether it gives an HTTP answer of any kind before it ends or time is up."""
        deadline = time.monotonic() + START_SECONDS
        while process.alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(port, "/ready.txt", timeout=5)
                return process.alive()
            time.sleep(0.02)
        return False


class Nginx(WebServer):
    """nginx; never starts programs."""

    names = ("nginx",)

    def command(self, config: Path) -> list[str]:
        return [require(*self.names), "-e", "stderr", "-c", str(config)]


class Apache(WebServer):
    """Apache httpd; which modules is the file's and the options' affair."""

    names = ("apache2", "httpd")

    def command(self, config: Path) -> list[str]:
        return [require(*self.names), "-DFOREGROUND", "-f", str(config)]


class Lighttpd(WebServer):
    """lighttpd."""

    names = ("lighttpd",)
    # 1 within a second of a CGI program that left a request body unread.
    exit_statuses = (0, 1)

    def command(self, config: Path) -> list[str]:
        return [require(*self.names), "-D", "-f", str(config)]


class HAProxy(WebServer):
    """HAProxy; never starts programs."""

    names = ("haproxy",)
    # SIGTERM ends it as the default action does if a connection is open.
    exit_statuses = (0, 143, -15)

    def command(self, config: Path) -> list[str]:
        return [require(*self.names), "-db", "-f", str(config)]
