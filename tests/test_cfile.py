"""FCGI_ToFILE: C code prints into the response and reads the body."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest

from fcgi_app.codec.constants import Role
from fcgi_app.fcgi_stdio import (
    EOF,
    FCGI_FILE,
    FCGI_fclose,
    FCGI_fgetc,
    FCGI_fgets,
    FCGI_fileno,
    FCGI_fopen,
    FCGI_fputs,
    FCGI_freopen,
    FCGI_ftell,
    FCGI_pclose,
    FCGI_popen,
    FCGI_rewind,
    FCGI_ToFILE,
    FCGI_ungetc,
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

# What a C library does with a FILE * that it is given.
LIBRARY = r"""
#include <signal.h>
#include <stdio.h>
#include <string.h>

static FILE *kept;

void keep(FILE *file) { kept = file; }
int say(const char *text) { return fputs(text, kept); }
int page(FILE *out, const char *name) { return fprintf(out, "<p>%s %d</p>", name, 42); }

size_t blob(FILE *out, size_t size)
{
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    return fwrite(block, 1, size, out);
}

int interrupted(FILE *out) { raise(SIGINT); return fputs("lost", out); }
"""

DECLARATIONS = """
    char *fgets(char *, int, FILE *);
    size_t fread(void *, size_t, size_t, FILE *);
    size_t fwrite(const void *, size_t, size_t, FILE *);
    int fgetc(FILE *);
    int ungetc(int, FILE *);
    int fputc(int, FILE *);
    int fputs(const char *, FILE *);
    int puts(const char *);
    int fprintf(FILE *, const char *, ...);
    int fflush(FILE *);
    int feof(FILE *);
    int ferror(FILE *);
    int fileno(FILE *);
    int setvbuf(FILE *, char *, int, size_t);
    extern FILE *stdin;
    extern FILE *stdout;
    extern FILE *stderr;
    void keep(FILE *);
    int say(const char *);
    int page(FILE *, const char *);
    size_t blob(FILE *, size_t);
    int interrupted(FILE *);
"""

# Everything that a script's C library needs, in an FFI of the script's own.
TOOLS = f"""
import cffi, os, sys
import fcgi_app
from fcgi_app.fcgi_stdio import *
ffi = cffi.FFI()
ffi.cdef('''{DECLARATIONS}''')
c = ffi.dlopen(None)
lib = ffi.dlopen(os.environ.get("LIBRARY"))
line = ffi.new("char[]", 100)
space = ffi.new("char[]", 8192)
def gets(file):
    got = c.fgets(line, 100, file)
    return ffi.string(got) if got else None
"""

# Does what CODE says, in the middle of a page.
PROGRAM = (
    TOOLS
    + """
out, err, body = FCGI_ToFILE(FCGI_stdout), FCGI_ToFILE(FCGI_stderr), FCGI_ToFILE(FCGI_stdin)
lib.keep(out)
n = 0
while FCGI_Accept() >= 0:
    n += 1
    FCGI_puts("Content-Type: text/plain\\r\\n\\r")
    exec(os.environ.get("CODE", ""))
"""
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A shared object, compiled."""
    directory = tmp_path_factory.mktemp("library")
    source = directory / "library.c"
    source.write_text(LIBRARY)
    compiled = directory / "library.so"
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed"
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-o", str(compiled)]
    subprocess.run([compiler, *flags, str(source)], check=True, timeout=60)
    return str(compiled)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, library: str) -> Iterator[App]:
    directory = tmp_path_factory.mktemp("app")
    with App(directory, PROGRAM, env={"LIBRARY": library}) as running:
        yield running


def run(app: App, code: str, body: bytes = b"") -> Answer:
    """Let the program run ``code`` in a request."""
    return app.ask(("CODE", textwrap.dedent(code)), body=body)


def run_as_cgi(
    tmp_path: Path, code: str, library: str = "", stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a script with the tools as a CGI program."""
    script = tmp_path / "script.py"
    script.write_text(TOOLS + textwrap.dedent(code))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE_PARENT, **env}
    if library:
        environ["LIBRARY"] = library
    return subprocess.run(
        [sys.executable, str(script)],
        input=stdin,
        env=environ,
        capture_output=True,
        timeout=30,
        check=False,
    )


# Output


def test_libc_prints_into_the_response(app: App) -> None:
    """fputs, fputc, fprintf and fwrite of libc reach the response in order with print."""
    code = """
    print("1", end="")
    results = [c.fputs(b"2", out)]
    FCGI_putchar(ord("3"))
    results.append(c.fprintf(out, b"%d-%s", ffi.cast("int", 4), ffi.new("char[]", b"5")))
    sys.stdout.buffer.write(b"6")
    results.append(c.fputc(ord("7"), out))
    results.append(c.fwrite(b"8\\0\\xff", 1, 3, out))
    print(results, c.ferror(out), c.fileno(out) < 0)
    """
    assert run(app, code).stdout == (
        b"Content-Type: text/plain\r\n\r\n1234-5678\0\xff[1, 3, 55, 3] 0 True\n"
    )


def test_head_from_c(tmp_path: Path) -> None:
    """C code may print the response head, or half of it: it is watched like print's."""
    source = (
        TOOLS
        + """
while FCGI_Accept() >= 0:
    out = FCGI_ToFILE(sys.stdout)
    print("Location: /else", end="")
    c.fputs(b"where\\n\\nbody", out)
"""
    )
    with App(tmp_path, source) as app:
        answer = app.ask()
        assert sorted(answer.head.split(b"\r\n")) == [
            b"Location: /elsewhere",
            b"Status: 302 Found",
        ]
        assert answer.body == b"body"


def test_stderr(app: App) -> None:
    """What C code prints to the stderr FILE * goes to the web server's log by lines."""
    code = """
    c.fputs(b"half ", err)
    sys.stderr.write("and half\\n")
    c.fprintf(err, b"from C\\n")
    """
    assert run(app, code).stderr == b"half and half\nfrom C\n"


def test_one_megabyte(app: App) -> None:
    """A mebibyte through fwrite arrives, whole."""
    answer = run(app, "print(lib.blob(out, 1 << 20))")
    assert answer.body == b"x" * (1 << 20) + b"1048576\n"


def test_three_requests_and_in_between(tmp_path: Path, library: str) -> None:
    """A pointer that a library keeps follows each request, and the process between."""
    source = (
        TOOLS
        + """
lib.keep(FCGI_ToFILE(FCGI_stdout))
lib.say(b"before\\n")
while FCGI_Accept() >= 0:
    lib.say(b"A: b\\n\\n")
    lib.say(os.environ["WHICH"].encode())
    same = FCGI_ToFILE(FCGI_stdout) == FCGI_ToFILE(sys.stdout)
    FCGI_Finish()
    print("python", same)
    lib.say(b"between\\n")
"""
    )
    env = {"LIBRARY": library, "PYTHONUNBUFFERED": ""}
    with App(tmp_path, source, env=env) as app:
        pages = [app.ask(("WHICH", which)).body for which in "123"]
        assert app.stop() == 0
        assert pages == [b"1", b"2", b"3"]
        assert app.log == "before\n" + "python True\nbetween\n" * 3


def test_ctypes(tmp_path: Path, library: str) -> None:
    """A library that ctypes has loaded takes the pointer as a number."""
    source = """
        import ctypes, os
        from cffi import FFI
        from fcgi_app.fcgi_stdio import *
        page = ctypes.CDLL(os.environ["LIBRARY"]).page
        out = ctypes.c_void_p(int(FFI().cast("uintptr_t", FCGI_ToFILE(FCGI_stdout))))
        while FCGI_Accept() >= 0:
            print("A: b\\n")
            print(page(out, b"ctypes"))
    """
    with App(tmp_path, source, env={"LIBRARY": library}) as app:
        assert app.ask().body == b"<p>ctypes 42</p>16\n"


def test_buffer_of_c_code(app: App) -> None:
    """A buffer that C code sets is emptied at the request's end, into that request."""
    code = "c.setvbuf(out, space, 0, 8192); c.fputs(b'late', out); print('early')"
    assert run(app, code).body == b"early\nlate"
    assert run(app, "print(n)").body.endswith(b"\n")
    assert run(app, "c.fputs(b'1', out); c.fflush(out); print(2)").body == b"12\n"
    assert run(app, "c.setvbuf(out, ffi.NULL, 2, 0)").body == b""


def test_buffer_of_c_code_between_requests(tmp_path: Path) -> None:
    """What C code holds back between two requests is no part of the second."""
    source = (
        TOOLS
        + """
out = FCGI_ToFILE(FCGI_stdout)
c.setvbuf(out, space, 0, 8192)
c.fputs(b"start\\n", out)
while FCGI_Accept() >= 0:
    c.fputs(b"A: b\\n\\npage", out)
    FCGI_Finish()
    c.fputs(b"between\\n", out)
"""
    )
    with App(tmp_path, source) as app:
        assert [app.ask().body for _ in range(2)] == [b"page", b"page"]
        assert app.stop() == 0
        assert app.log == "start\nbetween\nbetween\n"


@pytest.mark.parametrize("how", ["sys.exit(4)", "1 / 0"])
def test_buffer_of_c_code_at_exit(tmp_path: Path, how: str) -> None:
    """What C code holds back when the process ends still belongs to the request."""
    source = (
        TOOLS
        + f"""
out = FCGI_ToFILE(FCGI_stdout)
c.setvbuf(out, space, 0, 8192)
while FCGI_Accept() >= 0:
    print("A: b\\n", flush=True)
    c.fputs(b"held back", out)
    {how}
"""
    )
    with App(tmp_path, source) as app:
        answer = app.ask()
        assert app.wait() == answer.app_status
    assert (answer.body, answer.app_status) == (b"held back", 4 if "4" in how else 1)


def test_fork_does_not_double_output(app: App) -> None:
    """What C code holds back is not written by a forked child as well."""
    code = """
    c.setvbuf(out, space, 0, 8192)
    c.fputs(b"once", out)
    pid = os.fork()
    if pid == 0:
        c.fflush(out)
        sys.exit()
    os.waitpid(pid, 0)
    c.setvbuf(out, ffi.NULL, 2, 0)
    """
    assert run(app, code).body == b"once"
    assert "once" not in app.log  # where a child's output goes


@pytest.mark.parametrize(
    "loop",
    [
        "fcgi_app.run(handler)",
        "while FCGI_Accept() >= 0: handler(fcgi_app.current_request())",
    ],
    ids=["run", "accept"],
)
def test_broken_connection(tmp_path: Path, loop: str) -> None:
    """When the web server has gone, C gets its error results, with EPIPE."""
    source = (
        TOOLS
        + """
out = FCGI_ToFILE(FCGI_stdout)
def handler(request):
    print("A: b\\n")
    if request.params["REQUEST_METHOD"] == "GET":
        print(c.ferror(out), end="")
        return
    block = bytes(65536)
    while c.fwrite(block, 1, 65536, out):
        pass
    number = ffi.errno
    print("broken", os.strerror(number), c.ferror(out) != 0, c.fputs(b"x" * 65536, out),
          file=sys.__stderr__, flush=True)
"""
        + loop
    )
    with App(tmp_path, source) as app:
        with app.connect() as wire:
            wire.send(whole_request(pairs=[(b"REQUEST_METHOD", b"PUT")]))
        assert app.ask().body == b"0"
        assert app.log == "broken Broken pipe True -1\n"


def test_closed_stream(app: App) -> None:
    """FCGI_fclose: C code that keeps the pointer gets EOF, FCGI_ToFILE gives NULL."""
    code = """
    FCGI_fclose(FCGI_stdout)
    result = c.fputs(b"lost", out), FCGI_ToFILE(FCGI_stdout) == ffi.NULL
    print(*result, file=sys.stderr)
    """
    answer = run(app, code)
    assert (answer.body, answer.stderr) == (b"", b"-1 True\n")


def test_interruption(tmp_path: Path, library: str) -> None:
    """An exception of a signal handler while C prints comes at the request's end."""
    source = (
        TOOLS
        + """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
out = FCGI_ToFILE(FCGI_stdout)
try:
    while FCGI_Accept() >= 0:
        print("A: b\\n\\npage", flush=True)
        print("result", lib.interrupted(out), file=sys.__stderr__, flush=True)
except KeyboardInterrupt:
    print("interrupted", file=sys.__stderr__, flush=True)
"""
    )
    with App(tmp_path, source, env={"LIBRARY": library}) as app:
        assert app.ask().body == b"page\n"
        assert app.wait() == 0
        assert app.log == "result -1\ninterrupted\n"


def test_descriptors(tmp_path: Path) -> None:
    """With descriptors=True, the FILE *, C's own stdout, children and print agree."""
    source = (
        TOOLS
        + """
while fcgi_app.accept(descriptors=True):
    out, body = FCGI_ToFILE(FCGI_stdout), FCGI_ToFILE(FCGI_stdin)
    print("A: b\\n\\n1", end="")
    c.fputs(b"2", out)
    os.system("printf 3")
    c.puts(b"4")
    c.fflush(ffi.NULL)
    print(gets(body), FCGI_gets())
"""
    )
    with App(tmp_path, source) as app:
        assert app.ask(body=b"a\nb").body == b"1234\nb'a\\n' b'b'\n"


# Input


def test_c_reads_the_body(app: App) -> None:
    """fgets of libc reads STDIN line by line, to EOF."""
    code = "print([gets(body) for _ in range(4)], c.feof(body) != 0, c.ferror(body))"
    answer = run(app, code, b"one\ntwo\nend")
    assert answer.body == b"[b'one\\n', b'two\\n', b'end', None] True 0\n"


def test_c_and_python_read_by_turns(app: App) -> None:
    """C code takes no more than the line that it reads: Python goes on behind it."""
    code = """
    first = sys.stdin.buffer.readline()
    second = gets(body)
    third = FCGI_fgets(100, FCGI_stdin)
    print(first, second, third, gets(body), sys.stdin.buffer.read())
    """
    answer = run(app, code, b"1\n2\n3\n4\n5\n6")
    assert answer.body == b"b'1\\n' b'2\\n' b'3\\n' b'4\\n' b'5\\n6'\n"


def test_c_reads_by_the_byte(tmp_path: Path) -> None:
    """With _IONBF, C code takes just the bytes that it asks for."""
    source = (
        TOOLS
        + """
body = FCGI_ToFILE(FCGI_stdin)
c.setvbuf(body, ffi.NULL, _IONBF, 0)
while FCGI_Accept() >= 0:
    print("A: b\\n")
    print(c.fgetc(body), FCGI_getchar(), c.fgetc(body), c.ungetc(65, body))
"""
    )
    with App(tmp_path, source) as app:
        assert app.ask(body=b"abcd").body == b"97 98 99 65\n"
        assert app.ask(body=b"123").body == b"49 50 51 65\n"


def test_c_reads_a_large_body(app: App) -> None:
    """A mebibyte through fread, binary."""
    code = """
    block = ffi.new("char[]", 1 << 20)
    got = c.fread(block, 1, 1 << 20, body)
    print(got, bytes(ffi.buffer(block)) == bytes(range(256)) * 4096, c.fgetc(body))
    """
    assert run(app, code, bytes(range(256)) * 4096).body == b"1048576 True -1\n"


def test_input_is_the_request_s_own(app: App) -> None:
    """Nothing that C has read ahead, and no EOF, is left for the next request."""
    code = "print(c.fgetc(body), c.ungetc(65, body))"
    assert run(app, code, b"abc\ndef").body == b"97 65\n"
    assert run(app, "print(gets(body), gets(body))", b"new").body == b"b'new' None\n"
    assert run(app, "print(c.feof(body), gets(body))", b"2").body == b"0 b'2'\n"


def test_eof_outside_of_a_request(tmp_path: Path) -> None:
    """Outside of a request the stdin FILE * is at EOF; the next request can be read."""
    source = (
        TOOLS
        + """
body = FCGI_ToFILE(FCGI_stdin)
print(gets(body))
while FCGI_Accept() >= 0:
    print("A: b\\n")
    print(gets(body))
    FCGI_Finish()
    print(gets(body), c.feof(body) != 0)
"""
    )
    with App(tmp_path, source) as app:
        assert app.ask(body=b"1").body == b"b'1'\n"
        assert app.ask(body=b"2").body == b"b'2'\n"
        assert app.stop() == 0
        assert app.log == "None\n" + "None True\n" * 2


def test_filter(app: App) -> None:
    """C code reads STDIN to EOF; after FCGI_StartFilterData it reads DATA."""
    code = (
        "print(gets(body), gets(body), FCGI_StartFilterData(), gets(body), gets(body))"
    )
    with app.connect() as wire:
        pairs = [*GET, (b"CODE", code.encode()), (b"FCGI_DATA_LENGTH", b"4")]
        wire.send(begin_request(role=Role.FILTER), params(pairs=pairs))
        wire.send(stdin(data=b"in"), data(content=b"file"))
        assert wire.answer().body == b"b'in' None 0 b'file' None\n"


# CGI


def test_cgi_has_c_s_own_files(tmp_path: Path) -> None:
    """In CGI, FCGI_ToFILE gives C's own stdin, stdout and stderr."""
    code = """
        FCGI_Accept()
        files = [FCGI_ToFILE(f) for f in (FCGI_stdin, FCGI_stdout, FCGI_stderr)]
        FCGI_printf("A: b\\n\\n%s", repr((files == [c.stdin, c.stdout, c.stderr],
                                        [c.fileno(f) for f in files])))
    """
    done = run_as_cgi(tmp_path, code)
    assert (done.stdout, done.stderr) == (b"A: b\n\n(True, [0, 1, 2])", b"")


def test_cgi_order(tmp_path: Path) -> None:
    """In CGI print, FCGI_printf and C keep their order, the head in pieces included."""
    code = """
        FCGI_Accept()
        print("A: b", flush=True)
        print("C: ", end="")
        out = FCGI_ToFILE(FCGI_stdout)
        c.fputs(b"d\\n", out)
        print()
        c.puts(b"1")
        FCGI_puts("2")
        c.fputs(b"3\\n", out)
        fcgi_app.current_request().stdout.write(b"4\\n")
        c.fprintf(out, b"5\\n")
        c.fputs(b"log 1\\n", FCGI_ToFILE(FCGI_stderr))
        print("log 2", file=sys.stderr)
        c.fputs(b"log 3\\n", FCGI_ToFILE(FCGI_stderr))
        FCGI_SetExitStatus(5)
    """
    done = run_as_cgi(tmp_path, code)
    assert done.stdout == b"A: b\nC: d\n\n1\n2\n3\n4\n5\n"
    assert (done.stderr, done.returncode) == (b"log 1\nlog 2\nlog 3\n", 5)


def test_cgi_answered_by_c_alone(tmp_path: Path) -> None:
    """In CGI a page that C code has printed alone is the whole response."""
    code = """
        FCGI_Accept()
        c.fputs(b"A: b\\n\\npage", FCGI_ToFILE(FCGI_stdout))
        print(FCGI_Accept(), file=sys.stderr)
        c.fputs(b", end", FCGI_ToFILE(FCGI_stdout))
    """
    done = run_as_cgi(tmp_path, code)
    assert (done.stdout, done.stderr) == (b"A: b\n\npage, end", b"-1\n")


def test_cgi_with_a_pointer_from_before(tmp_path: Path, library: str) -> None:
    """A pointer from before the first FCGI_Accept serves in CGI, too."""
    code = """
        out, body = FCGI_ToFILE(FCGI_stdout), FCGI_ToFILE(FCGI_stdin)
        lib.keep(out)
        while FCGI_Accept() >= 0:
            print("Location: /x\\n\\n1", end="")
            lib.say(b"2")
            print(3, gets(body), gets(body))
    """
    done = run_as_cgi(tmp_path, code, library, b"body, more", CONTENT_LENGTH="4")
    assert b"Status: 302 Found\r\n" in done.stdout
    assert done.stdout.endswith(b"\r\n\r\n123 b'body' None\n")


def test_cgi_stdin(tmp_path: Path) -> None:
    """In CGI, C reads descriptor 0 and Python goes on behind it."""
    code = """
        FCGI_Accept()
        body = FCGI_ToFILE(FCGI_stdin)
        print("A: b\\n")
        print(body == c.stdin, gets(body), sys.stdin.buffer.readline())
        print(FCGI_ToFILE(FCGI_stdin) == c.stdin, gets(FCGI_ToFILE(FCGI_stdin)))
    """
    done = run_as_cgi(tmp_path, code, stdin=b"1\n2\n3\n")
    assert done.stdout.endswith(b"True b'1\\n' b'2\\n'\nFalse b'3\\n'\n")


def test_cgi_with_descriptors(tmp_path: Path) -> None:
    """In CGI with descriptors=True, C's own stdout is watched like everything else."""
    code = """
        while fcgi_app.accept(descriptors=True):
            out = FCGI_ToFILE(FCGI_stdout)
            print("Location: /x\\n\\n1", end="")
            c.fputs(b"2", out)
            print(3, out == c.stdout)
    """
    done = run_as_cgi(tmp_path, code)
    assert b"Status: 302 Found\r\n" in done.stdout
    assert done.stdout.endswith(b"\r\n\r\n123 True\n")


# Files of the operating system

TEXT = b"one\ntwo\nthree\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(TEXT)
    return file


def opened(file: FCGI_FILE | None) -> FCGI_FILE:
    assert file is not None
    return file


ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
c: Any = ffi.dlopen(None)


def gets(file: Any) -> bytes | None:
    line = ffi.new("char[]", 100)
    return ffi.buffer(line)[:].partition(b"\0")[0] if c.fgets(line, 100, file) else None


def test_file_is_read_by_turns(path: Path) -> None:
    """C and Python share the position of a file that was opened to read."""
    file = opened(FCGI_fopen(path, "r"))
    assert FCGI_fgetc(file) == ord("o")
    FCGI_ungetc(ord("o"), file)
    pointer = FCGI_ToFILE(file)
    assert gets(pointer) == b"one\n"
    assert (FCGI_ftell(file), FCGI_fgets(100, file)) == (4, b"two\n")
    assert (gets(pointer), gets(pointer)) == (b"three\n", None)
    FCGI_rewind(file)
    assert (FCGI_fgets(100, file), FCGI_ToFILE(file) == pointer) == (b"one\n", True)
    assert FCGI_fclose(file) == 0
    assert FCGI_ToFILE(file) == ffi.NULL


@pytest.mark.parametrize("mode", ["w", "a", "r+", "w+", "a+"])
def test_file_is_written_by_turns(path: Path, mode: str) -> None:
    """C and Python write to the same file in order, in every mode."""
    file = opened(FCGI_fopen(path, mode))
    FCGI_fputs("1", file)
    pointer = FCGI_ToFILE(file)
    assert c.fputs(b"2", pointer) >= 0
    FCGI_fputs("3", file)
    assert c.fputs(b"4", pointer) >= 0
    assert FCGI_fclose(file) == 0
    wanted = {"w": b"1234", "r": b"1234" + TEXT[4:], "a": TEXT + b"1234"}
    assert path.read_bytes() == wanted[mode[0]]


def test_fclose_closes_the_c_file(path: Path) -> None:
    """FCGI_fclose writes what C holds back, and closes C's descriptor."""
    file = opened(FCGI_fopen(path, "w"))
    pointer = FCGI_ToFILE(file)
    descriptor = c.fileno(pointer)
    assert descriptor != FCGI_fileno(file)
    space = ffi.new("char[]", 4096)
    c.setvbuf(pointer, space, 0, 4096)
    c.fputs(b"held back", pointer)
    assert path.read_bytes() == b""
    assert FCGI_fclose(file) == 0
    assert path.read_bytes() == b"held back"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_fclose_tells_what_c_could_not_write() -> None:
    """FCGI_fclose gives EOF if C's buffer does not fit on the disk."""
    file = opened(FCGI_fopen("/dev/full", "w"))
    pointer = FCGI_ToFILE(file)
    space = ffi.new("char[]", 4096)
    c.setvbuf(pointer, space, 0, 4096)
    c.fputs(b"held back", pointer)
    assert FCGI_fclose(file) == EOF


def test_freopen_makes_a_new_c_file(path: Path, tmp_path: Path) -> None:
    """After FCGI_freopen, FCGI_ToFILE is about the other file."""
    file = opened(FCGI_fopen(path, "w"))
    c.fputs(b"first", FCGI_ToFILE(file))
    assert FCGI_freopen(tmp_path / "second", "w", file) is file
    c.fputs(b"second", FCGI_ToFILE(file))
    FCGI_fclose(file)
    assert path.read_bytes() == b"first"
    assert (tmp_path / "second").read_bytes() == b"second"


def test_pipes(tmp_path: Path) -> None:
    """C code reads from and writes to a command of FCGI_popen."""
    file = opened(FCGI_popen("echo output", "r"))
    assert gets(FCGI_ToFILE(file)) == b"output\n"
    assert FCGI_pclose(file) == 0
    file = opened(FCGI_popen(f"cat > {tmp_path}/out", "w"))
    FCGI_fputs("1", file)
    c.fputs(b"2", FCGI_ToFILE(file))
    FCGI_fputs("3", file)
    assert FCGI_pclose(file) == 0
    assert (tmp_path / "out").read_bytes() == b"123"


# What is missing


def test_without_cffi(tmp_path: Path) -> None:
    """Without cffi, FCGI_ToFILE says so; all the rest works."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.modules['cffi'] = None\n"
        "from fcgi_app.fcgi_stdio import *\n"
        "FCGI_Accept()\n"
        "FCGI_puts('A: b\\n\\npage')\n"
        "try: FCGI_ToFILE(FCGI_stdout)\n"
        "except ImportError as error: FCGI_printf('%s', error)\n"
    )
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE_PARENT}
    done = subprocess.run(
        [sys.executable, str(script)],
        stdin=subprocess.DEVNULL,
        env=environ,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.endswith(
        b"page\nFCGI_ToFILE needs cffi, which is not installed (pip install cffi)"
    )
