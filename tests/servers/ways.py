"""Every way from a web server to a program that the project supports, by name."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .http import Answer, ask, open_request
from .process import wait_until
from .programs import MARKER, ExternalProgram, wrapper_script
from .webservers import Apache, HAProxy, Lighttpd, Nginx, WebServer, render

__all__ = ["SETUPS", "WAYS", "Setup", "Site", "SiteCache", "Way", "way_params"]


@dataclass(frozen=True)
class Setup:
    """A web server on one file of examples/servers.

    Attributes:
        external: kinds of listening socket that its external programs need.
        spawns: whether it starts the script itself.
    """

    server: type[WebServer]
    template: str
    external: tuple[str, ...] = ()
    spawns: bool = False
    options: tuple[str, ...] = ()


SETUPS: Mapping[str, Setup] = {
    "nginx": Setup(Nginx, "nginx.conf", ("unix", "tcp")),
    "apache": Setup(Apache, "apache-proxy-fcgi.conf", ("unix", "tcp")),
    "apache-prefork": Setup(
        Apache, "apache-proxy-fcgi.conf", ("unix", "tcp"), options=("-DPREFORK",)
    ),
    "fcgid": Setup(Apache, "apache-fcgid.conf", spawns=True),
    "apache-cgid": Setup(Apache, "apache-cgi.conf", ("unix",), spawns=True),
    "apache-cgi": Setup(
        Apache, "apache-cgi.conf", ("unix",), spawns=True, options=("-DPREFORK",)
    ),
    "lighttpd": Setup(Lighttpd, "lighttpd-fastcgi.conf", ("unix", "tcp"), spawns=True),
    "lighttpd-cgi": Setup(Lighttpd, "lighttpd-cgi.conf", spawns=True),
    "haproxy": Setup(HAProxy, "haproxy.conf", ("unix", "tcp")),
}


@dataclass(frozen=True)
class Way:
    """One way: which setup, and the path below which it leads to the program.

    Attributes:
        kind: "external" (the program runs before), "spawned" (the web server starts
            it), "cgi" (a new process for each request).
        kept: whether the web server keeps the connection for later requests.
        flushes: whether output reaches the client when the program flushes it.
        chunked: whether a body of unannounced length reaches the program.
        duplex: whether an answer may begin while the body is still coming. nginx sends
            no more of the body once it has seen the head; Apache's CGI modules read
            nothing before the whole body is out.
        socket: which external program it leads to; empty if to none.
    """

    name: str
    setup: str
    mount: str
    socket: str = ""
    kind: str = "external"
    kept: bool = False
    flushes: bool = False
    chunked: bool = True
    duplex: bool = True


WAYS: tuple[Way, ...] = (
    Way("nginx-unix", "nginx", "/unix", "unix", duplex=False),
    Way("nginx-tcp", "nginx", "/tcp", "tcp", duplex=False),
    Way("nginx-kept-unix", "nginx", "/kept-unix", "unix", kept=True, duplex=False),
    Way("nginx-kept-tcp", "nginx", "/kept-tcp", "tcp", kept=True, duplex=False),
    Way(
        "nginx-unbuffered",
        "nginx",
        "/stream",
        "tcp",
        kept=True,
        flushes=True,
        duplex=False,
    ),
    Way("apache-unix", "apache", "/unix", "unix"),
    Way("apache-tcp", "apache", "/tcp", "tcp"),
    Way("apache-reuse-unix", "apache", "/reuse-unix", "unix", kept=True),
    Way("apache-reuse-tcp", "apache", "/reuse-tcp", "tcp", kept=True),
    Way("apache-flushpackets", "apache", "/stream", "unix", flushes=True),
    Way("fcgid", "fcgid", "/app", kind="spawned", flushes=True),
    Way("lighttpd-spawned", "lighttpd", "/spawned", kind="spawned", flushes=True),
    Way("lighttpd-unix", "lighttpd", "/unix", "unix", flushes=True),
    Way("lighttpd-tcp", "lighttpd", "/tcp", "tcp", flushes=True),
    Way("haproxy-unix", "haproxy", "/unix", "unix", kept=True, flushes=True),
    Way("haproxy-tcp", "haproxy", "/tcp", "tcp", kept=True, flushes=True),
    Way("haproxy-mux", "haproxy", "/mux", "tcp", kept=True, flushes=True),
    Way("haproxy-mpxs", "haproxy", "/mpxs", "tcp", kept=True, flushes=True),
    # cgi-fcgi hands on as many bytes as CONTENT_LENGTH says: none if it is absent.
    Way(
        "cgi-fcgi",
        "apache-cgid",
        "/bridge",
        "unix",
        flushes=True,
        chunked=False,
        duplex=False,
    ),
    Way("apache-cgid", "apache-cgid", "/app", kind="cgi", flushes=True, duplex=False),
    Way("apache-cgi", "apache-cgi", "/app", kind="cgi", flushes=True, duplex=False),
    Way("lighttpd-cgi", "lighttpd-cgi", "/app", kind="cgi", flushes=True),
)


def way_params(condition: Callable[[Way], bool] = lambda _: True) -> list[Any]:
    """The ways that satisfy the condition, as parameters with readable ids."""
    return [pytest.param(way, id=way.name) for way in WAYS if condition(way)]


@dataclass
class Site:
    """A script behind one setup: the web server and the processes that it needs.

    A context manager; leaving it stops everything and finds what is left behind. Its
    directory is removed if all went well, and stays for inspection if not.

    Attributes:
        environment: settings for the script, the same in each of its lives.
        values: what the placeholders of the server's file stand for.
    """

    setup_name: str
    script: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> Site:
        # A short path: a Unix socket's has room for 107 bytes.
        self.run = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
        self.programs: dict[str, ExternalProgram] = {}
        self.values: dict[str, object] = {}
        self._listeners: list[socket.socket] = []
        try:
            self._start()
        except BaseException:
            for program in self.programs.values():
                program.kill()
            self._close_listeners()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.server.stop()
        finally:
            self._stop_programs()
        shutil.rmtree(self.run)

    @property
    def app_port(self) -> int:
        """The TCP port of the external program."""
        return int(str(self.values["APP_PORT"]))

    def ask(self, way: Way, path: str = "", **request: Any) -> Answer:
        """One request by this way; ``request`` as for ``http.ask``."""
        return ask(self.server.port, way.mount + path, **request)

    def open_request(self, way: Way, path: str = "", **request: Any) -> socket.socket:
        """A request of which the caller reads the answer."""
        return open_request(self.server.port, way.mount + path, **request)

    def ask_fatal(self, way: Way, path: str, **request: Any) -> Answer:
        """One request that ends the process which serves it; another takes its place.

        A process that the web server starts is the web server's to replace.
        """
        program = self.programs.get(way.socket)
        number = len(program.statuses) + 1 if program else 0
        try:
            return self.ask(way, path, **request)
        finally:
            if program:
                program.wait_for_end(number)

    def log(self) -> str:
        """What the web server has logged."""
        return self.server.log()

    def wait_for_log(self, text: str) -> None:
        """Wait until the web server has logged this text."""
        wait_until(lambda: text in self.log(), f"{text!r} in the error log")

    def diary(self) -> str:
        """All logs, for a person who wants to know what went wrong."""
        lines = [f"--- {self.setup_name}", *self.log().splitlines()[-40:]]
        for kind, program in self.programs.items():
            lines.append(f"--- program on {kind}")
            lines += program.console.read_text(errors="replace").splitlines()[-40:]
        return "\n".join(line[:200] for line in lines)

    def _start(self) -> None:
        setup = SETUPS[self.setup_name]
        environment = {MARKER: str(self.run), **self.environment}
        values = self.values
        for kind in setup.external:
            listener = self._listen(kind, values)
            console = self.run / f"program-{kind}.log"
            self.programs[kind] = ExternalProgram(
                self.script, listener, console, environment
            )
        if setup.spawns:
            command = wrapper_script(self.run / "script", self.script, environment)
            values["CMD"] = command
        if setup.template == "apache-cgi.conf":
            values["BRIDGE"] = self._bridge(values)
        self.server = setup.server(self.run, setup.template, values, setup.options)

    def _listen(self, kind: str, values: dict[str, object]) -> socket.socket:
        if kind == "tcp":
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            values["APP_PORT"] = listener.getsockname()[1]
        else:
            listener = socket.socket(socket.AF_UNIX)
            values["SOCK"] = self.run / "app.sock"
            listener.bind(str(values["SOCK"]))
            listener.listen(1024)
        self._listeners.append(listener)
        return listener

    def _bridge(self, values: Mapping[str, object]) -> Path:
        bridge = self.run / "bridge"
        bridge.write_text(render("cgi-fcgi.sh", values))
        bridge.chmod(0o755)
        return bridge

    def _stop_programs(self) -> None:
        with ExitStack() as stack:  # all of it, whatever fails
            stack.callback(self._close_listeners)
            for program in self.programs.values():
                stack.callback(program.stop)
        wait_until(
            lambda: not marked_processes(str(self.run)),
            f"processes of {self.setup_name} outlive it",
        )

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()


def marked_processes(run: str) -> list[int]:
    """Pids of the programs that were started for this directory and still run."""
    mark = f"{MARKER}={run}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone in the meantime, or somebody else's
        if mark in environment and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


class SiteCache:
    """Sites by script, of one setup at a time: asking for another stops what runs.

    pytest orders tests by their module-wide parameters, so each setup starts once.
    """

    def __init__(self) -> None:
        self._setup = ""
        self._sites: dict[tuple[Path, tuple[tuple[str, str], ...]], Site] = {}

    def get(
        self, setup: str, script: Path, environment: Mapping[str, str] | None = None
    ) -> Site:
        """The running site of this script, started if need be."""
        if setup != self._setup:
            self.close()
            self._setup = setup
        settings = environment or {}
        key = script, tuple(sorted(settings.items()))
        if key not in self._sites:
            self._sites[key] = Site(setup, script, settings).__enter__()
        return self._sites[key]

    def close(self) -> None:
        """Stop everything; what does not stop properly is raised in the end."""
        sites, self._sites = self._sites, {}
        # At the same time: lighttpd looks only once in a second whether it is to stop.
        with ThreadPoolExecutor(len(sites) or 1) as pool:
            stops = [pool.submit(site.__exit__) for site in sites.values()]
        for stop in stops:
            stop.result()
