"""Apache with enablereuse=on: 32 processes, each of which keeps a connection.

mod_proxy_fcgi's documentation warns of it: a FastCGI process that serves one connection
until it is closed is blocked by the first one that is kept.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from .servers import APPS, WAYS, Site, Way, connect, established

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MANY = 32  # Apache's processes in apache-proxy-fcgi.conf with -DPREFORK


@pytest.fixture(
    params=["apache-reuse-tcp", "apache-reuse-unix"],
    ids=["tcp", "unix"],
    scope="module",
)
def way(request: pytest.FixtureRequest) -> Way:
    return next(way for way in WAYS if way.name == request.param)


@pytest.fixture(scope="module")
def ours() -> Iterator[Site]:
    """A program of ours, one process of it."""
    with Site("apache-prefork", APPS / "probe.py") as site:
        yield site


@pytest.fixture
def contrast() -> Iterator[Site]:
    """A program that serves one connection at a time; Apache is stuck afterwards."""
    with Site("apache-prefork", APPS / "one_at_a_time.py") as site:
        yield site


class Browsers:
    """Clients that stay connected, each of which has an Apache process to itself."""

    def __init__(self, site: Site, way: Way) -> None:
        self._site = site
        self._way = way

    def __enter__(self) -> Browsers:
        with ExitStack() as stack:
            self._connections = [
                stack.enter_context(connect(self._site.server.port))
                for _ in range(MANY)
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def send(self, number: int) -> None:
        """Let one of them ask."""
        self._connections[number].request("GET", f"{self._way.mount}/not-found")

    def answer(self, number: int, *, within: float) -> http.client.HTTPResponse:
        """Its answer, which must come within so many seconds."""
        connection = self._connections[number]
        assert connection.sock is not None
        connection.sock.settimeout(within)
        response = connection.getresponse()
        response.read()
        assert not response.will_close, "the client no longer has its Apache process"
        return response

    def ask(self, number: int, *, within: float = 10.0) -> int:
        """Ask, and the status of the answer."""
        self.send(number)
        return self.answer(number, within=within).status


def test_one_process_serves_all_kept_connections(ours: Site, way: Way) -> None:
    """One after the other, three times around: no request waits for a connection."""
    with Browsers(ours, way) as browsers:
        for _ in range(3):
            for number in range(MANY):
                assert browsers.ask(number) == 404
        if way.socket == "tcp":
            assert established(ours.app_port) == MANY
        assert ours.programs[way.socket].statuses == []


def test_one_process_serves_all_at_once(ours: Site, way: Way) -> None:
    """All 32 at the same time, three times."""
    with Browsers(ours, way) as browsers, ThreadPoolExecutor(MANY) as pool:
        for _ in range(3):
            assert set(pool.map(browsers.ask, range(MANY))) == {404}


def test_contrast_starves(contrast: Site, way: Way) -> None:
    """A program that serves one connection at a time answers one of 32 clients."""
    with Browsers(contrast, way) as browsers:
        assert browsers.ask(0) == 200
        for number in range(1, MANY):
            browsers.send(number)
        deadline = time.monotonic() + 1.5
        for number in range(1, MANY):
            with pytest.raises(TimeoutError):
                browsers.answer(number, within=max(0.01, deadline - time.monotonic()))
        assert browsers.ask(0) == 200
