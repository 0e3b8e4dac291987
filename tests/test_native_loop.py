"""The same program as a process on either backend: the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcgi_app.codec.constants import RecordType
from fcgi_app.codec.records import build_record
from fcgi_app.scoreboard import VARIABLE, Scoreboard, SlotState
from fcgi_app.settings import Settings

from .threads import eventually
from .webserver import App, Wire, begin_request, collect, stdin, whole_request

pytestmark = pytest.mark.usefixtures("native_backend")

BACKENDS = ("pure", "native")

PROGRAM = """
    import io, os, signal, sys, warnings
    from fcgi_app import *
    from os import environ
    from sys import stdout as early
    NAMES = "A B QUERY_STRING REQUEST_METHOD HTTP_X KEPT FCGI_ROLE HTTP_PROXY".split()
    def shown():
        return [(n, v) for n, v in os.environ.items() if n in NAMES]
    while accept():
        try:
            exec(os.environ.get("HTTP_DO", ""))
        except Exception as error:
            print(type(error).__name__, error, file=sys.__stderr__, flush=True)
    print("over", file=sys.stderr)
"""

HEADS = st.sampled_from(
    [
        "print('Content-Type: text/plain\\r\\n\\r\\n', end='')",
        "print('Content-Type: text/plain\\n')",
        "print('Content-Type: text/plain\\n')",
        "print('Content-Type: text/html; charset=utf-8\\nX: y\\n')",
        "print('Content-Type: text/html'); print('X-Piece: 1'); print()",
        "sys.stdout.write('Content-Ty'); sys.stdout.write('pe: text/plain\\r\\n\\r')",
        "print('Status: 404 Not Found\\nContent-Type: text/plain\\n')",
        "print('Location: /elsewhere\\n')",
        "print('Location: https://example.org/\\n')",
        "print('HTTP/1.1 200 OK\\nContent-Type: text/plain\\n')",
        "print('no head at all')",
        "print()",
        "print('Content-Length: 3\\n')",
        "sys.stdout.buffer.write(b'Content-Type: text/plain\\r\\n\\r\\n')",
        "pass",
    ]
)
SIZES = st.sampled_from(
    [1, 30, 8191, 16384, 32000, 32738, 32739, 32740, 32767, 32768, 65535, 65536, 70000]
)
STATEMENTS = st.sampled_from(
    [
        "print('page')",
        "print('é', 'ü' * 3, chr(0xdce9))",
        "sys.stdout.write('')",
        "sys.stdout.writelines(['a', 'b'])",
        "sys.stdout.flush()",
        "print('now', flush=True)",
        "sys.stdout.buffer.write(b'bytes')",
        "sys.stdout.buffer.flush()",
        "early.write('early')",
        "print('log', file=sys.stderr)",
        "sys.stderr.flush()",
        "sys.stderr.write('half a line')",
        "print(repr(sys.stdin.read()))",
        "print(repr(sys.stdin.readline()))",
        "print(sys.stdin.buffer.read(2))",
        "print(list(sys.stdin))",
        "print(current_request().request_id)",
        "print(sorted(current_request().params.items())[0])",
        "print(len(current_request().raw_params))",
        "print(current_request().aborted)",
        "current_request().callback(lambda: print('released', file=sys.__stderr__))",
        "current_request().stdout.write(b'direct')",
        "os.environ['A'] = 'set'",
        "del os.environ['QUERY_STRING']",
        "os.environ.pop('HTTP_X', None)",
        "os.environ.clear()",
        "os.environ.update(B='b', A='a')",
        "os.environ = {'QUERY_STRING': 'fake'}",
        "print(os.environ.get('QUERY_STRING'), os.getenv('HTTP_X'), 'KEPT' in environ)",
        "print(shown())",
        "print(os.environb.get(b'HTTP_X'))",
        "print(os.popen('echo $QUERY_STRING$A').read())",
        "sys.stdout.reconfigure(encoding='latin-1', errors='replace')",
        "sys.stdout.reconfigure(newline='\\r\\n')",
        "sys.stdout.reconfigure(line_buffering=True)",
        "sys.stdin.reconfigure(encoding='latin-1')",
        "sys.stdout.close()",
        "sys.stdin.close()",
        "sys.stdout = io.StringIO()",
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-16')",
        "sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8')",
        "sys.stdout = sys.stderr",
        "sys.stdout = sys.__stdout__",
        "sys.stdout = early",
        "sys.stdin = io.StringIO('other')",
        "print(sys.stdout.closed, sys.stdout.encoding, sys.stdout.isatty())",
        "print(repr(sys.stdout)[:18], sys.stdout.writable())",
        "sys.stdout.fileno()",
        "1/0",
        "print(1, file=3)",
        "sys.stdout.write(b'bytes')",
        "set_exit_status(7)",
        "set_exit_status(-1)",
        "finish()",
        "finish(); print('own', flush=True)",
        "finish(); finish(); print(current_request(), file=sys.stderr)",
        "exec('try: sys.exit(3)\\nexcept SystemExit: pass')",
        "signal.raise_signal(signal.SIGCHLD)",
        "signal.signal(10, lambda *_: print('handler')); signal.raise_signal(10)",
        "warnings.warn('careful')",
        "p = os.fork() or (print('child', flush=True), os._exit(0)); os.waitpid(p, 0)",
        "is_cgi()",
        "__import__('gc').collect()",
    ]
) | SIZES.map(lambda size: f"print('x' * {size}, end='')")


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """Mostly a head and a few statements."""
    parts = [draw(HEADS), *draw(st.lists(STATEMENTS, max_size=5))]
    if draw(st.integers(0, 9)) == 0:
        parts = draw(st.permutations(parts))
    return "\n".join(parts).encode()


BODIES = [b"b", b"body\nof two", b"body\nof two", b"line\n" * 999, b"long" * 40_000]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, all of it."""
    pairs = [(b"HTTP_DO", draw(programs())), (b"QUERY_STRING", b"q=1")]
    pairs += draw(
        st.lists(
            st.sampled_from(
                [
                    (b"HTTP_X", b"x"),
                    (b"HTTP_X", b""),
                    (b"REQUEST_METHOD", b"HEAD"),
                    (b"REQUEST_METHOD", b"GET"),
                    (b"HTTP_PROXY", b"evil"),
                    (b"KEPT", b"param"),
                    (b"FCGI_ROLE", b"FILTER"),
                    (b"", b"nobody"),
                    (b"A", b"nul\0"),
                ]
            ),
            max_size=3,
        )
    )
    body = draw(st.sampled_from([b""] * 4 + BODIES))
    if body:
        said = draw(st.sampled_from([0] * 6 + [1, -1]))
        pairs.append((b"CONTENT_LENGTH", b"%d" % (len(body) + said)))
    return whole_request(1, pairs, body, keep=draw(st.booleans()))


LAST = whole_request(pairs=[(b"HTTP_DO", b"print('Content-Type: text/plain\\n')")])
"""Whoever has its answer knows that the requests before are over."""


class Twins:
    """The program on both backends, started anew when one of them has gone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._number = 0
        self.apps: list[App] = []

    def start(self, source: str = PROGRAM) -> list[App]:
        """Both, running."""
        if not self.apps or any(app.process.poll() is not None for app in self.apps):
            self.close()
            self._number += 1
            for backend in BACKENDS:
                # As long as the other's, for what tracebacks say of it.
                place = self._directory / f"{self._number}-{backend[0]}"
                place.mkdir()
                env = {"FCGI_APP_BACKEND": backend, "KEPT": "process"}
                self.apps.append(self._stack.enter_context(App(place, source, env=env)))
        return self.apps

    def close(self) -> None:
        self._stack.close()
        self.apps = []


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    made = Twins(tmp_path_factory.mktemp("twins"))
    made.start()
    yield made
    made.close()


def talk(app: App, sent: Sequence[bytes]) -> list[object]:
    """All bytes that come for these requests; a connection is used while it stays."""
    got: list[object] = []
    wire: Wire | None = None
    for request in (*sent, LAST):
        if wire is None:
            wire = app.connect()
            wire.sock.settimeout(5)
        wire.send(request)
        got.append(records := wire.records())
        if not records or not request[10] & 1:
            got.append(wire.is_closed())
            wire.close()
            wire = None
    if wire is not None:
        wire.close()
    return got


def logs(apps: Sequence[App], marks: Sequence[int]) -> list[str]:
    """What each has written to its log since, without what differs in any case."""
    texts = [app.log[mark:] for app, mark in zip(apps, marks, strict=True)]
    return [
        text.replace(str(app.process.pid), "PID").replace(
            str(app.log_path.parent), "PLACE"
        )
        for app, text in zip(apps, texts, strict=True)
    ]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(sent=st.lists(requests(), min_size=1, max_size=4))
def test_any_program(twins: Twins, sent: list[bytes]) -> None:
    """Whatever a program does in its requests, the web server gets the same bytes."""
    apps = twins.start()
    marks = [len(app.log) for app in apps]
    pure, native = (talk(app, sent) for app in apps)
    assert native == pure
    pure_log, native_log = logs(apps, marks)
    assert native_log == pure_log


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_output_buffer(twins: Twins, beyond: int) -> None:
    """Output is cut into records at the same byte: as soon as so much has gathered."""
    head = len("Content-Type: text/plain\n\n")
    size = Settings().output_buffer - head + beyond
    do = (
        f"print('Content-Type: text/plain\\n'); print('x' * {size}, end=''); print('y')"
    )
    sent = [whole_request(pairs=[(b"HTTP_DO", do.encode())], keep=True)]
    pure, native = (talk(app, sent) for app in twins.start())
    assert native == pure


PLAIN = b"Content-Type: text/plain\r\n\r\n"
CHANGES = (
    "sys.stdin.close()",
    "sys.stdin.detach()",
    "sys.stdin.closed = True",
    "sys.stdin = None",
    "sys.stdout.close()",
    "sys.stdout.detach()",
    "sys.stdout.reconfigure(encoding='utf-16')",
    "sys.stdout = None",
    "sys.stderr.close()",
    "sys.stderr = None",
    "os.environ = {}",
    "os.environ.clear()",
    "os.environ['KEPT'] = 'set'; del os.environ['QUERY_STRING']",
    "os.environ._data = {}",
    "os.environb = {}",
)


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stays(twins: Twins, change: str) -> None:
    """The next request finds the process as it was, whatever the one before has done."""
    head = "print('Content-Type: text/plain\\n')"
    look = f"""{head}
print(sys.stdin.closed, repr(sys.stdin.read()), sys.stdout.encoding, end='|')
print(sys.stderr.closed, os.environ['QUERY_STRING'], os.environb[b'KEPT'], end='|')
print(sys.stdin is stdin, sys.stdout is early, sys.stderr is stderr)"""
    expected = b"False '' utf-8|False q b'process'|True True True\n"
    keep = "from sys import stdin, stderr"
    sent = [
        whole_request(
            pairs=[(b"QUERY_STRING", b"q"), (b"HTTP_DO", do.encode())], keep=True
        )
        for do in (f"{head}; {keep}", look, look, f"{head}; {change}", look, look)
    ]
    for app in twins.start():
        got = talk(app, sent)
        for number in (1, 2, 4, 5):
            records = got[number]
            assert isinstance(records, list)
            assert collect(records).stdout == PLAIN + expected, (app, number)


def test_caught_exit(tmp_path: Path) -> None:
    """An exit that was caught is forgotten with its request."""
    head = "print('Content-Type: text/plain\\n')"
    caught = f"{head}\ntry: sys.exit(3)\nexcept SystemExit: pass"
    twins = Twins(tmp_path)
    for app in twins.start():
        sent = [(b"HTTP_DO", do.encode()) for do in (head, head, caught, head)]
        with app.connect() as wire:
            for pair in (*sent, (b"HTTP_DO", f"{head}; last_call()".encode())):
                wire.send(whole_request(pairs=[pair], keep=True))
                assert wire.answer().stdout == PLAIN
        assert app.wait() == 0
    twins.close()


@pytest.mark.parametrize("text", ["\0abc", "\0", "\0" + "x" * 100])
def test_first_response_is_none(tmp_path: Path, text: str) -> None:
    """Where no head has been seen yet, what is none is told so."""
    do = f"sys.stdout.write({text!r})".encode()
    twins = Twins(tmp_path)
    pure, native = (
        talk(app, [whole_request(pairs=[(b"HTTP_DO", do)], keep=True)] * 3)
        for app in twins.start()
    )
    assert native == pure
    twins.close()


ELSEWHERE = """
    import os, sys
    from fcgi_app import *
    count = 0
    while AGAIN:
        count += 1
        print("Content-Type: text/plain\\n")
        print("body", os.environ.get("BAD"))
        if count == 3:
            AFTERWARDS
"""
WAYS = {
    "timeout": ("accept() if count < 4 else accept(timeout=30)", "pass"),
    "settled": ("accept()", "from fcgi_app import fcgi_stdio"),
    "long": (
        "accept()",
        "from fcgi_app.loop import process_loop as p; p.take_long_way()",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_after_the_short_way(tmp_path: Path, backend: str, way: str) -> None:
    """A request that takes another way is looked through, whatever came before."""
    again, afterwards = WAYS[way]
    source = ELSEWHERE.replace("AGAIN", again).replace("AFTERWARDS", afterwards)
    with App(tmp_path, source, env={"FCGI_APP_BACKEND": backend}) as app:
        with app.connect() as wire:
            for _ in range(4):
                wire.send(whole_request(keep=True))
                assert wire.answer().body == b"body None\n"
            wire.send(whole_request(pairs=[(b"REQUEST_METHOD", b"HEAD")], keep=True))
            assert wire.answer().stdout == PLAIN
            bad = build_record(RecordType.PARAMS, 1, b"\x05\x7fBADabc")
            end = build_record(RecordType.PARAMS, 1) + stdin(1)
            wire.send(begin_request(1, keep=True) + bad + end)
            assert wire.is_closed()
        assert app.ask().body == b"body None\n"
        assert app.log.count("a name-value pair runs to byte 134") == 1


def test_answers_that_go_out_in_part(twins: Twins) -> None:
    """A web server that reads late gets every answer whole, and nothing in between."""
    for app in twins.start():
        with app.connect() as wire:
            wire.send(
                whole_request(keep=True, pairs=[(b"HTTP_DO", b"print('A: b\\n')")])
            )
            wire.answer()
            bodies = [bytes([97 + number]) * 60_000 for number in range(8)]
            for number, body in enumerate(bodies, 1):
                do = b"print('A: b\\n'); print('%c' * %d, end='')" % (
                    body[0],
                    len(body),
                )
                wire.send(whole_request(number, keep=True, pairs=[(b"HTTP_DO", do)]))
            records = wire.records(len(bodies))
            for number, body in enumerate(bodies, 1):
                answer = collect(records, number)
                assert answer.body == body
                assert answer.stderr == b""
    pure, native = (app.log.count("answered 500") for app in twins.apps)
    assert native == pure


# --- How the process ends ----------------------------------------------------------------

ENDS = {
    "exit": "sys.exit(3)",
    "exit-text": "sys.exit('why')",
    "exit-in-a-function": "(lambda: sys.exit())()",
    "exception": "raise ZeroDivisionError",
    "interrupted": "raise KeyboardInterrupt",
    "stop": "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupt": "os.kill(os.getpid(), signal.SIGINT)",
    "usr1": "os.kill(os.getpid(), signal.SIGUSR1)",
    "at-exit": "import atexit; atexit.register(print, 'at exit'); sys.exit()",
    "killed": "sys.stdout.flush(); os._exit(4)",
    "exit-after-finish": "finish(); sys.exit(5)",
    "exit-with-status": "set_exit_status(6); sys.exit(7)",
    "generator-exit": "raise GeneratorExit",
}
ENDING = PROGRAM.replace("except Exception as error", "except OSError as error")


@pytest.mark.slow
@pytest.mark.parametrize("head", [False, True], ids=["no-head", "head"])
@pytest.mark.parametrize("how", ENDS)
def test_end_of_the_process(tmp_path: Path, how: str, head: bool) -> None:
    """A process that ends in a request answers alike, and has the same exit status."""
    do = [ENDS[how]]
    if head:
        do[:0] = ["print('Content-Type: text/plain\\n')", "print('page')"]
    sent = whole_request(pairs=[(b"HTTP_DO", "\n".join(do).encode())], keep=True)
    twins = Twins(tmp_path)
    seen = []
    for app in twins.start(ENDING):
        with app.connect() as wire:
            wire.send(sent)
            answer = repr(wire.records()).replace(str(app.log_path.parent), "PLACE")
            closed = wire.is_closed()
        seen.append((answer, closed, app.wait()))
    pure, native = (log.splitlines()[-1:] for log in logs(twins.apps, [0, 0]))
    twins.close()
    assert seen[0] == seen[1]
    assert native == pure


# --- Interrupts --------------------------------------------------------------------------

# Signal handlers run when a function begins, when a call is over, and at a jump back.
INTERRUPTED = """
    import dis, os, sys
    from fcgi_app import accept
    left = 0
    before = {}
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks there when tracing begins
    def trace(frame, event, arg):
        global left
        code = frame.f_code
        if "fcgi_app" not in code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            name = dis.opname[code.co_code[frame.f_lasti]]
            last, before[frame] = before.get(frame, "RESUME"), name
            if last.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                left -= 1
                if left == 0:
                    print("interrupted in", code.co_name, frame.f_lineno, file=sys.__stderr__)
                    raise KeyboardInterrupt
        elif event == "return":
            before.pop(frame, None)
        return trace
    while True:
        if left > 0:
            sys.settrace(trace)
        try:
            more = accept()
        except KeyboardInterrupt:
            continue
        finally:
            sys.settrace(None)
        if not more:
            break
        left = int(os.environ.get("HTTP_LEFT", "0"))
        print("Content-Type: text/plain\\n")
        print(os.environ["QUERY_STRING"])
"""


def number(count: int, left: int, keep: bool) -> bytes:
    pairs = [(b"QUERY_STRING", b"%d" % count), (b"HTTP_LEFT", b"%d" % left)]
    return whole_request(1, pairs, keep=keep)


def slot_of(board: Scoreboard) -> SlotState:
    state = board.read(0)
    assert state is not None
    return state


PAGES = {b"500 Internal Server Error\n"}
"""What a request is answered with that was interrupted when it had begun."""


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True], ids=["not-kept", "kept"])
@pytest.mark.parametrize("watched", [False, True], ids=["alone", "in-a-pool"])
def test_interrupted_anywhere(tmp_path: Path, keep: bool, watched: bool) -> None:
    """An exception of a signal handler at any step of accept costs no answer, and none
    has anything of another one's. The scoreboard's counts stay right."""
    env = {"FCGI_APP_BACKEND": "native"}
    with ExitStack() as stack:
        board = Scoreboard.create("www", 1)
        stack.callback(board.close)
        assert board.take_slot() == 0
        if watched:
            env[VARIABLE] = f"{board.fileno()}:0"
        app = stack.enter_context(
            App(tmp_path, INTERRUPTED, env=env, pass_fds=[board.fileno()])
        )
        stack = stack.enter_context(ExitStack())
        wire: Wire | None = None

        def ask(count: int, left: int) -> bytes:
            nonlocal wire
            if wire is None:
                wire = stack.enter_context(app.connect())
                wire.sock.settimeout(5)
            wire.send(number(count, left, keep))
            body = wire.answer().body
            if not keep:
                assert wire.is_closed()
                wire.close()
                wire = None
            return body

        assert ask(0, 0) == b"0\n"  # its head is known from now on
        left = 0
        while app.log.count("interrupted") == left:
            left += 1
            for count in (3 * left, 3 * left + 1, 3 * left + 2):
                body = ask(count, left if count % 3 == 0 else 0)
                assert body == b"%d\n" % count or (count % 3 == 1 and body in PAGES)
        assert left > 8
        if watched:
            eventually(lambda: slot_of(board).state == "idle", "idle at the end")
            state = slot_of(board)
            assert (state.active, state.request_started) == (0, 0.0)
            assert state.requests == 1 + 3 * left
        stack.close()
        assert app.stop() == 0


# --- Forks -------------------------------------------------------------------------------

FORKS = {
    "exit": "print('child'); sys.exit()",
    "os-exit": "print('child'); os._exit(0)",
    "flush": "print('child', flush=True); os._exit(0)",
    "finish": "finish(); os._exit(0)",
    "accept": "accept(); os._exit(0)",
    "exception": "sys.stderr = None; 1/0",
    "log": "print('child', file=sys.stderr, flush=True); os._exit(0)",
    "output": "print('x' * 70_000); os._exit(0)",
    "buffer": "sys.stdout.buffer.write(b'child'); sys.stdout.buffer.flush(); os._exit(0)",
}
FORKING = PROGRAM.replace("except Exception as error", "except OSError as error")


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True], ids=["not-kept", "kept"])
@pytest.mark.parametrize("what", FORKS)
def test_fork_in_a_request(tmp_path: Path, what: str, keep: bool) -> None:
    """Whatever a child does, its parent's answer is whole, and nobody else answers."""
    do = f"""print('Content-Type: text/plain\\n')
print('before')
child = os.fork()
if not child:
    {FORKS[what]}
os.waitpid(child, 0)
print('after', end='')"""
    twins = Twins(tmp_path)
    sent = [whole_request(pairs=[(b"HTTP_DO", do.encode())], keep=keep)] * 3
    apps = twins.start(FORKING)
    pure, native = (talk(app, sent) for app in apps)
    assert native == pure
    for records in native:
        if isinstance(records, list) and len(records) > 3:
            assert collect(records).body == b"before\nafter"
    assert [app.stop() for app in apps] == [0, 0]
    twins.close()
