"""fcgiapp: from one request to the next, in one thread and in many."""

from __future__ import annotations

import errno
import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.codec.constants import RecordType
from fcgi_app.fcgiapp import (
    FCGX_Accept_r,
    FCGX_InitRequest,
    FCGX_Request,
)

from .fcgx import PROGRAM, THREADED, pairs, run, until
from .webserver import (
    App,
    abort_request,
    begin_request,
    params,
    stdin,
    whole_request,
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with App(tmp_path_factory.mktemp("app"), PROGRAM) as running:
        yield running


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Four threads, and each request is theirs as soon as its params are in."""
    env = {"FCGI_APP_READ_AHEAD": "0"}
    with App(tmp_path_factory.mktemp("eager"), THREADED, env=env) as running:
        yield running


# From one request to the next


def test_accept_before_init() -> None:
    """FCGX_Accept_r gives -9998, as in C, as long as FCGX_Init was not called."""
    request = FCGX_Request()
    assert FCGX_InitRequest(request, 0, 0) == 0
    assert FCGX_Accept_r(request) == -9998
    assert (request.request, request.in_, request.requestId) == (None, None, 0)


def test_stop_while_idle(tmp_path: Path) -> None:
    """SIGTERM ends the wait; the request is empty then, and the process exits 0."""
    with App(tmp_path, PROGRAM) as app:
        run(app, "")
        assert app.stop() == 0
        assert app.log == "over -9999 None None None None None 0\n"


def test_stop_while_busy(tmp_path: Path) -> None:
    """A request that is being served when SIGTERM comes is answered in full."""
    env = {"FCGI_APP_READ_AHEAD": "0"}
    with App(tmp_path, THREADED, env=env) as app, app.connect() as idle:
        idle.send(whole_request(keep=True))
        idle.answer()
        with app.connect() as wire:
            text = "FCGX_FFlush(r.out); say(FCGX_GetStr(9, r.in_))"
            wire.send(begin_request(keep=True), params(1, pairs(text)))
            assert wire.record() is not None
            app.process.send_signal(signal.SIGTERM)
            assert idle.is_closed()  # so it has been noticed
            wire.send(stdin(1, b"the rest"))
            assert wire.answer().stdout == b"b'the rest'\n"
            assert wire.is_closed()
        assert app.wait() == 0


def test_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    """Whoever will not wait for a request sends SIGTERM twice."""
    with App(tmp_path, THREADED) as app, app.connect() as idle, app.connect() as wire:
        idle.send(whole_request(keep=True))
        idle.answer()
        text = "FCGX_FFlush(r.out); threading.Event().wait(60)"
        wire.send(begin_request(), params(1, pairs(text)), stdin())
        assert wire.record() is not None
        app.process.send_signal(signal.SIGTERM)
        assert idle.is_closed()
        assert app.stop() == -signal.SIGTERM


def test_shutdown_pending(tmp_path: Path) -> None:
    """FCGX_ShutdownPending ends all threads' waits, and the current request is done."""
    with App(tmp_path, THREADED) as app:
        assert run(app, "FCGX_ShutdownPending(); say('last')").body == b"'last'\n"
        assert app.wait() == 0


def test_handler_of_the_program_stays(tmp_path: Path) -> None:
    """FCGX_Init leaves a signal alone that the program handles."""
    source = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    source += textwrap.dedent(PROGRAM)
    with App(tmp_path, source) as app:
        run(app, "")
        app.process.send_signal(signal.SIGTERM)
        assert run(app, "say(1)").body == b"1\n"
        assert app.stop(signal.SIGUSR1) == 0


INTERRUPTED = """
    import signal, sys
    from fcgi_app.fcgiapp import *
    def handle(number, frame):
        print("handled", file=sys.stderr, flush=True)
    signal.signal(signal.SIGUSR2, handle)
    FCGX_Init()
    r = FCGX_Request()
    FCGX_InitRequest(r, 0, int(sys.argv[1]) if sys.argv[1:] else FLAGS)
    while True:
        result = FCGX_Accept_r(r)
        if result == -9999:
            break
        if result < 0:
            print("result", result, file=sys.stderr, flush=True)
            continue
        FCGX_PutS("A: b\\r\\n\\r\\n", r.out)
        FCGX_FPrintF(r.out, "%d", signal.getsignal(signal.SIGUSR2) is handle)
"""


def test_signal_ends_the_wait_with_the_flag(tmp_path: Path) -> None:
    """With FCGI_FAIL_ACCEPT_ON_INTR a signal gives -EINTR; then it goes on."""
    source = INTERRUPTED.replace("FLAGS", "FCGI_FAIL_ACCEPT_ON_INTR")
    with App(tmp_path, source) as app:
        assert app.ask().body == b"1"

        def interrupted() -> bool:
            app.process.send_signal(signal.SIGUSR2)  # it may come before the wait
            return f"result {-errno.EINTR}\n" in app.log

        until(interrupted)
        assert app.ask().body == b"1"
        assert app.stop() == 0


def test_signal_leaves_the_wait_alone_without_the_flag(tmp_path: Path) -> None:
    """Without it the handler is called, and the wait goes on."""
    with App(tmp_path, INTERRUPTED.replace("FLAGS", "0")) as app:
        app.ask()
        app.process.send_signal(signal.SIGUSR2)
        until(lambda: "handled" in app.log)
        assert app.ask().body == b"1"
        assert "result" not in app.log
        assert app.stop() == 0


@pytest.mark.parametrize(
    ("made", "number"),
    [
        ("999", errno.EBADF),
        ("os.open('/dev/null', os.O_RDONLY)", errno.ENOTSOCK),
        ("socket.socket(socket.AF_UNIX).detach()", errno.EINVAL),
        ("socket.socketpair()[0].detach()", errno.EINVAL),
        ("-1", errno.EBADF),
    ],
)
def test_what_cannot_be_listened_on(app: App, made: str, number: int) -> None:
    """FCGX_Accept_r gives errno with a minus sign for what is no listening socket."""
    text = f"""
        import socket
        bad, fd = FCGX_Request(), {made}
        say([FCGX_InitRequest(bad, fd, 0), FCGX_Accept_r(bad), bad.out])
        if 0 < fd < 999: os.close(fd)
    """
    assert eval(run(app, text).body) == [0, -number, None]


def test_finish_is_repeatable(app: App) -> None:
    """FCGX_Finish_r sends the answer; again, and without a request, it does nothing."""
    text = """
        out = r.out
        FCGX_PutS("done", r.out)
        FCGX_Finish_r(r)
        FCGX_Finish_r(r)
        assert FCGX_PutS("late", out) == FCGX_PutS("late", r.out) == EOF
        assert (r.request, r.in_, r.envp, r.role) == (None, None, None, 0)
        assert FCGX_FFlush(out) == FCGX_GetError(out) == 0
    """
    assert run(app, text).body == b"done"
    assert run(app, "say(1)").body == b"1\n"  # nothing was raised


def test_free_closes_without_an_end(app: App) -> None:
    """FCGX_Free with close drops what was not sent, and the connection with it."""
    with app.connect() as wire:
        text = "FCGX_PutS('lost', r.out); FCGX_Free(r, 1); FCGX_Free(r, 1)"
        wire.send(begin_request(keep=True), params(1, pairs(text)), stdin())
        assert wire.records() == []


def test_free_without_close_ends(app: App) -> None:
    """FCGX_Free without close leaves the web server a connection that is of use."""
    with app.connect() as wire:
        wire.send(whole_request(1, [], keep=True))
        wire.answer()
        text = "FCGX_PutS('kept', r.out); FCGX_Free(r, 0)"
        wire.send(begin_request(2, keep=True), params(2, pairs(text)), stdin(2))
        assert wire.answer(2).body == b"kept"
        wire.send(whole_request(3, keep=True))
        assert wire.answer(3).body == b"'idle'\n"


def test_dropped_request_is_answered(tmp_path: Path) -> None:
    """After an exception in its thread the client gets a 500, and the log is told."""
    with App(tmp_path, THREADED) as app:
        answer = run(app, "1/0")
        assert answer.head.startswith(b"Status: 500")
        assert answer.app_status == 1
        assert run(app, "say('others go on')").body == b"'others go on'\n"
        assert "ZeroDivisionError" in app.log
        until(lambda: "dropped without FCGX_Finish_r" in app.log)
        assert app.stop() == 0


def test_uncaught_exception_ends_well(tmp_path: Path) -> None:
    """In the main thread it ends the process with 1, and the request with a 500."""
    with App(tmp_path, PROGRAM) as app:
        answer = run(app, "FCGX_PutS('half a page', r.out); 1/0")
        assert answer.head.startswith(b"Status: 500")
        assert b"half a page" not in answer.stdout
        assert app.wait() == 1


def test_exit_in_a_request_sends_the_answer(tmp_path: Path) -> None:
    """A program that exits without FCGX_Finish_r has its answer sent all the same."""
    with App(tmp_path, PROGRAM) as app:
        answer = run(app, "FCGX_SetExitStatus(5, r.out); say('bye'); sys.exit(3)")
        assert (answer.body, answer.app_status) == (b"'bye'\n", 5)
        assert app.wait() == 3


# Threads


def test_many_threads_serve_at_the_same_time(tmp_path: Path) -> None:
    """20 requests that wait for each other are all being served at once."""
    source = THREADED.replace("range(4)", "range(20)")
    source = source.replace("shared = {}", "met = threading.Barrier(20)")
    with App(tmp_path, source) as app:
        wires = [app.connect() for _ in range(20)]
        for wire in wires:
            text = "met.wait(20); say(threading.get_ident())"
            wire.send(begin_request(), params(1, pairs(text)), stdin())
        threads = {wire.answer().body for wire in wires}
        assert len(threads) == 20
        for wire in wires:
            wire.close()


def test_ids_of_one_connection_are_served_at_the_same_time(tmp_path: Path) -> None:
    """So are 20 requests on a single connection."""
    source = THREADED.replace("range(4)", "range(20)")
    source = source.replace("shared = {}", "met = threading.Barrier(20)")
    with App(tmp_path, source) as app, app.connect() as wire:
        for number in range(1, 21):
            sent = pairs("met.wait(20); say('met')")
            wire.send(begin_request(number, keep=True), params(number, sent))
            wire.send(stdin(number))
        records = wire.records(20)
        ended = {r.request_id for r in records if r.type == RecordType.END_REQUEST}
        assert ended == {*range(1, 21)}


def test_slow_clients_stall_nobody(eager: App) -> None:
    """While one web server sends half of everything, the others are served."""
    with eager.connect() as slow_body, eager.connect() as slow_params:
        text = "FCGX_FFlush(r.out); say(FCGX_GetStr(4, r.in_))"
        slow_body.send(
            begin_request(), params(1, pairs(text)), stdin(1, b"a", end=False)
        )
        assert slow_body.record() is not None
        request = whole_request()
        slow_params.send(request[:20])
        for _ in range(8):
            assert run(eager, "say('quick')").body == b"'quick'\n"
        slow_params.send(request[20:])
        assert slow_params.answer().body == b"'idle'\n"
        slow_body.send(stdin(1, b"bcd"))
        assert slow_body.answer().stdout == b"b'abcd'\n"


def test_process_globals_are_left_alone(tmp_path: Path) -> None:
    """Nothing of sys and os.environ is the request's, in any thread."""
    source = textwrap.dedent(THREADED).replace(
        "FCGX_Init()\n",
        "FCGX_Init()\n"
        "assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__\n"
        "assert sys.stdin is sys.__stdin__\n"
        "def state():\n"
        "    return sys.stdin, sys.stdout, sys.stderr, dict(os.environ)\n"
        "before = state()\n",
    )
    with App(tmp_path, source) as app:
        text = "print('to the log', flush=True); say(state() == before)"
        assert run(app, text).body == b"True\n"
        assert app.log == "to the log\n"
        assert app.stop() == 0


def test_abort_is_noticed_while_computing(eager: App) -> None:
    """The Request behind it tells of an abort, and END_REQUEST comes all the same."""
    text = "FCGX_FFlush(r.out); shared['aborted'] = r.request.wait_aborted(20)"
    with eager.connect() as wire:
        wire.send(begin_request(keep=True), params(1, pairs(text)), stdin())
        assert wire.record() is not None
        wire.send(abort_request())
        assert wire.records()[-1].type == RecordType.END_REQUEST
        wire.send(whole_request(2, pairs("say(shared['aborted'])"), keep=True))
        assert wire.answer(2).body == b"True\n"


# examples/threaded.py

EXAMPLE = Path(__file__).parent.parent / "examples" / "threaded.py"
# time.sleep() becomes "wait for a byte on a descriptor": no clock takes part.
ASLEEP_ON_A_PIPE = """
    import os, runpy, time
    time.sleep = lambda seconds: os.read(int(os.environ["PIPE"]), 1)
    runpy.run_path(os.environ["EXAMPLE"], run_name="__main__")
"""


def test_threaded_example_serves_20_at_the_same_time(tmp_path: Path) -> None:
    """All 20 threads of the example are in the middle of a request together."""
    waiting, release = os.pipe()
    env = {"PIPE": str(waiting), "EXAMPLE": str(EXAMPLE)}
    try:
        with App(tmp_path, ASLEEP_ON_A_PIPE, env=env, pass_fds=[waiting]) as app:
            wires = [app.connect() for _ in range(20)]
            for wire in wires:
                wire.send(whole_request(1, [(b"SERVER_NAME", b"a<b")]))
            halves = [wire.record() for wire in wires]  # none has ended
            os.write(release, bytes(20))
            for wire, half in zip(wires, halves, strict=True):
                assert half is not None
                assert b"running on host <i>a&lt;b</i>" in half.content
                assert wire.answer().stdout.endswith(b"</code>\n")
                wire.close()
            started = {
                half.content.partition(b"Thread ")[2][:2] for half in halves if half
            }
            assert len(started) == 20
            assert app.stop() == 0
    finally:
        os.close(waiting)
        os.close(release)


@pytest.mark.slow
def test_threaded_example_takes_the_time_of_one(tmp_path: Path) -> None:
    """20 parallel requests with a pause take far less than 20 pauses."""
    pause = 0.5
    with App(tmp_path, f"import runpy; runpy.run_path({str(EXAMPLE)!r})") as app:
        request = whole_request(1, [(b"QUERY_STRING", b"pause=%g" % pause)])
        app.ask(("QUERY_STRING", "pause=0"))  # it has started now
        began = time.monotonic()
        wires = [app.connect() for _ in range(20)]
        for wire in wires:
            wire.send(request)
        for wire in wires:
            assert wire.answer().app_status == 0
            wire.close()
        took = time.monotonic() - began
        assert pause <= took < 4 * pause
        assert app.stop() == 0
