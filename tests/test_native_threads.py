"""Signal handlers and threads that come in the middle of the native backend's short way."""

from __future__ import annotations

from pathlib import Path

import pytest

from .webserver import App, collect, whole_request

pytestmark = pytest.mark.usefixtures("native_backend")

NATIVE = {"FCGI_APP_BACKEND": "native"}
PLAIN = b"Content-Type: text/plain\r\n\r\n"
NAMES = [b"A%d" % number for number in range(7)]

LOOKING = """
    import os, signal
    from fcgi_app import accept, lazyenviron
    signal.signal(signal.SIGUSR2, lambda *_: LOOK)
    find = lazyenviron._find
    count = 0

    def spy(*arguments):
        found = find(*arguments)
        lazyenviron._find = find  # the handler's own look-ups are not disturbed
        signal.raise_signal(signal.SIGUSR2)
        return found

    while accept():
        count += 1
        lazyenviron._find = spy if count % 2 else find
        print("Content-Type: text/plain\\n")
        print(os.environ["A0"], os.environ["A1"], len(os.environ) > 7)
"""


@pytest.mark.parametrize(
    "look",
    [
        "len(os.environ)",
        "os.environ['A0']",
        "os.environ.update(A5='x')",
        "os.environ.pop('A6', None)",
    ],
)
def test_handler_in_a_look_up(tmp_path: Path, look: str) -> None:
    """A handler that looks into os.environ disturbs no look-up."""
    source = LOOKING.replace("LOOK", look)
    with App(tmp_path, source, env=NATIVE) as app, app.connect() as wire:
        for number in range(8):
            value = b"%d" % number
            wire.send(whole_request(keep=True, pairs=[(n, value) for n in NAMES]))
            assert wire.answer().body == b"%s %s True\n" % (value, value)


ACCEPTING = """
    import os, signal
    from fcgi_app import accept, finish, shortcut
    count = 0
    done = False
    original = shortcut.PLACE

    def answer(who):
        print("Content-Type: text/plain\\n")
        print(who, os.environ["A0"])

    def handler(*_):
        for _ in range(TIMES):
            accept(HOW)
            answer("handler")
        END

    def spy(*arguments):
        global done
        found = original(*arguments)
        if count == 3 and not done:
            done = True
            signal.raise_signal(signal.SIGUSR2)
        return found

    signal.signal(signal.SIGUSR2, handler)
    while accept():
        count += 1
        answer("main")
        if count == 3:
            shortcut.PLACE = spy
"""


@pytest.mark.parametrize("how", ["", "timeout=20"])
@pytest.mark.parametrize("end", ["pass", "finish()"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("place", ["_join", "_clear", "_step", "known_head"])
def test_handler_that_accepts(
    tmp_path: Path, place: str, times: int, end: str, how: str
) -> None:
    """Each request is answered once, with its own data, whoever has accepted it."""
    source = ACCEPTING.replace("PLACE", place).replace("TIMES", str(times))
    source = source.replace("END", end).replace("HOW", how)
    with App(tmp_path, source, env=NATIVE) as app, app.connect() as wire:
        for number in range(9):
            wire.send(whole_request(keep=True, pairs=[(b"A0", b"%d" % number)]))
            body = wire.answer().body
            # Two may print into the one that was under way when the handler came.
            lines = [b"main %d\n" % number, b"handler %d\n" % number]
            head = b"Content-Type: text/plain\n\n"
            assert body in (*lines, head.join(lines), head.join(lines[::-1]))


HEATING = """
    import os, signal
    from fcgi_app import accept, shortcut
    signal.signal(signal.SIGUSR2, lambda *_: os.environ["A5"])
    clear = shortcut._clear
    count = 0

    def spy(data):
        clear(data)
        if count == 2 and data.turn > 0:
            signal.raise_signal(signal.SIGUSR2)

    shortcut._clear = spy
    while accept():
        count += 1
        print("Content-Type: text/plain\\n")
        print(os.environ["A0"], os.environ["A5"] if count > 2 else "")
"""


def test_handler_before_the_usual_variables(tmp_path: Path) -> None:
    """A variable that becomes usual while those that are so are put there is right."""
    with App(tmp_path, HEATING, env=NATIVE) as app, app.connect() as wire:
        for number in range(6):
            pairs = [(name, name + b"=%d" % number) for name in NAMES]
            wire.send(whole_request(keep=True, pairs=pairs))
            last = b"A5=%d" % number if number > 1 else b""
            assert wire.answer().body == b"A0=%d %s\n" % (number, last)


RAISING = """
    import os, signal
    from fcgi_app import accept, current_request
    from fcgi_app.lane import LaneAcceptor
    begin = LaneAcceptor.begin
    count = 0

    def handler(*_):
        raise KeyboardInterrupt

    def spy(*arguments):
        made = begin(*arguments)
        LaneAcceptor.begin = begin
        signal.raise_signal(signal.SIGUSR2)
        return made

    signal.signal(signal.SIGUSR2, handler)
    while accept():
        count += 1
        print("Content-Type: text/plain\\n")
        print(count)
        if count == 3:
            LaneAcceptor.begin = spy
        try:
            if count > 2:
                current_request()
        except KeyboardInterrupt:
            print("interrupted")
"""


def test_handler_that_raises_in_a_look_at_the_request(tmp_path: Path) -> None:
    """The request goes on, with all that it had printed."""
    with App(tmp_path, RAISING, env=NATIVE) as app, app.connect() as wire:
        for number in range(1, 7):
            wire.send(whole_request(keep=True))
            more = b"interrupted\n" if number == 3 else b""
            assert wire.answer().body == b"%d\n" % number + more


THREADS = """
    import os, sys, threading
    from fcgi_app import accept, current_request
    sys.setswitchinterval(1e-6)

    def other():
        while True:
            OTHER

    threading.Thread(target=other, daemon=True).start()
    least = len(os.environ) + 7
    while accept():
        seen = [os.environ.get("A%d" % number) for number in range(7)]
        if len(os.environ.copy()) < least or len(os.environ) < least:
            seen = ["some were missing"]
        print("Content-Type: text/plain\\n")
        print(*seen, os.environ["A0"])
"""
OTHERS = {
    "request": "current_request()",
    "look": "os.environ.get('A3')",
    "item": "os.environ['PATH'], os.environ.get('A0')",
    "all": "len(os.environ)",
    "list": "list(os.environ)",
    "input": "sys.stdin.buffer",
}


@pytest.mark.slow
@pytest.mark.parametrize("names", ["usual", "new"])
@pytest.mark.parametrize("other", OTHERS)
def test_thread_beside(tmp_path: Path, other: str, names: str) -> None:
    """A thread that looks at what is current costs no request anything of its own."""
    source = THREADS.replace("OTHER", OTHERS[other])
    with App(tmp_path, source, env=NATIVE) as app, app.connect() as wire:
        wire.sock.settimeout(20)
        for number in range(1, 1500):
            value = b"%d" % number
            pairs = [(name, value) for name in NAMES]
            if names == "new" and number % 3 == 0:  # so long that it is not remembered
                pairs.append((b"N" * 4100 + value, b""))
            wire.send(whole_request(number, keep=True, pairs=pairs))
            records = wire.records()
            assert {record.request_id for record in records} == {number}
            assert (
                collect(records, number).stdout
                == PLAIN + b" ".join([value] * 8) + b"\n"
            )
        assert "Traceback" not in app.log
        app.process.kill()
        app.process.wait()
