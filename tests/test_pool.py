"""A request's resources: released with it, last one first, none skipped."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from fcgi_app.pool import Pool

from .webserver import App, abort_request, begin_request, params, stdin


@contextmanager
def noted(log: list[str], name: str) -> Iterator[str]:
    """A context manager that writes down when it is entered and left."""
    log.append(f"enter {name}")
    yield name.upper()
    log.append(f"leave {name}")


class TestPool:
    def test_last_first(self) -> None:
        """Callbacks and contexts are released in the reverse of their order."""
        log: list[str] = []
        pool = Pool()
        pool.callback(log.append, "first")
        assert pool.enter_context(noted(log, "second")) == "SECOND"
        pool.callback(lambda *args, **kw: log.append(f"{args} {kw}"), 1, name=2)
        assert log == ["enter second"]
        pool.release()
        assert log == ["enter second", "(1,) {'name': 2}", "leave second", "first"]

    def test_once(self) -> None:
        """A second release finds nothing; the pool can be used again."""
        log: list[str] = []
        pool = Pool()
        pool.callback(log.append, "one")
        pool.release()
        pool.release()
        assert log == ["one"]
        pool.callback(log.append, "two")
        pool.release()
        assert log == ["one", "two"]

    def test_added_during_release(self) -> None:
        """What a release adds is released too."""
        log: list[str] = []
        pool = Pool()
        pool.callback(log.append, "first")
        pool.callback(lambda: pool.callback(log.append, "late"))
        pool.release()
        assert log == ["late", "first"]

    def test_released_from_inside(self) -> None:
        """A release that releases the pool itself does nothing twice."""
        log: list[str] = []
        pool = Pool()
        pool.callback(log.append, "first")
        pool.callback(pool.release)
        pool.callback(log.append, "last")
        pool.release()
        assert log == ["last", "first"]

    def test_error_skips_none(self, caplog: pytest.LogCaptureFixture) -> None:
        """An error is logged with its traceback, and the others are released."""
        log: list[str] = []
        pool = Pool()
        pool.callback(log.append, "first")
        pool.callback(int, "no number")
        pool.callback(log.append, "last")
        pool.release()
        assert log == ["last", "first"]
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("fcgi_app", "ERROR")
        assert "no number" in caplog.text

    @pytest.mark.parametrize("leave", [SystemExit(3), KeyboardInterrupt()])
    def test_leaving_skips_none(self, leave: BaseException) -> None:
        """Whoever leaves the process in a release does so after all the others."""
        log: list[str] = []

        def quit_process() -> None:
            raise leave

        pool = Pool()
        pool.callback(log.append, "first")
        pool.callback(quit_process)
        pool.callback(log.append, "last")
        with pytest.raises(type(leave)):
            pool.release()
        assert log == ["last", "first"]
        pool.release()
        assert log == ["last", "first"]

    def test_context_that_fails_to_open(self) -> None:
        """What could not be entered is not left; the error is the caller's."""
        log: list[str] = []

        class Failing(nullcontext[None]):
            def __enter__(self) -> None:
                raise OSError("no")

        pool = Pool()
        pool.callback(log.append, "first")
        with pytest.raises(OSError, match="no"):
            pool.enter_context(Failing())
        pool.release()
        assert log == ["first"]


class TestSubpool:
    def test_with_its_parent(self) -> None:
        """A sub-pool is released with its parent, at its place in the order."""
        log: list[str] = []
        pool = Pool()
        pool.callback(log.append, "before")
        subpool = pool.make_subpool()
        pool.callback(log.append, "behind")
        subpool.callback(log.append, "inside")
        pool.release()
        assert log == ["behind", "inside", "before"]

    def test_earlier(self) -> None:
        """Released by itself, it is not released again; it may be filled again."""
        log: list[str] = []
        pool = Pool()
        subpool = pool.make_subpool()
        subpool.callback(log.append, "one")
        subpool.release()
        assert log == ["one"]
        subpool.callback(log.append, "two")
        pool.release()
        assert log == ["one", "two"]

    def test_as_a_block(self) -> None:
        """As a context manager it is released at the end of its block, error or not."""
        log: list[str] = []
        pool = Pool()
        for name in ("one", "two"):
            with pool.make_subpool() as subpool:
                subpool.callback(log.append, name)
            assert log[-1] == name
        with suppress(ValueError), pool.make_subpool() as subpool:
            subpool.callback(log.append, "three")
            raise ValueError("mine")
        assert log == ["one", "two", "three"]

    def test_blocks_leave_nothing_behind(self) -> None:
        """The passes of a long loop do not fill the pool that they are in."""
        pool = Pool()
        for _ in range(1000):
            with pool.make_subpool():
                pass
        assert not pool._releases

    def test_nested(self) -> None:
        """Pools may be nested to any depth."""
        log: list[str] = []
        pools = [Pool()]
        for depth in range(50):
            pools.append(pools[-1].make_subpool())
            pools[-1].callback(log.append, str(depth))
        pools[0].release()
        assert log == [str(depth) for depth in reversed(range(50))]


# Notes go to a file of their own, which the process has open all the time.
PROGRAM = """
    import os, sys
    from fcgi_app import *
    notes = open("notes", "a", buffering=1)
    note = lambda text: notes.write(text + "\\n")
    while accept():
        request = current_request()
        request.callback(note, "first")
        subpool = request.make_subpool()
        subpool.callback(note, "sub")
        request.callback(note, "last")
        print("Content-Type: text/plain\\n")
        exec(os.environ["QUERY_STRING"])
"""
RELEASED = "last\nsub\nfirst\n"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App(tmp_path, PROGRAM) as running:
        yield running


class TestReleasedWithTheRequest:
    def notes(self, tmp_path: Path) -> str:
        return (tmp_path / "notes").read_text()

    def test_at_finish(self, app: App, tmp_path: Path) -> None:
        """At finish, after the answer has gone out."""
        text = "finish(); note('behind')"
        assert app.ask(("QUERY_STRING", text)).body == b""
        app.ask(("QUERY_STRING", "pass"))
        assert app.stop() == 0
        assert self.notes(tmp_path) == RELEASED + "behind\n" + RELEASED

    def test_the_web_server_does_not_wait(self, app: App, tmp_path: Path) -> None:
        """The web server has its answer before the first release begins."""
        (tmp_path / "gate").touch()
        text = "import fcntl; gate = open('gate')\n"
        text += "request.callback(fcntl.flock, gate, fcntl.LOCK_EX)\nprint('page')"
        with (tmp_path / "gate").open() as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            assert app.ask(("QUERY_STRING", text)).body == b"page\n"
            assert self.notes(tmp_path) == ""
        app.ask(("QUERY_STRING", "pass"))
        assert self.notes(tmp_path).startswith(RELEASED)

    def test_outside_of_the_request(self, app: App) -> None:
        """A release prints to the process's own streams, in its own environment."""
        text = "request.callback(lambda: print('own', os.environ.get('QUERY_STRING')))"
        assert app.ask(("QUERY_STRING", text + "; 1; print('page')")).body == b"page\n"
        assert app.stop() == 0
        assert app.log == "own None\n"

    def test_errors(self, app: App, tmp_path: Path) -> None:
        """An error is in the log with its traceback; the next request is served."""
        text = "request.callback(lambda: 1/0); request.callback(int, 'x')"
        app.ask(("QUERY_STRING", text))
        assert app.ask(("QUERY_STRING", "print('next')")).body == b"next\n"
        assert self.notes(tmp_path).startswith(RELEASED)
        assert "ZeroDivisionError" in app.log
        assert "ValueError: invalid literal" in app.log

    def test_at_abort(self, app: App, tmp_path: Path) -> None:
        """When the web server has aborted the request."""
        pairs = [(b"QUERY_STRING", b"sys.stdout.flush(); sys.stdin.read()")]
        with app.connect() as wire:
            wire.send(begin_request(keep=True), params(pairs=pairs))
            wire.send(stdin(data=bytes(70_000), end=False))
            assert wire.record() is not None
            wire.send(abort_request())
            wire.records()
        app.ask(("QUERY_STRING", "pass"))
        assert self.notes(tmp_path).startswith(RELEASED)

    def test_at_lost_connection(self, app: App, tmp_path: Path) -> None:
        """When the web server has gone."""
        pairs = [(b"QUERY_STRING", b"print('x' * 9000000)")]
        with app.connect() as wire:
            wire.send(begin_request(), params(pairs=pairs), stdin())
        app.ask(("QUERY_STRING", "pass"))
        assert self.notes(tmp_path).startswith(RELEASED)

    @pytest.mark.parametrize(
        ("text", "status"),
        [("1/0", 1), ("sys.exit(3)", 3), ("last_call()", 0)],
        ids=["exception", "sys.exit", "last_call"],
    )
    def test_at_the_end(self, app: App, tmp_path: Path, text: str, status: int) -> None:
        """When the process ends with the request, however."""
        app.ask(("QUERY_STRING", text))
        assert app.wait() == status
        assert self.notes(tmp_path) == RELEASED

    def test_at_sigterm(self, app: App, tmp_path: Path) -> None:
        """When SIGTERM comes in the middle of the request."""
        pairs = [(b"QUERY_STRING", b"sys.stdout.flush(); sys.stdin.read()")]
        with app.connect() as wire:
            wire.send(begin_request(), params(pairs=pairs))
            wire.send(stdin(data=bytes(70_000), end=False))
            assert wire.record() is not None
            app.process.send_signal(signal.SIGTERM)
            wire.send(stdin(data=b"rest"))
            wire.records()
        assert app.wait() == 0
        assert self.notes(tmp_path) == RELEASED

    def test_under_run(self, tmp_path: Path) -> None:
        """Under run, after an exception and after sys.exit, each time."""
        source = """
            import sys
            from fcgi_app import run
            def handler(request):
                request.callback(print, "released", flush=True)
                exec(request.params["QUERY_STRING"])
            run(handler)
        """
        with App(tmp_path, source) as app:
            for text in ("1/0", "sys.exit(3)", "raise ConnectionError"):
                app.ask(("QUERY_STRING", text))
            assert app.stop() == 0
            assert app.log == "released\n" * 3

    def test_leaving_in_a_release(self, app: App, tmp_path: Path) -> None:
        """sys.exit in a release ends the process after all releases, with its status."""
        answer = app.ask(
            ("QUERY_STRING", "request.callback(sys.exit, 5); print('page')")
        )
        assert answer.body == b"page\n"
        assert app.wait() == 5
        assert self.notes(tmp_path) == RELEASED
