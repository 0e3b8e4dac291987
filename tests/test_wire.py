"""Wire cases W1 to W29, against ``while accept()`` and ``run(handler, threads=4)``.

The numbers are the project's list of what libfcgi does on the wire; each test states
what ours does. Some are proven without a process in ``test_connection``.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.codec.constants import ProtocolStatus, RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import build_record

from .webserver import (
    App,
    Wire,
    abort_request,
    begin_request,
    collect,
    data,
    params,
    stdin,
    whole_request,
)

# Does what QUERY_STRING says: statements, in the middle of a page.
PROGRAM = """
    import os, signal, sys
    import fcgi_app
    from fcgi_app import *
    n = 0
    while accept():
        n += 1
        print("Content-Type: text/plain\\r\\n\\r\\n", end="")
        exec(os.environ.get("QUERY_STRING", ""))
"""


# The same, several requests at a time.
THREADED = """
    import os, signal, sys
    import fcgi_app
    from fcgi_app import *
    n = 0
    def handler(request):
        global n
        n += 1
        print("Content-Type: text/plain\\r\\n\\r\\n", end="")
        exec(request.params.get("QUERY_STRING", ""), globals())
    run(handler, threads=4)
"""
MODES = {"one": PROGRAM, "threads": THREADED}


@pytest.fixture(params=MODES)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    with App(tmp_path, MODES[request.param]) as running:
        yield running


def threaded(app: App) -> bool:
    """Whether the program serves several requests at a time."""
    return "threads=" in (app.log_path.parent / "app.py").read_text()


one_at_a_time = pytest.mark.parametrize("app", ["one"], indirect=True)
"""For what only the main thread may do."""


@pytest.fixture
def wire(app: App) -> Iterator[Wire]:
    with app.connect() as connected:
        yield connected


def code(text: str) -> list[tuple[bytes, bytes]]:
    """Params that make the program run ``text``."""
    return [(b"QUERY_STRING", text.encode())]


HEAD = b"Content-Type: text/plain\r\n\r\n"


def test_w1_one_response(wire: Wire) -> None:
    """W1: STDOUT, empty STDOUT, END_REQUEST with zeros; then the connection closes."""
    wire.send(whole_request(pairs=code("print('hello')")))
    assert wire.records() == [
        (RecordType.STDOUT, 1, HEAD + b"hello\n"),
        (RecordType.STDOUT, 1, b""),
        (RecordType.END_REQUEST, 1, bytes(8)),
    ]
    assert wire.is_closed()


def test_w2_nothing_printed(tmp_path: Path) -> None:
    """W2: no output is no page: 500 and a line in the log, never an empty 200."""
    with App(tmp_path, "from fcgi_app import accept\nwhile accept(): pass") as app:
        answer = app.ask()
    assert answer.stdout.startswith(b"Status: 500 ")
    assert b"the response is empty" in answer.stderr
    assert answer[2:] == (0, ProtocolStatus.REQUEST_COMPLETE)


def test_w2_passthrough(tmp_path: Path) -> None:
    """W2: with passthrough, an empty response goes out as libfcgi sends it."""
    source = "from fcgi_app import accept\nwhile accept(): pass"
    env = {"FCGI_APP_PASSTHROUGH": "1"}
    with App(tmp_path, source, env=env) as app, app.connect() as wire:
        wire.send(whole_request())
        assert wire.records() == [(6, 1, b""), (3, 1, bytes(8))]


def test_w3_stderr_then_stdout(wire: Wire) -> None:
    """W3: a line on stderr goes out at once; its stream ends before STDOUT's."""
    wire.send(whole_request(pairs=code("print('log', file=sys.stderr)")))
    assert [record[::2] for record in wire.records()] == [
        (RecordType.STDERR, b"log\n"),
        (RecordType.STDOUT, HEAD),
        (RecordType.STDERR, b""),
        (RecordType.STDOUT, b""),
        (RecordType.END_REQUEST, bytes(8)),
    ]


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_w4_stdout_closed_first(wire: Wire, used: bool) -> None:
    """W4: closing stdout early does not end the request; stderr still may be used."""
    text = "sys.stdout.close(); " + "print('late', file=sys.stderr)" * used
    wire.send(whole_request(pairs=code(text)))
    answer = collect(wire.records())
    assert answer == (HEAD, b"late\n" * used, 0, 0)


@pytest.mark.parametrize(
    ("status", "wanted"), [("0x01020307", 0x01020307), ("-2", -2), ("7", 7)]
)
def test_w5_exit_status(wire: Wire, status: str, wanted: int) -> None:
    """W5: the exit status is the request's own; the next request reports 0."""
    wire.send(whole_request(pairs=code(f"set_exit_status({status})"), keep=True))
    assert wire.answer().app_status == wanted
    wire.send(whole_request(keep=True))
    assert wire.answer().app_status == 0


def test_w6_odd_but_legal(wire: Wire) -> None:
    """W6: id 65535, flags 0xfe, reserved bytes, and a record of the greatest size."""
    begin = build_record(RecordType.BEGIN_REQUEST, 65535, b"\0\1\xfe\1\1\1\1\1")
    body = build_record(RecordType.STDIN, 65535, b"b" * 65535, 255)
    text = code("print(len(sys.stdin.read()))")
    wire.send(begin, params(65535, text), body, stdin(65535))
    assert wire.answer(65535).body == b"65535\n"
    assert wire.is_closed()


@pytest.mark.parametrize("at_once", [False, True], ids=["sequential", "one-segment"])
def test_w7_two_requests_kept(wire: Wire, at_once: bool) -> None:
    """W7: both requests of a kept connection are answered, pipelined or not."""
    request = whole_request(pairs=code("print(n)"), keep=True)
    wire.send(request * (1 + at_once))
    first = wire.answer()
    if not at_once:
        wire.send(request)
    assert (first.body, wire.answer().body) == (b"1\n", b"2\n")


def test_w8_unread_body_is_not_parsed(wire: Wire) -> None:
    """W8: records forged inside an unread body are not requests."""
    forged = whole_request(pairs=code("print('forged')"), keep=True)
    wire.send(whole_request(pairs=code("print(n)"), body=forged * 150, keep=True))
    assert wire.answer().body == b"1\n"
    wire.send(whole_request(pairs=code("print(n)"), keep=True))
    assert wire.answer().body == b"2\n"


def test_w8_body_beyond_the_read_ahead(wire: Wire) -> None:
    """W8: the same, when most of the body is still to come at the early answer."""
    forged = whole_request(pairs=code("print('forged')"), keep=True) * 20
    wire.send(begin_request(keep=True), params(pairs=code("print(n)")))
    wire.send(stdin(data=bytes(70000), end=False))
    assert wire.answer().body == b"1\n"
    wire.send(stdin(data=forged), whole_request(pairs=code("print(n)"), keep=True))
    assert wire.answer().body == b"2\n"


def get_values(*names: bytes, padding: int = 0) -> bytes:
    query = build_params([(name, b"") for name in names])
    return build_record(RecordType.GET_VALUES, 0, query, padding)


@pytest.mark.parametrize("padding", [0, 5], ids=["unpadded", "padded"])
def test_w9_w10_get_values(app: App, wire: Wire, padding: int) -> None:
    """W9, W10: true numbers, in the order asked, at once and without more bytes."""
    names = (b"FCGI_MAX_CONNS", b"FCGI_MAX_REQS", b"BOGUS", b"FCGI_MPXS_CONNS")
    wire.send(get_values(*names, padding=padding))
    record = wire.record()
    assert record == (
        RecordType.GET_VALUES_RESULT,
        0,
        build_params(
            [
                (b"FCGI_MAX_CONNS", b"10000"),
                (b"FCGI_MAX_REQS", b"1024"),
                (b"FCGI_MPXS_CONNS", b"1" if threaded(app) else b"0"),
            ]
        ),
    )


def test_w11_monit_probe(wire: Wire) -> None:
    """W11: monit's probe gets an empty result."""
    wire.send(bytes.fromhex("0109000000000800"), bytes(8))
    assert wire.sock.recv(100) == bytes.fromhex("010a000000000000")


def test_w12_same_name_ten_times(wire: Wire) -> None:
    """W12: a name is answered once."""
    wire.send(get_values(*[b"FCGI_MAX_REQS"] * 10))
    record = wire.record()
    assert record is not None
    assert record.content == b"\x0d\x04FCGI_MAX_REQS1024"


@pytest.mark.parametrize("content", [b"", b"REMOTE_USER=root"], ids=["empty", "bytes"])
def test_w13_unknown_management_type(wire: Wire, content: bytes) -> None:
    """W13: it is answered, wherever it comes; the request's streams feel nothing."""
    odd = build_record(77, 0, content)
    text = code("print(sys.stdin.read(), os.environ.get('REMOTE_USER'))")
    wire.send(odd, begin_request(), params(pairs=text, cut_at=[5], end=False), odd)
    wire.send(params(pairs=[]), stdin(data=b"bo", end=False), odd, stdin(data=b"dy"))
    records = wire.records()
    assert records[:3] == [(RecordType.UNKNOWN_TYPE, 0, b"\x4d" + bytes(7))] * 3
    assert collect(records[3:]).body == b"body None\n"


def test_w14_second_id(wire: Wire) -> None:
    """W14: a second request id is served as well; the first one's body is intact."""
    text = code("print(sys.stdin.read())")
    wire.send(begin_request(1), params(1, text), stdin(1, b"on", end=False))
    wire.send(whole_request(2, text, b"two"))
    wire.send(stdin(1, b"e"))
    records = wire.records(2)
    assert collect(records, 1).body == b"one\n"
    assert collect(records, 2).body == b"two\n"


def test_w15_unknown_role(app: App, wire: Wire) -> None:
    """W15: role 9 gets a 501 and UNKNOWN_ROLE; the connection stays usable."""
    wire.send(whole_request(role=9, keep=True))
    answer = wire.answer()
    assert answer.head.startswith(b"Status: 501 ")
    assert answer.protocol_status == ProtocolStatus.UNKNOWN_ROLE
    wire.send(whole_request(pairs=code("print(n)"), keep=True))
    assert wire.answer().body == b"1\n"
    assert app.logged("role 9, refused with 501")


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        pytest.param(b"\2" + whole_request()[1:], "version 2", id="version"),
        pytest.param(begin_request(0), "null request id", id="id-0"),
        pytest.param(build_record(1, 1, bytes(4)), "body of 4 bytes", id="short"),
        pytest.param(
            begin_request() + stdin(data=b"x"), "STDIN record", id="stdin-in-params"
        ),
        pytest.param(
            begin_request() + params() + begin_request(), "BEGIN_REQUEST", id="again"
        ),
    ],
)
def test_w16_broken_protocol(app: App, wire: Wire, sample: bytes, reason: str) -> None:
    """W16: the connection is closed, the log says why, the next one is served."""
    wire.send(sample)
    assert wire.is_closed()
    assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"
    assert app.logged(reason)


@pytest.mark.parametrize("where", ["params", "stdin", "in-the-application"])
def test_w17_abort(wire: Wire, where: str) -> None:
    """W17: END_REQUEST(REQUEST_COMPLETE) answers it; the connection stays usable."""
    text = code("sys.stdout.flush(); print(repr(sys.stdin.read()), file=sys.stderr)")
    start = begin_request(keep=True) + params(pairs=text, end=where != "params")
    if where != "params":
        start += stdin(data=b"x" * 10, end=False)
    if where == "in-the-application":
        start += stdin(data=bytes(70000), end=False)
    wire.send(start)
    if where == "in-the-application":
        assert wire.record() == (RecordType.STDOUT, 1, HEAD)
    wire.send(abort_request())
    records = wire.records()
    assert records[-1] == (RecordType.END_REQUEST, 1, bytes(8))
    wire.send(whole_request(pairs=code("print('next')"), keep=True))
    assert wire.answer().body == b"next\n"


@pytest.mark.parametrize("cut", [0, 1], ids=["at-boundary", "off-boundary"])
def test_w18_connection_lost_in_params(app: App, cut: int) -> None:
    """W18: a request whose PARAMS are cut off never reaches the application."""
    with app.connect() as wire:
        sample = begin_request() + params(end=False)
        wire.send(sample[: len(sample) - cut])
    assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\xff\xff\xff\xfe"])
def test_w19_absurd_length(app: App, wire: Wire, length: bytes) -> None:
    """W19: a name of 2 GiB is refused at once."""
    wire.send(begin_request(), build_record(RecordType.PARAMS, 1, length))
    assert wire.is_closed()
    assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"
    assert app.logged("announced")


FILTER = """
try:
    print(sys.stdin.read(), end=" ")
    start_filter_data()
    print(sys.stdin.read(), current_request().incomplete)
    start_filter_data()
except CallSequenceError as error:
    print("refused:", error)
"""


def test_w20_filter(wire: Wire) -> None:
    """W20: STDIN to its end, then DATA; a second start is a sequence error."""
    wire.send(begin_request(role=Role.FILTER))
    wire.send(params(pairs=[*code(FILTER), (b"FCGI_DATA_LENGTH", b"4")]))
    wire.send(stdin(data=b"in"), data(content=b"file"))
    body = wire.answer().body
    assert body.startswith(b"in file False\nrefused: start_filter_data: DATA has been")


def test_w21_start_before_the_end_of_stdin(wire: Wire) -> None:
    """W21: starting DATA before STDIN has ended is refused and destroys nothing."""
    text = """
    try: start_filter_data()
    except CallSequenceError as error: print("refused", flush=True)
    print(len(sys.stdin.read()))
    start_filter_data()
    print(sys.stdin.read())
    """.replace("\n    ", "\n")
    wire.send(begin_request(role=Role.FILTER), params(pairs=code(text)))
    wire.send(stdin(data=bytes(70000), end=False))
    assert wire.record() == (RecordType.STDOUT, 1, HEAD + b"refused\n")
    wire.send(stdin(), data(content=b"data"))
    assert wire.answer().stdout == b"70000\ndata\n"


def test_w21_start_in_a_responder(wire: Wire) -> None:
    """W21: a responder has no DATA."""
    text = "try: start_filter_data()\nexcept CallSequenceError as e: print(e)"
    wire.send(whole_request(pairs=code(text)))
    assert b"the role is not FILTER" in wire.answer().body


def test_w21_data_first(app: App, wire: Wire) -> None:
    """W21: DATA before the end of STDIN breaks the protocol."""
    wire.send(begin_request(role=Role.FILTER), params(), data(content=b"x"))
    assert wire.is_closed()
    assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"
    assert app.logged("DATA record while STDIN is due")


@one_at_a_time  # run() would raise RequestAborted: test_roles
def test_w21_data_cut_off(app: App) -> None:
    """W21: DATA that ends with the connection is an error, not a short read."""
    text = """
    sys.stdin.read(); start_filter_data()
    r = current_request()
    try: sys.stdin.read()
    except RequestAborted as error:
        print("cut", r.aborted, r.incomplete, file=sys.__stderr__, flush=True)
    """.replace("\n    ", "\n")
    with app.connect() as wire:
        wire.send(begin_request(role=Role.FILTER))
        wire.send(params(pairs=[*code(text), (b"FCGI_DATA_LENGTH", b"10")]))
        wire.send(stdin(), data(content=b"short", end=False))
    app.ask()
    assert app.logged("cut True True")


@pytest.mark.parametrize(
    ("addresses", "served"),
    [
        ("127.0.0.1", True),
        ("10.0.0.1, 127.0.0.1", True),
        ("127.0.0.0/8", True),
        ("10.0.0.1", False),
        ("::1", False),
    ],
)
def test_w22_web_server_addrs(tmp_path: Path, addresses: str, served: bool) -> None:
    """W22: a peer outside FCGI_WEB_SERVER_ADDRS is closed without a record."""
    env = {"FCGI_WEB_SERVER_ADDRS": addresses}
    tcp = socket.AF_INET
    with App(tmp_path, PROGRAM, env=env, family=tcp) as app, app.connect() as wire:
        if served:
            wire.send(whole_request(pairs=code("print(n)")))
            assert wire.answer().body == b"1\n"
        else:
            assert wire.is_closed()
            assert app.logged("127.0.0.1 refused")


def test_w22_unix_peer_is_refused(tmp_path: Path) -> None:
    """W22: with the list set, a peer that is not on TCP/IP is refused."""
    env = {"FCGI_WEB_SERVER_ADDRS": "127.0.0.1"}
    with App(tmp_path, PROGRAM, env=env) as app, app.connect() as wire:
        assert wire.is_closed()
    assert app.logged("a Unix socket refused")


def test_w22_malformed_list(tmp_path: Path) -> None:
    """W22: a malformed entry stops the program at its start, never opens the door."""
    env = {"FCGI_WEB_SERVER_ADDRS": "127.0.0.1,localhost"}
    with App(tmp_path, PROGRAM, env=env) as app:
        assert app.wait() == 1
    assert app.logged("FCGI_WEB_SERVER_ADDRS: 'localhost'")


def test_w23_silent_connection(tmp_path: Path) -> None:
    """W23: who sends nothing is closed after first_byte_timeout, others are served."""
    env = {"FCGI_APP_FIRST_BYTE_TIMEOUT": "0.3"}
    with App(tmp_path, PROGRAM, env=env) as app, app.connect() as silent:
        assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"
        assert silent.is_closed()
        assert app.logged("sent nothing; closed")


def test_w23_half_a_header(tmp_path: Path) -> None:
    """Half a record and then nothing is closed after params_timeout."""
    env = {"FCGI_APP_PARAMS_TIMEOUT": "0.3"}
    with App(tmp_path, PROGRAM, env=env) as app, app.connect() as half:
        half.send(begin_request()[:5])
        assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"
        assert half.is_closed()
        assert app.logged("sent part of a request")


def test_w24_peer_that_does_not_close(app: App, wire: Wire) -> None:
    """W24: a web server that keeps its socket open after the end delays nobody."""
    wire.send(whole_request(pairs=code("print(n)")))
    assert wire.answer().body == b"1\n"
    assert app.ask(("QUERY_STRING", "print(n)")).body == b"2\n"
    assert wire.is_closed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    "situation", ["idle", "kept", "first-byte", "busy", "busy-kept"]
)
def test_w25_stop(app: App, wire: Wire, situation: str, number: int) -> None:
    """W25: a stop is prompt in every state, finishes the request, and exits 0."""
    keep = situation in ("kept", "busy-kept")
    if situation in ("idle", "kept", "first-byte"):
        wire.send(whole_request(keep=keep))
        wire.answer()
    else:
        text = "sys.stdout.flush(); sys.stdin.read(); print('done')"
        wire.send(begin_request(keep=keep), params(pairs=code(text)))
        wire.send(stdin(data=bytes(70000), end=False))
        assert wire.record() == (RecordType.STDOUT, 1, HEAD)
    silent = app.connect()
    if situation == "first-byte":
        assert app.ask(("QUERY_STRING", "print(n)")).body == b"2\n"
    app.process.send_signal(number)
    if "busy" in situation:
        wire.send(stdin(data=b"rest"))
        assert b"done\n" in wire.answer().stdout
    if keep:
        assert wire.is_closed()
    assert app.wait() == 0
    silent.close()


@one_at_a_time  # test_threads_end has the other
def test_w25_second_signal_ends_at_once(app: App, wire: Wire) -> None:
    """A second SIGTERM does not wait for the request."""
    text = "sys.stdout.flush(); signal.raise_signal(15); print(1, flush=True); sys.stdin.read()"
    wire.send(begin_request(), params(pairs=code(text)))
    wire.send(stdin(data=bytes(70000), end=False))
    assert wire.record() == (RecordType.STDOUT, 1, HEAD)
    assert wire.record() == (RecordType.STDOUT, 1, b"1\n")
    assert app.stop() == -signal.SIGTERM


@one_at_a_time
@pytest.mark.parametrize("first", ["before", "meanwhile"])
@pytest.mark.parametrize("waits", ["sys.stdin.read()", "print('x' * 5_000_000)"])
def test_w25_second_signal_that_ends_no_wait(
    app: App, wire: Wire, waits: str, first: str
) -> None:
    """As one does that another thread gets, or that comes right before the wait."""
    text = f"""
    def later():
        time.sleep(0.2)
        if "{first}" == "meanwhile":
            os.kill(os.getpid(), 15)
            time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), 15)
    import threading, time
    if "{first}" == "before":
        signal.raise_signal(15)
    threading.Thread(target=later, daemon=True).start()
    {waits}
    """.replace("\n    ", "\n")
    wire.send(begin_request(), params(pairs=code(text)))
    wire.send(stdin(data=bytes(70_000), end=False))
    assert app.wait() == -signal.SIGTERM


@one_at_a_time
def test_w25_two_signals_at_once(app: App, wire: Wire) -> None:
    """A second one is not lost where the first has not been handled yet."""
    text = "signal.pthread_sigmask(0, [10, 15]); os.kill(os.getpid(), 10)"
    text += "; os.kill(os.getpid(), 15); signal.pthread_sigmask(1, [10, 15])"
    wire.send(begin_request(), params(pairs=code(text + "; sys.stdin.read()")))
    wire.send(stdin(data=bytes(70_000), end=False))
    assert app.wait() in {-signal.SIGTERM, -signal.SIGUSR1}


def test_w26_non_blocking_listener(tmp_path: Path) -> None:
    """W26: a listening socket that is non-blocking already works."""
    with App(tmp_path, PROGRAM, blocking=False) as app:
        assert app.ask(("QUERY_STRING", "print(n)")).body == b"1\n"
        assert app.stop() == 0


@pytest.mark.parametrize("way", ["sys.exit()", "os._exit(0)", "1/0"])
def test_w27_fork_in_a_request(app: App, way: str) -> None:
    """W27: a forked child that exits, however, leaves its parent's response whole."""
    text = f"""
    print("before")
    pid = os.fork()
    if not pid:
        print("from the child")
        {way}
    os.waitpid(pid, 0)
    print("after")
    """.replace("\n    ", "\n")
    for _ in range(2):
        assert app.ask(("QUERY_STRING", text)).body == b"before\nafter\n"
    assert app.stop() == 0


@one_at_a_time
def test_w28_signal_while_reading(wire: Wire) -> None:
    """W28: a handled signal in the middle of the body loses nothing."""
    text = """
    signal.signal(signal.SIGALRM, lambda *_: None)
    sys.stdout.flush()
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    print(len(sys.stdin.read()))
    signal.setitimer(signal.ITIMER_REAL, 0)
    """.replace("\n    ", "\n")
    wire.send(begin_request(), params(pairs=code(text)))
    wire.send(stdin(data=bytes(70000), end=False))
    assert wire.record() == (RecordType.STDOUT, 1, HEAD)
    for _ in range(10):
        wire.send(stdin(data=bytes(1000), end=False))
        wire.sock.settimeout(0.02)
        with pytest.raises(TimeoutError):  # nothing is due yet; signals arrive
            wire.sock.recv(1)
    wire.sock.settimeout(20)
    wire.send(stdin())
    assert wire.answer().stdout == b"80000\n"


def test_w29_split_everywhere(app: App) -> None:
    """W29: a request sent byte by byte is served like any other."""
    with app.connect() as wire:
        sample = whole_request(pairs=code("print(sys.stdin.read())"), body=b"x")
        for i in range(len(sample)):
            wire.send(sample[i : i + 1])
        assert wire.answer().body == b"x\n"
