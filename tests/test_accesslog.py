"""The access log: formats, what counts as sent, and files that come and go."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app import ConfigError, Server
from fcgi_app.accesslog import AccessLog, Entry, Sent, parse_format

from .threads import eventually, plain
from .webserver import App, whole_request

PARAMS = {
    b"REMOTE_ADDR": b"192.0.2.1",
    b"REMOTE_USER": b"alice",
    b"REQUEST_METHOD": b"GET",
    b"REQUEST_URI": b"/a/b?c=d",
    b"QUERY_STRING": b"c=d",
    b"SCRIPT_NAME": b"/a",
    b"SERVER_PROTOCOL": b"HTTP/1.1",
    b"SERVER_NAME": b"example.org",
    b"SERVER_PORT": b"443",
    b"HTTP_HOST": b"example.org:443",
    b"HTTP_USER_AGENT": b'Some "Browser" 1.0',
    b"CONTENT_TYPE": b"text/plain",
    b"X_ODD": b"odd",
}
STARTED = 1_795_385_124.25  # 2026-11-22 22:05:24 UTC


def entry(**changes: Any) -> Entry:
    values = {
        "params": PARAMS,
        "status": 200,
        "size": 1234,
        "started": STARTED,
        "duration": 1.5000019,
        "aborted": False,
    }
    return Entry(**{**values, **changes})


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC, and what it was afterwards."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


class TestFormat:
    @pytest.mark.parametrize(
        ("format", "line"),
        [
            ("%h|%a", b"192.0.2.1|192.0.2.1"),
            ("%l %u", b"- alice"),
            ("%r", b"GET /a/b?c=d HTTP/1.1"),
            ("%m %U%q %H", b"GET /a/b?c=d HTTP/1.1"),
            ("%s %>s %<s", b"200 200 200"),
            ("%b %B", b"1234 1234"),
            ("%D %T", b"1500001 1"),
            ("%{us}T %{ms}T %{s}T", b"1500001 1500 1"),
            ("%v:%p", b"example.org:443"),
            ("%{Host}i", b"example.org:443"),
            ("%{Content-Type}i", b"text/plain"),
            ("%{user-agent}i", b'Some \\"Browser\\" 1.0'),
            ("%{Missing}i", b"-"),
            ("%{X_ODD}e %{REMOTE_ADDR}e", b"odd 192.0.2.1"),
            ("100%% of %m", b"100% of GET"),
            ("ä%m", "äGET".encode()),
            ("%P", b"%d" % os.getpid()),
        ],
    )
    def test_directives(self, format: str, line: bytes) -> None:
        """Each directive is Apache's."""
        assert parse_format(format)(entry()) == line + b"\n"

    def test_nothing_known(self) -> None:
        """What is not there is a hyphen; a query is nothing then."""
        line = parse_format("%h %u %r %s %b %B %m %U%q %H %v %p %{Host}i %{X}e")
        bare = entry(params={}, status=None, size=0, duration=0.0)
        assert line(bare) == b"- - - - - 0 - - - - - - -\n"

    def test_without_request_uri(self) -> None:
        """Where the web server gives no REQUEST_URI, the script's name stands for it."""
        params = {n: v for n, v in PARAMS.items() if n != b"REQUEST_URI"}
        assert parse_format("%r %U")(entry(params=params)) == b"GET /a HTTP/1.1 /a\n"

    @pytest.mark.usefixtures("utc")
    def test_time(self) -> None:
        """The time of the begin, as Apache writes it."""
        line = parse_format("%t")
        assert line(entry()) == b"[22/Nov/2026:22:05:24 +0000]\n"
        assert line(entry(started=STARTED + 60)) == b"[22/Nov/2026:22:06:24 +0000]\n"

    @pytest.mark.parametrize(
        ("zone", "shown"),
        [
            ("XXX-5:30", b"[23/Nov/2026:03:35:24 +0530]"),
            ("XXX3:30", b"[22/Nov/2026:18:35:24 -0330]"),
        ],
    )
    def test_zone(
        self, monkeypatch: pytest.MonkeyPatch, zone: str, shown: bytes
    ) -> None:
        """The offset is the local one, of half hours too."""
        line = parse_format("%t")
        line(entry(started=1.0))  # no other test's second is remembered
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            found = line(entry())
        time.tzset()
        line(entry(started=1.0))
        assert found == shown + b"\n"

    @pytest.mark.usefixtures("utc")
    def test_names(self) -> None:
        """The formats that have names are Apache's with microseconds behind."""
        common = (
            b'192.0.2.1 - alice [22/Nov/2026:22:05:24 +0000] "GET /a/b?c=d HTTP/1.1"'
            b" 200 1234"
        )
        assert parse_format("common")(entry()) == common + b" 1500001\n"
        assert parse_format("combined")(entry()) == (
            common + b' "-" "Some \\"Browser\\" 1.0" 1500001\n'
        )

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (b'"', b'\\"'),
            (b"\\", b"\\\\"),
            (b"a\nb\rc\td", b"a\\nb\\rc\\td"),
            (b"\0\x1b[2J\x7f", b"\\x00\\x1b[2J\\x7f"),
            ("ä".encode(), b"\\xc3\\xa4"),
            (b"plain !#[]~", b"plain !#[]~"),
        ],
    )
    def test_escapes(self, value: bytes, shown: bytes) -> None:
        """Nothing that a client sends can end a field or a line, or move a cursor."""
        for directive, name in (
            ("%U", b"REQUEST_URI"),
            ("%u", b"REMOTE_USER"),
            ("%{X}i", b"HTTP_X"),
            ("%r", b"REQUEST_URI"),
        ):
            line = parse_format(directive)(entry(params={name: value}))
            assert line == shown + b"\n"

    @given(st.dictionaries(st.sampled_from(sorted(PARAMS)), st.binary(max_size=30)))
    def test_any_bytes(self, params: dict[bytes, bytes]) -> None:
        """Whatever comes, a line is one line of printable ASCII, and JSON is JSON."""
        line = parse_format("combined")(entry(params=params))
        assert line.endswith(b"\n")
        assert line[:-1].decode("ascii").isprintable()
        found = json.loads(parse_format("json")(entry(params=params)))
        json.dumps(found).encode("ascii")
        assert not re.search(r"[\ud800-\udfff]", str(found))

    @pytest.mark.parametrize(
        ("format", "shown"),
        [
            ("%h %Z", "'%Z'"),
            ("%", "'%'"),
            ("%h %", "'%'"),
            ("%{Host}", "'%{Host}'"),
            ("%{Host", "'%{Host'"),
            ("%{Host}h", "'%{Host}h'"),
            ("%{}i", "'%{}i'"),
            ("%i", "'%i'"),
            ("%e", "'%e'"),
            ("%>h", "'%>h'"),
            ("%400s", "'%400s'"),
            ("%{min}T", "'%{min}T'"),
            ("%{Location}o", "'%{Location}o'"),
            ("%{%s}t", "'%{%s}t'"),
        ],
    )
    def test_unknown_directive(self, format: str, shown: str) -> None:
        """A directive that there is not is told, and the whole format with it."""
        with pytest.raises(ConfigError, match=r"^access_format: ") as caught:
            parse_format(format)
        assert str(caught.value).endswith(f"no directive {shown}")
        assert caught.value.value == format

    @pytest.mark.parametrize("format", ["", "comon", "Common", "h l u t"])
    def test_no_format(self, format: str) -> None:
        """A name that there is not is told with those that there are."""
        with pytest.raises(ConfigError, match="common, combined, json"):
            parse_format(format)

    @pytest.mark.usefixtures("utc")
    def test_json(self) -> None:
        """An object a line; the time has its offset."""
        line = parse_format("json")(entry())
        assert line.count(b"\n") == 1
        assert json.loads(line) == {
            "time": "2026-11-22T22:05:24.250000+00:00",
            "remote_addr": "192.0.2.1",
            "remote_user": "alice",
            "method": "GET",
            "uri": "/a/b?c=d",
            "protocol": "HTTP/1.1",
            "host": "example.org:443",
            "status": 200,
            "bytes": 1234,
            "duration_us": 1500001,
            "referer": None,
            "user_agent": 'Some "Browser" 1.0',
            "aborted": False,
            "pid": os.getpid(),
        }
        bare = json.loads(parse_format("json")(entry(params={}, status=None)))
        assert (bare["uri"], bare["status"], bare["remote_user"]) == (None, None, None)


class TestSent:
    @pytest.mark.parametrize(
        ("response", "status", "size"),
        [
            (b"Content-Type: a/b\r\n\r\nbody", 200, 4),
            (b"Content-Type: a/b\r\nStatus: 404 Not Found\r\n\r\n", 404, 0),
            (b"status:503\nA: b\n\nStatus: 200\n\n", 503, 13),
            (b"HTTP/1.1 418 I'm a teapot\r\nA: b\r\n\r\nx", 418, 1),
            (b"A: b\r\nLocation: /x\r\n\r\n", 302, 0),
            (b"X-Status: 404\r\n\r\nbody", 200, 4),
            (b"A: b\r\n", None, 0),
            (b"", None, 0),
        ],
    )
    def test_whole_and_in_pieces(
        self, response: bytes, status: int | None, size: int
    ) -> None:
        """Status and size are found however the response is cut."""
        for step in (1, 2, 3, len(response) or 1):
            sent = Sent()
            for at in range(0, len(response), step):
                sent.add([response[at : at + step], b""])
            assert (sent.status, sent.size) == (status, size)

    def test_large(self) -> None:
        """Views count in bytes, and nothing of the body is kept."""
        sent = Sent()
        sent.add([b"A: b\r\n\r\n", memoryview(bytes(1 << 20))])
        sent.add([memoryview(bytes(100)), b"xy"])
        assert (sent.status, sent.size) == (200, (1 << 20) + 102)

    def test_never_a_head(self) -> None:
        """Of what never becomes a head no more is kept than a head may have."""
        sent = Sent()
        for _ in range(100):
            sent.add([bytes(1000)])
        assert (sent.status, sent.size) == (None, 100_000)
        assert sent._head is None


class TestFile:
    def test_appends(self, tmp_path: Path) -> None:
        """Lines go behind what is there, with the usual permissions."""
        path = tmp_path / "log"
        for expected in (b"GET\n", b"GET\nGET\n"):
            log = AccessLog(str(path), "%m")
            log.write(entry())
            log.close()
            log.close()
            assert path.read_bytes() == expected
        assert path.stat().st_mode & 0o7133 == 0

    def test_renamed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that was renamed or removed is made anew, at the next look."""
        path, old = tmp_path / "log", tmp_path / "log.1"
        clock = [100.0]
        monkeypatch.setattr("fcgi_app.accesslog.time.monotonic", lambda: clock[0])
        log = AccessLog(str(path), "%m")
        log.write(entry())
        path.rename(old)
        log.write(entry())  # no look yet
        assert old.read_bytes() == b"GET\nGET\n"
        clock[0] += 1
        log.write(entry())
        assert path.read_bytes() == b"GET\n"
        path.unlink()
        clock[0] += 1
        log.write(entry())
        assert path.read_bytes() == b"GET\n"
        assert old.read_bytes() == b"GET\nGET\n"
        log.close()

    def test_cannot_be_made_anew(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where the directory is gone lines are lost, which is said once."""
        directory = tmp_path / "logs"
        directory.mkdir()
        log = AccessLog(str(directory / "log"), "%m")
        (directory / "log").unlink()
        directory.rmdir()
        for _ in range(3):
            log._next_look = 0.0
            log.write(entry())
        assert len(caplog.messages) == 1
        assert "No such file or directory" in caplog.text
        log.close()

    def test_full_disk(self, caplog: pytest.LogCaptureFixture) -> None:
        """A disk that is full is told once for each time that it gets full."""
        log = AccessLog("/dev/full", "%m")
        for _ in range(3):
            log.write(entry())
        (message,) = caplog.messages
        assert message == (
            "access log /dev/full: [Errno 28] No space left on device; lines are lost"
        )
        full, log._fd = log._fd, os.open("/dev/null", os.O_WRONLY)
        log.write(entry())
        os.close(log._fd)
        log._fd = full
        log.write(entry())
        assert len(caplog.messages) == 2
        log.close()

    def test_half_a_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next line does not go on where the disk had no room for one."""
        path = tmp_path / "log"
        log = AccessLog(str(path), "%m")
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
        log.write(entry())
        monkeypatch.undo()
        log.write(entry())
        log.write(entry())
        assert path.read_bytes() == b"GE\nGET\nGET\n"
        log.close()

    def test_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program that changes its directory goes on with the same file."""
        monkeypatch.chdir(tmp_path)
        log = AccessLog("log", "%m")
        (tmp_path / "x").mkdir()
        os.chdir(tmp_path / "x")
        log._next_look = 0.0
        log.write(entry())
        assert (tmp_path / "log").read_bytes() == b"GET\n"
        assert not (tmp_path / "x" / "log").exists()
        log.close()

    def test_descriptor(self, tmp_path: Path) -> None:
        """``fd:N`` is written to, and stays the caller's."""
        number = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        log = AccessLog(f"fd:{number}", "%m")
        log.write(entry())
        log.close()
        os.write(number, b"mine\n")
        os.close(number)
        assert (tmp_path / "log").read_bytes() == b"GET\nmine\n"

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("fd:", "must be fd: and a number"),
            ("fd:x", "must be fd: and a number"),
            ("fd:-1", "must be fd: and a number"),
            ("fd:9999", "Bad file descriptor"),
            ("fd:99999999999999999999", "."),
        ],
    )
    def test_wrong_descriptor(self, target: str, reason: str) -> None:
        """A descriptor that is none is told."""
        with pytest.raises(ConfigError, match=f"^access_log: '{target}': .*{reason}"):
            AccessLog(target, "common")

    def test_descriptor_for_reading(self) -> None:
        """So is one that cannot be written to."""
        number = os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(ConfigError, match="for reading only"):
            AccessLog(f"fd:{number}", "common")
        os.close(number)

    def test_cannot_be_opened(self, tmp_path: Path) -> None:
        """The error names the file."""
        with pytest.raises(NotADirectoryError, match="passwd/log"):
            AccessLog("/etc/passwd/log", "common")
        with pytest.raises(IsADirectoryError):
            AccessLog(str(tmp_path), "common")


FORMAT = "%m %U %s %B"
SCRIPT = """
    import fcgi_app, os

    def answer(name):
        if name == "/page":
            print("Content-Type: text/plain\\r\\n\\r\\nhello", end="")
        elif name == "/missing":
            print("Status: 404 Not Found\\r\\nA: b\\r\\n\\r\\nnone", end="")
        elif name == "/moved":
            print("Location: /page\\r\\n\\r\\n", end="")
        elif name == "/large":
            print("A: b\\r\\n\\r\\n" + "x" * 200_000, end="")
        elif name == "/pieces":
            for piece in ("A: b", "\\r\\n", "\\r\\n", "he", "llo"):
                print(piece, end="", flush=True)
        elif name == "/broken":
            print("no head at all")
        elif name == "/raw":
            fcgi_app.current_request().passthrough = True
            print("Status: 203 Hm\\nA: b\\n\\nraw", end="", flush=True)
"""
LOOP = """
    while fcgi_app.accept():
        answer(os.environ["SCRIPT_NAME"])
"""
RUN = """
    fcgi_app.run(lambda request: answer(request.params["SCRIPT_NAME"]), threads=2)
"""
FCGX = """
    from fcgi_app import fcgiapp
    request = fcgiapp.FCGX_Request()
    fcgiapp.FCGX_Init()
    fcgiapp.FCGX_InitRequest(request, 0, 0)
    while fcgiapp.FCGX_Accept_r(request) >= 0:
        print = lambda *words, end="\\n", flush=False: (
            fcgiapp.FCGX_PutS("".join(words) + end, request.out),
            flush and fcgiapp.FCGX_FFlush(request.out),
        )
        if fcgiapp.FCGX_GetParam("SCRIPT_NAME", request.envp) != "/raw":
            answer(fcgiapp.FCGX_GetParam("SCRIPT_NAME", request.envp))
        else:
            request.request.passthrough = True
            print("Status: 203 Hm\\nA: b\\n\\nraw", end="", flush=True)
        fcgiapp.FCGX_Finish_r(request)
"""
LINES = {
    "/page": "GET /page 200 5",
    "/missing": "GET /missing 404 4",
    "/moved": "GET /moved 302 0",
    "/large": "GET /large 200 200000",
    "/pieces": "GET /pieces 200 5",
    "/broken": "GET /broken 500 26",
    "/nothing": "GET /nothing 500 26",
    "/raw": "GET /raw 203 3",
}


def logged(path: Path, lines: int) -> list[str]:
    """So many lines of a log, as soon as they are there."""

    def are_there() -> bool:
        return path.exists() and path.read_text().count("\n") >= lines

    eventually(are_there, f"{lines} lines")
    return path.read_text().splitlines()


class TestProgram:
    @pytest.mark.parametrize("way", [LOOP, RUN, FCGX], ids=["loop", "threads", "fcgx"])
    def test_what_was_sent(self, tmp_path: Path, way: str) -> None:
        """Status and bytes are those of the response that went out."""
        path = tmp_path / "access.log"
        env = {"FCGI_APP_ACCESS_LOG": str(path), "FCGI_APP_ACCESS_FORMAT": FORMAT}
        with App(tmp_path, SCRIPT + way, env=env) as app:
            for number, (name, line) in enumerate(LINES.items(), 1):
                answer = app.ask(("SCRIPT_NAME", name))
                assert logged(path, number)[-1] == line
                assert len(answer.body) == int(line.split()[-1]) or name == "/raw"
            app.ask(("SCRIPT_NAME", "/page"), ("REQUEST_METHOD", "HEAD"))
            assert logged(path, len(LINES) + 1)[-1] == "HEAD /page 200 0"
            assert app.stop() == 0

    def test_server(self, tmp_path: Path) -> None:
        """A ``Server`` has a log of its own, and closes it; so have two."""
        source = """
            import fcgi_app, os
            from fcgi_app import client

            def handler(request):
                text = request.params["TEXT"].encode()
                request.stdout.write(b"A: b\\r\\n\\r\\n" + text)

            def serve(name):
                settings = {"access_log": name, "access_format": "%s %B %{TEXT}e"}
                return fcgi_app.Server("127.0.0.1:0", handler, **settings)

            before = os.listdir("/proc/self/fd")
            with serve("one.log") as one, serve("two.log") as two:
                for server, text in ((one, b"a"), (two, b"bb"), (one, b"ccc")):
                    assert client.request(server.address, [(b"TEXT", text)]).body == text
            assert os.listdir("/proc/self/fd") == before
        """
        with App(tmp_path, source) as app:
            assert app.wait() == 0
        assert sorted(logged(tmp_path / "one.log", 2)) == ["200 1 a", "200 3 ccc"]
        assert logged(tmp_path / "two.log", 1) == ["200 2 bb"]

    @pytest.mark.slow
    def test_side_by_side(self, tmp_path: Path) -> None:
        """Threads and processes may share a file: no line gets lost or broken."""
        path = tmp_path / "access.log"
        env = {
            "FCGI_APP_ACCESS_LOG": str(path),
            "FCGI_APP_ACCESS_FORMAT": "%{LONG}e %{N}e",
        }
        source = SCRIPT + RUN.replace("threads=2", "threads=8")
        apps = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            apps.append(App(tmp_path / name, source, env=env))
        with apps[0], apps[1], ThreadPoolExecutor(8) as pool:

            def ask(number: int) -> None:
                long = ("LONG", "x" * 3000)
                name = ("SCRIPT_NAME", "/page")
                apps[number % 2].ask(long, ("N", str(number)), name)

            list(pool.map(ask, range(400)))
            lines = logged(path, 400)
        assert sorted(lines) == sorted(f"{'x' * 3000} {n}" for n in range(400))

    def test_standard_error(self, tmp_path: Path) -> None:
        """``-`` is descriptor 2 of the process, and not the request's."""
        env = {"FCGI_APP_ACCESS_LOG": "-", "FCGI_APP_ACCESS_FORMAT": FORMAT}
        for descriptors in ("0", "1"):
            env["FCGI_APP_DESCRIPTORS"] = descriptors
            with App(tmp_path, SCRIPT + LOOP, env=env) as app:
                answer = app.ask(("SCRIPT_NAME", "/page"))
                assert (answer.body, answer.stderr) == (b"hello", b"")
                assert app.logged("GET /page 200 5\n")
            (tmp_path / "app.sock").unlink()

    def test_time(self, tmp_path: Path) -> None:
        """The time is from the begin of the request to its end, in microseconds."""
        path = tmp_path / "access.log"
        source = """
            import fcgi_app, time
            while fcgi_app.accept():
                time.sleep(0.05)
                print("A: b\\n\\n")
        """
        env = {"FCGI_APP_ACCESS_LOG": str(path), "FCGI_APP_ACCESS_FORMAT": "json"}
        with App(tmp_path, source, env=env) as app:
            before = time.time()
            app.ask()
            taken = time.time() - before
            (line,) = logged(path, 1)
        found = json.loads(line)
        assert 50_000 <= found["duration_us"] <= taken * 1e6 + 20_000
        started = datetime.fromisoformat(found["time"]).timestamp()
        assert before - 0.01 <= started <= before + taken - 0.05 + 0.01
        assert found["pid"] == app.process.pid

    def test_abort(self, tmp_path: Path) -> None:
        """Of an answer that nobody took no status was sent, and JSON says why."""
        path = tmp_path / "access.log"
        source = """
            import fcgi_app, sys
            while fcgi_app.accept():
                request = fcgi_app.current_request()
                print("begun", file=sys.stderr)
                request.wait_aborted()
                print("A: b\\n\\nanswer")
        """
        env = {"FCGI_APP_ACCESS_LOG": str(path), "FCGI_APP_ACCESS_FORMAT": "json"}
        with App(tmp_path, source, env=env) as app:
            with app.connect() as wire:
                wire.send(whole_request())
                wire.record()
            (line,) = logged(path, 1)
        found = json.loads(line)
        assert (found["status"], found["bytes"], found["aborted"]) == (None, 0, True)

    def test_detached(self, tmp_path: Path) -> None:
        """A request that a child answers has one line: the child's."""
        path = tmp_path / "access.log"
        source = """
            import fcgi_app, os
            while fcgi_app.accept():
                request = fcgi_app.current_request()
                request.detach()
                if os.fork():
                    continue
                request.attach()
                print("A: b\\n\\n%d" % os.getpid(), end="")
                fcgi_app.finish()
                os._exit(0)
        """
        env = {
            "FCGI_APP_ACCESS_LOG": str(path),
            "FCGI_APP_ACCESS_FORMAT": "%P %s %B",
        }
        with App(tmp_path, source, env=env) as app:
            child = app.ask().body.decode()
            (line,) = logged(path, 1)
            assert line == f"{child} 200 {len(child)}"
            assert child != str(app.process.pid)

    def test_disk_full(self, tmp_path: Path) -> None:
        """The disk of the log may be full: every request is answered."""
        env = {"FCGI_APP_ACCESS_LOG": "/dev/full"}
        with App(tmp_path, SCRIPT + LOOP, env=env) as app:
            for _ in range(5):
                answer = app.ask(("SCRIPT_NAME", "/page"))
                assert (answer.body, answer.stderr) == (b"hello", b"")
            assert app.stop() == 0
            assert app.log.count("access log /dev/full: ") == 1

    @pytest.mark.parametrize(
        ("env", "error"),
        [
            ({"ACCESS_FORMAT": "%Z"}, "ConfigError: access_format: '%Z': no directive"),
            ({"ACCESS_LOG": "fd:77"}, "ConfigError: access_log: 'fd:77': "),
            ({"ACCESS_LOG": "/etc/passwd/x"}, "NotADirectoryError: "),
        ],
    )
    @pytest.mark.parametrize("way", [LOOP, RUN, FCGX], ids=["loop", "threads", "fcgx"])
    def test_wrong(
        self, tmp_path: Path, way: str, env: dict[str, str], error: str
    ) -> None:
        """What cannot be is told at the start, which ends with 1."""
        env = {"ACCESS_LOG": "-", **env}
        given = {f"FCGI_APP_{name}": value for name, value in env.items()}
        with App(tmp_path, SCRIPT + way, env=given) as app:
            assert app.wait() == 1
            assert error in app.log

    def test_wrong_for_a_server(self, tmp_path: Path) -> None:
        """A ``Server`` tells it when it is made, and takes no socket."""
        address = f"unix:{tmp_path}/socket"
        with pytest.raises(ConfigError, match="access_format"):
            Server(address, plain, access_log="-", access_format="%Z")
        assert not (tmp_path / "socket").exists()

    def test_not_asked_for(self, tmp_path: Path) -> None:
        """Without a log nothing of it is loaded."""
        source = """
            import fcgi_app, sys
            while fcgi_app.accept():
                names = ("accesslog", "sight", "scoreboard", "status")
                print("A: b\\n\\n", [n for n in names if "fcgi_app." + n in sys.modules])
        """
        with App(tmp_path, source) as app:
            assert app.ask().body.strip() == b"[]"
