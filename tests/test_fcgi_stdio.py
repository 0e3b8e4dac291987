"""fcgi_stdio: C's names and results, on the streams of requests and on files."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app import fcgi_stdio
from fcgi_app._cformat import format_c
from fcgi_app.codec.constants import Role
from fcgi_app.fcgi_stdio import (
    _IOFBF,
    _IOLBF,
    _IONBF,
    EOF,
    FCGI_FILE,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
    FCGI_clearerr,
    FCGI_fclose,
    FCGI_fdopen,
    FCGI_feof,
    FCGI_ferror,
    FCGI_fflush,
    FCGI_fgetc,
    FCGI_fgetpos,
    FCGI_fgets,
    FCGI_fileno,
    FCGI_fopen,
    FCGI_fprintf,
    FCGI_fputc,
    FCGI_fputs,
    FCGI_fread,
    FCGI_freopen,
    FCGI_fseek,
    FCGI_fsetpos,
    FCGI_ftell,
    FCGI_fwrite,
    FCGI_pclose,
    FCGI_popen,
    FCGI_rewind,
    FCGI_setbuf,
    FCGI_setvbuf,
    FCGI_stdout,
    FCGI_tmpfile,
    FCGI_ToFcgiStream,
    FCGI_ungetc,
    get_errno,
)

from .webserver import (
    GET,
    PACKAGE_PARENT,
    Answer,
    App,
    begin_request,
    data,
    params,
    stdin,
    whole_request,
)

# Does what CODE says, in the middle of a page.
PROGRAM = """
    import os, sys
    import fcgi_app
    from fcgi_app.fcgi_stdio import *
    n = 0
    while FCGI_Accept() >= 0:
        n += 1
        FCGI_fputs("Content-Type: text/plain\\r\\n\\r\\n", FCGI_stdout)
        exec(os.environ.get("CODE", ""))
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with App(tmp_path_factory.mktemp("app"), PROGRAM) as running:
        yield running


def run(app: App, code: str, body: bytes = b"", role: int = Role.RESPONDER) -> Answer:
    """Let the program run ``code`` in a request."""
    return app.ask(("CODE", textwrap.dedent(code)), body=body, role=role)


def value(app: App, expression: str, body: bytes = b"") -> Any:
    """What an expression is in a request; literals only."""
    return eval(run(app, f"print(repr({expression}))", body).body)


def run_as_cgi(
    tmp_path: Path, code: str, stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a script of its own as a CGI program."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE_PARENT, **env}
    return subprocess.run(
        [sys.executable, str(script)],
        input=stdin,
        env=environ,
        capture_output=True,
        timeout=30,
        check=False,
    )


# The calls of libfcgi


def test_names_are_those_of_the_header() -> None:
    """Every function of fcgi_stdio.h is there, and what a script needs with them."""
    functions = """
        Accept Finish StartFilterData SetExitStatus ToFILE ToFcgiStream perror fopen
        fclose fflush freopen setvbuf setbuf fseek ftell rewind fgetpos fsetpos fgetc
        getchar ungetc fgets gets fputc putchar fputs puts fprintf printf vfprintf
        vprintf fread fwrite feof ferror clearerr tmpfile fileno fdopen popen pclose
        FILE stdin stdout stderr
    """
    wanted = {"FCGI_" + name for name in functions.split()}
    others = {"EOF", "SEEK_CUR", "SEEK_END", "SEEK_SET", "get_errno"}
    assert set(fcgi_stdio.__all__) == wanted | others | {"_IOFBF", "_IOLBF", "_IONBF"}
    assert all(hasattr(fcgi_stdio, name) for name in fcgi_stdio.__all__)


def test_accept_and_finish(tmp_path: Path) -> None:
    """FCGI_Accept gives 0 for a request and -1 at the stop; FCGI_Finish ends early."""
    source = """
        import sys
        from fcgi_app.fcgi_stdio import *
        while (result := FCGI_Accept()) == 0:
            FCGI_puts("A: b\\n\\nhello")
            FCGI_Finish()
            FCGI_Finish()
            print("result", result, FCGI_puts("lost"), file=sys.stderr)
        print("at the end", result, FCGI_Accept(), file=sys.stderr)
    """
    with App(tmp_path, source) as app:
        answers = [app.ask().stdout for _ in range(2)]
        assert app.stop() == 0
        assert answers == [b"A: b\r\n\r\nhello\n"] * 2
        assert app.log == "result 0 -1\n" * 2 + "at the end -1 -1\n"


def test_cgi_life(tmp_path: Path) -> None:
    """In CGI the first FCGI_Accept gives 0, the second -1; the status is the exit's."""
    code = """
        import os
        from fcgi_app.fcgi_stdio import *
        while FCGI_Accept() >= 0:
            FCGI_printf("A: b\\n\\n%s %s %s", FCGI_gets(), os.environ["FCGI_ROLE"],
                        FCGI_ToFcgiStream(FCGI_stdout))
            FCGI_printf(" %d %d", FCGI_fileno(FCGI_stdin), FCGI_fileno(FCGI_stderr))
            FCGI_printf(" %d", FCGI_setvbuf(FCGI_stdout, None, _IONBF, 0))
            FCGI_SetExitStatus(3)
            result = FCGI_StartFilterData()
        FCGI_puts("lost")
        os.write(2, b"%d" % result)
    """
    done = run_as_cgi(tmp_path, code, b"body\nmore", CONTENT_LENGTH="9")
    assert done.stdout == b"A: b\r\n\r\nbody RESPONDER (null) 0 2 0"
    assert (done.returncode, done.stderr) == (3, b"-1")


@pytest.mark.parametrize(("status", "wanted"), [(0x01020307, 0x01020307), (-2, -2)])
def test_w5_exit_status(app: App, status: int, wanted: int) -> None:
    """W5: FCGI_SetExitStatus is for this request only; the next one reports 0."""
    with app.connect() as wire:
        code = (b"CODE", b"FCGI_SetExitStatus(1); FCGI_SetExitStatus(%d)" % status)
        wire.send(whole_request(pairs=[code], keep=True))
        assert wire.answer().app_status == wanted
        wire.send(whole_request(keep=True))
        assert wire.answer().app_status == 0


def test_w20_filter(app: App) -> None:
    """W20: a filter reads STDIN to EOF, starts, reads DATA; starting again gives -1."""
    code = """
    FCGI_ungetc(FCGI_getchar(), FCGI_stdin)
    FCGI_printf("%s|", FCGI_fread(1, 10, FCGI_stdin))
    FCGI_printf("%d|", FCGI_feof(FCGI_stdin))
    FCGI_printf("%d|%d|", FCGI_StartFilterData(), FCGI_feof(FCGI_stdin))
    FCGI_printf("%s|%d", FCGI_fread(1, 10, FCGI_stdin), FCGI_StartFilterData())
    """
    with app.connect() as wire:
        pairs = [(b"CODE", textwrap.dedent(code).encode()), (b"FCGI_DATA_LENGTH", b"4")]
        wire.send(begin_request(role=Role.FILTER), params(pairs=[*GET, *pairs]))
        wire.send(stdin(data=b"in"), data(content=b"file"))
        assert wire.answer().body == b"in|-1|0|0|file|-1"


def test_w21_start_before_the_end_of_stdin(app: App) -> None:
    """W21: FCGI_StartFilterData gives -1 before STDIN's end, and destroys nothing."""
    code = """
    FCGI_printf("%d\\n", FCGI_StartFilterData())
    FCGI_fflush(FCGI_stdout)
    FCGI_printf("%d|", len(FCGI_fread(1, 100000, FCGI_stdin)))
    FCGI_printf("%d|%s", FCGI_StartFilterData(), FCGI_gets())
    """
    with app.connect() as wire:
        pairs = [(b"CODE", textwrap.dedent(code).encode())]
        wire.send(begin_request(role=Role.FILTER), params(pairs=pairs))
        wire.send(stdin(data=bytes(70000), end=False))
        first = wire.record()
        assert first is not None
        assert first.content.endswith(b"\n-1\n")
        wire.send(stdin(), data(content=b"data"))
        assert wire.answer().stdout == b"70000|0|data"


def test_w21_start_in_a_responder(app: App) -> None:
    """W21: FCGI_StartFilterData gives -1 in a responder, and reading goes on."""
    assert value(app, "(FCGI_StartFilterData(), FCGI_gets())", b"x") == (-1, b"x")


def test_w21_data_cut_off(app: App) -> None:
    """W21: DATA cut off is a short read with an error, and feof."""
    code = """
    FCGI_gets(), FCGI_StartFilterData()
    got = FCGI_fread(1, 100, FCGI_stdin)
    error = os.strerror(FCGI_ferror(FCGI_stdin))
    print("cut", got, error, FCGI_feof(FCGI_stdin), file=sys.__stderr__, flush=True)
    """
    with app.connect() as wire:
        pairs = [(b"CODE", textwrap.dedent(code).encode())]
        wire.send(begin_request(role=Role.FILTER), params(pairs=pairs))
        wire.send(stdin(), data(content=b"short", end=False))
    app.ask()
    assert f"cut b'short' {os.strerror(errno.ECONNABORTED)} -1" in app.log


def test_to_fcgi_stream(app: App) -> None:
    """FCGI_ToFcgiStream gives the request's binary streams, and None for files."""
    code = """
    r = fcgi_app.current_request()
    print(FCGI_ToFcgiStream(FCGI_stdin) is r.stdin,
          FCGI_ToFcgiStream(sys.stdout) is r.stdout,
          FCGI_ToFcgiStream(FCGI_stderr) is r.stderr,
          FCGI_ToFcgiStream(FCGI_tmpfile()))
    """
    assert run(app, code).body == b"True True True None\n"


# The streams of a request: results

READING = [
    ("FCGI_getchar()", b"\xff", 255),
    ("FCGI_fgetc(FCGI_stdin)", b"ab", 97),
    ("FCGI_getchar()", b"", EOF),
    ("(FCGI_getchar(), FCGI_feof(FCGI_stdin))", b"", (EOF, EOF)),
    ("(FCGI_getchar(), FCGI_feof(FCGI_stdin))", b"a", (97, 0)),
    ("(FCGI_ungetc(120, FCGI_stdin), FCGI_gets())", b"yz", (120, b"xyz")),
    ("(FCGI_ungetc(-1, FCGI_stdin), FCGI_gets())", b"yz", (EOF, b"yz")),
    ("(FCGI_gets(), FCGI_ungetc(65, FCGI_stdin), FCGI_gets())", b"", (None, 65, b"A")),
    ("[FCGI_fgets(4, FCGI_stdin) for _ in 'abcd']", b"12345\n\n", [b"123", b"45\n", b"\n", None]),
    ("FCGI_fgets(1, FCGI_stdin)", b"12", b""),
    ("FCGI_fgets(0, FCGI_stdin)", b"12", None),
    ("FCGI_fgets(100, FCGI_stdin)", b"a\0b\nc", b"a\0b\n"),
    ("[FCGI_gets(), FCGI_gets(), FCGI_gets(), FCGI_gets()]", b"a\n\nb", [b"a", b"", b"b", None]),
    ("FCGI_fread(2, 3, FCGI_stdin)", b"1234567", b"123456"),
    ("FCGI_fread(2, 3, FCGI_stdin)", b"12345", b"12345"),
    ("FCGI_fread(0, 3, FCGI_stdin)", b"12345", b""),
    ("len(FCGI_fread(1, 1 << 20, FCGI_stdin))", b"x" * (1 << 20), 1 << 20),
    ("(FCGI_gets(), sys.stdin.read())", b"one\ntwo", (b"one", "two")),
    ("FCGI_fgetc(sys.stdin)", b"a", 97),
    ("(FCGI_fputc(65, FCGI_stdin), get_errno(), FCGI_ferror(FCGI_stdin))", b"a", (EOF, errno.EBADF, errno.EBADF)),
    ("(FCGI_fputc(65, FCGI_stdin), FCGI_clearerr(FCGI_stdin), FCGI_ferror(FCGI_stdin))", b"a", (EOF, None, 0)),
    ("(FCGI_fseek(FCGI_stdin, 0, SEEK_SET), get_errno())", b"a", (EOF, errno.ESPIPE)),
    ("(FCGI_ftell(FCGI_stdin), FCGI_fgetpos(FCGI_stdin), FCGI_fsetpos(FCGI_stdin, 0))", b"a", (EOF, EOF, EOF)),
    ("(FCGI_getchar(), FCGI_rewind(FCGI_stdin), FCGI_getchar())", b"ab", (97, None, 98)),
    ("FCGI_fileno(FCGI_stdin)", b"", EOF),
    ("FCGI_fflush(FCGI_stdin)", b"", 0),
    ("FCGI_setvbuf(FCGI_stdin, None, _IONBF, 0)", b"", EOF),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "body", "wanted"), READING)
def test_reading(app: App, expression: str, body: bytes, wanted: object) -> None:
    """Each function that reads gives C's result on a request's STDIN."""
    assert value(app, expression, body) == wanted


WRITING = [
    ("FCGI_putchar(65)", b"A", 65),
    ("FCGI_fputc(0x1ff, FCGI_stdout)", b"\xff", 255),
    ("FCGI_fputs('é', FCGI_stdout)", "é".encode(), 2),
    ("FCGI_fputs(b'\\xff\\0', sys.stdout)", b"\xff\0", 2),
    ("FCGI_fputs('\\udcff', FCGI_stdout)", b"\xff", 1),
    ("FCGI_fputs('', FCGI_stdout)", b"", 0),
    ("FCGI_puts('a')", b"a\n", 2),
    ("FCGI_printf('%s %5.1f %-3d|%lu%%', 'é', 2.25, 7, 1 << 40)", "é   2.2 7  |1099511627776%".encode(), 27),
    ("FCGI_fprintf(FCGI_stdout, b'\\xff%c', 0)", b"\xff\0", 2),
    ("FCGI_vprintf('%d-%d', (1, 2))", b"1-2", 3),
    ("FCGI_vfprintf(FCGI_stdout, '%d', [1])", b"1", 1),
    ("FCGI_fwrite('abcdef', 2, 2, FCGI_stdout)", b"abcd", 2),
    ("FCGI_fwrite(bytearray(b'ab'), 1, 2, FCGI_stdout)", b"ab", 2),
    ("FCGI_fwrite('abcdef', 0, 2, FCGI_stdout)", b"", 0),
    ("FCGI_fwrite(bytes(1 << 20), 1, 1 << 20, FCGI_stdout)", bytes(1 << 20), 1 << 20),
    ("FCGI_fflush(FCGI_stdout)", b"", 0),
    ("FCGI_fflush(None)", b"", 0),
    ("FCGI_feof(FCGI_stdout)", b"", 0),
    ("FCGI_ferror(FCGI_stdout)", b"", 0),
    ("FCGI_getchar() + FCGI_fgetc(FCGI_stdout)", b"", -2),
    ("FCGI_setvbuf(FCGI_stdout, None, _IONBF, 0)", b"", EOF),
    ("FCGI_setbuf(FCGI_stdout, None)", b"", None),
    ("FCGI_fseek(FCGI_stdout, 0, SEEK_END)", b"", EOF),
    ("FCGI_fileno(FCGI_stdout)", b"", EOF),
    ("FCGI_pclose(FCGI_stdout)", b"", EOF),
]  # fmt: skip


@pytest.mark.parametrize(("call", "written", "wanted"), WRITING)
def test_writing(app: App, call: str, written: bytes, wanted: object) -> None:
    """Each function that writes gives C's result, and the bytes to the response."""
    answer = run(app, f"result = {call}; FCGI_printf('=%s', repr(result))")
    assert answer.body == written + b"=%r" % wanted


def test_perror(app: App) -> None:
    """FCGI_perror writes text and error as one line to STDERR; libfcgi forgets its end."""
    code = "FCGI_fopen('/nonexistent', 'r'); FCGI_perror('open'); FCGI_perror(None)"
    assert run(app, code).stderr == (
        b"open: No such file or directory\nNo such file or directory\n"
    )


def test_order_with_print(app: App) -> None:
    """What print, sys.stdout.buffer and FCGI functions write stays in order."""
    code = """
    print("a", end="")
    FCGI_printf("b")
    sys.stdout.buffer.write(b"c")
    FCGI_putchar(100)
    sys.stderr.write("1")
    FCGI_fputs("2\\n", FCGI_stderr)
    """
    answer = run(app, code)
    assert (answer.body, answer.stderr) == (b"abcd", b"12\n")


CLOSED = [
    ("FCGI_fputs('x', FCGI_stdout)", EOF),
    ("FCGI_fputc(120, FCGI_stdout)", EOF),
    ("FCGI_puts('x')", EOF),
    ("FCGI_printf('x')", EOF),
    ("FCGI_fwrite('x', 1, 1, FCGI_stdout)", 0),
    ("FCGI_fflush(FCGI_stdout)", EOF),
    ("FCGI_fclose(FCGI_stdout)", EOF),
    ("FCGI_setvbuf(FCGI_stdout, None, _IONBF, 0)", EOF),
    ("FCGI_fseek(FCGI_stdout, 0, SEEK_SET)", EOF),
    ("FCGI_ftell(FCGI_stdout)", EOF),
    ("FCGI_feof(FCGI_stdout)", EOF),
    ("FCGI_ferror(FCGI_stdout)", EOF),
    ("FCGI_fileno(FCGI_stdout)", EOF),
    ("FCGI_freopen('/dev/null', 'w', FCGI_stdout)", None),
    ("FCGI_ToFcgiStream(FCGI_stdout)", None),
    ("FCGI_getchar()", EOF),
    ("FCGI_ungetc(65, FCGI_stdin)", EOF),
    ("FCGI_fgets(9, FCGI_stdin)", None),
    ("FCGI_fgets(1, FCGI_stdin)", None),
    ("FCGI_gets()", None),
    ("FCGI_fread(1, 9, FCGI_stdin)", b""),
    ("FCGI_perror('x')", None),
    ("FCGI_fflush(None)", 0),
    ("FCGI_clearerr(FCGI_stdin)", None),
    ("FCGI_SetExitStatus(1)", None),
]


def test_nothing_behind_outside_of_a_request(tmp_path: Path) -> None:
    """Before the first FCGI_Accept and after FCGI_Finish every call fails as in C."""
    code = """
        import os, sys
        from fcgi_app.fcgi_stdio import *
        calls = eval(os.environ["CALLS"])
        before = [eval(call) for call in calls]
        FCGI_Accept()
        FCGI_puts("A: b\\n\\n")
        FCGI_Finish()
        print(repr((before, [eval(call) for call in calls], FCGI_StartFilterData())))
    """
    done = run_as_cgi(tmp_path, code, CALLS=repr([call for call, _ in CLOSED]))
    assert (done.returncode, done.stderr) == (0, b"")
    wanted = [result for _, result in CLOSED]
    assert eval(done.stdout.splitlines()[-1]) == (wanted, wanted, EOF)


def test_closed_streams(app: App) -> None:
    """FCGI_fclose ends a stream; then every call on it fails; the next request works."""
    calls = [c for c, _ in CLOSED if "None)" not in c and "SetExit" not in c]
    code = f"""
    FCGI_puts("page")
    closed = [FCGI_fclose(f) for f in (FCGI_stderr, FCGI_stdout, sys.stdin)]
    results = [eval(call) for call in {calls!r}]
    print("closed", repr((closed, results)), file=sys.__stderr__, flush=True)
    FCGI_SetExitStatus(7)
    """
    answer = run(app, code)
    wanted = [result for call, result in CLOSED if call in calls]
    assert (answer.body, answer.app_status) == (b"page\n", 7)
    assert value(app, "FCGI_gets()", b"next") == b"next"
    line = re.findall("^closed (.*)$", app.log, re.MULTILINE)[-1]
    assert eval(line) == ([0, 0, 0], wanted)


def test_broken_connection(tmp_path: Path) -> None:
    """Output that cannot be delivered: EOF from then on, ferror, and fclose tells."""
    source = """
        import os, sys
        from fcgi_app.fcgi_stdio import *
        while FCGI_Accept() >= 0:
            FCGI_puts("A: b\\n\\n")
            if os.environ["REQUEST_METHOD"] != "GET":
                while not FCGI_ferror(FCGI_stdout):
                    sys.stdout.buffer.write(bytes(65536))
                FCGI_clearerr(FCGI_stdout)
                result = (FCGI_putchar(65), FCGI_fflush(FCGI_stdout),
                    FCGI_feof(FCGI_stdout), FCGI_ferror(FCGI_stdout) > 0,
                    FCGI_fclose(FCGI_stdout), FCGI_ferror(FCGI_stdout))
                print("broken", *result, file=sys.__stderr__, flush=True)
    """
    with App(tmp_path, source, family=socket.AF_INET) as app:
        with app.connect() as wire:
            wire.send(whole_request(pairs=[(b"REQUEST_METHOD", b"PUT")]))
        assert app.ask().body == b"\n"
        assert app.log == "broken -1 -1 -1 True -1 -1\n"


def test_state_is_the_request_s_own(app: App) -> None:
    """EOF, errors and pushed-back bytes of one request are not in the next."""
    run(app, "FCGI_gets(); FCGI_fputc(1, FCGI_stdin); FCGI_ungetc(65, FCGI_stdin)")
    expression = "(FCGI_ferror(FCGI_stdin), FCGI_feof(FCGI_stdin), FCGI_gets())"
    assert value(app, expression, b"new") == (0, 0, b"new")


def test_freopen_of_a_standard_stream(app: App, tmp_path: Path) -> None:
    """FCGI_freopen puts a file in a stream's place until the request's end."""
    path = tmp_path / "out"
    code = f"""
    FCGI_printf("before")
    same = FCGI_freopen({str(path)!r}, "w", FCGI_stdout) is FCGI_stdout
    FCGI_printf("%d %d", same, FCGI_fileno(FCGI_stdout) > 2)
    failed = FCGI_freopen("/nonexistent/x", "r", FCGI_stdin)
    FCGI_printf(" %s %d", failed, FCGI_getchar())
    """
    assert run(app, code, b"body").body == b"before"
    assert value(app, "FCGI_gets()", b"body") == b"body"
    assert path.read_bytes() == b"1 1 (null) -1"


def test_descriptors(tmp_path: Path) -> None:
    """With descriptors=True the output of children stands in order with ours."""
    source = """
        import os
        from fcgi_app.fcgi_stdio import *
        while FCGI_Accept() >= 0:
            FCGI_printf("A: b\\n\\n%s,", FCGI_fgets(3, FCGI_stdin))
            FCGI_pclose(FCGI_popen("echo child", "w"))
            FCGI_printf("%d", FCGI_fileno(FCGI_stdout))
    """
    with App(tmp_path, source, env={"FCGI_APP_DESCRIPTORS": "1"}) as app:
        assert app.ask(body=b"body").body == b"bo,child\n1"


# libfcgi's echo, call by call

ECHO = """
    import os
    from fcgi_app.fcgi_stdio import *

    def print_env(label, environ):
        FCGI_printf("%s:<br>\\n<pre>\\n", label)
        for name in environ:
            FCGI_printf("%s=%s\\n", name, environ[name])
        FCGI_printf("</pre><p>\\n")

    initial_env = dict(os.environ)
    count = 0
    while FCGI_Accept() >= 0:
        count += 1
        FCGI_printf("Content-type: text/html\\r\\n\\r\\n"
                    "<title>FastCGI echo</title>\\n<h1>FastCGI echo</h1>\\n"
                    "Request number %d,  Process ID: %d<p>\\n", count, os.getpid())
        length = int(os.environ.get("CONTENT_LENGTH", "0"))
        if length <= 0:
            FCGI_printf("No data from standard input.<p>\\n")
        else:
            FCGI_printf("Standard input:<br>\\n<pre>\\n")
            for i in range(length):
                ch = FCGI_getchar()
                if ch == EOF:
                    FCGI_printf("Error: Not enough bytes received "
                                "on standard input<p>\\n")
                    break
                FCGI_putchar(ch)
            FCGI_printf("\\n</pre><p>\\n")
        print_env("Request environment", os.environ)
        print_env("Initial environment", initial_env)
"""
ECHO_TOP = b"<title>FastCGI echo</title>\n<h1>FastCGI echo</h1>\nRequest number %d,  "


def test_echo_as_fastcgi(tmp_path: Path) -> None:
    """libfcgi's echo, ported line by line: count, environments, body, short body."""
    with App(tmp_path, ECHO, env={"START": "1"}) as app:
        empty = app.ask(("PATH_INFO", "/é"), body=b"").body
        body = app.ask(("CONTENT_LENGTH", "5"), body=b"hello").body
        short = app.ask(("CONTENT_LENGTH", "9"), body=b"hello").body
        pid = b"Process ID: %d<p>\n" % app.process.pid
    assert empty.startswith(ECHO_TOP % 1 + pid + b"No data from standard input.<p>\n")
    request, _, initial = empty.partition(b"Initial environment:<br>\n<pre>\n")
    assert b"\nFCGI_ROLE=RESPONDER\n" in request
    assert "\nPATH_INFO=/é\n".encode() in request
    assert b"\nSTART=1\n" in b"\n" + initial
    assert b"PATH_INFO" not in initial
    assert body.startswith(ECHO_TOP % 2 + pid)
    assert b"Standard input:<br>\n<pre>\nhello\n</pre><p>\n" in body
    assert b"helloError: Not enough bytes received on standard input<p>\n" in short


def test_echo_as_cgi(tmp_path: Path) -> None:
    """The same echo is a CGI program: one request, exit status 0."""
    done = run_as_cgi(tmp_path, ECHO, b"hello", CONTENT_LENGTH="5", X="1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Content-type: text/html\r\n\r\n" + ECHO_TOP % 1)
    assert b"Standard input:<br>\n<pre>\nhello\n</pre><p>\n" in done.stdout
    assert b"\nX=1\n" in done.stdout


# Files


def opened(file: FCGI_FILE | None) -> FCGI_FILE:
    assert file is not None, os.strerror(get_errno())
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")
    return file


def test_fopen_modes(path: Path) -> None:
    """The modes of fopen(3): r, w, a, +, x; b and the letters of glibc say nothing."""
    for mode, text in [
        ("a", b"A"),
        ("ab", b"B"),
        ("r+", b"R"),
        ("w", b"W"),
        ("wbe", b"X"),
    ]:
        file = opened(FCGI_fopen(path, mode))
        assert FCGI_fputs(text, file) == 1
        assert FCGI_fclose(file) == 0
    assert path.read_bytes() == b"X"
    assert FCGI_fopen(os.fsencode(path), "wx") is None
    assert get_errno() == errno.EEXIST


@pytest.mark.parametrize("mode", ["", "q", "+", "rw", "br"])
def test_fopen_of_an_unknown_mode(path: Path, mode: str) -> None:
    """What is no mode of fopen(3) gives None and EINVAL."""
    assert FCGI_fopen(path, mode) is None
    assert get_errno() == errno.EINVAL


def test_fopen_failures(tmp_path: Path) -> None:
    """A file that cannot be opened gives None and its errno."""
    assert FCGI_fopen(tmp_path / "none", "r") is None
    assert get_errno() == errno.ENOENT
    assert FCGI_fopen(tmp_path, "w") is None
    assert get_errno() == errno.EISDIR
    assert FCGI_fdopen(-1, "r") is None
    assert get_errno() == errno.EBADF


def test_reading_a_file(path: Path) -> None:
    """fgetc, ungetc, fgets, fread, feof and ftell on a file, as in C."""
    file = opened(FCGI_fopen(path, "r"))
    assert (FCGI_fgetc(file), FCGI_ftell(file)) == (ord("o"), 1)
    assert (FCGI_ungetc(ord("X"), file), FCGI_ftell(file)) == (ord("X"), 0)
    assert FCGI_fgets(100, file) == b"Xne\n"
    assert (FCGI_fread(1, 100, file), FCGI_feof(file)) == (b"two\n", EOF)
    assert (FCGI_fgetc(file), FCGI_ferror(file)) == (EOF, 0)
    FCGI_rewind(file)
    assert (FCGI_feof(file), FCGI_fgets(3, file)) == (0, b"on")
    assert FCGI_fclose(file) == 0


def test_end_of_file_holds(path: Path) -> None:
    """EOF holds until clearerr, even if the file grows (C99)."""
    file = opened(FCGI_fopen(path, "r"))
    FCGI_fread(1, 100, file)
    path.write_bytes(b"one\ntwo\nthree\n")
    assert FCGI_fgetc(file) == EOF
    FCGI_clearerr(file)
    assert FCGI_fgets(100, file) == b"three\n"
    FCGI_fclose(file)


def test_position(path: Path) -> None:
    """fseek, ftell, fgetpos and fsetpos; a pushed-back byte counts, until a seek."""
    file = opened(FCGI_fopen(path, "r+"))
    assert (FCGI_fseek(file, -2, SEEK_END), FCGI_ftell(file)) == (0, 6)
    position = FCGI_fgetpos(file)
    FCGI_ungetc(65, file)
    assert (FCGI_fseek(file, 0, SEEK_CUR), FCGI_ftell(file)) == (0, 5)
    assert (FCGI_fsetpos(file, position), FCGI_fgetc(file)) == (0, ord("o"))
    assert (FCGI_fseek(file, -1, SEEK_SET), get_errno()) == (EOF, errno.EINVAL)
    assert (FCGI_fseek(file, 4, SEEK_SET), FCGI_fputc(ord("T"), file)) == (0, ord("T"))
    assert FCGI_fclose(file) == 0
    assert path.read_bytes() == b"one\nTwo\n"


def test_buffering(path: Path) -> None:
    """setvbuf and setbuf: output goes out when closed, at each line, at once."""
    file = opened(FCGI_fopen(path, "w"))
    assert FCGI_setvbuf(file, None, 9, 0) == EOF
    FCGI_fputs("a\n", file)
    assert path.read_bytes() == b""
    assert FCGI_setvbuf(file, None, _IOLBF, 0) == 0
    FCGI_fputs("b", file)
    assert path.read_bytes() == b""
    FCGI_fputs("\nc", file)
    assert path.read_bytes() == b"a\nb\nc"
    FCGI_setbuf(file, None)
    FCGI_fputs("d", file)
    assert path.read_bytes() == b"a\nb\ncd"
    assert FCGI_setvbuf(file, None, _IOFBF, 0) == 0
    FCGI_fprintf(file, "%d", 1)
    assert FCGI_fflush(None) == 0
    assert path.read_bytes() == b"a\nb\ncd1"
    assert FCGI_setvbuf(file, None, _IONBF, 0) == 0
    FCGI_fclose(file)


def test_wrong_direction(path: Path) -> None:
    """Writing to a file opened to read, and the reverse, gives EOF and EBADF."""
    reader = opened(FCGI_fopen(path, "r"))
    assert (FCGI_fputs("x", reader), FCGI_ferror(reader)) == (EOF, errno.EBADF)
    assert FCGI_fwrite("x", 1, 1, reader) == 0
    FCGI_clearerr(reader)
    assert FCGI_ferror(reader) == 0
    writer = opened(FCGI_fopen(path, "w"))
    assert (FCGI_fgetc(writer), get_errno()) == (EOF, errno.EBADF)
    assert (FCGI_fread(1, 1, writer), FCGI_feof(writer)) == (b"", 0)
    FCGI_fclose(reader)
    FCGI_fclose(writer)


def test_full_disk() -> None:
    """fclose and fflush give EOF for what could not be written."""
    file = opened(FCGI_fopen("/dev/full", "w"))
    assert (FCGI_fputs("x", file), FCGI_fflush(file)) == (1, EOF)
    assert FCGI_ferror(file) == errno.ENOSPC
    assert FCGI_fflush(None) == EOF
    assert (FCGI_fclose(file), get_errno()) == (EOF, errno.ENOSPC)
    assert FCGI_fclose(file) == EOF


def test_freopen_of_a_file(path: Path, tmp_path: Path) -> None:
    """freopen closes one file and opens another as the same object."""
    file = opened(FCGI_fopen(path, "w"))
    FCGI_fputs("first", file)
    assert FCGI_freopen(tmp_path / "second", "w+", file) is file
    assert path.read_bytes() == b"first"
    FCGI_fputs("second", file)
    FCGI_rewind(file)
    assert FCGI_fgets(100, file) == b"second"
    assert FCGI_freopen(tmp_path / "none", "r", file) is None
    assert (FCGI_fgetc(file), FCGI_ferror(file), FCGI_feof(file)) == (EOF, EOF, EOF)


def test_tmpfile_and_fdopen(path: Path) -> None:
    """tmpfile has no name and takes both ways; fdopen takes a descriptor over."""
    file = opened(FCGI_tmpfile())
    FCGI_fputs("text", file)
    FCGI_rewind(file)
    assert (FCGI_fgets(100, file), FCGI_fclose(file)) == (b"text", 0)
    descriptor = os.open(path, os.O_RDONLY)
    file = opened(FCGI_fdopen(descriptor, "r"))
    assert (FCGI_fileno(file), FCGI_fgetc(file)) == (descriptor, ord("o"))
    FCGI_fclose(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_no_place_for_a_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """tmpfile gives None where no file can be made."""
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert FCGI_tmpfile() is None
    assert get_errno() == errno.ENOENT


def test_fdopen_of_a_socket() -> None:
    """A socket opens for both ways, unbuffered; it cannot seek."""
    ours, theirs = socket.socketpair()
    with theirs:
        file = opened(FCGI_fdopen(ours.detach(), "r+"))
        assert FCGI_fputs("question", file) == 8
        assert theirs.recv(100) == b"question"
        theirs.sendall(b"answer\nmore")
        assert FCGI_fgets(100, file) == b"answer\n"
        assert (FCGI_fseek(file, 0, SEEK_SET), get_errno()) == (EOF, errno.ESPIPE)
        FCGI_fclose(file)


def test_descriptor_that_must_not_wait() -> None:
    """A non-blocking descriptor that cannot go on is an error, not the end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        file = opened(FCGI_fdopen(ours.detach(), "r+"))
        assert (FCGI_fgetc(file), FCGI_feof(file)) == (EOF, 0)
        assert FCGI_ferror(file) == errno.EAGAIN
        FCGI_clearerr(file)
        while FCGI_fwrite(bytes(65536), 1, 65536, file):
            assert FCGI_ferror(file) == 0
        assert FCGI_ferror(file) == errno.EAGAIN
        FCGI_fclose(file)


def test_popen() -> None:
    """popen reads a command's output; pclose gives its wait status (pclose(3))."""
    file = opened(FCGI_popen("printf 'a\\nb'; exit 3", "r"))
    assert [FCGI_fgets(9, file) for _ in range(3)] == [b"a\n", b"b", None]
    assert (FCGI_ftell(file), get_errno()) == (EOF, errno.ESPIPE)
    assert FCGI_pclose(file) == 3 << 8
    assert (FCGI_pclose(file), get_errno()) == (EOF, errno.EINVAL)
    assert FCGI_pclose(opened(FCGI_popen("kill -9 $$", "re"))) == signal.SIGKILL


def test_popen_for_writing(tmp_path: Path) -> None:
    """popen writes a command's input; fclose waits for its end, too."""
    file = opened(FCGI_popen(f"cat > {tmp_path}/out", "w"))
    assert FCGI_fputs("input", file) == 5
    assert FCGI_fclose(file) == 0
    assert (tmp_path / "out").read_bytes() == b"input"
    assert FCGI_pclose(opened(FCGI_popen(b"cat > /dev/null", "we"))) == 0
    assert FCGI_popen("true", "rw") is None
    assert get_errno() == errno.EINVAL
    assert FCGI_popen("true " + "x" * (1 << 20), "r") is None
    assert get_errno() == errno.E2BIG


def test_pclose_of_a_file(path: Path) -> None:
    """pclose of what is no pipe is EOF, and the file stays open."""
    file = opened(FCGI_fopen(path, "r"))
    assert (FCGI_pclose(file), get_errno()) == (EOF, errno.EINVAL)
    assert FCGI_fgetc(file) == ord("o")
    FCGI_fclose(file)


# Mistakes in a script

NO_FILE: Any = "file"
A_STR: Any = "x"
A_BYTE: Any = b"x"


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda f: FCGI_fputs("x", NO_FILE), TypeError, "'file' is no FCGI_FILE"),
        (lambda f: FCGI_fputs("x", sys.stdout), TypeError, "is no FCGI_FILE"),
        (lambda f: FCGI_fputc(A_STR, f), TypeError, "FCGI_fputc: 'x' must be an int"),
        (lambda f: FCGI_ungetc(A_BYTE, f), TypeError, "FCGI_ungetc: b'x' must be an int"),
        (lambda f: FCGI_fwrite("abc", 2, 2, f), ValueError, "2 items of 2 bytes in 3"),
        (lambda f: FCGI_fwrite("abc", -1, 2, f), ValueError, "2 items of -1 bytes"),
        (lambda f: FCGI_fread(-1, 2, f), ValueError, "FCGI_fread: 2 items of -1"),
        (lambda f: FCGI_fprintf(f, "%d"), TypeError, "%d: not enough arguments"),
        (lambda f: FCGI_fprintf(f, "%d", "x"), ValueError, "%d with 'x': invalid"),
        (lambda f: FCGI_fprintf(f, "%d", None), TypeError, "%d with None"),
        (lambda f: FCGI_fprintf(f, "%*d", "x", 1), TypeError, "width is 'x'"),
        (lambda f: FCGI_fprintf(f, "%c", "xy"), TypeError, "%c with 'xy'"),
        (lambda f: FCGI_fprintf(f, "100%"), ValueError, "ends inside of a directive"),
        (lambda f: FCGI_fprintf(f, "%n", 1), ValueError, "%n with 1: no such"),
    ],
)  # fmt: skip
def test_mistakes(path: Path, call: Any, kind: type[Exception], text: str) -> None:
    """What is no C result but a mistake raises, and names function and value."""
    file = opened(FCGI_fopen(path, "r+"))
    with pytest.raises(kind, match=re.escape(text)):
        call(file)
    FCGI_fclose(file)


def test_outside_of_any_request() -> None:
    """In a process that has no request the standard streams have nothing behind."""
    assert FCGI_fputs("x", FCGI_stdout) == EOF
    assert FCGI_ToFcgiStream(FCGI_stdout) is None
    assert repr(FCGI_stdout) == "<StandardFile of None>"


# printf

_ffi = cffi.FFI()
_ffi.cdef("int snprintf(char *, size_t, const char *, ...);")
_libc: Any = _ffi.dlopen(None)
_TYPES = {"": "int", "hh": "int", "h": "int"}


def printf_of_c(template: bytes, argument: Any) -> bytes:
    size = _libc.snprintf(_ffi.NULL, 0, template, argument)
    buffer = _ffi.new("char[]", size + 1)
    _libc.snprintf(buffer, size + 1, template, argument)
    return bytes(_ffi.buffer(buffer, size))


flags = st.lists(st.sampled_from("-+ #0"), max_size=3, unique=True).map("".join)
widths = st.one_of(st.just(""), st.integers(1, 40).map(str))
precisions = st.one_of(st.just(""), st.just("."), st.integers(0, 30).map(".{}".format))
lengths = st.sampled_from(["", "hh", "h", "l", "ll", "j", "z", "t"])


@given(flags, widths, precisions, lengths, st.sampled_from("diuoxX"), st.data())
def test_integers_as_c(
    flag: str, width: str, precision: str, length: str, kind: str, source: st.DataObject
) -> None:
    """Integers look as C's printf makes them, with every flag and length."""
    ctype = _TYPES.get(length, "long long")
    half = 1 << (31 if ctype == "int" else 63)
    number = source.draw(st.integers(-half, half - 1))
    template = f"<%{flag}{width}{precision}{length}{kind}>".encode()
    wanted = printf_of_c(template, _ffi.cast(ctype, number))
    assert format_c(template, (number,)) == wanted


@given(flags, widths, precisions, st.sampled_from("fFeEgG"), st.floats())
def test_floats_as_c(
    flag: str, width: str, precision: str, kind: str, number: float
) -> None:
    """Floats look as C's printf makes them; of a nan, the sign is not looked at."""
    template = f"<%{flag}{width}{precision}{kind}>".encode()
    positive = abs(number) if number != number else number
    wanted = printf_of_c(template, _ffi.cast("double", positive))
    assert format_c(template, (number,)) == wanted


@given(widths, precisions, st.booleans(), st.binary(max_size=50))
def test_strings_as_c(width: str, precision: str, left: bool, text: bytes) -> None:
    """Strings are padded and cut by bytes, as in C."""
    text = text.replace(b"\0", b"")
    template = f"<%{'-' * left}{width}{precision}s>".encode()
    wanted = printf_of_c(template, _ffi.new("char[]", text))
    assert format_c(template, (text,)) == wanted


@pytest.mark.parametrize(
    ("template", "arguments", "wanted"),
    [
        ("%s %s %s", (None, 5, "é"), "(null) 5 é".encode()),
        ("%p %p", (None, 4096), b"(nil) 0x1000"),
        ("%*d|%-*d|%.*f", (4, 1, 3, 2, 1, 0.25), b"   1|2  |0.2"),
        ("%*d|%.*d", (-4, 1, -1, 2), b"1   |2"),
        ("%#o %#o %#x %#X", (8, 0, 0, 255), b"010 0 0 0XFF"),
        ("%u %x", (1 << 40, 1 << 40), b"1099511627776 10000000000"),
        ("%zu %hhu %hd %lx", (-1, 257, 40000, -1), b"18446744073709551615 1 -25536 " + b"f" * 16),
        ("%c%c%5c", (0, "a", b"b"), b"\0a    b"),
        ("%Lf %'d%%", (1.5, 1000), b"1.500000 1000%"),
        ("none", (1, 2), b"none"),
        ("%d", (True,), b"1"),
        (b"\xff%s", (b"\xfe",), b"\xff\xfe"),
    ],
)  # fmt: skip
def test_printf_for_python(template: Any, arguments: Any, wanted: bytes) -> None:
    """What Python has and C has not, and what the property tests leave out."""
    assert format_c(template, arguments) == wanted
