"""Requests side by side behind real web servers: multiplexing, aborts, many clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .servers import (
    APPS,
    WAYS,
    Gate,
    Site,
    SiteCache,
    Way,
    established,
    wait_until,
    way_params,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

THREADS = {"THREADS": "8"}


@pytest.fixture(scope="module")
def sites() -> Iterator[SiteCache]:
    cache = SiteCache()
    yield cache
    cache.close()


@pytest.fixture(scope="module", params=way_params())
def way(request: pytest.FixtureRequest) -> Way:
    found = request.param
    assert isinstance(found, Way)
    return found


@pytest.fixture(scope="module", params=[THREADS], ids=["threads"])
def site(request: pytest.FixtureRequest, sites: SiteCache, way: Way) -> Site:
    """The program behind this way's server, as one of the two kinds."""
    return sites.get(way.setup, APPS / "side_by_side.py", request.param)


def ways(*names: str) -> pytest.MarkDecorator:
    """These ways only."""
    chosen = way_params(lambda way: way.name in names)
    return pytest.mark.parametrize("way", chosen, indirect=True)


@pytest.mark.parametrize("site", [{}, THREADS], ids=["one", "threads"], indirect=True)
@ways("nginx-unix", "nginx-tcp", "nginx-kept-unix", "nginx-kept-tcp")
def test_client_leaves(site: Site, way: Way, tmp_path: Path) -> None:
    """nginx: a handler that waits learns within a second that the client has gone."""
    told = tmp_path / "told"
    with site.open_request(way, f"/wait?file={told}") as client:
        wait_until(lambda: told.exists() and "began" in told.read_text(), "it began")
        client.close()
        left = time.monotonic()
    wait_until(lambda: "aborted" in told.read_text(), "the handler has been told")
    _, aborted, when = told.read_text().splitlines()[-1].split()
    assert aborted == "True"
    assert float(when) - left < 1.0
    assert site.ask(way, "/echo", method="POST", body=b"next").body == b"next"


# HAProxy 2.6 has a fault of its own with `http-reuse always`: see haproxy.conf.
@ways(*(w.name for w in WAYS if w.kind == "external" and w.name != "haproxy-mpxs"))
def test_eight_at_once(site: Site, way: Way, tmp_path: Path) -> None:
    """Eight requests of eight clients are in the program at the same time."""
    with Gate(tmp_path / "gate") as gate, ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(site.ask, way, f"/gate?gate={gate.path}&name={number}")
            for number in range(8)
        ]
        for _ in answers:
            gate.wait_for_arrival()
        gate.open()
        for number, answer in enumerate(answers):
            assert answer.result().text == f"through {number}"


@ways("haproxy-mpxs")
def test_haproxy_multiplexes(site: Site, way: Way, tmp_path: Path) -> None:
    """HAProxy puts the requests of several clients on one connection at a time."""
    before = established(site.app_port)
    with Gate(tmp_path / "gate") as gate, ThreadPoolExecutor(6) as pool:
        answers = []
        # One behind the other: parallel beginnings are where HAProxy 2.6 fails.
        for number in range(6):
            target = f"/gate?gate={gate.path}&name={number}"
            answers.append(pool.submit(site.ask, way, target))
            gate.wait_for_arrival()
        connections = established(site.app_port) - before
        gate.open()
        texts = [answer.result().text for answer in answers]
    assert texts == [f"through {number}" for number in range(6)]
    assert connections < 6


@ways("haproxy-mux", "haproxy-tcp", "nginx-kept-tcp")
def test_bodies_side_by_side(site: Site, way: Way) -> None:
    """Bodies of many sizes, eight clients: each gets its own back."""

    def ask(number: int) -> bool:
        body = bytes([number]) * (number * 4000)
        return site.ask(way, "/echo", method="POST", body=body).body == body

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(100)))
