"""The environment swap: what Python, C code and children see, and what is left."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import environ as early_environ
from os import environb as early_environb
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fcgi_app
import fcgi_app.cenviron as cenviron
from fcgi_app.cenviron import environ_cell
from fcgi_app.environ import EnvironSwap as PureSwap

EnvironSwap = PureSwap
"""The class under test: a fixture puts each of both here."""
MODULES = {"pure": "fcgi_app.environ", "native": "fcgi_app.lazyenviron"}
CLASSES = {"pure": "EnvironSwap", "native": "LazyEnvironSwap"}

LIBC = ctypes.CDLL(None)
LIBC.getenv.restype = ctypes.c_void_p
LIBC.strdup.restype = ctypes.c_void_p

REQUEST = {
    b"REQUEST_METHOD": b"GET",
    b"REMOTE_ADDR": b"192.0.2.7",
    b"PATH_INFO": b"/caf\xe9",
    b"QUERY_STRING": b"a=b&c==",
    b"HTTP_X_EMPTY": b"",
    b"HTTP_X_100%D": b"100%d",
}


def c_getenv(name: bytes) -> bytes | None:
    address = LIBC.getenv(name)
    return None if address is None else ctypes.string_at(address)


def c_strings() -> list[bytes]:
    """Every string of C's vector, in order."""
    address = ctypes.c_void_p.in_dll(LIBC, "environ").value
    strings: list[bytes] = []
    if address is None:  # clearenv() takes the whole vector away
        return strings
    vector = ctypes.cast(address, ctypes.POINTER(ctypes.c_char_p))
    while (string := vector[len(strings)]) is not None:
        strings.append(string)
    return strings


def split_strings(strings: list[bytes]) -> dict[bytes, bytes]:
    pairs = [string.partition(b"=") for string in strings]
    assert len({name for name, _, _ in pairs}) == len(pairs), "a name comes twice"
    return {name: value for name, _, value in pairs}


def child_environ() -> dict[bytes, bytes]:
    run = subprocess.run(["/usr/bin/env", "-0"], stdout=subprocess.PIPE, check=True)
    return split_strings(run.stdout.split(b"\0")[:-1])


def run_python(script: str, *args: str, **variables: str) -> str:
    """Run a script in a process of its own; its standard output."""
    if EnvironSwap is not PureSwap:
        script = script.replace(
            "fcgi_app.environ import EnvironSwap",
            "fcgi_app.lazyenviron import LazyEnvironSwap as EnvironSwap",
        )
    path = str(Path(fcgi_app.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", script, *args],
        cwd=path,  # where -c looks first; the checkout has another package
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def process_environment() -> tuple[dict[bytes, bytes], list[bytes]]:
    """Python's and C's, but for the variable that pytest changes all the time."""
    mine = b"PYTEST_CURRENT_TEST"
    return (
        {name: value for name, value in os.environb.items() if name != mine},
        [string for string in c_strings() if not string.startswith(mine)],
    )


@pytest.fixture(autouse=True, params=["pure", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test is of both classes."""
    name = str(request.param)
    if name == "native":
        request.getfixturevalue("native_backend")
    swap = getattr(importlib.import_module(MODULES[name]), CLASSES[name])
    monkeypatch.setattr(sys.modules[__name__], "EnvironSwap", swap)
    return name


PURE = pytest.mark.parametrize("backend", ["pure"], indirect=True)
"""Of how the pure one reaches C."""


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """After every test the process environment is what it was."""
    # readline, which pytest imports, sets these for C alone.
    for name in {"COLUMNS", "LINES"} - os.environ.keys():
        os.unsetenv(name)
    rescue = PureSwap()
    before = process_environment()
    yield
    after = process_environment()
    same = os.environ is early_environ, os.environb is early_environb
    rescue.leave()
    assert same == (True, True)
    assert after[0] == before[0]
    assert sorted(after[1]) == sorted(before[1])


@contextmanager
def request_environ(
    params: Mapping[bytes, bytes], *, replace: bool = False
) -> Iterator[EnvironSwap]:
    swap = EnvironSwap(replace=replace)
    swap.enter(params)
    try:
        yield swap
    finally:
        swap.leave()


# What Python sees.


def test_environ_imported_early() -> None:
    """``from os import environ``, made before, shows the request and then not."""
    with request_environ(REQUEST):
        assert early_environ["REMOTE_ADDR"] == "192.0.2.7"
        assert early_environb[b"REMOTE_ADDR"] == b"192.0.2.7"
        assert os.environ is early_environ
        assert os.environb is early_environb
    assert "REMOTE_ADDR" not in early_environ
    assert os.environ is early_environ
    assert os.environb is early_environb


def test_getenv_and_environb_follow() -> None:
    """os.getenv, os.getenvb and os.environb show the same request."""
    with request_environ(REQUEST):
        assert os.getenv("QUERY_STRING") == "a=b&c=="
        assert os.getenvb(b"QUERY_STRING") == b"a=b&c=="
        assert os.environb[b"HTTP_X_EMPTY"] == b""
        assert os.environ["HTTP_X_100%D"] == "100%d"
        assert {os.fsencode(n): os.fsencode(v) for n, v in os.environ.items()} == dict(
            os.environb
        )


def test_text_is_decoded_as_fsdecode_does() -> None:
    """A byte that is not UTF-8 is a surrogate in os.environ and itself elsewhere."""
    with request_environ({b"PATH_INFO": b"/caf\xe9", b"HTTP_COOKIE": "ä".encode()}):
        assert os.environ["PATH_INFO"] == "/caf\udce9"
        assert os.environ["HTTP_COOKIE"] == "ä"
        assert os.environb[b"PATH_INFO"] == b"/caf\xe9"
        assert c_getenv(b"PATH_INFO") == b"/caf\xe9"
        assert child_environ()[b"PATH_INFO"] == b"/caf\xe9"


def test_params_are_copied() -> None:
    """Changing os.environ never changes the caller's params."""
    params = dict(REQUEST)
    with request_environ(params):
        os.environ["REMOTE_ADDR"] = "x"
        del os.environ["QUERY_STRING"]
    assert params == REQUEST


# What C code and children see.


def test_c_getenv_sees_the_request() -> None:
    """getenv() in a C library sees every param, and the process's own after it."""
    with request_environ(REQUEST):
        for name, value in REQUEST.items():
            assert c_getenv(name) == value
        assert c_getenv(b"PATH") == os.environb[b"PATH"]
    assert c_getenv(b"REMOTE_ADDR") is None
    assert c_getenv(b"PATH") == os.environb[b"PATH"]


def test_subprocess_sees_the_request() -> None:
    """A child with env=None has exactly what os.environ has, bytes intact."""
    with request_environ(REQUEST):
        assert child_environ() == dict(os.environb)
        assert REQUEST.items() <= child_environ().items()
    assert child_environ() == dict(os.environb)


def test_system_sees_the_request(tmp_path: Path) -> None:
    """The shell of os.system, and what it starts, see the request."""
    output = tmp_path / "output"
    # A shell may leave out names that it cannot spell.
    params = {name: value for name, value in REQUEST.items() if b"%" not in name}
    with request_environ(params):
        assert os.system(f"exec env -0 > '{output}'") == 0
    seen = split_strings(output.read_bytes().split(b"\0")[:-1])
    assert params.items() <= seen.items()


def test_variable_set_in_the_request_reaches_children() -> None:
    """What the application adds or removes reaches its children, as in CGI."""
    with request_environ(REQUEST):
        os.environ["ADDED"] = "yes"
        os.environ["REMOTE_ADDR"] = "changed"
        del os.environ["QUERY_STRING"]
        seen = child_environ()
        assert seen == dict(os.environb)
        assert seen[b"ADDED"] == b"yes"
        assert seen[b"REMOTE_ADDR"] == b"changed"
        assert b"QUERY_STRING" not in seen


def test_forked_child_keeps_the_request() -> None:
    """After os.fork() the child still has the environment of the request."""
    reader, writer = os.pipe()
    with request_environ(REQUEST):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, (c_getenv(b"REMOTE_ADDR") or b"") + b" ")
                os.write(writer, os.environb[b"REMOTE_ADDR"])
            finally:
                os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"192.0.2.7 192.0.2.7"
    assert os.waitpid(pid, 0) == (pid, 0)


# Base and overlay.


def test_process_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH, HOME and the administrator's own variables are there in a request."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DATABASE_URL", "sqlite://")
    monkeypatch.setenv("FCGI_WEB_SERVER_ADDRS", "192.0.2.1")
    with request_environ(REQUEST):
        for name in ("HOME", "DATABASE_URL", "FCGI_WEB_SERVER_ADDRS", "PATH"):
            assert os.environ[name]
            assert c_getenv(name.encode()) == os.environb[name.encode()]


@pytest.mark.parametrize(
    "name",
    ["REMOTE_USER", "HTTP_COOKIE", "HTTPS", "HTTP_PROXY", "REDIRECT_URL", "FCGI_ROLE"],
)
def test_meta_variables_of_the_process(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A CGI meta-variable of the process is hidden during a request, then back."""
    monkeypatch.setenv(name, "of the process")
    with request_environ(REQUEST):
        assert name not in os.environ
        assert c_getenv(name.encode()) is None
    assert os.environ[name] == "of the process"
    assert c_getenv(name.encode()) == b"of the process"


def test_param_wins_over_process_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A param of a harmless name replaces the process's variable, once, everywhere."""
    monkeypatch.setenv("SITE", "process")
    with request_environ({b"SITE": b"param"}):
        assert os.environ["SITE"] == "param"
        assert split_strings(c_strings())[b"SITE"] == b"param"
    assert os.environ["SITE"] == "process"
    assert c_getenv(b"SITE") == b"process"


STEERING = [
    b"PATH",
    b"HOME",
    b"LD_PRELOAD",
    b"LD_AUDIT",
    b"PYTHONPATH",
    b"PYTHONSTARTUP",
    b"FCGI_WEB_SERVER_ADDRS",
    b"FCGI_APP_BACKEND",
    b"FCGI_FORCE_CGI",
    b"GLIBC_TUNABLES",
    b"MALLOC_TRACE",
    b"MALLOC_CONF",
    b"IFS",
    b"ENV",
    b"BASH_ENV",
    b"SHELLOPTS",
    b"BASH_FUNC_ls%%",
    b"PERL5OPT",
    b"TMPDIR",
    b"OPENSSL_CONF",
]


@pytest.mark.parametrize("name", STEERING, ids=bytes.decode)
@pytest.mark.parametrize("replace", [False, True], ids=["overlay", "replace"])
def test_steering_name_that_the_process_lacks(
    monkeypatch: pytest.MonkeyPatch, name: bytes, replace: bool
) -> None:
    """A name that steers loader, shell or interpreter does not enter."""
    monkeypatch.delenv(name.decode(), raising=False)
    params = {b"A": b"1", name: b"evil", b"B": b"2"}
    with request_environ(params, replace=replace):
        assert name not in os.environb
        assert c_getenv(name) is None
        assert (c_getenv(b"A"), c_getenv(b"B")) == (b"1", b"2")
        assert (os.environb[b"A"], os.environb[b"B"]) == (b"1", b"2")


@pytest.mark.parametrize("name", STEERING, ids=bytes.decode)
def test_steering_name_of_the_process(
    monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """The process's own value of a steering name stays as it is."""
    monkeypatch.setenv(name.decode(), "/own")
    with request_environ({b"A": b"1", name: b"evil", b"B": b"2"}):
        assert os.environb[name] == b"/own"
        assert c_getenv(name) == b"/own"
        assert (os.environb[b"A"], c_getenv(b"B")) == (b"1", b"2")


@pytest.mark.parametrize(
    "name",
    [b"FCGI_ROLE", b"FCGI_APACHE_ROLE", b"FCGI_DATA_LENGTH", b"FCGI_DATA_LAST_MOD"],
    ids=bytes.decode,
)
def test_params_of_the_protocol_pass(name: bytes) -> None:
    """The four FCGI_ names that are params, not settings, enter."""
    with request_environ({name: b"7"}):
        assert os.environb[name] == b"7"
        assert c_getenv(name) == b"7"


@pytest.mark.parametrize("name", [b"HTTP_PROXY", b"http_proxy", b"Http_Proxy"])
@pytest.mark.parametrize("replace", [False, True], ids=["overlay", "replace"])
def test_http_proxy_never_enters(name: bytes, replace: bool) -> None:
    """The header "Proxy" makes no proxy setting, however its name is written."""
    had = os.environb.get(b"http_proxy")
    with request_environ({name: b"evil", b"HTTP_HOST": b"h"}, replace=replace):
        assert os.environb.get(name) != b"evil"
        assert c_getenv(name) != b"evil"
        assert os.environ["HTTP_HOST"] == "h"
    assert os.environb.get(b"http_proxy") == had


def test_replace_gives_only_the_params() -> None:
    """With replace=True nothing but the params is there, and all is back after."""
    before = dict(os.environb)
    with request_environ(REQUEST, replace=True):
        assert dict(os.environb) == REQUEST
        assert split_strings(c_strings()) == REQUEST
        assert child_environ() == REQUEST
    assert dict(os.environb) == before
    assert child_environ() == before


def test_snapshot_is_of_the_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set between two requests, after the snapshot, reaches neither."""
    monkeypatch.setenv("BEFORE", "1")
    swap = EnvironSwap()
    os.environ["BETWEEN"] = "1"
    swap.enter({})
    assert ("BEFORE" in os.environ, "BETWEEN" in os.environ) == (True, False)
    swap.leave()
    os.environ["BETWEEN"] = "1"
    assert c_getenv(b"BETWEEN") == b"1"
    swap.enter({})
    assert ("BETWEEN" in os.environ, c_getenv(b"BETWEEN")) == (False, None)
    swap.leave()
    assert ("BETWEEN" in os.environ, c_getenv(b"BETWEEN")) == (False, None)


def test_variable_that_only_c_has() -> None:
    """What os.putenv set before the snapshot is C's in a request and after it."""
    os.putenv("ONLY_C", "1")
    try:
        with request_environ(REQUEST):
            assert ("ONLY_C" in os.environ, c_getenv(b"ONLY_C")) == (False, b"1")
        assert ("ONLY_C" in os.environ, c_getenv(b"ONLY_C")) == (False, b"1")
    finally:
        os.unsetenv("ONLY_C")


# Names and values that cannot be in an environment.


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        pytest.param(b"", b"secret", "its name is empty", id="empty-name"),
        pytest.param(b"A=B", b"secret", "its name holds", id="equals-in-name"),
        pytest.param(b"=", b"secret", "its name holds", id="equals-alone"),
        pytest.param(b"A\0B", b"secret", "its name holds", id="nul-in-name"),
        pytest.param(b"A", b"secret\0", "its value holds NUL", id="nul-in-value"),
        pytest.param(b"A" * 500, b"\0secret", "its value holds", id="long-name"),
    ],
)
def test_bad_param_is_left_out_and_logged_once(
    caplog: pytest.LogCaptureFixture, name: bytes, value: bytes, reason: str
) -> None:
    """A param that C cannot hold costs itself only, and one line without its value."""
    params = {b"X": b"1", name: value, b"Y": b"2"}
    expected = {b"X": b"1", b"Y": b"2"}
    with request_environ(params, replace=True) as swap:
        assert dict(os.environb) == expected
        assert split_strings(c_strings()) == expected
        swap.leave()
        swap.enter({**params, b"Z": b"3"})
        assert dict(os.environb) == {**expected, b"Z": b"3"}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fcgi_app", logging.WARNING)
    assert reason in record.getMessage()
    assert repr(name[:100]) in record.getMessage()
    assert "secret" not in caplog.text


def test_refused_name_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A name that the rules keep out gives one line of level INFO."""
    caplog.set_level(logging.INFO, "fcgi_app")
    with request_environ({b"PATH": b"secret"}) as swap:
        swap.enter({b"PATH": b"secret", b"A": b"1"})
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "b'PATH'" in record.getMessage()
    assert "secret" not in caplog.text


def test_log_of_bad_names_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that sends ever new bad names fills neither the log nor the memory."""
    with request_environ({b"=%d" % number: b"" for number in range(500)}):
        pass
    assert len(caplog.records) == 101
    assert "no more are reported" in caplog.records[-1].getMessage()


# Nothing is left.


def test_application_changes_are_gone() -> None:
    """What the application set, deleted or cleared is not in the next request."""
    swap = EnvironSwap()
    before = process_environment()
    swap.enter(REQUEST)
    os.environ["MINE"] = "x"
    os.environ["REMOTE_ADDR"] = "x"
    del os.environ["PATH"]
    os.putenv("PUT", "x")
    os.unsetenv("QUERY_STRING")
    swap.leave()
    assert process_environment() == before
    swap.enter(REQUEST)
    os.environ.clear()
    assert c_strings() == []
    swap.leave()
    assert process_environment() == before
    swap.enter(REQUEST)
    assert dict(os.environb) == split_strings(c_strings())
    assert REQUEST.items() <= dict(os.environb).items()
    assert not {"MINE", "PUT"} & set(os.environ)
    assert "PATH" in os.environ
    swap.leave()


def test_changes_of_c_code_are_gone() -> None:
    """setenv, unsetenv, putenv and clearenv of a C library leave nothing."""
    swap = EnvironSwap()
    before = process_environment()
    for _ in range(3):
        swap.enter(REQUEST)
        assert dict(os.environb) == split_strings(c_strings())
        LIBC.setenv(b"C_NEW", b"x", 1)
        LIBC.setenv(b"REMOTE_ADDR", b"a longer value than before", 1)
        LIBC.setenv(b"PATH", b"/nowhere", 1)
        LIBC.unsetenv(b"QUERY_STRING")
        LIBC.putenv(ctypes.c_void_p(LIBC.strdup(b"C_PUT=x")))
        assert c_getenv(b"C_PUT") == c_getenv(b"C_NEW") == b"x"
        swap.leave()
        assert process_environment() == before
        # The vector of the process is exposed to the same.
        LIBC.unsetenv(b"PATH")
        LIBC.setenv(b"C_NEW", b"y", 1)
        swap.enter(REQUEST)
        assert dict(os.environb) == split_strings(c_strings())
        LIBC.clearenv()
        assert c_strings() == []
        swap.leave()
        assert process_environment() == before


def test_c_code_that_writes_into_a_variable() -> None:
    """strtok(getenv("PATH")) in a C library spoils PATH for one request only."""
    swap = EnvironSwap()
    path = os.environb[b"PATH"]
    swap.enter(REQUEST)
    ctypes.memset(LIBC.getenv(b"PATH"), 0, 1)
    ctypes.memset(LIBC.getenv(b"REMOTE_ADDR"), 0, 1)
    assert c_getenv(b"PATH") == b""
    swap.enter(REQUEST)
    assert (c_getenv(b"PATH"), c_getenv(b"REMOTE_ADDR")) == (path, b"192.0.2.7")
    ctypes.memset(LIBC.getenv(b"PATH"), 0, 1)
    swap.leave()
    assert c_getenv(b"PATH") == path


def test_application_that_rebinds_os_environ() -> None:
    """``os.environ = {...}`` in a request is undone like every other change."""
    swap = EnvironSwap()
    swap.enter(REQUEST)
    setattr(os, "environ", {"REMOTE_ADDR": "fake"})  # noqa: B010
    del os.environb
    swap.leave()
    assert os.environ is early_environ
    assert os.environb is early_environb


def test_pointer_of_an_earlier_request() -> None:
    """What getenv() gave in one request may be read in a later one, also when the
    strings have moved to make room."""
    swap = EnvironSwap()
    swap.enter({b"A": b"first"})
    address = LIBC.getenv(b"A")
    swap.enter({b"A": b"x" * 100_000, **{b"N%d" % n: b"" for n in range(1000)}})
    assert len(c_getenv(b"A") or b"") == 100_000
    assert c_getenv(b"N999") == b""
    assert child_environ() == dict(os.environb)
    assert ctypes.string_at(address) == b"first"
    swap.leave()


def test_more_params_than_before() -> None:
    """Long params find room, and so do the pointers of many short ones."""
    swap = EnvironSwap()
    for count, value in ((5, b""), (5, b"x" * 5000), (50, b""), (500, b""), (5, b"")):
        params = {b"N%d" % number: value for number in range(count)}
        swap.enter(params)
        assert dict(os.environb) == split_strings(c_strings())
        assert params.items() <= dict(os.environb).items()
        swap.leave()


def test_nothing_of_a_request_is_held() -> None:
    """After a request nobody holds its values, nor names of unusual length."""
    name, value = b"HTTP_X_%05000d" % 1, b"%0200d" % 1
    before = sys.getrefcount(name), sys.getrefcount(value)
    swap = EnvironSwap()
    swap.enter({name: value, b"A": value})
    if EnvironSwap is PureSwap:  # the other one has copies
        assert sys.getrefcount(value) > before[1]
    swap.leave()
    assert (sys.getrefcount(name), sys.getrefcount(value)) == before


def test_enter_again_and_leave_again() -> None:
    """enter after enter replaces the request; leave may be called at any time."""
    swap = EnvironSwap()
    before = process_environment()
    swap.leave()
    assert process_environment() == before
    swap.enter({b"A": b"1"})
    swap.enter({b"B": b"2"})
    assert (c_getenv(b"A"), c_getenv(b"B")) == (None, b"2")
    assert ("A" in os.environ, "B" in os.environ) == (False, True)
    swap.leave()
    swap.leave()
    assert process_environment() == before


def test_mapping_that_is_no_dict() -> None:
    """Any mapping will do for the params."""
    swap = EnvironSwap()
    swap.enter(REQUEST)
    other = EnvironSwap(replace=True)
    other.enter(os.environb)
    assert os.environ["REMOTE_ADDR"] == "192.0.2.7"
    assert c_getenv(b"PATH") is None
    swap.leave()


NAMES = st.sampled_from(
    [b"A", b"B", b"HTTP_COOKIE", b"PATH", b"LD_PRELOAD", b"HTTP_PROXY", b"FCGI_ROLE"]
) | st.lists(st.sampled_from(b"xy%=\0\xff"), max_size=5).map(bytes)


LONG = [b"x" * 127, b"x" * 128, b"x" * 1000, b"x" * 5000, b"a\0b"]
"""Values that do not fit where shorter ones were, or not at all."""


def may(name: bytes, value: bytes) -> bool:
    """Whether the rules let this param of ``NAMES`` enter."""
    possible = name and not {0, ord("=")} & {*name} and 0 not in value
    return bool(possible) and name not in {b"PATH", b"LD_PRELOAD", b"HTTP_PROXY"}


@pytest.mark.slow
@given(
    st.lists(st.dictionaries(NAMES, st.binary(max_size=20), max_size=12), max_size=6),
    st.booleans(),
)
def test_any_params(requests: list[dict[bytes, bytes]], replace: bool) -> None:
    """Whatever the params, Python and C agree, and hold what the rules allow."""
    swap = EnvironSwap(replace=replace)
    before = process_environment()
    base = {} if replace else dict(os.environb)
    for params in requests:
        allowed = {name: value for name, value in params.items() if may(name, value)}
        swap.enter(params)
        seen = dict(os.environb), split_strings(c_strings())
        os.environ["LEFT"] = "over"
        swap.leave()
        assert seen == ({**base, **allowed},) * 2
        assert process_environment() == before


# What is known of a request, but for some values.


@pytest.mark.slow
@given(
    st.dictionaries(NAMES, st.binary(max_size=20), max_size=8),
    st.lists(NAMES, max_size=3),
    st.lists(
        st.lists(st.binary(max_size=6) | st.sampled_from(LONG), min_size=3, max_size=3),
        max_size=6,
    ),
    st.booleans(),
)
def test_varied_params(
    common: dict[bytes, bytes],
    names: list[bytes],
    requests: list[list[bytes]],
    replace: bool,
) -> None:
    """Told what has changed, it makes the environment that it makes without that."""
    swap = EnvironSwap(replace=replace)
    plain = EnvironSwap(replace=replace)
    pattern = object()
    for number, values in enumerate(requests):
        varied = dict(zip(names, values, strict=False))
        params = {**common, **dict.fromkeys(names, b""), **varied}
        plain.enter(params)
        expected = dict(os.environb), split_strings(c_strings())
        plain.leave()
        if number % 3 == 2:  # another request in between
            swap.enter({b"OTHER": b"x" * 10_000, b"A": b"1"})
        swap.enter(params, (pattern, varied))
        assert (dict(os.environb), split_strings(c_strings())) == expected
        os.environ["LEFT"] = "over"
        os.environ.pop("A", None)
        swap.leave()


def test_varied_params_in_c() -> None:
    """C code finds a value where it was, and what it wrote there is gone."""
    swap = EnvironSwap()
    pattern = object()
    addresses = set()
    for value in (b"first", b"2nd", b"", b"4th"):
        swap.enter({b"A": b"same", b"B": value}, (pattern, {b"B": value}))
        assert (c_getenv(b"A"), c_getenv(b"B")) == (b"same", value)
        addresses.add(LIBC.getenv(b"B"))
        ctypes.memmove(LIBC.getenv(b"A"), b"xxxx", 4)
    assert len(addresses) == 1
    swap.leave()
    assert c_getenv(b"B") is None


def test_varied_params_are_not_held() -> None:
    """Of the values that vary nothing is held after the request."""
    value = b"%0100d" % 1
    before = sys.getrefcount(value)
    swap = EnvironSwap()
    pattern = object()
    for _ in range(3):
        swap.enter({b"A": b"", b"B": value}, (pattern, {b"B": value}))
        swap.leave()
    assert sys.getrefcount(value) == before


# Memory and its owner.

GROWTH = """
import os, resource, sys
from fcgi_app.environ import EnvironSwap

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

def serve(numbers, name):
    for number in numbers:
        params[b"HTTP_COOKIE"] = b"%0200d" % number
        unique = {**params, name % number: b""} if b"%" in name else params
        swap.enter(unique)
        assert os.environb[b"HTTP_COOKIE"] == params[b"HTTP_COOKIE"]
        swap.leave()

params = {b"HTTP_X_%d" % number: b"value" * 5 for number in range(30)}
swap = EnvironSwap()
name, count = sys.argv[1].encode(), int(sys.argv[2])
serve(range(2000), name)
before = resident()
serve(range(2000, 2000 + count), name)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("HTTP_X_1", 200_000, id="values"),
        pytest.param("HTTP_X_%060d", 20_000, id="names"),
        pytest.param("=%0300d", 20_000, id="bad-names"),
    ],
)
def test_unique_params_grow_nothing(name: str, count: int) -> None:
    """200,000 unique cookies of 200 bytes, or unique names, leave less than 1 MiB."""
    assert int(run_python(GROWTH, name, str(count))) < 1 << 20


EXIT = """
import ctypes, gc, os, sys
from fcgi_app.environ import EnvironSwap

os.environ["SET_BY_PYTHON"] = "1"
swap = EnvironSwap()
swap.enter({b"REMOTE_ADDR": b"192.0.2.7"})
os.environ["LEFT"] = "over"
if sys.argv[2] == "left":
    swap.leave()
del swap
gc.collect()
# The exit handlers of C run when the interpreter and all of its memory are gone.
libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
command = libc.strdup(os.fsencode(f"exec env -0 > '{sys.argv[1]}'"))
libc.__cxa_atexit(libc.system, ctypes.c_void_p(command), None)
"""


@pytest.mark.parametrize("state", ["left", "entered"])
def test_exit_of_the_process(tmp_path: Path, state: str) -> None:
    """C code that runs after the interpreter's end still finds its environment."""
    output = tmp_path / "output"
    # Freed memory is filled, so that whoever reads it is found out.
    run_python(EXIT, str(output), state, MALLOC_PERTURB_="165", KEPT="é")
    seen = split_strings(output.read_bytes().split(b"\0")[:-1])
    assert seen[b"KEPT"] == "é".encode()
    assert seen[b"SET_BY_PYTHON"] == b"1"
    assert (b"LEFT" in seen, b"REMOTE_ADDR" in seen) == (state == "entered",) * 2


def test_swap_that_is_gone() -> None:
    """When the object is gone, C's vector and strings are still good."""
    swap = EnvironSwap()
    swap.enter(REQUEST)
    swap.leave()
    del swap
    gc.collect()
    assert child_environ() == dict(os.environb)


# Interpreters and systems that lack something.

WITHOUT = """
import json, logging, os, subprocess, sys
{prepare}
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
from fcgi_app.environ import EnvironSwap

def look():
    child = subprocess.run(["/usr/bin/env"], stdout=-1, text=True).stdout.split("\\n")
    return [os.environ.get("REMOTE_ADDR"), "REMOTE_ADDR=1.2.3.4" in child,
            os.environ.get("KEPT"), "KEPT=1" in child, "LEFT" in os.environ]

EnvironSwap()
swap = EnvironSwap()
looks = [look()]
swap.enter({{b"REMOTE_ADDR": b"1.2.3.4", b"": b"", b"PATH": b"evil"}})
looks.append(look())
os.environ["LEFT"] = "over"
swap.leave()
looks.append(look())
print(json.dumps(looks))
"""
FOREIGN = """
class Foreign(dict):
    pass
os.environ = Foreign(os.environ)
"""
NO_DATA = """
class NoData(type(os.environ)):
    __slots__ = ("stored",)
    def __getattribute__(self, name):
        if name == "_data":
            if sys._getframe(1).f_globals is not vars(os):
                raise AttributeError(name)
        return super().__getattribute__(name)
old = os.environ
os.environ = NoData(old._data, *(getattr(old, name) for name in (
    "encodekey", "decodekey", "encodevalue", "decodevalue")))
"""
NO_LIBC = """
import ctypes
class Bare:
    calloc = ctypes.CDLL(None).calloc
ctypes.CDLL = lambda name: Bare
"""
PROCESS = [None, False, "1", True, False]


@pytest.mark.parametrize(
    ("prepare", "reaches_children"),
    [
        pytest.param("", True, id="all-there"),
        pytest.param("sys.modules['ctypes'] = None", False, id="no-ctypes"),
        pytest.param(FOREIGN, True, id="another-os-environ"),
        pytest.param(NO_DATA, True, id="no-data-attribute"),
        pytest.param(f"sys.modules['ctypes'] = None{NO_DATA}", True, id="neither"),
    ],
)
def test_without_something(backend: str, prepare: str, reaches_children: bool) -> None:
    """os.environ follows the request everywhere; children where C can be reached."""
    reaches_children |= backend == "native"
    looks = json.loads(run_python(WITHOUT.format(prepare=prepare), KEPT="1"))
    assert looks == [PROCESS, ["1.2.3.4", reaches_children, "1", True, False], PROCESS]


@PURE
def test_lack_of_ctypes_is_logged_once() -> None:
    """Two objects without ctypes write one line that says what to do."""
    script = "import sys; sys.stderr = sys.stdout\n" + WITHOUT.format(
        prepare="sys.modules['ctypes'] = None"
    )
    warnings = [
        line for line in run_python(script).splitlines() if "C's environ" in line
    ]
    assert len(warnings) == 1
    assert "give children env=os.environ" in warnings[0]


@PURE
def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no memory for the vectors, the error says how much was asked."""
    cell = ctypes.c_void_p(None)
    libc = cell, lambda count, size: None
    monkeypatch.setattr(cenviron, "open_libc", lambda: libc)
    with pytest.raises(MemoryError, match="no 1 bytes for the environment"):
        EnvironSwap()


@PURE
def test_address_of_environ_by_function() -> None:
    """Where libc has _NSGetEnviron (macOS), its answer is taken."""
    cell = ctypes.c_void_p(0x1234)

    class Function:
        restype: object = None

        def __call__(self) -> int:
            return ctypes.addressof(cell)

    class Library:
        _NSGetEnviron = Function()

    found = environ_cell(Library())  # type: ignore[arg-type]
    found.value = 0x5678
    assert cell.value == 0x5678
