"""A program goes wrong behind every web server: the client, the log, the next request.

Most tests use ``run(handler)``, whose process lives on. In the bare loop an exception
ends the process, and who has started it starts another.
"""

from __future__ import annotations

import http.client
import uuid
from collections.abc import Iterator

import pytest

from .servers import APPS, Answer, Site, SiteCache, Way, wait_until, way_params

pytestmark = pytest.mark.e2e


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
    """A program that fails on request, behind this way's server."""
    return sites.get(way.setup, APPS / "probe.py", {"PROBE_RUN": "1"})


@pytest.fixture(scope="module")
def loop_site(sites: SiteCache, way: Way) -> Site:
    """The same in the bare loop."""
    return sites.get(way.setup, APPS / "probe.py")


@pytest.fixture(autouse=True)
def server_lives(site: Site, loop_site: Site) -> Iterator[None]:
    """No answer of ours ends a web server; its logs are shown if a test fails."""
    pids = site.server.pid, loop_site.server.pid
    yield
    assert site.server.alive()
    assert loop_site.server.alive()
    assert (site.server.pid, loop_site.server.pid) == pids
    print(site.diary())
    print(loop_site.diary())


def assert_serves(site: Site, way: Way) -> None:
    """The next request is served."""
    answer = site.ask(way, "/not-found")
    assert answer.status == 404
    assert answer.text == "nothing here: ä\n"


def assert_serves_again(site: Site, way: Way) -> None:
    """The next request is served, when a new process has taken the dead one's place."""
    if way.name == "lighttpd-spawned":  # looks after its processes once in a second
        wait_until(lambda: site.ask(way, "/not-found").status == 404, "a new process")
    assert_serves(site, way)


def assert_error_page(answer: Answer, *secrets: str) -> None:
    """A 500 that tells a stranger nothing."""
    assert answer.status == 500
    for secret in ("Traceback", "probe.py", *secrets):
        assert secret not in answer.text


@pytest.mark.parametrize("face", ["raise-before", "raise-in-head"])
def test_exception_before_the_body(site: Site, way: Way, face: str) -> None:
    """An exception before the head: 500, traceback in the log and not in the page."""
    word = uuid.uuid4().hex
    answer = site.ask(way, f"/{face}?word={word}")
    assert_error_page(answer, word)
    assert answer.header("X-Half") is None
    site.wait_for_log(f"probe raises {word}")
    assert "Traceback (most recent call last)" in site.log()
    assert_serves(site, way)


def test_exception_with_a_long_traceback(site: Site, way: Way) -> None:
    """A traceback of more than 40 KB leaves room for the 500 in every server."""
    word = uuid.uuid4().hex
    answer = site.ask(way, f"/raise-deep?word={word}")
    assert_error_page(answer, word)
    site.wait_for_log(f"probe raises {word}")
    assert_serves(site, way)


def test_exception_after_the_head(site: Site, way: Way) -> None:
    """An exception in the body: what was sent arrives, it ends, the log tells."""
    word = uuid.uuid4().hex
    answer = site.ask(way, f"/raise-after?word={word}")
    assert answer.status == 200
    assert answer.text == "first\n"
    site.wait_for_log(f"probe raises {word}")
    assert_serves(site, way)


def test_exit_before_the_head(site: Site, way: Way) -> None:
    """sys.exit without a word to the client is a 500."""
    assert_error_page(site.ask(way, "/exit-before"))
    assert_serves(site, way)


def test_exit_after_the_answer(site: Site, way: Way) -> None:
    """sys.exit after a whole answer does not harm it."""
    answer = site.ask(way, "/exit-after")
    assert answer.status == 200
    assert answer.text == "leaving\n"
    assert_serves(site, way)


@pytest.mark.parametrize("face", ["open-head", "no-head", "nothing", "log-only"])
def test_answer_without_a_head(site: Site, way: Way, face: str) -> None:
    """What is no answer at all becomes a 500, and never a page of headers."""
    assert_error_page(site.ask(way, f"/{face}"), "X-Open", "this is no head")
    assert_serves(site, way)


def test_streams_closed_by_the_program(site: Site, way: Way) -> None:
    """A program may close its own stdout and stderr."""
    answer = site.ask(way, "/close-streams")
    assert answer.status == 200
    assert answer.text == "closed\n"
    assert_serves(site, way)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_error_answer_to_a_post(site: Site, way: Way, size: int) -> None:
    """A program that fails without having read the body."""
    answer = site.ask(way, "/raise-before?word=x", method="POST", body=b"b" * size)
    assert_error_page(answer)
    assert_serves(site, way)


@pytest.mark.slow
def test_errors_in_a_row(site: Site, way: Way) -> None:
    """One error after the other on connections that may be kept."""
    for face in ("raise-before", "raise-after", "open-head", "nothing", "log-only") * 2:
        assert site.ask(way, f"/{face}?word=x").status in (200, 500)
    assert_serves(site, way)


@pytest.mark.slow
def test_loop_exception_before_the_body(loop_site: Site, way: Way) -> None:
    """In the bare loop too: 500, traceback in the log; then another process serves."""
    word = uuid.uuid4().hex
    answer = loop_site.ask_fatal(way, f"/raise-before?word={word}")
    assert_error_page(answer, word)
    loop_site.wait_for_log(f"probe raises {word}")
    assert_serves_again(loop_site, way)


@pytest.mark.slow
def test_loop_exception_after_the_head(loop_site: Site, way: Way) -> None:
    """In the bare loop too: the answer ends as it should before the process does."""
    word = uuid.uuid4().hex
    answer = loop_site.ask_fatal(way, f"/raise-after?word={word}")
    assert answer.status == 200
    assert answer.text == "first\n"
    loop_site.wait_for_log(f"probe raises {word}")
    assert_serves_again(loop_site, way)


@pytest.mark.slow
def test_loop_exit(loop_site: Site, way: Way) -> None:
    """In the bare loop sys.exit ends the process after a whole answer."""
    answer = loop_site.ask_fatal(way, "/exit-after")
    assert answer.status == 200
    assert answer.text == "leaving\n"
    assert_serves_again(loop_site, way)


@pytest.mark.slow
def test_loop_error_answer_to_a_post(loop_site: Site, way: Way) -> None:
    """A process that ends with 1 MiB unread still delivers its answer."""
    answer = loop_site.ask_fatal(
        way, "/raise-before?word=x", method="POST", body=b"b" * (1 << 20)
    )
    assert_error_page(answer)
    assert_serves_again(loop_site, way)


@pytest.mark.slow
@pytest.mark.parametrize("face", ["crash-before", "crash-in-head"])
def test_process_dies_before_the_answer(loop_site: Site, way: Way, face: str) -> None:
    """The process is gone without a word: the client gets a 5xx, in time."""
    answer = loop_site.ask_fatal(way, f"/{face}")
    assert 500 <= answer.status <= 504
    assert_serves_again(loop_site, way)


@pytest.mark.slow
def test_process_dies_in_the_body(loop_site: Site, way: Way) -> None:
    """The process is gone in mid-answer: the answer ends, whole or visibly cut."""
    try:
        answer = loop_site.ask_fatal(way, "/crash-after")
    except (OSError, http.client.HTTPException):
        assert_serves_again(loop_site, way)
    else:
        assert answer.status in (200, 500, 502)
        assert_serves_again(loop_site, way)
