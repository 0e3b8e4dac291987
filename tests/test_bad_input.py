"""Bad input, each kind: a clear message in its place, its own end, the next served."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import build_record, build_stream

from .webserver import (
    PACKAGE_PARENT,
    App,
    Wire,
    abort_request,
    begin_request,
    data,
    params,
    stdin,
    whole_request,
)

HEAD = b"Content-Type: text/plain\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: close with a reset

# Whatever comes in is not run, only counted and echoed.
PROGRAM = """
    import os, sys
    from fcgi_app import accept
    while accept():
        body = sys.stdin.read()
        sys.stdout.write("Content-Type: text/plain\\r\\n\\r\\n")
        print(os.environ.get("COOKIE"), len(body), end="")
"""


THREADED = """
    import sys
    from fcgi_app import run
    def handler(request):
        body = sys.stdin.read()
        sys.stdout.write("Content-Type: text/plain\\r\\n\\r\\n")
        print(request.params.get("COOKIE"), len(body), end="")
    run(handler, threads=4)
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((socket.AF_UNIX, PROGRAM), id="unix"),
        pytest.param((socket.AF_INET, PROGRAM), id="tcp"),
        pytest.param((socket.AF_UNIX, THREADED), id="threads"),
    ],
)
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[App]:
    """One process that has to live through all that is sent to it."""
    directory = tmp_path_factory.mktemp("bad")
    family, program = request.param
    with App(directory, program, family=family) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


def good(cookie: str, body: bytes = b"", *, keep: bool = True) -> bytes:
    """A request in order, with its answer to be known by its cookie."""
    return whole_request(1, [(b"COOKIE", cookie.encode())], body, keep=keep)


def check_next(app: App) -> None:
    """The program serves its next request."""
    assert app.ask(("COOKIE", "next"), body=b"body").body == b"next 4"


def long_params(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """PARAMS of any length, cut into records."""
    return build_stream(RecordType.PARAMS, 1, build_params(pairs), end=True)


MALFORMED = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "version 71", id="http"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01", "version 22", id="tls"),
    pytest.param(bytes(8), "version 0", id="zeros"),
    pytest.param(b"\xff" * 8, "version 255", id="ones"),
    pytest.param(
        build_record(RecordType.BEGIN_REQUEST, 1, bytes(9)),
        "begin-request body of 9 bytes, not 8",
        id="begin-too-long",
    ),
    pytest.param(
        build_record(RecordType.BEGIN_REQUEST, 1), "body of 0 bytes", id="begin-empty"
    ),
    pytest.param(
        build_record(RecordType.GET_VALUES, 0, b"\x05\x00ab"),
        "a name-value pair runs to byte 7, the stream ends at 4",
        id="get-values",
    ),
    pytest.param(
        begin_request()
        + build_record(RecordType.PARAMS, 1, b"\x01")
        + params(pairs=[]),
        "a name-value length runs past the end at byte 1 of 1 (request id 1)",
        id="params-cut",
    ),
    pytest.param(
        begin_request() + build_record(RecordType.PARAMS, 1, b"\x05\x05abc\x01\x01"),
        None,
        id="params-cut-and-open",
    ),
    pytest.param(
        begin_request() + long_params([(b"N", b"v" * 2_000_000)]),
        "announced at byte 0 of PARAMS, the limit is 1048576",
        id="value-too-long",
    ),
    pytest.param(
        begin_request() + long_params([(b"N%d" % n, b"v" * 9000) for n in range(130)]),
        "1048576",
        id="params-too-long",
    ),
    pytest.param(
        begin_request() + long_params([(b"N%d" % n, b"") for n in range(4097)]),
        "4097 params, the limit is 4096",
        id="too-many-params",
    ),
    pytest.param(
        begin_request() + params() + params(),
        "PARAMS record while STDIN is due (request id 1)",
        id="params-twice",
    ),
    pytest.param(
        begin_request() + params() + data(content=b"x"),
        "DATA record while STDIN is due",
        id="data-of-a-responder",
    ),
    pytest.param(
        begin_request(role=Role.FILTER) + params() + stdin() + stdin(data=b"x"),
        "STDIN record while DATA is due",
        id="stdin-behind-its-end",
    ),
    pytest.param(
        begin_request() + begin_request(),
        "BEGIN_REQUEST record while PARAMS is due",
        id="begin-in-params",
    ),
    pytest.param(
        begin_request(65535) + stdin(65535),
        "STDIN record while PARAMS is due (request id 65535)",
        id="no-params",
    ),
]


class TestMalformed:
    @pytest.mark.parametrize(("sample", "reason"), MALFORMED)
    @pytest.mark.parametrize("behind", [False, True], ids=["first", "behind-another"])
    def test_connection_is_closed(
        self, app: App, sample: bytes, reason: str | None, behind: bool
    ) -> None:
        """It costs its connection, with a line in the log; earlier answers come."""
        before = len(app.log)
        with app.connect() as wire:
            if behind:
                wire.send(good("first"))
                assert wire.answer().body == b"first 0"
            with suppress(BrokenPipeError, ConnectionResetError):
                wire.send(sample)
            if reason is None:
                wire.sock.shutdown(socket.SHUT_WR)
            assert wire.is_closed()
        check_next(app)
        assert app.logged(reason or "", before)

    @pytest.mark.parametrize(("sample", "reason"), MALFORMED[:4])
    def test_whole_requests_in_front_are_served(
        self, app: App, sample: bytes, reason: str
    ) -> None:
        """What was whole before the violation gets its answer."""
        with app.connect() as wire:
            wire.send(good("whole", b"body") + sample)
            assert wire.answer().body == b"whole 4"
            assert wire.is_closed()
        check_next(app)

    @pytest.mark.parametrize(
        "harmless",
        [
            stdin(7, b"nobody's"),
            params(7),
            data(7, b"x"),
            abort_request(7),
            build_record(RecordType.END_REQUEST, 1, bytes(8)),
            build_record(RecordType.STDOUT, 7, b"x"),
            build_record(200, 7, bytes(65535), 255),
            build_record(RecordType.UNKNOWN_TYPE, 0, bytes(8)),
        ],
        ids=["stdin", "params", "data", "abort", "end", "stdout", "unknown", "mgmt"],
    )
    def test_records_of_nobody(self, app: App, harmless: bytes) -> None:
        """Records that the specification has skipped are skipped to their last byte."""
        with app.connect() as wire:
            wire.send(harmless + good("a") + harmless + good("b", b"x"))
            assert wire.answer().body == b"a 0"
            assert wire.answer().body == b"b 1"


def end(wire: Wire, how: str) -> None:
    """End a connection, the ways that a connection may end."""
    if how == "reset":
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    elif how == "half":
        with suppress(OSError):  # the program may have closed it already
            wire.sock.shutdown(socket.SHUT_WR)
            wire.sock.settimeout(20)
            with suppress(ConnectionResetError):
                while wire.sock.recv(65536):
                    pass
    wire.close()


SAMPLES = {
    "get": good("cut", keep=False),
    "post": good("cut", b"a body", keep=True),
    "two": good("one") + good("two"),
    "filter": begin_request(role=Role.FILTER)
    + params()
    + stdin(data=b"in")
    + data(content=b"data"),
    "interleaved": begin_request(1)
    + begin_request(3)
    + params(3)
    + params(1)
    + stdin(3, b"three")
    + stdin(1),
    "aborts": begin_request(1) + abort_request(1) + abort_request(1),
    "management": build_record(RecordType.GET_VALUES, 0, build_params([(b"X", b"")]), 6)
    + build_record(99, 0, b"12345678"),
}


class TestTruncated:
    @pytest.mark.parametrize("name", SAMPLES)
    @pytest.mark.parametrize("how", ["close", "half", "reset"])
    def test_cut_at_every_byte(self, app: App, name: str, how: str) -> None:
        """A connection that ends anywhere disturbs no other one."""
        sample = SAMPLES[name]
        with app.connect() as kept:
            for cut in range(len(sample)):
                with app.connect() as wire:
                    wire.send(sample[:cut])
                    end(wire, how)
                if cut % 8 == 0:
                    kept.send(good(f"kept{cut}"))
                    assert kept.answer().body == b"kept%d 0" % cut
        check_next(app)


def mutate(sample: bytes, at: float, what: str, value: int) -> bytes:
    """Damage a stream of records in one place."""
    place = int(at * len(sample))
    if what == "flip":
        return sample[:place] + bytes([value]) + sample[place + 1 :]
    if what == "insert":
        return sample[:place] + bytes([value]) + sample[place:]
    if what == "drop":
        return sample[:place] + sample[place + 1 + value % 16 :]
    if what == "repeat":
        return sample[:place] + sample[max(0, place - value) :]
    return sample[:place]


DAMAGED = st.one_of(
    st.binary(max_size=120),
    st.builds(
        mutate,
        st.sampled_from(sorted(SAMPLES.values())),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "insert", "drop", "repeat", "cut"]),
        st.integers(0, 255),
    ),
    st.lists(
        st.builds(
            build_record,
            st.integers(0, 12),
            st.sampled_from([0, 1, 1, 1, 2, 65535]),
            st.sampled_from([b"", b"\0\1\1\0\0\0\0\0", b"\0\1\0\0\0\0\0\0", b"abc"]),
            st.sampled_from([0, 1, 255]),
        ),
        max_size=8,
    ).map(b"".join),
)
BROKEN = st.tuples(DAMAGED, st.sampled_from(["close", "half", "reset", "leave"]))


class TestManyAtOnce:
    @settings(max_examples=100)
    @given(st.lists(BROKEN, min_size=3, max_size=6))
    def test_any_damage(self, app: App, broken: list[tuple[bytes, str]]) -> None:
        """Between any broken connections every good request is answered."""
        with ExitStack() as stack:
            kept = stack.enter_context(app.connect())
            for number, (sample, how) in enumerate(broken):
                wire = stack.enter_context(app.connect())
                with suppress(BrokenPipeError, ConnectionResetError):
                    wire.send(sample)
                kept.send(good(f"k{number}", b"x" * number))
                if how != "leave":
                    end(wire, how)
                assert app.ask(("COOKIE", f"n{number}")).body == b"n%d 0" % number
                assert kept.answer().body == b"k%d %d" % (number, number)

    def test_200_open_at_once(self, app: App) -> None:
        """200 broken connections at once, each another way: no good one is lost."""
        whole = b"".join(SAMPLES.values())
        kinds = ("flip", "insert", "drop", "repeat", "cut")
        with ExitStack() as stack:
            kept = [stack.enter_context(app.connect()) for _ in range(5)]
            wires = []
            for number in range(200):
                wire = stack.enter_context(app.connect())
                kind = kinds[number % 5]
                sample = mutate(whole, (number % 40) / 40, kind, number * 37 % 256)
                with suppress(BrokenPipeError, ConnectionResetError):
                    wire.send(sample)
                wires.append(wire)
                kept[number % 5].send(good(f"k{number}"))
                if number % 10 == 0:
                    assert app.ask(("COOKIE", "n")).body == b"n 0"
                assert kept[number % 5].answer().body == b"k%d 0" % number
            for number, wire in enumerate(wires):
                end(wire, ("close", "reset")[number % 2])
                if number % 20 == 0:
                    check_next(app)
            for number, wire in enumerate(kept):
                wire.send(good(f"last{number}"))
                assert wire.answer().body == b"last%d 0" % number


def run_script(
    source: str, stdin: Any, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a script with ``stdin`` on descriptor 0 until its end."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        stdin=stdin,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE_PARENT, **env},
        timeout=30,
        check=False,
    )


class TestDescriptor0:
    @pytest.mark.parametrize(
        ("family", "kind", "text"),
        [
            (socket.AF_UNIX, socket.SOCK_STREAM, "AF_UNIX SOCK_STREAM"),
            (socket.AF_INET, socket.SOCK_STREAM, "AF_INET SOCK_STREAM"),
            (socket.AF_INET, socket.SOCK_DGRAM, "AF_INET SOCK_DGRAM"),
        ],
    )
    @pytest.mark.parametrize("bound", [False, True], ids=["fresh", "bound"])
    def test_useless_socket(
        self, tmp_path: Path, family: int, kind: int, text: str, bound: bool
    ) -> None:
        """A socket that neither listens nor is connected: exit 1, and why."""
        with socket.socket(family, kind) as useless:
            if bound:
                unix = family == socket.AF_UNIX
                useless.bind(str(tmp_path / "s") if unix else ("127.0.0.1", 0))
            done = run_script(PROGRAM, useless)
        assert done.returncode == 1
        assert done.stdout == b""
        log = done.stderr.decode()
        assert f"ConfigError: file descriptor: 0: an {text} socket that is" in log
        assert "call listen() on it before the start" in log

    def test_listening_but_no_stream(self, tmp_path: Path) -> None:
        """A listening socket of another kind than a stream: exit 1, and why."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as useless:
            useless.bind(str(tmp_path / "s"))
            useless.listen()
            done = run_script(PROGRAM, useless)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"FastCGI needs a stream socket" in done.stderr

    @pytest.mark.parametrize("kind", ["null", "file", "pipe", "connected", "closed"])
    def test_anything_else_is_cgi(self, tmp_path: Path, kind: str) -> None:
        """Anything else on descriptor 0 is a CGI program's: one page, exit 0."""
        source = textwrap.dedent(PROGRAM)
        with ExitStack() as stack:
            given: Any = subprocess.DEVNULL
            if kind == "file":
                given = stack.enter_context((tmp_path / "f").open("wb+"))
            elif kind == "pipe":
                reading, writing = os.pipe()
                os.close(writing)
                stack.callback(os.close, reading)
                given = reading
            elif kind == "connected":
                ours, given = socket.socketpair()
                stack.enter_context(given)
                ours.close()
            elif kind == "closed":
                source = "import os; os.close(0)\n" + source
            done = run_script(source, given, COOKIE="x", GATEWAY_INTERFACE="CGI/1.1")
        assert done.stdout == HEAD + b"x 0"
        assert (done.returncode, done.stderr) == (0, b"")

    def test_force_cgi_malformed(self) -> None:
        """A FCGI_FORCE_CGI that is neither yes nor no: exit 1, and why."""
        done = run_script(PROGRAM, subprocess.DEVNULL, FCGI_FORCE_CGI="perhaps")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"ConfigError: FCGI_FORCE_CGI: 'perhaps': must be 1 or 0" in done.stderr


LISTENING = """
    import os, sys
    from fcgi_app import accept, listen
    if os.geteuid() == 0 and "UNPRIVILEGED" in os.environ:
        import fcgi_app.sockets  # while it can be read
        os.seteuid(65534)
    listen(os.environ["ADDRESS"])
    while accept():
        pass
"""


class TestListen:
    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("", "ConfigError: address: ''"),
            ("localhost", "ConfigError: address: 'localhost'"),
            ("host:99999", "ConfigError: address: 'host:99999'"),
            ("127.0.0.1:http", "ConfigError: address: '127.0.0.1:http'"),
            ("[::1", "ConfigError: address: '[::1'"),
            ("unix:", "ConfigError: address: 'unix:'"),
            ("unix:/" + "x" * 200, "ConfigError: address: 'unix:/xxx"),
            ("fd:x", "ConfigError: address: 'fd:x'"),
            ("fd:99", "ConfigError: address: 'fd:99': descriptor 99 is not open"),
            ("fd:1", "ConfigError: address: 'fd:1': descriptor 1 is not a socket"),
            ("systemd", "no socket was passed to this process"),
            ("unix:/nowhere/at/all/s", "FileNotFoundError"),
            ("192.0.2.1:0", "192.0.2.1:0"),
        ],
    )
    def test_address(self, address: str, reason: str) -> None:
        """An address that cannot be had: exit 1, and the log names it."""
        done = run_script(LISTENING, subprocess.DEVNULL, ADDRESS=address)
        assert (done.returncode, done.stdout) == (1, b"")
        assert reason in done.stderr.decode()
        assert address[:60] in done.stderr.decode()

    @pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
    def test_occupied(self, family: int) -> None:
        """A port or a socket file that another process listens on: exit 1."""
        with tempfile.TemporaryDirectory() as directory, socket.socket(family) as live:
            os.chmod(directory, 0o777)
            if family == socket.AF_UNIX:
                live.bind(f"{directory}/s")
                os.chmod(f"{directory}/s", 0o777)
                address = f"unix:{directory}/s"
            else:
                live.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{live.getsockname()[1]}"
            live.listen()
            done = run_script(LISTENING, subprocess.DEVNULL, ADDRESS=address)
        assert (done.returncode, done.stdout) == (1, b"")
        log = done.stderr.decode()
        assert "another process listens" in log or "Address already in use" in log
        assert address.removeprefix("unix:") in log

    @pytest.mark.parametrize("what", ["file", "directory", "unreadable", "forbidden"])
    def test_path(self, what: str) -> None:
        """A path with something else there, or without permission: exit 1."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "s"
            if what == "file":
                path.write_text("precious")
            elif what == "directory":
                path.mkdir()
            elif what == "unreadable":
                with socket.socket(socket.AF_UNIX) as other:
                    other.bind(str(path))
                path.chmod(0)
            os.chmod(directory, 0o555 if what == "forbidden" else 0o777)
            address = f"unix:{path}"
            done = run_script(
                LISTENING, subprocess.DEVNULL, ADDRESS=address, UNPRIVILEGED="1"
            )
            if what == "file":
                assert path.read_text() == "precious"
        assert (done.returncode, done.stdout) == (1, b"")
        reason = {
            "file": "a file that is not a socket is in the way",
            "directory": "a file that is not a socket is in the way",
            "unreadable": "cannot tell whether the socket is in use, not removed",
            "forbidden": "Permission denied",
        }[what]
        assert reason in done.stderr.decode()
        assert str(path) in done.stderr.decode()


class TestRefusedClients:
    def test_many_refused(self, tmp_path: Path) -> None:
        """Peers outside of FCGI_WEB_SERVER_ADDRS cost nothing but their connection."""
        env = {"FCGI_WEB_SERVER_ADDRS": "127.0.0.2"}
        with App(tmp_path, PROGRAM, family=socket.AF_INET, env=env) as app:
            for _ in range(50):
                with app.connect() as wire:
                    with suppress(BrokenPipeError, ConnectionResetError):
                        wire.send(good("x"))
                    assert wire.is_closed()
            with socket.socket() as sock:
                sock.bind(("127.0.0.2", 0))
                sock.connect(app.listener.getsockname())
                wire = Wire(sock)
                wire.send(good("y"))
                assert wire.answer().body == b"y 0"
            assert app.stop() == 0
            assert app.log.count("127.0.0.1 refused") == 50
