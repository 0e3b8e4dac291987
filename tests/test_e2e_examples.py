"""The examples behind every web server: what README and examples/README.md promise."""

from __future__ import annotations

import hashlib
import html
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from .servers import EXAMPLES, Site, SiteCache, Way, way_params

pytestmark = pytest.mark.e2e

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
GetSite = Callable[[str], Site]


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
def guestbook_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guestbook") / "guestbook.sqlite3"


@pytest.fixture(scope="module")
def get_site(sites: SiteCache, way: Way, guestbook_db: Path) -> GetSite:
    """Start an example behind this way's server."""

    def get(name: str) -> Site:
        settings = {"GUESTBOOK_DB": str(guestbook_db)} if name == "guestbook" else {}
        return sites.get(way.setup, EXAMPLES / f"{name}.py", settings)

    return get


def example(name: str) -> Callable[[GetSite], Iterator[Site]]:
    """A fixture: the site of one example, its logs shown if the test fails."""

    @pytest.fixture(scope="module", name=name)
    def site(get_site: GetSite) -> Site:
        return get_site(name)

    return site


hello = example("hello")
echo = example("echo")
size = example("size")
guestbook = example("guestbook")
upload = example("upload")
stream = example("stream")
threaded = example("threaded")
wsgi = example("wsgi")


def test_hello(hello: Site, way: Way) -> None:
    """hello.py greets the client by its address."""
    for _ in range(3):
        answer = hello.ask(way)
        assert answer.status == 200
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"
        assert answer.text == "Hello 127.0.0.1\n"


def test_echo_shows_the_request(echo: Site, way: Way) -> None:
    """echo.py shows body and environment, and counts requests where FastCGI does."""
    numbers = []
    for _ in range(2):
        answer = echo.ask(
            way,
            "/p/q?a=1&b=2",
            method="POST",
            body="söme <text>".encode(),
            headers=FORM,
        )
        assert answer.status == 200
        assert answer.header("Content-Type") == "text/html; charset=utf-8"
        assert "Standard input:<br>\n<pre>\nsöme &lt;text&gt;\n</pre>" in answer.text
        shown, _, initial = answer.text.partition("Initial environment:")
        assert f"\nSCRIPT_NAME={way.mount}\n" in shown
        assert "\nPATH_INFO=/p/q\n" in shown
        assert "\nQUERY_STRING=a=1&amp;b=2\n" in shown
        assert "\nREQUEST_METHOD=POST\n" in shown
        if way.kind != "cgi":
            assert "REQUEST_METHOD" not in initial
        found = re.search(r"Request number (\d+),", answer.text)
        assert found
        numbers.append(int(found[1]))
    if way.kind == "cgi":
        assert numbers == [1, 1]
    else:  # lighttpd and mod_fcgid may have asked two processes
        assert numbers[1] == numbers[0] + 1 or way.kind == "spawned"


@pytest.mark.parametrize("wanted", [26, 500, 20_000, 1_000_000])
def test_size(size: Site, way: Way, wanted: int) -> None:
    """size.py sends the same bytes everywhere."""
    if way.name == "cgi-fcgi":  # it writes once and does not look at what was taken
        wanted = min(wanted, 20_000)
    digits = b"12345679890" * 7 + b"123"
    lines = (wanted - 26) // 80
    answer = size.ask(way, f"/{wanted}")
    assert answer.status == 200
    assert answer.body == b"Dumping %6d Bytes ...\n" % wanted + b"".join(
        b"%4d:%s\n" % (number, digits) for number in range(lines)
    )


def test_size_refuses_nonsense(size: Site, way: Way) -> None:
    """A size that is none is a 400 of the program's own."""
    answer = size.ask(way, "/many")
    assert answer.status == 400
    assert answer.text == "Bad size: use a number up to 1073741824, such as /20000\n"


def test_guestbook_is_signed(guestbook: Site, way: Way) -> None:
    """POST, redirect, GET: the entry is there, and its markup is only text."""
    name = f"{way.name} {uuid.uuid4().hex}"
    form = {"name": name, "message": "<script>alert('ä')</script>"}
    signed = guestbook.ask(
        way, method="POST", body=urlencode(form).encode(), headers=FORM
    )
    assert signed.status == 303
    location = signed.header("Location") or ""
    assert location.endswith("?signed")
    page = guestbook.ask(way, "?signed")
    assert page.status == 200
    assert name in page.text
    assert html.escape(form["message"]) in page.text
    assert "<script>" not in page.text


@pytest.mark.parametrize(
    ("request_of_a_kind", "status"),
    [
        pytest.param({"method": "DELETE"}, 405, id="method"),
        pytest.param({"method": "POST", "body": b"{}"}, 415, id="kind"),
        pytest.param(
            {"method": "POST", "body": b"name=x", "headers": FORM}, 400, id="missing"
        ),
        pytest.param(
            {"method": "POST", "body": b"name=" + b"x" * 200_000, "headers": FORM},
            413,
            id="large",
        ),
    ],
)
def test_guestbook_refuses(
    guestbook: Site, way: Way, request_of_a_kind: dict[str, Any], status: int
) -> None:
    """What is no entry is refused with a status and a page, whatever was not read."""
    answer = guestbook.ask(way, **request_of_a_kind)
    assert answer.status == status
    assert "Back to the guestbook" in answer.text
    assert guestbook.ask(way).status == 200


def test_upload(upload: Site, way: Way) -> None:
    """upload.py receives files of a form and tells their checksums."""
    files = {
        "small.txt": b"small",
        "lärge.bin": hashlib.shake_128(b"upload").digest(3_000_000),
    }
    body, kind = multipart(files)
    answer = upload.ask(way, method="POST", body=body, headers={"Content-Type": kind})
    assert answer.status == 200
    for name, content in files.items():
        checksum = hashlib.sha256(content).hexdigest()
        row = f"<tr><td>{name}<td>{len(content)}<td><code>{checksum}</code>"
        assert row in answer.text


def multipart(files: dict[str, bytes]) -> tuple[bytes, str]:
    """A multipart/form-data body as browsers send it, and its content type."""
    boundary = "----fcgi-app-boundary"
    body = b"".join(
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files.items()
    )
    end = f"--{boundary}--\r\n".encode()
    return body + end, f"multipart/form-data; boundary={boundary}"


def test_stream_arrives_whole(stream: Site, way: Way) -> None:
    """stream.py without pauses."""
    answer = stream.ask(way, "?ticks=3&pause=0")
    assert answer.status == 200
    assert answer.header("Cache-Control") == "no-store"
    assert answer.text == "tick 1 of 3\ntick 2 of 3\ntick 3 of 3\n"


# nginx switches its buffering off when the program sends X-Accel-Buffering: no.
@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    way_params(lambda way: way.flushes or way.setup == "nginx"),
    indirect=True,
)
def test_stream_arrives_as_it_grows(stream: Site, way: Way) -> None:
    """stream.py: a tick is with the client before the next one is made."""
    with stream.open_request(way, "?ticks=2&pause=0.5") as connection:
        seen = b""
        while b"tick 1 of 2" not in seen:
            data = connection.recv(65536)
            assert data, seen
            seen += data
        assert b"tick 2 of 2" not in seen
        while data := connection.recv(65536):
            seen += data
    assert b"tick 2 of 2" in seen


def test_wsgi(wsgi: Site, way: Way) -> None:
    """wsgi.py knows its place, and sends a file by wsgi.file_wrapper."""
    page = wsgi.ask(way, "/")
    assert page.status == 200
    assert f'<a href="{way.mount}/source">' in page.text
    source = (EXAMPLES / "wsgi.py").read_bytes()
    answer = wsgi.ask(way, "/source")
    assert answer.body == source
    assert answer.header("Content-Type") == "text/x-python; charset=utf-8"
    head = wsgi.ask(way, "/source", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert wsgi.ask(way, "/nothing").status == 404


def test_threaded(threaded: Site, way: Way) -> None:
    """threaded.py (fcgiapp): 20 requests of a second, at the same time where it can."""
    lone = threaded.ask(way, "/?pause=0")
    assert lone.status == 200
    assert lone.header("Content-Type") == "text/html; charset=utf-8"
    assert "FastCGI Hello! (multi-threaded)" in lone.text
    if way.kind != "external":
        return  # these servers run a process for each request at a time
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(threaded.ask, way, "/?pause=1") for _ in range(20)]
        texts = [answer.result().text for answer in answers]
    assert time.monotonic() - started < 8  # 20 in a row take 20
    # A bridge (cgi-fcgi) may be so slow to come that a thread has its second turn.
    assert len({text.partition("Thread ")[2].partition(",")[0] for text in texts}) > 10
