"""fcgiapp: its names, its params and its streams, with the results of C."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fcgi_app import fcgiapp
from fcgi_app.codec.constants import Role
from fcgi_app.fcgiapp import (
    EOF,
    FCGX_ClearError,
    FCGX_FClose,
    FCGX_FFlush,
    FCGX_Finish_r,
    FCGX_FPrintF,
    FCGX_Free,
    FCGX_GetChar,
    FCGX_GetError,
    FCGX_GetLine,
    FCGX_GetParam,
    FCGX_GetStr,
    FCGX_HasSeenEOF,
    FCGX_PutChar,
    FCGX_PutS,
    FCGX_PutStr,
    FCGX_SetExitStatus,
    FCGX_StartFilterData,
    FCGX_UnGetChar,
)

from .fcgx import PROGRAM, THREADED, pairs, run, value
from .webserver import (
    App,
    abort_request,
    begin_request,
    data,
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


# Names


def test_names_are_those_of_the_header() -> None:
    """All of fcgiapp.h is there that has a meaning in Python, spelt as there."""
    functions = """
        IsCGI Init OpenSocket InitRequest Accept_r Finish_r Free Accept Finish
        StartFilterData SetExitStatus GetParam GetChar UnGetChar GetStr GetLine
        HasSeenEOF PutChar PutStr PutS FPrintF VFPrintF FFlush FClose GetError
        ClearError ShutdownPending Attach Detach Stream ParamArray Request Accepted
        UNSUPPORTED_VERSION PROTOCOL_ERROR PARAMS_ERROR CALL_SEQ_ERROR
    """
    wanted = {"FCGX_" + name for name in functions.split()}
    assert set(fcgiapp.__all__) == wanted | {"EOF", "FCGI_FAIL_ACCEPT_ON_INTR"}
    header = Path("/usr/include/fcgiapp.h").read_text()
    declared = set(re.findall(r"^DLLAPI.*?\b(FCGX_[A-Z]\w+)\(", header, re.MULTILINE))
    missing = {"FCGX_CreateWriter", "FCGX_FreeStream"}  # for the other side, for malloc
    assert declared - missing < wanted


def test_numbers_are_those_of_the_header() -> None:
    """Error codes and the flag have libfcgi's values."""
    header = Path("/usr/include/fcgiapp.h").read_text()
    defined = dict(re.findall(r"#define\s+(FCG[XI]_\w+)\s+(-?\d+)", header))
    assert len(defined) == 5
    for name, number in defined.items():
        assert getattr(fcgiapp, name) == int(number)


# Params


def test_params_are_the_request_s(app: App) -> None:
    """envp is FCGI_ROLE and then what was sent; the last of a name counts, once."""
    extra = [(b"A", b"1"), (b"B", b""), (b"A", b"2"), (b"FCGI_ROLE", b"x")]
    with app.connect() as wire:
        sent = [*pairs("say((list(r.envp), len(r.envp), r.envp[0]))"), *extra]
        wire.send(begin_request(), params(1, sent), stdin())
        envp, length, first = eval(wire.answer().body)
    names = [string.partition("=")[0] for string in envp]
    assert names == ["FCGI_ROLE", "REQUEST_METHOD", "REMOTE_ADDR", "CODE", "A", "B"]
    assert (envp[4:], length, first) == (["A=2", "B="], 6, "FCGI_ROLE=RESPONDER")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("FCGX_GetParam('REMOTE_ADDR', r.envp)", "192.0.2.1"),
        ("FCGX_GetParam('remote_addr', r.envp)", None),
        ("FCGX_GetParam('REMOTE', r.envp)", None),
        ("FCGX_GetParam('FCGI_ROLE', r.envp)", "RESPONDER"),
        ("FCGX_GetParam('A', ['AB=0', 'A=1=2', 'A=3'])", "1=2"),
        ("FCGX_GetParam('A', None)", None),
    ],
)
def test_get_param(app: App, expression: str, expected: str | None) -> None:
    """FCGX_GetParam finds the exact name, in any list, and is None without one."""
    assert value(app, expression) == expected


def test_undecodable_params_survive(app: App) -> None:
    """Bytes that are no UTF-8 come back with os.fsencode."""
    with app.connect() as wire:
        sent = [*pairs("say(os.fsencode(FCGX_GetParam('X', r.envp)))"), (b"X", b"\xff")]
        wire.send(begin_request(), params(1, sent), stdin())
        assert eval(wire.answer().body) == b"\xff"


def test_request_has_the_fields_of_c(app: App) -> None:
    """requestId, role and the streams are there in a request, and gone after it."""
    with app.connect() as wire:
        text = """
            say(r.requestId)
            say(r.role, r.in_.isReader, r.out.isReader, r.in_.isClosed)
            say(r.listen_sock, r.flags, r.out.FCGI_errno, r.request.request_id)
        """
        wire.send(
            begin_request(77, Role.AUTHORIZER), params(77, pairs(text)), stdin(77)
        )
        assert wire.answer(77).body == b"77\n2 True False False\n0 0 0 77\n"


# Writing


def test_put_functions_return_counts(app: App) -> None:
    """What is written comes out in order, and the results are C's."""
    answer = run(
        app,
        r"""
        n = [FCGX_PutChar(0x141, r.out), FCGX_PutS("é\n", r.out),
             FCGX_PutStr(b"\0\xffrest", 2, r.out), FCGX_PutStr("", 0, r.out),
             FCGX_FPrintF(r.out, "[%5.2f|%-4s|%04x]", 3.14159, b"ab", 255),
             FCGX_VFPrintF(r.out, "%lld %zu %s%%\n", (1 << 40, 7, None))]
        FCGX_PutS(repr(n), r.out)
        """,
    )
    assert answer.body == (
        "Aé\n".encode()
        + b"\0\xff[ 3.14|ab  |00ff]1099511627776 7 (null)%\n[65, 3, 2, 0, 17, 24]"
    )


def test_stderr_goes_to_the_log(app: App) -> None:
    """What is put into err is FCGI_STDERR."""
    answer = run(app, r"say(FCGX_FPrintF(r.err, 'n = %d\n', 5))")
    assert (answer.stderr, answer.body) == (b"n = 5\n", b"6\n")


@pytest.mark.parametrize(
    "expression",
    [
        "FCGX_PutStr('abc', 4, r.out)",
        "FCGX_PutStr('abc', -1, r.out)",
        "FCGX_FPrintF(r.out, '%d')",
        "FCGX_FPrintF(r.out, '%y', 1)",
        "FCGX_PutS('x', sys.stdout)",
        "FCGX_PutS(5, r.out)",
        "FCGX_GetChar(object())",
        "FCGX_GetChar([])",
        "FCGX_SetExitStatus('1', r.out)",
        "FCGX_InitRequest(FCGX_Request(), 'x', 0)",
        "FCGX_InitRequest(FCGX_Request(), 0, None)",
    ],
)
def test_mistakes_are_told(app: App, expression: str) -> None:
    """What C would not compile, or not survive, is an exception."""
    text = f"""
        try:
            {expression}
        except (TypeError, ValueError) as error:
            say("told", str(error) != "")
    """
    assert run(app, text).body == b"'told' True\n"


def test_flush_sends_before_the_end(eager: App) -> None:
    """FCGX_FFlush lets the web server have the first part while the rest is due."""
    text = "FCGX_PutS('one', r.out); FCGX_FFlush(r.out); FCGX_GetChar(r.in_); say(2)"
    with eager.connect() as wire:
        wire.send(begin_request(), params(1, pairs(text)))
        first = wire.record()
        assert first is not None
        assert first.content.endswith(b"\r\n\r\none")
        wire.send(stdin(1, b"x"))
        assert wire.answer().stdout == b"2\n"


def test_closing_both_writers_ends_the_request(eager: App) -> None:
    """The last FCGX_FClose sends the end; what comes behind it fails quietly."""
    text = """
        shared["results"] = [
            FCGX_FClose(r.out), FCGX_PutS("x", r.out), FCGX_FFlush(r.out),
            FCGX_HasSeenEOF(r.out), FCGX_FClose(r.out), FCGX_GetError(r.out),
            FCGX_FClose(r.err), FCGX_PutChar(1, r.err), FCGX_GetChar(r.in_),
            FCGX_UnGetChar(1, r.in_), FCGX_HasSeenEOF(r.in_),
        ]
        shared["go"] = threading.Event()
        shared["go"].wait(20)
    """
    with eager.connect() as wire:
        wire.send(begin_request(), params(1, pairs(text)), stdin())
        assert wire.answer().body == b""  # while its thread waits in the handler
    answer = run(eager, "say(shared['results']); shared['go'].set()")
    assert eval(answer.body) == [0, -1, 0, -1, 0, 0, 0, -1, -1, -1, -1]


def test_streams_of_request_objects_will_do(app: App) -> None:
    """request.stdin and request.stdout are streams for every function, too."""
    answer = run(
        app,
        r"""
        out, source = r.request.stdout, r.request.stdin
        print(b"x", FCGX_GetChar(source), FCGX_UnGetChar(98, source),
              FCGX_GetStr(2, source), FCGX_HasSeenEOF(source), FCGX_PutS("y", out),
              file=__import__("io").TextIOWrapper(out, write_through=True))
        """,
        b"abc",
    )
    assert answer.body == b"yb'x' 97 98 b'bb' 0 1\n"


def test_fcgi_tofcgistream_gives_such_a_stream(tmp_path: Path) -> None:
    """A program of fcgi_stdio writes with FCGX functions in between."""
    source = """
        from fcgi_app.fcgi_stdio import *
        from fcgi_app.fcgiapp import *
        while FCGI_Accept() >= 0:
            FCGI_puts("A: b\\n")
            FCGX_PutS("fcgx ", FCGI_ToFcgiStream(FCGI_stdout))
            FCGI_printf("%d %d", FCGX_GetChar(FCGI_ToFcgiStream(FCGI_stdin)),
                        FCGX_IsCGI())
    """
    with App(tmp_path, source) as app:
        assert app.ask(body=b"z").body == b"fcgx 122 0"


# Errors of the streams


def test_cut_body_is_a_protocol_error(eager: App) -> None:
    """An abort in the body ends reading, with FCGX_PROTOCOL_ERROR as in C."""
    text = """
        FCGX_FFlush(r.out)
        shared["cut"] = [FCGX_GetStr(9, r.in_), FCGX_HasSeenEOF(r.in_),
                         FCGX_GetError(r.in_), FCGX_GetChar(r.in_)]
        FCGX_ClearError(r.in_)
        shared["cut"] += [FCGX_GetError(r.in_), FCGX_HasSeenEOF(r.in_)]
    """
    with eager.connect() as wire:
        wire.send(begin_request(keep=True), params(1, pairs(text)))
        assert wire.record() is not None
        wire.send(stdin(1, b"part", end=False), abort_request())
        wire.records()
        wire.send(whole_request(2, pairs("say(shared['cut'])")))
        assert eval(wire.answer(2).body) == [b"part", -1, -3, -1, 0, -1]


def test_cut_data_is_a_protocol_error(eager: App) -> None:
    """A filter whose connection breaks in DATA reads what came, and then the error."""
    text = """
        FCGX_FFlush(r.out)
        FCGX_GetStr(9, r.in_)
        started = FCGX_StartFilterData(r.in_)
        shared["filter"] = [started, FCGX_GetStr(9, r.in_), FCGX_GetError(r.in_)]
    """
    with eager.connect() as wire:
        wire.send(begin_request(1, Role.FILTER), params(1, pairs(text)), stdin())
        assert wire.record() is not None
        wire.send(data(1, b"some", end=False))
        wire.sock.shutdown(socket.SHUT_WR)
        wire.records()
    answer = run(eager, "say(shared['filter'])")
    assert eval(answer.body) == [0, b"some", -3]


@pytest.mark.parametrize(("announced", "error"), [("4", 0), ("5", -3), ("x", 0)])
def test_short_data_is_a_protocol_error(app: App, announced: str, error: int) -> None:
    """DATA that ends short of FCGI_DATA_LENGTH can be read, and is an error then."""
    text = """
        FCGX_GetStr(1, r.in_)
        FCGX_StartFilterData(r.in_)
        say([FCGX_GetStr(9, r.in_), FCGX_GetError(r.in_), FCGX_HasSeenEOF(r.in_)])
    """
    with app.connect() as wire:
        sent = [*pairs(text), (b"FCGI_DATA_LENGTH", announced.encode())]
        wire.send(begin_request(1, Role.FILTER), params(1, sent))
        wire.send(stdin(), data(1, b"some"))
        assert eval(wire.answer().body) == [b"some", error, -1]


def test_filter_data_too_early_loses_nothing(eager: App) -> None:
    """A start before the end of STDIN fails with -5, and can be repeated later."""
    text = """
        early = [FCGX_GetChar(r.in_), FCGX_StartFilterData(r.in_),
                 FCGX_GetError(r.in_), FCGX_HasSeenEOF(r.in_)]
        FCGX_FFlush(r.out)
        say(early + [FCGX_GetStr(9, r.in_), FCGX_StartFilterData(r.in_),
                     FCGX_GetError(r.in_), FCGX_GetStr(9, r.in_)])
    """
    with eager.connect() as wire:
        wire.send(begin_request(1, Role.FILTER), params(1, pairs(text)))
        wire.send(stdin(1, b"b", end=False))
        assert wire.record() is not None
        wire.send(stdin(1, b"ody"), data(1, b"data"))
        result = eval(wire.answer().stdout)
    assert result == [ord("b"), -1, -5, 0, b"ody", 0, 0, b"data"]


def test_lost_output_is_an_error(eager: App) -> None:
    """When the web server has gone, every write fails, and FCGX_GetError says why."""
    text = """
        FCGX_FFlush(r.out)
        r.request.wait_aborted(20)
        lost = []
        while FCGX_PutStr(bytes(65536), 65536, r.out) >= 0:
            pass
        lost = [FCGX_PutS("x", r.out), FCGX_GetError(r.out) > 0,
                FCGX_HasSeenEOF(r.out), FCGX_FFlush(r.out)]
        FCGX_ClearError(r.out)
        shared["lost"] = [*lost, FCGX_GetError(r.out), FCGX_FClose(r.out)]
        shared["closed"].set()
    """
    run(eager, "shared['closed'] = threading.Event()")
    with eager.connect() as wire:
        wire.send(begin_request(), params(1, pairs(text)), stdin())
        assert wire.record() is not None
    answer = run(eager, "shared['closed'].wait(20); say(shared['lost'])")
    assert eval(answer.body) == [-1, True, -1, -1, 0, -1]


NO_STREAM = [
    (FCGX_GetChar, (None,), EOF),
    (FCGX_GetStr, (5, None), b""),
    (FCGX_GetStr, (-5, None), b""),
    (FCGX_GetLine, (5, None), None),
    (FCGX_UnGetChar, (65, None), EOF),
    (FCGX_HasSeenEOF, (None,), EOF),
    (FCGX_PutChar, (65, None), EOF),
    (FCGX_PutS, ("x", None), EOF),
    (FCGX_PutStr, ("x", 1, None), EOF),
    (FCGX_FPrintF, (None, "x"), EOF),
    (FCGX_FFlush, (None,), EOF),
    (FCGX_FClose, (None,), 0),
    (FCGX_GetError, (None,), EOF),
    (FCGX_StartFilterData, (None,), EOF),
    (FCGX_ClearError, (None,), None),
    (FCGX_SetExitStatus, (1, None), None),
    (FCGX_Finish_r, (None,), None),
    (FCGX_Free, (None, 1), None),
    (FCGX_GetParam, ("X", None), None),
]


@pytest.mark.parametrize(("function", "arguments", "result"), NO_STREAM)
def test_nothing_in_place_of_a_stream(
    function: Callable[..., Any], arguments: tuple[Any, ...], result: object
) -> None:
    """None, which is what a request has before and after, fails and harms nothing."""
    assert function(*arguments) == result
