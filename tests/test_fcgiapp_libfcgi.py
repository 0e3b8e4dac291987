"""fcgiapp beside libfcgi: one program in C and in Python, the same answers."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fcgi_app import client
from fcgi_app.codec.constants import Role

from .fcgx import PATIENCE
from .webserver import (
    App,
)

# Beside libfcgi: one program in C and in Python, which does what OPS says

C_PROGRAM = r"""
#include <stdio.h>
#include <fcgiapp.h>
int main(void)
{
    FCGX_Request r;
    FCGX_Init();
    FCGX_InitRequest(&r, 0, 0);
    while (FCGX_Accept_r(&r) >= 0) {
        const char *op = FCGX_GetParam("OPS", r.envp);
        int last = EOF;
        FCGX_PutS("Content-Type: text/plain\r\n\r\n", r.out);
        for (; op && *op; op += 2) {
            int n = op[1] - '0', result = 0;
            char text[16] = "";
            switch (*op) {
            case 'c': result = last = FCGX_GetChar(r.in); break;
            case 'u': result = FCGX_UnGetChar(last, r.in); last = EOF; break;
            case 's': result = FCGX_GetStr(text, n, r.in); last = EOF; break;
            case 'l': result = FCGX_GetLine(text, n, r.in) != 0; last = EOF; break;
            case 'e': result = FCGX_HasSeenEOF(r.in); break;
            case 'E': result = FCGX_GetError(r.in); break;
            case 'C': FCGX_ClearError(r.in); break;
            case 'f': result = FCGX_StartFilterData(r.in); last = EOF; break;
            case 'x': FCGX_SetExitStatus(n, r.out); break;
            case 'p': result = FCGX_PutChar(n + '0', r.out); break;
            case 'o': result = FCGX_HasSeenEOF(r.out); break;
            case 'F': result = FCGX_FFlush(n ? r.out : r.in); break;
            case 'q': result = FCGX_FClose(r.in); last = EOF; break;
            }
            FCGX_FPrintF(r.out, "%c%d%s;", *op, result, text);
        }
        FCGX_FPrintF(r.out, "%d %s", FCGX_PutStr("abc", 2, r.out),
                     FCGX_GetParam("EMPTY", r.envp) ? "empty" : "none");
    }
    return 0;
}
"""
PYTHON_TWIN = """
    from fcgi_app.fcgiapp import *
    r = FCGX_Request()
    FCGX_Init()
    FCGX_InitRequest(r, 0, 0)
    while FCGX_Accept_r(r) >= 0:
        ops = FCGX_GetParam("OPS", r.envp) or ""
        last = EOF
        FCGX_PutS("Content-Type: text/plain\\r\\n\\r\\n", r.out)
        for op, digit in zip(ops[::2], ops[1::2]):
            n, result, text = int(digit), 0, b""
            if op == "c":
                result = last = FCGX_GetChar(r.in_)
            elif op == "u":
                result, last = FCGX_UnGetChar(last, r.in_), EOF
            elif op == "s":
                text, last = FCGX_GetStr(n, r.in_), EOF
                result = len(text)
            elif op == "l":
                text, last = FCGX_GetLine(n, r.in_), EOF
                result, text = int(text is not None), text or b""
            elif op == "e":
                result = FCGX_HasSeenEOF(r.in_)
            elif op == "E":
                result = FCGX_GetError(r.in_)
            elif op == "C":
                FCGX_ClearError(r.in_)
            elif op == "f":
                result, last = FCGX_StartFilterData(r.in_), EOF
            elif op == "x":
                FCGX_SetExitStatus(n, r.out)
            elif op == "p":
                result = FCGX_PutChar(n + ord("0"), r.out)
            elif op == "o":
                result = FCGX_HasSeenEOF(r.out)
            elif op == "F":
                result = FCGX_FFlush(r.out if n else r.in_)
            elif op == "q":
                result, last = FCGX_FClose(r.in_), EOF
            FCGX_FPrintF(r.out, "%c%d%s;", op, result, text)
        FCGX_FPrintF(r.out, "%d %s", FCGX_PutStr("abc", 2, r.out),
                     "none" if FCGX_GetParam("EMPTY", r.envp) is None else "empty")
"""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of the C program and of its twin."""
    folder = tmp_path_factory.mktemp("twins")
    (folder / "program.c").write_text(C_PROGRAM)
    subprocess.run(
        ["cc", "-o", "program", "program.c", "-lfcgi"],
        cwd=folder,
        check=True,
        timeout=60,
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "c.sock"))
        listener.listen(128)
        process = subprocess.Popen([str(folder / "program")], stdin=listener.fileno())
    try:
        with App(folder, PYTHON_TWIN) as app:
            yield f"unix:{folder}/c.sock", f"unix:{app.listener.getsockname()}"
    finally:
        process.kill()
        process.wait(PATIENCE)


def both(
    twins: tuple[str, str], ops: str, body: bytes = b"", data: bytes | None = None
) -> tuple[bytes, list[int]]:
    """What ours answers, and the exit status of both; the answers must be the same."""
    sent = {"REQUEST_METHOD": "POST", "OPS": ops, "EMPTY": ""}
    role = Role.RESPONDER if data is None else Role.FILTER
    theirs, ours = (
        client.request(
            address, sent, stdin=body, data=data or b"", role=role, timeout=PATIENCE
        )
        for address in twins
    )
    assert ours.body == theirs.body
    return ours.body, [theirs.app_status, ours.app_status]


READS = ["c0", "cu", "s0", "s1", "s5", "l1", "l2", "l7", "e0", "E0"]


@pytest.mark.slow
@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.sampled_from(READS), max_size=12),
    st.text("ab\n", max_size=12),
)
def test_reads_what_libfcgi_reads(
    twins: tuple[str, str], ops: list[str], body: str
) -> None:
    """Any sequence of reads gives the same bytes, counts and ends as in C."""
    # Only a byte that has just been read can always be pushed back in C.
    script = "".join(ops).replace("cu", "c0u0")
    both(twins, script, body.encode())


@pytest.mark.parametrize(
    ("ops", "body", "expected"),
    [
        ("s5e0E0", b"hello", b"s5hello;e0;E0;"),  # read to the end, not beyond
        ("s6e0c0E0", b"hello", b"s5hello;e-1;c-1;E0;"),
        ("c0u0u0c0", b"ab", b"c97;u97;u-1;c97;"),
        ("l1", b"ab", b"l1;"),
        ("l4l4l4l4", b"ab\ncdef", b"l1ab\n;l1cde;l1f;l0;"),
        ("F0F1", b"", b"F0;F0;"),
        ("o0p7", b"", b"o0;7p55;"),
        ("q0c0e0E0F0", b"abc", b"q0;c-1;e-1;E0;F0;"),
        ("f0E0", b"", b"f-1;E-5;"),
    ],
)
def test_answers_what_libfcgi_answers(
    twins: tuple[str, str], ops: str, body: bytes, expected: bytes
) -> None:
    """The results at the edges are those of C."""
    content, _ = both(twins, ops, body)
    assert content == expected + b"ab2 empty"


def test_exit_status_is_told_once(twins: tuple[str, str]) -> None:
    """The last status counts; where C repeats it with every request, ours is new."""
    assert both(twins, "x3x7")[1] == [7, 7]
    assert both(twins, "")[1] == [7, 0]


def test_filter_goes_on_to_its_data(twins: tuple[str, str]) -> None:
    """STDIN to its end, then DATA; a second start fails with FCGX_CALL_SEQ_ERROR."""
    content, _ = both(twins, "s9e0f0e0s4f0E0", b"body", b"data and more")
    assert content == b"s4body;e-1;f0;e0;s4data;f-1;E-5;ab2 empty"
