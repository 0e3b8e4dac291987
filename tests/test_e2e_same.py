"""One program, every way from a web server to it: what the client sees is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from .servers import APPS, Gate, Site, SiteCache, Way, way_params

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
    """The probe behind this way's server."""
    return sites.get(way.setup, APPS / "probe.py")


@pytest.fixture(scope="module")
def descriptor_site(sites: SiteCache, way: Way) -> Site:
    """The same with descriptors 0, 1 and 2 in the hand of the request."""
    settings = {"FCGI_APP_DESCRIPTORS": "1"}
    return sites.get(way.setup, APPS / "probe.py", settings)


@pytest.fixture(autouse=True)
def diary(site: Site) -> Iterator[None]:
    """All logs, which pytest shows if the test fails."""
    yield
    print(site.diary())


def test_environment_reaches_the_program(site: Site, way: Way) -> None:
    """Mount point, path, query, cookie and headers arrive as CGI variables."""
    answer = site.ask(
        way,
        "/one/two%20three/show-environment?a=1&b=%20x",
        headers={
            "Cookie": "c=1; d=2",
            "X-Probe": "some words",
            "Authorization": "Basic dTpw",
            "Proxy": "http://evil.example",
        },
    )
    assert answer.status == 200
    assert json.loads(answer.body) == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": way.mount,
        "PATH_INFO": "/one/two three/show-environment",
        "QUERY_STRING": "a=1&b=%20x",
        "HTTP_COOKIE": "c=1; d=2",
        "HTTP_X_PROBE": "some words",
        "HTTP_AUTHORIZATION": "Basic dTpw",
        "HTTP_PROXY": None,
        "FCGI_ROLE": "RESPONDER",
    }


def test_no_path_info_at_the_mount_point(site: Site, way: Way) -> None:
    """Without anything behind the mount point PATH_INFO is empty or absent."""
    shown = json.loads(site.ask(way).body)
    assert shown["SCRIPT_NAME"] == way.mount
    assert not shown["PATH_INFO"]
    assert not shown["QUERY_STRING"]


def test_status_and_headers_reach_the_client(site: Site, way: Way) -> None:
    """A status of our own, a header, and a header that comes twice."""
    answer = site.ask(way, "/not-found")
    assert answer.status == 404
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert answer.header("X-Probe") == "one two"
    assert answer.all("Set-Cookie") == ["a=1; Path=/", "b=2"]
    assert answer.text == "nothing here: ä\n"
    assert answer.header("Status") is None


@pytest.mark.parametrize(
    ("face", "location"),
    [
        pytest.param("redirect-path", "/elsewhere?x=1", id="path"),
        pytest.param("redirect-url", "https://example.org/elsewhere", id="url"),
    ],
)
def test_location_without_status_is_a_302(
    site: Site, way: Way, face: str, location: str
) -> None:
    """Location without Status redirects the browser, and never inside the server."""
    answer = site.ask(way, f"/{face}")
    assert answer.status == 302
    # RFC 9110 allows a relative Location; a server may complete it.
    found = answer.header("Location")
    assert found in (location, f"http://localhost{location}")


def test_binary_body_arrives_untouched(site: Site, way: Way) -> None:
    """Every byte value, no translation of any kind."""
    answer = site.ask(way, "/binary")
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/octet-stream"
    assert answer.body == bytes(range(256)) * 64


def test_file_arrives_whole(site: Site, way: Way) -> None:
    """A file of some MB stands untouched between what was written."""
    answer = site.ask(way, "/file")
    assert answer.status == 200
    assert answer.body == b"before\n" + bytes(range(251)) * 12_000 + b"behind\n"
    assert site.ask(way, "/file", method="HEAD").body == b""
    assert site.ask(way, "/not-found").status == 404


def test_head_has_the_headers_and_no_body(site: Site, way: Way) -> None:
    """HEAD gives what GET gives, less the body; the next request is not disturbed."""
    answer = site.ask(way, "/binary", method="HEAD")
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/octet-stream"
    assert answer.body == b""
    assert site.ask(way, "/not-found").status == 404


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 1 << 20])
def test_body_is_echoed(site: Site, way: Way, size: int) -> None:
    """A POST body of this many bytes reaches the program and comes back."""
    if way.name == "cgi-fcgi":  # it writes once and does not look at what was taken
        size = min(size, 20_000)
    body = hashlib.shake_128(b"echo").digest(size)
    answer = site.ask(
        way,
        "/echo",
        method="POST",
        body=body,
        headers={"Content-Type": "application/x-probe"},
    )
    assert answer.status == 200
    assert answer.header("X-Received") == str(size)
    assert answer.body == body


@pytest.mark.parametrize("way", way_params(lambda way: way.duplex), indirect=True)
def test_body_is_echoed_as_it_comes(site: Site, way: Way) -> None:
    """4 MB answered piece by piece while more comes: nobody waits for the other."""
    body = hashlib.shake_128(b"as it comes").digest(4_000_000)
    answer = site.ask(way, "/echo-as-it-comes", method="POST", body=body)
    assert answer.status == 200
    assert answer.body == body


@pytest.mark.parametrize("way", way_params(lambda way: way.chunked), indirect=True)
def test_chunked_body_is_echoed(site: Site, way: Way) -> None:
    """A body of unannounced length arrives whole as well."""
    # HAProxy takes no more than its buffer holds.
    body = hashlib.shake_128(b"chunked").digest(10_000)
    answer = site.ask(
        way,
        "/echo",
        method="POST",
        body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        headers={"Content-Length": "", "Transfer-Encoding": "chunked"},
    )
    assert answer.status == 200
    assert answer.body == body


def test_log_line_reaches_the_error_log(site: Site, way: Way) -> None:
    """What the program writes to sys.stderr is in the web server's error log."""
    word = f"word-for-{way.name}"
    answer = site.ask(way, f"/log-line?word={word}")
    assert answer.status == 200
    assert answer.text == "logged\n"
    site.wait_for_log(f"probe says {word}")


@pytest.mark.parametrize("face", ["log-before", "log-after"])
def test_much_on_the_log_does_no_harm(site: Site, way: Way, face: str) -> None:
    """16 KiB on sys.stderr before the head, or 128 KiB after it: a whole answer."""
    answer = site.ask(way, f"/{face}")
    assert answer.status == 200
    assert answer.text == "logged much\n"


@pytest.mark.parametrize("way", way_params(lambda way: way.flushes), indirect=True)
def test_flushed_output_arrives_at_once(site: Site, way: Way) -> None:
    """Head and first line are with the client while the program still works."""
    with (
        Gate(site.run / "gate") as gate,
        site.open_request(way, f"/early-head?gate={gate.path}") as connection,
    ):
        seen = b""
        while b"first\n" not in seen:
            data = connection.recv(65536)
            assert data, seen
            seen += data
        assert b"x-early: yes\r\n" in seen.lower()
        assert b"last" not in seen
        gate.wait_for_arrival()
        gate.open()
        while data := connection.recv(65536):
            seen += data
    assert b"last\n" in seen


def test_large_answer_arrives_whole(site: Site, way: Way) -> None:
    """8 MiB, flushed in pieces."""
    answer = site.ask(way, "/much")
    assert answer.status == 200
    assert answer.body == b"m" * (8 << 20)


def test_child_sees_the_environment(site: Site, way: Way) -> None:
    """A child process has the request's environment, as in CGI, less HTTP_PROXY."""
    headers = {"Cookie": "c=1", "Proxy": "http://evil.example"}
    answer = site.ask(way, "/child-environment", headers=headers)
    assert answer.status == 200
    assert answer.text == "/child-environment|c=1|\n"
    answer = site.ask(way, "/x/child-environment")
    assert answer.text == "/x/child-environment||\n"


def test_child_writes_into_the_answer(descriptor_site: Site, way: Way) -> None:
    """With FCGI_APP_DESCRIPTORS=1 os.system() arrives between two prints, in order."""
    answer = descriptor_site.ask(way, "/child-output")
    assert answer.status == 200
    assert answer.text == "before\nfrom the child\nafter\n"


def test_file_through_descriptor_1(descriptor_site: Site, way: Way) -> None:
    """A file stands in its place there, too."""
    answer = descriptor_site.ask(way, "/file")
    assert answer.status == 200
    assert answer.body == b"before\n" + bytes(range(251)) * 12_000 + b"behind\n"


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_child_reads_the_body(descriptor_site: Site, way: Way, size: int) -> None:
    """With FCGI_APP_DESCRIPTORS=1 a child reads the body from its descriptor 0."""
    body = hashlib.shake_128(b"child").digest(size)
    answer = descriptor_site.ask(way, "/child-input", method="POST", body=body)
    assert answer.status == 200
    assert answer.body == body
