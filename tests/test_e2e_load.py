"""Many clients, slow clients, leaving clients, and a program that is told to stop."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from .servers import (
    APPS,
    WAYS,
    Answer,
    Gate,
    Site,
    SiteCache,
    Way,
    established,
    wait_until,
    way_params,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module", params=way_params())
def way(request: pytest.FixtureRequest) -> Way:
    found = request.param
    assert isinstance(found, Way)
    return found


@pytest.fixture(scope="module")
def sites() -> Iterator[SiteCache]:
    cache = SiteCache()
    yield cache
    cache.close()


@pytest.fixture(scope="module")
def site(sites: SiteCache, way: Way) -> Site:
    """The probe behind this way's server."""
    return sites.get(way.setup, APPS / "probe.py")


@pytest.fixture
def diary(site: Site) -> Iterator[None]:
    """The same web server and programs as before; their logs, if a test fails."""
    pids = [site.server.pid, *(program.pid for program in site.programs.values())]
    yield
    now = [site.server.pid, *(program.pid for program in site.programs.values())]
    print(site.diary())
    assert site.server.alive()
    assert now == pids


def assert_serves(site: Site, way: Way) -> None:
    answer = site.ask(way, "/not-found")
    assert answer.status == 404
    assert answer.text == "nothing here: ä\n"


@pytest.mark.usefixtures("diary")
def test_early_answer_to_a_large_post(site: Site, way: Way) -> None:
    """20 MB that the program does not read: the answer arrives whole, 30 of 30."""
    body = bytes(20_000_000)
    for _ in range(30):
        answer = site.ask(way, "/early-answer", method="POST", body=body)
        assert answer.status == 200
        assert answer.text == "no thanks\n" * 5000
    assert_serves(site, way)


# Through haproxy-mpxs: test_multiplexed_requests.
@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize(
    "way", way_params(lambda way: way.name != "haproxy-mpxs"), indirect=True
)
def test_parallel_clients(site: Site, way: Way) -> None:
    """Eight clients at once, with answers and bodies of all kinds: none is mixed up."""

    def ask_all(number: int) -> list[Answer]:
        body = bytes([number]) * (1 + number * 30_000)
        return [
            site.ask(way, "/binary"),
            site.ask(way, "/echo", method="POST", body=body),
            site.ask(way, f"/log-line?word=client-{number}"),
            site.ask(way, "/echo", method="POST", body=body[:10]),
        ]

    with ThreadPoolExecutor(8) as pool:
        for number, answers in enumerate(pool.map(ask_all, range(8))):
            binary, large, logged, small = answers
            assert binary.body == bytes(range(256)) * 64
            assert large.body == bytes([number]) * (1 + number * 30_000)
            assert logged.text == "logged\n"
            assert small.body == large.body[:10]


@pytest.mark.usefixtures("diary")
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_client_leaves_during_the_answer(site: Site, way: Way, reset: bool) -> None:
    """A client that has gone in mid-answer is no error, and the next one is served."""
    for _ in range(3):
        with site.open_request(way, "/much") as connection:
            seen = connection.recv(65536)
            assert seen.startswith(b"HTTP/1.1 200 ")
            if reset:
                leave_by_reset(connection)
    assert_serves(site, way)
    assert "Traceback" not in site.log()


@pytest.mark.usefixtures("diary")
def test_client_leaves_during_the_upload(site: Site, way: Way) -> None:
    """A client that sends half of its body and goes; the next one is served."""
    head = {"Content-Length": str(1 << 20)}
    half = bytes(1 << 19)
    for _ in range(3):
        with site.open_request(
            way, "/echo", method="POST", headers=head, body=half
        ) as connection:
            leave_by_reset(connection)
    assert_serves(site, way)
    assert "Traceback" not in site.log()


def leave_by_reset(connection: socket.socket) -> None:
    """Let the coming close be a reset."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@pytest.mark.parametrize(
    "way", way_params(lambda way: way.setup == "nginx"), indirect=True
)
def test_stop_during_load(site: Site, way: Way) -> None:
    """SIGTERM: the running request finishes, exit status 0, and no request is lost."""
    program = site.programs[way.socket]
    ended = len(program.statuses)
    with Gate(site.run / "gate") as gate, ThreadPoolExecutor(9) as pool:
        running = pool.submit(site.ask, way, f"/gate?gate={gate.path}")
        gate.wait_for_arrival()
        others = [pool.submit(site.ask, way, "/binary") for _ in range(8)]
        program.send(signal.SIGTERM)
        gate.open()
        answer = running.result()
        assert answer.status == 200
        assert answer.text == "through the gate " * 1000 + "\n"
        for other in others:
            assert other.result().status == 200
    program.wait_for_end(ended + 1)
    assert program.statuses[ended:] == [0]


@pytest.mark.parametrize(
    "way", way_params(lambda way: way.setup == "nginx"), indirect=True
)
def test_stops_in_a_row_during_load(site: Site, way: Way) -> None:
    """Programs come and go under steady load: every request is answered, and right."""
    program = site.programs[way.socket]
    ended = len(program.statuses)

    def ask_on(_: int) -> int:
        good = 0
        while len(program.statuses) < ended + 3:
            answer = site.ask(way, "/binary")
            assert answer.status == 200
            assert answer.body == bytes(range(256)) * 64
            good += 1
        return good

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on, number) for number in range(4)]
        for number in range(3):
            # Now the newest process serves: before, SIGTERM would find it half started.
            assert site.ask(way, "/binary").status == 200
            program.send(signal.SIGTERM)
            program.wait_for_end(ended + number + 1)
        assert all(one.result() > 0 for one in asking)
    assert program.statuses[ended:] == [0, 0, 0]


@pytest.mark.parametrize(
    "way", way_params(lambda way: way.name == "haproxy-mpxs"), indirect=True
)
def test_multiplexed_requests(site: Site, way: Way) -> None:
    """HAProxy lets many requests share few connections: each gets its own answer."""

    def ask(number: int) -> Answer:
        body = bytes([number]) * 50_000
        for _ in range(10):
            answer = site.ask(way, "/echo", method="POST", body=body)
            # HAProxy 2.6 fails now and then by itself (see haproxy.conf).
            if b"An internal server error occurred." not in answer.body:
                return answer
        raise AssertionError("HAProxy answers nothing but 500")

    with Gate(site.run / "gate") as gate, ThreadPoolExecutor(17) as pool:
        held = pool.submit(site.ask, way, f"/gate?gate={gate.path}")
        gate.wait_for_arrival()
        before = established(site.app_port)  # one of them, and idle ones
        others = [pool.submit(ask, number) for number in range(16)]
        wait_until(lambda: established(site.server.port) >= 17, "17 clients")
        assert established(site.app_port) - before < 16
        gate.open()
        assert held.result().status == 200
        for number, other in enumerate(others):
            assert other.result().body == bytes([number]) * 50_000


@pytest.mark.parametrize("setup", ["nginx", "apache", "lighttpd", "haproxy"])
def test_connection_is_kept_or_closed(setup: str) -> None:
    """Kept where the web server keeps it, else closed with the answer."""
    ways = [way for way in WAYS if way.setup == setup and way.socket == "tcp"]
    with Site(setup, APPS / "probe.py") as site:
        for way in sorted(ways, key=lambda way: way.kept):
            for _ in range(3):
                assert_serves(site, way)
            if way.kept:
                assert established(site.app_port) > 0
            else:
                wait_until(lambda: established(site.app_port) == 0, f"{way.name} ends")
