"""The response head on its way out: each rule, and the same however it is cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.response import (
    MAX_HEAD_BYTES,
    MalformedHead,
    ResponseHead,
    build_error,
)

from .webserver import App, collect, whole_request

TEXT = b"Content-Type: text/plain"


def mend(written: bytes, *, authorizer: bool = False) -> tuple[bytes, bytes]:
    """Head and body of a response that is written in one piece."""
    whole = ResponseHead(authorizer=authorizer).feed(written)
    assert whole is not None
    return whole


def lines(*fields: bytes) -> bytes:
    """A head of these lines."""
    return b"".join(field + b"\r\n" for field in fields) + b"\r\n"


MENDED = [
    pytest.param([TEXT], [TEXT], id="nothing-to-do"),
    pytest.param(
        [b"Location: /x"], [b"Location: /x", b"Status: 302 Found"], id="location"
    ),
    pytest.param(
        [b"lOCATION: http://h/", TEXT],
        [b"lOCATION: http://h/", TEXT, b"Status: 302 Found"],
        id="location-in-any-case",
    ),
    pytest.param(
        [b"Location: /x", b"Status: 301 Moved"],
        [b"Location: /x", b"Status: 301 Moved"],
        id="location-with-status",
    ),
    pytest.param(
        [b"Location: /x", b"Status: 200 OK"],
        [b"Location: /x", b"Status: 200 OK"],
        id="location-with-status-200",
    ),
    pytest.param(
        [b"Status: 303 See", b"Location: /x"],
        [b"Location: /x", b"Status: 303 See"],
        id="status-goes-last",
    ),
    pytest.param([b"Status: 200 OK", TEXT], [TEXT], id="needless-200"),
    pytest.param([TEXT, b"status:200"], [TEXT], id="needless-bare-200"),
    pytest.param([b"Status: 200 OK"], [b"Status: 200 OK"], id="lonely-200"),
    pytest.param([b"Status: 204"], [b"Status: 204"], id="other-2xx"),
    pytest.param(
        [b"STATUS:404 Not Found", TEXT],
        [TEXT, b"Status: 404 Not Found"],
        id="status-in-any-case",
    ),
    pytest.param(
        [TEXT, b"Status: 404", b"Status: 410 Gone"],
        [TEXT, b"Status: 410 Gone"],
        id="of-two-statuses-the-last",
    ),
    pytest.param(
        [b"HTTP/1.1 404 Not Found", TEXT],
        [TEXT, b"Status: 404 Not Found"],
        id="http-first-line",
    ),
    pytest.param([b"HTTP/1.0 404", TEXT], [TEXT, b"Status: 404"], id="http-bare-code"),
    pytest.param([b"HTTP/1.1 200 OK", TEXT], [TEXT], id="http-needless-200"),
    pytest.param(
        [b"HTTP/1.1 302 Found", b"Location: /x"],
        [b"Location: /x", b"Status: 302 Found"],
        id="http-with-location",
    ),
    pytest.param(
        [
            b"Connection: close",
            b"KEEP-ALIVE: timeout=5",
            b"transfer-encoding: chunked",
            TEXT,
        ],
        [TEXT],
        id="hop-by-hop",
    ),
    pytest.param(
        [b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Empty:", b"X-Wide:\tv "],
        [b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Empty:", b"X-Wide:\tv "],
        id="the-rest-as-written",
    ),
    pytest.param(
        [b"X-Long: one", b"  two", b"\tthree", TEXT],
        [b"X-Long: one two three", TEXT],
        id="folded",
    ),
    pytest.param([b"Status:", b" 404 Gone"], [b"Status: 404 Gone"], id="folded-status"),
    pytest.param(
        [b"Status: 200 OK", b"Connection: close"],
        [b"Status: 200 OK"],
        id="200-with-nothing-beside",
    ),
    pytest.param([b"X: \xe9\xff"], [b"X: \xe9\xff"], id="any-bytes-in-a-value"),
]


class TestHead:
    @pytest.mark.parametrize(("written", "sent"), MENDED)
    def test_mended(self, written: list[bytes], sent: list[bytes]) -> None:
        """The head goes out in the form that every server takes alike."""
        assert mend(lines(*written) + b"body") == (lines(*sent), b"body")

    @pytest.mark.parametrize(
        "head",
        [
            b"A: 1\r\nB: 2\r\n\r\n",
            b"A: 1\nB: 2\n\n",
            b"A: 1\r\nB: 2\n\r\n",
            b"A: 1\nB: 2\r\n\n",
        ],
        ids=["crlf", "lf", "mixed", "mixed-too"],
    )
    @pytest.mark.parametrize("body", [b"", b"\n\n", b"\r\n\r\nA: 1\n\n", b"\x00page"])
    def test_line_ends(self, head: bytes, body: bytes) -> None:
        """Lines may end in LF or CRLF or both; they go out with CRLF."""
        assert mend(head + body) == (lines(b"A: 1", b"B: 2"), body)

    @pytest.mark.parametrize(
        ("written", "reason"),
        [
            (b"\n\nbody", "is empty"),
            (b"\r\n\r\nbody", "is empty"),
            (b"<html>\n\n", "is no header field: b'<html>'"),
            (b"A: 1\nno field\n\n", "is no header field: b'no field'"),
            (b" A: 1\n\n", "is no header field"),
            (b"A B: 1\n\n", "is no header field"),
            (b": 1\n\n", "is no header field"),
            (b"A\xe9: 1\n\n", "is no header field"),
            (b"A: 1\nHTTP/1.1 404 x\n\n", "is no header field"),
            (b"A: 1\r2\n\n", "control character"),
            (b"A: 1\r\r\n\r\n", "control character"),
            (b"A: 1\x00\n\n", "control character"),
            (b"A: 1\n 2\r3\n\n", "control character"),
            (b"HTTP/1.1 404 a\rb\n\n", "control character"),
            (b"Status: banana\n\n", "no HTTP status: b'banana'"),
            (b"Status:\n\n", "no HTTP status: b''"),
            (b"Status: 20\n\n", "no HTTP status"),
            (b"Status: 2000\n\n", "no HTTP status"),
            (b"Status: 4x4 x\n\n", "no HTTP status"),
            (b"Status: -12 x\n\n", "no HTTP status"),
            (b"Status: 404\tx\n\n", "no HTTP status"),
            (b"Status: 099 x\n\n", "out of range"),
            (b"HTTP/1.1\n\n", "no HTTP status"),
            (b"HTTP/1.1 x\n\n", "no HTTP status"),
            (b"Connection: close\n\n", "no field that could be passed on"),
        ],
    )
    @pytest.mark.parametrize("authorizer", [False, True])
    def test_malformed(self, written: bytes, reason: str, authorizer: bool) -> None:
        """What is no head is told with what is wrong in it."""
        with pytest.raises(MalformedHead, match=reason):
            mend(written, authorizer=authorizer)

    @pytest.mark.parametrize(
        ("written", "sent"),
        [
            ([TEXT, b"Status: 200 OK"], [b"Status: 200 OK", TEXT]),
            ([b"Status: 403 No"], [b"Status: 403 No"]),
            ([b"Variable-X: 1"], [b"Variable-X: 1"]),
            ([b"Location: /login"], [b"Status: 302 Found", b"Location: /login"]),
            ([TEXT, b"Status: 403 No"], [b"Status: 403 No", TEXT]),
            ([b"HTTP/1.1 403 No", TEXT], [b"Status: 403 No", TEXT]),
            ([b"Status: 200", b"Connection: x"], [b"Status: 200"]),
        ],
    )
    def test_authorizer(self, written: list[bytes], sent: list[bytes]) -> None:
        """An authorizer's status is its answer: 200 stays, and it comes first."""
        assert mend(lines(*written), authorizer=True) == (lines(*sent), b"")

    def test_the_same_head_again(self) -> None:
        """What is remembered of a head does not depend on who wrote it before."""
        head = lines(b"Status: 200 OK", b"X-Twice: 1")
        for _ in range(2):
            assert mend(head)[0] == lines(b"X-Twice: 1")
            assert b"Status: 200" in mend(head, authorizer=True)[0]

    def test_many_different_heads(self) -> None:
        """A program that prints ever new heads is served like any other."""
        for number in range(300):
            cookie = b"Set-Cookie: n=%d" % number
            assert mend(lines(cookie))[0] == lines(cookie)


def feed_all(head: ResponseHead, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Feed ``pieces`` until the head is whole."""
    for piece in pieces:
        whole = head.feed(piece)
        if whole is not None:
            return whole
    raise AssertionError("the head was never whole")


class TestUnfinished:
    @pytest.mark.parametrize(
        ("written", "reason"),
        [
            (b"", "the response is empty"),
            (b"A: 1", "no blank line ends the response head b'A: 1'"),
            (b"A: 1\r\n", "no blank line ends the response head"),
            (b"A: 1\r\n\r", "no blank line ends the response head"),
        ],
    )
    def test_reason(self, written: bytes, reason: str) -> None:
        """A response that ends inside of its head is told as such."""
        head = ResponseHead()
        assert not head.started
        if written:
            assert head.feed(written) is None
            assert head.started
        assert reason in str(head.unfinished())

    def test_no_head_is_told_at_once(self) -> None:
        """The first line tells a page without a head; it is not held back."""
        head = ResponseHead()
        assert head.feed(b"<ht") is None
        assert head.feed(b"ml") is None
        with pytest.raises(MalformedHead, match="<html>"):
            head.feed(b">\nmore")

    @pytest.mark.parametrize("step", [70_000, 1000, 65_536, 65_537])
    def test_no_blank_line_in_70_kb(self, step: int) -> None:
        """A head of more than 64 KiB is none, however it is written."""
        written = lines(*[b"X-Much: " + b"m" * 90] * 700)
        assert len(written) > 70_000
        pieces = [written[at : at + step] for at in range(0, len(written), step)]
        with pytest.raises(MalformedHead, match="no blank line in the first 65536"):
            feed_all(ResponseHead(), pieces)

    @pytest.mark.parametrize("over", [0, 1])
    @pytest.mark.parametrize("step", [1 << 20, 4096])
    def test_longest_head(self, over: int, step: int) -> None:
        """A head of exactly the limit passes, one byte more does not."""
        written = b"A: " + b"a" * (MAX_HEAD_BYTES - 7 + over) + b"\r\n\r\nbody"
        pieces = [written[at : at + step] for at in range(0, len(written), step)]
        if over:
            with pytest.raises(MalformedHead, match="65536"):
                feed_all(ResponseHead(), pieces)
        else:
            assert len(feed_all(ResponseHead(), pieces)[0]) == MAX_HEAD_BYTES


def outcome(pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    """What becomes of a response written in these pieces; None: a 500."""
    head = ResponseHead()
    body: list[bytes] = []
    sent = None
    for piece in pieces:
        if sent is not None:
            body.append(piece)
            continue
        try:
            whole = head.feed(piece)
        except MalformedHead:
            return None
        if whole is not None:
            sent, first = whole
            body.append(first)
    return None if sent is None else (sent, b"".join(body))


RESPONSES = st.one_of(
    st.sampled_from([lines(*p.values[0]) + b"\r\nbody\n\n" for p in MENDED]),  # type: ignore[misc]
    st.lists(
        st.sampled_from(
            [
                *(b"A: 1", b"Status: 200", b"Location: /", b" fold", b"HTTP/1.1 404 x"),
                *(b"\n", b"\r\n", b"\n", b"\r\n", b"\r", b":", b"", b"x" * 20),
            ]
        ),
        max_size=14,
    ).map(b"".join),
)


class TestCuts:
    @given(RESPONSES)
    def test_cut_at_every_byte(self, written: bytes) -> None:
        """A response cut in two anywhere gives what it gives in one piece."""
        whole = outcome([written])
        for cut in range(len(written) + 1):
            assert outcome([written[:cut], written[cut:]]) == whole, cut

    @given(RESPONSES)
    def test_byte_by_byte(self, written: bytes) -> None:
        """A response written byte by byte gives what it gives in one piece."""
        pieces = [written[i : i + 1] for i in range(len(written))]
        assert outcome(pieces) == outcome([written])

    @given(RESPONSES)
    def test_mended_once_and_for_all(self, written: bytes) -> None:
        """What has gone through a head once goes through another unchanged."""
        sent = outcome([written])
        if sent is not None:
            assert outcome([b"".join(sent)]) == sent

    @given(st.lists(st.binary(max_size=30), max_size=8))
    def test_raises_only_malformed_head(self, pieces: list[bytes]) -> None:
        """No bytes raise anything but MalformedHead."""
        outcome(pieces)


class TestErrorPage:
    @pytest.mark.parametrize(
        ("status", "text"),
        [
            (500, "Internal Server Error"),
            (503, "Service Unavailable"),
            (501, "Not Implemented"),
        ],
    )
    def test_is_a_whole_response(self, status: int, text: str) -> None:
        """A refusal is a head that every server takes, and a page."""
        head, page = mend(build_error(status))
        assert head == lines(
            b"Content-Type: text/plain; charset=utf-8",
            b"Status: %d %s" % (status, text.encode()),
        )
        assert page == f"{status} {text}\n".encode()

    def test_text(self) -> None:
        """The page may say more."""
        assert mend(build_error(500, "café"))[1] == "café\n".encode()

    def test_has_no_length(self) -> None:
        """What stands on STDERR behind it would be lost: see ``build_error``."""
        assert b"content-length" not in build_error(500).lower()


PROGRAM = """
    import os, sys
    from fcgi_app import accept, current_request
    while accept():
        out = sys.stdout
        exec(os.environ["QUERY_STRING"])
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with App(tmp_path_factory.mktemp("response"), PROGRAM) as running:
        yield running


class TestInTheProcess:
    def ask(self, app: App, text: str, *pairs: tuple[str, str], role: int = 1) -> bytes:
        return app.ask(("QUERY_STRING", text), *pairs, role=role).stdout

    @pytest.mark.parametrize(
        ("text", "sent"),
        [
            (
                "out.write('Location: /x\\n\\n')",
                b"Location: /x\r\nStatus: 302 Found\r\n\r\n",
            ),
            (
                "out.write('HTTP/1.1 404 Gone\\nA: 1\\n\\npage')",
                b"A: 1\r\nStatus: 404 Gone\r\n\r\npage",
            ),
            (
                "out.write('Status: 200 OK\\nA: 1\\nConnection: close\\n\\npage')",
                b"A: 1\r\n\r\npage",
            ),
            (
                "[(out.write(c), out.flush()) for c in 'A: 1\\r\\nB: 2\\n\\npage']",
                b"A: 1\r\nB: 2\r\n\r\npage",
            ),
        ],
        ids=["location", "http-first-line", "needless", "flushed-byte-by-byte"],
    )
    def test_mended(self, app: App, text: str, sent: bytes) -> None:
        """The rules hold on the wire, whatever the application flushes."""
        assert self.ask(app, text) == sent

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("out.write('<html>page</html>')", b"no blank line ends the response head"),
            ("out.write('<p>\\n'); out.flush()", b"is no header field: b'<p>'"),
            ("out.write('A: ' + 'a' * 70000)", b"no blank line in the first 65536"),
            ("out.write('Status: never\\n\\n')", b"no HTTP status: b'never'"),
            ("pass", b"the response is empty"),
        ],
        ids=["unfinished", "no-head", "too-long", "bad-status", "nothing"],
    )
    def test_malformed(self, app: App, text: str, reason: bytes) -> None:
        """What is no response is answered by 500 alone; the log says why."""
        answer = app.ask(("QUERY_STRING", text + "; out.write('secret')"))
        if text == "pass":
            answer = app.ask(("QUERY_STRING", "pass"))
        assert answer.stdout == build_error(500)
        assert reason in answer.stderr
        assert answer.app_status == 0
        assert self.ask(app, "out.write('A: 1\\n\\nnext')").endswith(b"next")

    @pytest.mark.parametrize(
        "text",
        [
            "out.write('A: 1\\n\\nbody')",
            "out.write('A: 1\\n\\n'); out.flush(); out.write('body')",
            "out.write('A: 1\\n\\n' + 'body' * 20000); out.write('body' * 20000)",
        ],
        ids=["short", "flushed", "long"],
    )
    def test_head(self, app: App, text: str) -> None:
        """The answer to HEAD has a head and no body."""
        method = ("REQUEST_METHOD", "HEAD")
        assert self.ask(app, text, method) == b"A: 1\r\n\r\n"

    @pytest.mark.parametrize("text", ["pass", "out.write('no head')"])
    def test_error_to_head(self, app: App, text: str) -> None:
        """So has a 500."""
        sent = self.ask(app, text, ("REQUEST_METHOD", "HEAD"))
        assert sent.startswith(b"Status: 500 ")
        assert sent.endswith(b"\r\n\r\n")

    def test_authorizer(self, app: App) -> None:
        """An authorizer's yes goes out as it is written."""
        text = "out.write('Status: 200 OK\\r\\nVariable-WHO: me\\r\\n\\r\\n')"
        sent = self.ask(app, text, role=Role.AUTHORIZER)
        assert sent == b"Status: 200 OK\r\nVariable-WHO: me\r\n\r\n"

    def test_passthrough(self, app: App) -> None:
        """A request may have its response pass as it is written, body of HEAD and all."""
        text = "current_request().passthrough = True; out.write('no head\\npage')"
        for method in ("GET", "HEAD"):
            assert self.ask(app, text, ("REQUEST_METHOD", method)) == b"no head\npage"
        assert self.ask(app, "out.write('no head')").startswith(b"Status: 500 ")

    def test_one_write_for_a_short_response(self, app: App) -> None:
        """Head, body and ends of a short response arrive in one segment."""
        text = b"out.write('A: 1\\n\\n'); out.write('page'); sys.stderr.write('log')"
        with app.connect() as wire:
            wire.send(whole_request(pairs=[(b"QUERY_STRING", text)]))
            wire.received = wire.sock.recv(65536)
            records = [wire.record() for _ in range(5)]
        assert [record and record.type for record in records] == [
            RecordType.STDERR,
            RecordType.STDOUT,
            RecordType.STDERR,
            RecordType.STDOUT,
            RecordType.END_REQUEST,
        ]
        assert collect([record for record in records if record])[:2] == (
            b"A: 1\r\n\r\npage",
            b"log",
        )
