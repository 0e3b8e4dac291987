"""A filter's file that does not come whole: an error for whoever reads it, no less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.codec.constants import Role

from .servers import EXAMPLES, wait_until
from .webserver import GET, App, abort_request, begin_request, data, params, stdin

# Reads DATA as WAY says, and tells what came of it.
PROGRAM = """
    import os, sys
    from fcgi_app import *

    WAYS = {
        "read": lambda r: r.stdin.read(),
        "pieces": lambda r: b"".join(iter(lambda: r.stdin.read(3), b"")),
        "lines": lambda r: list(r.stdin),
        "into": lambda r: r.stdin.readinto(bytearray(100)),
        "text": lambda r: sys.stdin.read(),
        "text-lines": lambda r: list(sys.stdin),
    }

    def handle(request):
        print("Content-Type: text/plain", end="\\r\\n\\r\\n", flush=True)
        request.stdin.read()
        request.start_filter_data()
        read = WAYS[request.params["WAY"]]
        try:
            print("got", read(request))
        except OSError as error:
            text = f"{type(error).__name__}: {error}; {request.incomplete}"
            os.write(2, text.encode() + b"\\n")
            print("error")

    mode = os.environ["MODE"]
    if mode == "accept":
        while accept():
            handle(current_request())
    else:
        run(handle, threads=4 if mode == "threads" else None)
"""
WAYS = ["read", "pieces", "lines", "into", "text", "text-lines"]


@pytest.fixture(scope="module", params=["accept", "run", "threads"])
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[App]:
    directory = tmp_path_factory.mktemp("incomplete")
    with App(directory, PROGRAM, env={"MODE": request.param}) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


def about(way: str, length: bytes = b"9") -> bytes:
    pairs = [*GET, (b"WAY", way.encode()), (b"FCGI_DATA_LENGTH", length)]
    return begin_request(role=Role.FILTER, keep=True) + params(pairs=pairs) + stdin()


@pytest.mark.parametrize("way", WAYS)
class TestIncomplete:
    def test_short(self, app: App, way: str) -> None:
        """DATA that ends below FCGI_DATA_LENGTH raises IncompleteData."""
        before = len(app.log)
        with app.connect() as wire:
            wire.send(about(way), data(content=b"12\n45"))
            assert wire.answer().body == b"error\n"
            wire.send(about(way), data(content=b"12\n45\n789"))
            assert wire.answer().body.startswith(b"got ")
        text = "DATA of 5 bytes is shorter than FCGI_DATA_LENGTH 9"
        assert app.log[before:] == f"IncompleteData: {text}; True\n"

    def test_empty(self, app: App, way: str) -> None:
        """So does DATA without a byte."""
        with app.connect() as wire:
            wire.send(about(way), data())
            assert wire.answer().body == b"error\n"

    def test_cut_off(self, app: App, way: str) -> None:
        """A connection that is lost raises RequestAborted, whatever was announced."""
        before = len(app.log)
        with app.connect() as wire:
            wire.send(about(way, b""), data(content=b"12\n", end=False))
            assert wire.record() is not None  # it runs
        expected = "RequestAborted: the rest of DATA will never come; True\n"
        wait_until(lambda: expected in app.log[before:], "the error in the log")

    def test_aborted(self, app: App, way: str) -> None:
        """So does an abort-request; the connection goes on."""
        before = len(app.log)
        with app.connect() as wire:
            wire.send(about(way))
            assert wire.record() is not None  # it runs
            wire.send(abort_request())
            assert wire.answer().protocol_status == 0
            assert "RequestAborted: the rest of DATA" in app.log[before:]
            wire.send(about(way, b"2"), data(content=b"ok"))
            assert wire.answer().body.startswith(b"got ")


@pytest.mark.parametrize("length", [b"5", b"4", b"", b"-1", b"x"])
def test_enough(app: App, length: bytes) -> None:
    """As much as announced, more, or nothing announced: no error."""
    with app.connect() as wire:
        wire.send(about("read", length), data(content=b"12345"))
        assert wire.answer().body == b"got b'12345'\n"


def test_descriptors(tmp_path: Path) -> None:
    """Where descriptor 0 is the request's, start_filter_data itself raises."""
    source = """
        import os
        from fcgi_app import *
        while accept(descriptors=True):
            print("Content-Type: text/plain", end="\\r\\n\\r\\n", flush=True)
            try:
                start_filter_data()
                os.system("cat")
            except IncompleteData as error:
                print(error)
    """
    with App(tmp_path, source) as app, app.connect() as wire:
        wire.send(about("", b"9"), data(content=b"12345"))
        assert b"DATA of 5 bytes is shorter" in wire.answer().body
        wire.send(about("", b"5"), data(content=b"12345"))
        assert wire.answer().body == b"12345"


@pytest.mark.parametrize("way", ["FCGI_fread(1, 99, FCGI_stdin)", "FCGI_gets()"])
def test_fcgi_stdio(tmp_path: Path, way: str) -> None:
    """In C's names it is what came, and then an error that FCGI_ferror tells."""
    source = f"""
        import os
        from fcgi_app.fcgi_stdio import *
        while FCGI_Accept() >= 0:
            FCGI_printf("Content-Type: text/plain\\r\\n\\r\\n")
            FCGI_StartFilterData()
            first, second = {way}, {way}
            error = os.strerror(FCGI_ferror(FCGI_stdin))
            FCGI_printf("%s", repr((first, second, error)))
    """
    with App(tmp_path, source) as app, app.connect() as wire:
        wire.send(about("", b"9"), data(content=b"12345"))
        body = wire.answer().body.decode()
    assert body.startswith("(b'12345', ")
    assert "Protocol error" in body


def test_example_filter(tmp_path: Path) -> None:
    """filter.py answers 500, keeps nothing, and tells the log."""
    with App(tmp_path, (EXAMPLES / "filter.py").read_text()) as app:
        about_file = [
            *GET,
            (b"PATH_TRANSLATED", b"/srv/a"),
            (b"FCGI_DATA_LENGTH", b"4"),
            (b"FCGI_DATA_LAST_MOD", b"1"),
        ]
        head = begin_request(role=Role.FILTER, keep=True) + params(pairs=about_file)
        with app.connect() as wire:
            wire.send(head, stdin(), data(content=b"ab"))
            answer = wire.answer()
            assert answer.head.startswith(b"Status: 500 ")
            assert b"IncompleteData: DATA of 2 bytes" in answer.stderr
            assert answer.app_status == 1
            wire.send(head, stdin(), data(content=b"abcd"))
            assert b"    1  abcd\n" in wire.answer().body
