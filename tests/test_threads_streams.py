"""Streams, contexts and callbacks of requests that are served side by side."""

from __future__ import annotations

import contextvars
import gc
import socket
import sys
import threading
import weakref
from pathlib import Path

import pytest

import fcgi_app
from fcgi_app import Request

from .threads import HEAD, PATIENCE, eventually, param, plain, serve
from .webserver import Answer, App, begin_request, collect, params, stdin, whole_request


class TestStandardStreams:
    def test_each_prints_to_its_own(self, tmp_path: Path) -> None:
        """print, input and the log are the request's own, whoever else prints."""
        together = threading.Barrier(4)

        def handler(request: Request) -> None:
            name = request.request_id
            for turn in range(20):
                together.wait(PATIENCE)
                if not turn:
                    print("Content-Type: text/plain\r\n\r\n", end="")
                print(name, turn, sys.stdin.readline().strip())
                print(name, turn, file=sys.stderr)

        with serve(tmp_path, handler) as served, served.connect() as wire:
            for n in range(1, 5):
                body = b"".join(b"line %d of %d\n" % (turn, n) for turn in range(20))
                wire.send(whole_request(n, body=body, keep=True))
            records = wire.records(4)
        for n in range(1, 5):
            answer = collect(records, n)
            assert answer.body.splitlines() == [
                b"%d %d line %d of %d" % (n, turn, turn, n) for turn in range(20)
            ]
            assert answer.stderr.splitlines() == [b"%d %d" % (n, t) for t in range(20)]

    PRINTING = """
        import logging, sys, threading
        early = logging.StreamHandler()
        from sys import stdout as early_stdout
        import fcgi_app
        logging.getLogger("app").addHandler(early)
        logging.getLogger("app").propagate = False

        def elsewhere():
            print("printed elsewhere")
            print("told elsewhere", file=sys.stderr)

        def handler(request):
            print("Content-Type: text/plain\\r\\n\\r\\n", end="")
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            logging.getLogger("app").warning("logged early")
            print("printed early", file=early_stdout)

        fcgi_app.run(handler, threads=2)
        print("printed at the end", file=sys.stderr)
    """

    def test_outside_of_requests(self, tmp_path: Path) -> None:
        """A thread without a request prints to the process's log, to no response."""
        with App(tmp_path, self.PRINTING) as app:
            answer = app.ask()
            assert app.stop() == 0
            assert b"elsewhere" not in answer.stdout + answer.stderr
            assert "printed elsewhere\ntold elsewhere\n" in app.log
            assert "printed at the end" in app.log

    def test_streams_taken_early(self, tmp_path: Path) -> None:
        """Whoever took hold of the streams before ``run`` follows the request, too."""
        # The import comes first where the streams are to be found early.
        source = self.PRINTING.replace("import logging", "import fcgi_app, logging", 1)
        with App(tmp_path, source) as app:
            answer = app.ask()
            assert app.stop() == 0
        assert answer.body == b"printed early\n"
        assert answer.stderr == b"logged early\n"

    @pytest.mark.slow
    def test_log_handler_and_a_bad_connection(self, tmp_path: Path) -> None:
        """A handler that logs into its response never stops the other connections.

        It has the logging lock while the web server takes nothing; meanwhile the
        acceptor has something to log as well.
        """
        source = """
            import logging, sys
            import fcgi_app
            logging.basicConfig(stream=sys.stderr, level="INFO", format="%(message)s")

            def handler(request):
                print("Content-Type: text/plain\\r\\n\\r\\n", end="")
                if "MUCH" in request.params:
                    sys.stdout.flush()
                    for _ in range(100):
                        logging.warning("x" * 100000)

            fcgi_app.run(handler, threads=4)
        """
        with App(
            tmp_path, "import fcgi_app\n" + source.replace("\n            ", "\n")
        ) as app:
            with app.connect() as stuck:
                stuck.send(whole_request(1, [(b"MUCH", b"1")]))
                first = stuck.record()
                assert first is not None
                for _ in range(5):
                    with app.connect() as bad:
                        bad.send(b"GET / HTTP/1.0\r\n\r\n")
                        assert bad.is_closed()
                    assert app.ask().head == b"Content-Type: text/plain"
                answer = collect(stuck.records())
                assert len(answer.stderr) == 100 * 100001
            assert app.stop() == 0
            assert "version 71" in app.log

    def test_finished_request(self, tmp_path: Path) -> None:
        """After ``finish`` a handler's streams are the process's own."""
        outside: list[object] = []

        def handler(request: Request) -> None:
            print("Content-Type: text/plain\r\n\r\nanswer", end="")
            fcgi_app.finish()
            outside.append((sys.stdin.read(), request.finished))
            sys.stderr.flush()

        with serve(tmp_path, handler) as served:
            assert served.ask(body=b"unread").body == b"answer"
        assert outside == [("", True)]

    def test_buffer_used_again(self, tmp_path: Path) -> None:
        """What has been written does not change with the caller's buffer.

        Nor is the buffer held: it may change its size.
        """
        written = threading.Event()

        def handler(request: Request) -> None:
            content = bytearray(b"a" * 40_000)
            request.stdout.write(HEAD)
            for _ in range(20):  # more than fits into a socket's buffer
                request.stdout.write(content)
                content[:] = b"b" * len(content)
                content.append(0)
                content[:] = b"a" * 40_000
            request.stdout.write(content)
            content.clear()
            written.set()

        with serve(tmp_path, handler) as served, served.connect() as wire:
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.send(whole_request())
            answer = wire.answer()
            assert written.wait(PATIENCE)
        assert answer.body == b"a" * 40_000 * 21

    def test_process_streams_are_put_back(self, tmp_path: Path) -> None:
        """While a server runs the streams follow; nested servers end in any order."""
        before = sys.stdin, sys.stdout, sys.stderr
        (tmp_path / "b").mkdir()
        first = fcgi_app.Server(f"unix:{tmp_path}/s", plain)
        second = fcgi_app.Server(f"unix:{tmp_path}/b/s", plain)
        first.start()
        second.start()
        first.close()
        assert sys.stdout is not before[1]
        second.close()
        assert (sys.stdin, sys.stdout, sys.stderr) == before


class TestHandlers:
    def ask_twice(self, tmp_path: Path, source: str) -> tuple[Answer, App]:
        """The answer of a program whose one thread must serve another request after."""
        program = f"""
            import sys, os, threading, fcgi_app
            def handler(request):
                print("Content-Type: text/plain\\r\\n\\r\\n", end="")
                if "NEXT" in request.params:
                    print("next", end="")
                else:
                    {source}
            fcgi_app.run(handler, threads=1)
        """
        with App(tmp_path, program) as app:
            answer = app.ask()
            assert app.ask(("NEXT", "1")).body == b"next"
            assert app.stop() == 0
        return answer, app

    @pytest.mark.parametrize(
        "name", ["ValueError", "KeyboardInterrupt", "GeneratorExit"]
    )
    def test_exception(self, tmp_path: Path, name: str) -> None:
        """An exception is a 500 with its traceback in the log; the thread goes on."""
        answer, _ = self.ask_twice(tmp_path, f"raise {name}('oh')")
        assert answer.stdout.startswith(b"Status: 500 ")
        assert b"Traceback" in answer.stderr
        assert b"oh" in answer.stderr
        assert answer.app_status == 1

    def test_exit(self, tmp_path: Path) -> None:
        """sys.exit ends the request with that app_status, not the process."""
        answer, _ = self.ask_twice(tmp_path, "sys.exit(3)")
        assert (answer.head, answer.app_status) == (HEAD[:-4], 3)

    def test_exit_with_a_message(self, tmp_path: Path) -> None:
        """sys.exit with a text tells it to the log of the request."""
        answer, _ = self.ask_twice(tmp_path, "sys.exit('reason')")
        assert (answer.stderr, answer.app_status) == (b"reason\n", 1)

    @pytest.mark.parametrize("error", ["ValueError", "SystemExit", "KeyboardInterrupt"])
    def test_failing_callback(self, tmp_path: Path, error: str) -> None:
        """What a pool callback raises does not cost the thread; the others run."""
        source = f"""
                    def fail(): raise {error}("callback")
                    request.callback(lambda: print("released", file=sys.__stderr__))
                    request.callback(fail)
        """.strip()
        answer, app = self.ask_twice(tmp_path, source)
        assert answer.head == HEAD[:-4]
        assert "released" in app.log
        assert "callback" in app.log

    def test_fresh_context(self, tmp_path: Path) -> None:
        """What a handler sets in its context, the next one does not find."""
        mark = contextvars.ContextVar("mark", default="new")

        def handler(request: Request) -> None:
            plain(request, mark.get())
            mark.set("used")

        with serve(tmp_path, handler, threads=1) as served:
            assert [served.ask().body for _ in range(3)] == [b"new"] * 3

    def test_current_request(self, tmp_path: Path) -> None:
        """It is the handler's own; a copied context takes it to another thread."""

        def handler(request: Request) -> None:
            assert fcgi_app.current_request() is request
            found: list[object] = []
            context = contextvars.copy_context()
            for run in (found.append, lambda r: context.run(self.look, found)):
                thread = threading.Thread(target=run, args=(None,))
                thread.start()
                thread.join()
            fcgi_app.set_exit_status(5)
            plain(request, str(found == [None, request]))

        with serve(tmp_path, handler) as served:
            answer = served.ask()
        assert (answer.body, answer.app_status) == (b"True", 5)
        assert fcgi_app.current_request() is None

    def look(self, found: list[object]) -> None:
        """Note the current request."""
        found.append(fcgi_app.current_request())

    def test_filter(self, tmp_path: Path) -> None:
        """A filter starts DATA as soon as it has read the announced bytes of STDIN."""
        starts = []

        def handler(request: Request) -> None:
            assert request.stdin.read(5) == b"query"
            eventually(lambda: started(request), "the end of STDIN")
            starts.append(1)
            plain(request, request.stdin.read().decode())

        def started(request: Request) -> bool:
            try:
                request.start_filter_data()
            except fcgi_app.CallSequenceError:
                return False
            return True

        from .webserver import data

        with (
            serve(tmp_path, handler, read_ahead=0) as served,
            served.connect() as wire,
        ):
            wire.send(begin_request(role=3), params(), stdin(data=b"query"))
            wire.send(data(content=b"file"))
            assert wire.answer().body == b"file"

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        """Nobody holds a request that has ended, however it was used."""
        requests: list[weakref.ref[Request]] = []

        def handler(request: Request) -> None:
            requests.append(weakref.ref(request))
            print("Content-Type: text/plain\r\n\r\n", end="")
            print(sys.stdin.read(), request.aborted)
            request.on_abort(plain)  # type: ignore[arg-type]
            request.callback(lambda: request.role)
            print("log", file=sys.stderr)
            if param(request, "FAIL"):
                raise ValueError

        gc.collect()
        with serve(tmp_path, handler) as served:
            gc.disable()
            try:
                for number in range(60):
                    fail = [(b"FAIL", b"1")] if number % 3 == 0 else []
                    served.ask(fail, body=b"x" * number)
                eventually(
                    lambda: not [r for r in requests if r() is not None],
                    "all requests go",
                )
            finally:
                gc.enable()
        assert len(requests) == 60


FORKING = """
    import os, subprocess, sys, threading
    import fcgi_app

    def handler(request):
        print("Content-Type: text/plain\\r\\n\\r\\n", end="")
        print("before")
        exec(request.params.get("CODE", ""))
        print("after")

    fcgi_app.run(handler, threads=4)
"""


# From 3.12 on Python warns of forks beside threads, into the log of the request.
QUIET = {"PYTHONWARNINGS": "ignore"}


class TestForks:
    @pytest.mark.parametrize("way", ["sys.exit()", "os._exit(0)", "1/0", "pass"])
    def test_child_that_ends(self, tmp_path: Path, way: str) -> None:
        """A forked child that ends, however, leaves its parent's response whole."""
        text = f"pid = os.fork()\nif not pid:\n  print('child')\n  {way}\n  os._exit(0)\nos.waitpid(pid, 0)"
        with App(tmp_path, FORKING, env=QUIET) as app:
            for _ in range(3):
                answer = app.ask(("CODE", text))
                assert answer.body == b"before\nafter\n"
                assert answer.stderr == b""
            assert app.stop() == 0

    def test_child_that_answers(self, tmp_path: Path) -> None:
        """With detach and attach a child answers; beside it others are served."""
        text = (
            "request.detach()\n"
            "if not os.fork():\n"
            "  request.attach()\n"
            "  print('child', request.stdin.read())\n"
            "  request.finish()\n"
            "  os._exit(0)\n"
            "request.finish()\n"
            "os.wait()\n"
            "sys.exit()"
        )
        with App(tmp_path, FORKING, env={**QUIET, "FCGI_APP_READ_AHEAD": "0"}) as app:
            with app.connect() as wire:
                wire.send(begin_request(), params(pairs=[(b"CODE", text.encode())]))
                assert app.ask().body == b"before\nafter\n"
                wire.send(stdin(data=b"late"))
                assert wire.answer().body == b"before\nchild b'late'\n"
                assert wire.is_closed()
            assert app.ask().body == b"before\nafter\n"
            assert app.stop() == 0

    def test_subprocess(self, tmp_path: Path) -> None:
        """A child program runs as ever, and holds none of our sockets."""
        text = "print(subprocess.run(['ls', '/proc/self/fd'], stdout=-1, stdin=-3).stdout.split())"
        with App(tmp_path, FORKING) as app:
            body = app.ask(("CODE", text)).body
            assert app.stop() == 0
        assert body.splitlines()[1] == b"[b'0', b'1', b'2', b'3']"

    @pytest.mark.slow
    def test_forks_beside_requests(self, tmp_path: Path) -> None:
        """Forking and serving at the same time, all threads: every answer is whole."""
        text = "pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)"
        with App(tmp_path, FORKING) as app, app.connect() as wire:
            for start in range(1, 200, 8):
                ids = range(start, start + 8)
                pairs = [[(b"CODE", text.encode())], []]
                wire.send(*[whole_request(n, pairs[n % 2], keep=True) for n in ids])
                records = wire.records(8)
                for n in ids:
                    assert collect(records, n).body == b"before\nafter\n"
            assert app.stop() == 0
