"""Authorizers' answers, and what a web server may do wrong in each of the three roles.

Everything on the wire is tested with the loop ``accept``, with ``run`` and with threads.
"""

from __future__ import annotations

import base64
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgi_app import Request
from fcgi_app.cgi import CgiChannel
from fcgi_app.codec.constants import HEADER_LEN, ProtocolStatus, RecordType, Role
from fcgi_app.codec.records import build_record, parse_header
from fcgi_app.roles import Credentials, credentials
from fcgi_app.settings import Settings

from .webserver import (
    GET,
    Answer,
    App,
    Record,
    Wire,
    abort_request,
    begin_request,
    collect,
    data,
    params,
    parse_records,
    stdin,
)

# Does what CODE says, or else allows or shows what came.
PROGRAM = """
    import os, sys
    from fcgi_app import *
    from fcgi_app.roles import credentials

    def handle(request):
        code = request.params.get("CODE")
        if code is not None:
            exec(code)
        elif request.role == 2:
            request.allow({"COOKIE": request.params["COOKIE"]})
        else:
            body = request.stdin.read()
            file = b""
            if request.role == 3:
                request.start_filter_data()
                file = request.stdin.read()
            head = b"Content-Type: text/plain\\r\\n\\r\\n"
            cookie = request.params["COOKIE"].encode()
            request.stdout.write(head + cookie + b"|" + body + b"|" + file)

    mode = os.environ["MODE"]
    if mode == "accept":
        while accept():
            handle(current_request())
    else:
        run(handle, threads=4 if mode == "threads" else None)
"""
MODES = ["accept", "run", "threads"]


@pytest.fixture(scope="module", params=MODES)
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[App]:
    """One process that has to live through all that is sent to it."""
    directory = tmp_path_factory.mktemp("roles")
    with App(directory, PROGRAM, env={"MODE": request.param}) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


def code(text: str) -> list[tuple[bytes, bytes]]:
    return [*GET, (b"CODE", text.encode())]


def ask(
    app: App,
    text: str,
    *pairs: tuple[bytes, bytes],
    role: int = Role.AUTHORIZER,
) -> Answer:
    """Have ``text`` run for a request on a connection of its own."""
    with app.connect() as wire:
        wire.send(begin_request(role=role), params(pairs=[*code(text), *pairs]))
        if role != Role.AUTHORIZER:
            wire.send(stdin())
        if role == Role.FILTER:
            wire.send(data())
        return wire.answer()


class TestAllow:
    def test_nothing_but_the_status(self, app: App) -> None:
        """Without variables the answer is one line."""
        answer = ask(app, "request.allow()")
        assert answer == (b"Status: 200 OK\r\n\r\n", b"", 0, 0)

    def test_variables(self, app: App) -> None:
        """Each variable is a field, in order, whatever text it holds."""
        text = "request.allow({'USER_ID': '7', 'EMPTY': '', 'NAME': 'é: ;\\t\"'})"
        assert ask(app, text).stdout == (
            "Status: 200 OK\r\nVariable-USER_ID: 7\r\nVariable-EMPTY: \r\n"
            'Variable-NAME: é: ;\t"\r\n\r\n'.encode()
        )

    def test_undecodable_value(self, app: App) -> None:
        """What came in as bytes that are no text goes out as it was."""
        text = "request.allow({'COOKIE': request.params['HTTP_COOKIE']})"
        answer = ask(app, text, (b"HTTP_COOKIE", b"a\xff\xc3\xa4"))
        assert b"\r\nVariable-COOKIE: a\xff\xc3\xa4\r\n" in answer.stdout

    def test_one_write(self, app: App) -> None:
        """Answer and end-request leave together."""
        with app.connect() as wire:
            wire.send(begin_request(role=Role.AUTHORIZER))
            wire.send(params(pairs=code("request.allow({'A': '1'})")))
            records, rest = parse_records(wire.sock.recv(65536))
        assert rest == b""
        assert [r.type for r in records][-1] == RecordType.END_REQUEST

    def test_responder(self, app: App) -> None:
        """A responder permits, too, for nginx; 200 is what goes without saying."""
        answer = ask(app, "request.allow({'A': '1'})", role=Role.RESPONDER)
        assert answer.stdout == b"Variable-A: 1\r\n\r\n"
        answer = ask(app, "request.allow()", role=Role.RESPONDER)
        assert answer.stdout == b"Status: 200 OK\r\n\r\n"

    def test_filter(self, app: App) -> None:
        """A filter is not asked for a permission."""
        text = """
try: request.allow()
except CallSequenceError as error: request.deny(403, text=str(error))
"""
        answer = ask(app, text, role=Role.FILTER)
        assert answer.body == b"allow: a filter has nothing to allow"

    @pytest.mark.parametrize(
        ("variables", "reason"),
        [
            ("{'': 'x'}", "allow: '' is no name of a variable"),
            ("{'A B': 'x'}", "allow: 'A B' is no name of a variable"),
            ("{'A-B': 'x'}", "allow: 'A-B' is no name of a variable"),
            ("{'1A': 'x'}", "allow: '1A' is no name of a variable"),
            ("{'Ä': 'x'}", "allow: 'Ä' is no name of a variable"),
            ("{'A\\n': 'x'}", "allow: 'A\\n' is no name of a variable"),
            ("{'A': 'b\\r\\nX: y'}", r"variable A: control character in 'b\r\nX: y'"),
            ("{'A': 'b\\n'}", r"variable A: control character in 'b\n'"),
            ("{'A': '\\0'}", r"variable A: control character in '\x00'"),
            ("{'OK': '1', 'A': '\\x7f'}", r"variable A: control character in '\x7f'"),
        ],
    )
    def test_bad_variables(self, app: App, variables: str, reason: str) -> None:
        """What could make another header is refused, and nothing has been answered."""
        text = f"""
try: request.allow({variables})
except ValueError as error: request.deny(403, text=str(error))
"""
        answer = ask(app, text)
        assert answer.head.startswith(b"Status: 403 Forbidden\r\n")
        assert answer.body.decode() == reason.replace("'A\\n'", r"'A\n'")


class TestDeny:
    def test_defaults(self, app: App) -> None:
        """401 and nothing else."""
        assert ask(app, "request.deny()").stdout == b"Status: 401 Unauthorized\r\n\r\n"

    def test_headers_and_text(self, app: App) -> None:
        """A page is plain text, unless a header says otherwise."""
        answer = ask(app, "request.deny(403, {'X-Why': 'x'}, 'nö')")
        assert answer.stdout == (
            b"Status: 403 Forbidden\r\nX-Why: x\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + "nö".encode()
        )
        answer = ask(app, "request.deny(403, {'content-type': 'text/html'}, '<p>')")
        assert answer.head == b"Status: 403 Forbidden\r\ncontent-type: text/html"

    def test_repeated_headers(self, app: App) -> None:
        """Pairs may repeat a name."""
        text = "request.deny(302, [('Set-Cookie','a'),('Set-Cookie','b'),('Location','/l')])"
        lines = ask(app, text).head.split(b"\r\n")
        assert lines[0] == b"Status: 302 Found"
        assert lines[1:] == [b"Set-Cookie: a", b"Set-Cookie: b", b"Location: /l"]

    def test_responder_and_filter(self, app: App) -> None:
        """Any role can refuse; only an authorizer's status has to stand first."""
        for role in (Role.RESPONDER, Role.FILTER):
            answer = ask(app, "request.deny(404, {'A': 'b'}, 'x')", role=role)
            assert b"Status: 404 Not Found" in answer.head.split(b"\r\n")
            assert (b"A: b" in answer.head, answer.body) == (True, b"x")

    def test_head_has_no_page(self, app: App) -> None:
        """HEAD gets the header fields alone."""
        method = (b"REQUEST_METHOD", b"HEAD")
        answer = ask(app, "request.deny(403, text='page')", method)
        assert (b"403" in answer.head, answer.body) == (True, b"")

    def test_unknown_status(self, app: App) -> None:
        """A number that has no name is sent without one."""
        assert ask(app, "request.deny(499)").stdout == b"Status: 499\r\n\r\n"

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            ("deny(200)", "deny: status 200 is no refusal: not 300 to 599"),
            ("deny(299)", "deny: status 299 is no refusal: not 300 to 599"),
            ("deny(600)", "deny: status 600 is no refusal: not 300 to 599"),
            ("deny(401, {'Status': '200'})", "deny: 'Status' is no name of a header"),
            ("deny(401, {'X Y': '1'})", "deny: 'X Y' is no name of a header"),
            ("deny(401, {'': '1'})", "deny: '' is no name of a header"),
            ("deny(401, {'X': '1\\n\\nbody'})", "header X: control character in"),
            ("challenge('Ba sic', 'r')", "challenge: 'Ba sic' is no scheme"),
            ("challenge('', 'r')", "challenge: '' is no scheme"),
            (
                "challenge('Basic', 'r\\n')",
                "header WWW-Authenticate: control character",
            ),
        ],
    )
    def test_bad_arguments(self, app: App, call: str, reason: str) -> None:
        """They are told, and nothing has been answered."""
        text = f"""
try: request.{call}
except ValueError as error: request.deny(403, text=str(error))
"""
        assert ask(app, text).body.decode().startswith(reason)


class TestChallenge:
    def test_basic(self, app: App) -> None:
        """libfcgi's example, byte for byte."""
        assert ask(app, "request.challenge('Basic', 'Test')").stdout == (
            b'Status: 401 Unauthorized\r\nWWW-Authenticate: Basic realm="Test"\r\n\r\n'
        )

    def test_parameters_are_quoted(self, app: App) -> None:
        """Quotes and backslashes of a realm cannot end it."""
        text = "request.challenge('Basic', 'a \"b\" \\\\ c', charset='UTF-8')"
        line = rb'WWW-Authenticate: Basic realm="a \"b\" \\ c", charset="UTF-8"'
        assert line in ask(app, text).head.split(b"\r\n")


class TestOneAnswer:
    @pytest.mark.parametrize("first", ["allow()", "deny()", "challenge('Basic', 'r')"])
    @pytest.mark.parametrize("second", ["allow", "deny", "challenge"])
    def test_second_answer(self, app: App, first: str, second: str) -> None:
        """The first answer stands; the second is a sequence error."""
        words = "('Basic', 'r')" if second == "challenge" else "()"
        text = f"""
request.{first}
try: request.{second}{words}
except CallSequenceError as error: print(error, file=sys.stderr)
"""
        answer = ask(app, text)
        status = b"200 OK" if first == "allow()" else b"401 Unauthorized"
        assert answer.head.startswith(b"Status: " + status)
        name = "deny" if second == "challenge" else second
        assert answer.stderr.decode().startswith(f"{name}: the answer to <Request 1 ")

    @pytest.mark.parametrize(
        "before",
        [
            "print('X: y')",
            "print('X: y'); sys.stdout.flush()",
            "print('X: y\\n\\n'); sys.stdout.flush()",
            "request.passthrough = True; print('X'); sys.stdout.flush()",
            "sys.stdout.close()",
        ],
    )
    def test_after_other_output(self, app: App, before: str) -> None:
        """What has been begun otherwise cannot become a permission."""
        text = f"""
{before}
try: request.allow()
except CallSequenceError as error: print("told", file=sys.stderr)
"""
        answer = ask(app, text)
        assert answer.stderr.startswith(b"told\n")  # perhaps no head is whole
        assert b"Status: 200" not in answer.stdout
        assert b"Variable" not in answer.stdout

    @pytest.mark.parametrize("late", ["print('x')", "request.stdout.write(b'x')"])
    def test_later_output(self, app: App, late: str) -> None:
        """It raises, so that nothing can be added to a permission."""
        text = f"""
request.allow()
try: {late}
except ValueError as error: print(error, file=sys.stderr)
"""
        answer = ask(app, text)
        assert answer.stdout == b"Status: 200 OK\r\n\r\n"
        assert b"closed file" in answer.stderr

    def test_after_the_end(self, app: App) -> None:
        """A request that has ended is answered."""
        text = """
request.allow(); request.finish()
try: request.deny()
except CallSequenceError: sys.__stderr__.write("told late\\n"); sys.__stderr__.flush()
"""
        assert ask(app, text).stdout == b"Status: 200 OK\r\n\r\n"
        ask(app, "request.deny()")
        assert app.logged("told late")

    @pytest.mark.parametrize("mode", ["run", "threads"])
    def test_exception_behind_a_permission(self, tmp_path: Path, mode: str) -> None:
        """Nobody is let in by a handler that fails, be it in its last line."""
        with App(tmp_path, PROGRAM, env={"MODE": mode}) as app:
            answer = ask(app, "request.allow({'A': '1'}); 1 / 0")
            assert answer.head.startswith(b"Status: 500 ")
            assert b"Variable" not in answer.stdout
            assert (b"ZeroDivisionError" in answer.stderr, answer.app_status) == (
                True,
                1,
            )
            assert ask(app, "request.allow()").stdout == b"Status: 200 OK\r\n\r\n"

    def test_descriptors(self, tmp_path: Path) -> None:
        """Where descriptor 1 is the request's, the answer is the same."""
        env = {"MODE": "run", "FCGI_APP_DESCRIPTORS": "1"}
        with App(tmp_path, PROGRAM, env=env) as app:
            text = "request.allow({'A': '1'})"
            assert ask(app, text).stdout == b"Status: 200 OK\r\nVariable-A: 1\r\n\r\n"


def looked_at(**pairs: bytes) -> Request:
    encoded = {name.encode(): value for name, value in pairs.items()}
    return Request(CgiChannel(), Settings(), Role.AUTHORIZER, 1, encoded)


def basic(text: bytes, scheme: bytes = b"Basic ") -> bytes:
    return scheme + base64.b64encode(text)


class TestCredentials:
    @pytest.mark.parametrize(
        ("pairs", "expected"),
        [
            ({}, None),
            ({"REMOTE_USER": b"ann"}, None),
            ({"REMOTE_PASSWD": b"x"}, None),
            ({"REMOTE_USER": b"ann", "REMOTE_PASSWD": b"a:b"}, ("ann", "a:b")),
            ({"REMOTE_USER": b"ann", "REMOTE_PASSWD": b""}, ("ann", "")),
            ({"HTTP_AUTHORIZATION": basic(b"ann:pw")}, ("ann", "pw")),
            ({"HTTP_AUTHORIZATION": basic(b"ann:p:w", b"bASIC   ")}, ("ann", "p:w")),
            ({"HTTP_AUTHORIZATION": basic(b":")}, ("", "")),
            ({"HTTP_AUTHORIZATION": basic(b"\xc3\xa4:\xff")}, ("ä", "\udcff")),
            ({"HTTP_AUTHORIZATION": basic(b"no colon")}, None),
            ({"HTTP_AUTHORIZATION": basic(b"a:b", b"Bearer ")}, None),
            ({"HTTP_AUTHORIZATION": b"Basic"}, None),
            ({"HTTP_AUTHORIZATION": b"Basic "}, None),
            ({"HTTP_AUTHORIZATION": b"Basic a"}, None),
            ({"HTTP_AUTHORIZATION": b"Basic YTpi!"}, None),
            ({"HTTP_AUTHORIZATION": b"Basic \xff\xff\xff\xff"}, None),
        ],
    )
    def test_where_they_come_from(
        self, pairs: dict[str, bytes], expected: tuple[str, str] | None
    ) -> None:
        """REMOTE_USER and REMOTE_PASSWD, or the header; None for all that is neither."""
        assert credentials(looked_at(**pairs)) == expected

    @given(st.binary(max_size=40))
    def test_any_header(self, text: bytes) -> None:
        """No header raises."""
        found = credentials(looked_at(HTTP_AUTHORIZATION=b"Basic " + text))
        assert found is None or len(found) == 2

    def test_the_password_is_not_shown(self) -> None:
        """What is printed or logged has no password in it."""
        shown = f"{Credentials('ann', 'secret')!r} {Credentials('ann', 'secret')}"
        assert "ann" in shown
        assert "secret" not in shown


# What a web server may do wrong

ROLES = [Role.RESPONDER, Role.AUTHORIZER, Role.FILTER]
by_role = pytest.mark.parametrize("role", ROLES, ids=[r.name.lower() for r in ROLES])


def records_of(
    request_id: int, role: int, pairs: list[tuple[bytes, bytes]] | None = None
) -> list[bytes]:
    """The records of a whole request, each stream in two pieces and its end."""
    pairs = pairs or [*GET, (b"COOKIE", b"c%d" % request_id)]
    records = [
        begin_request(request_id, role, keep=True),
        params(request_id, pairs, end=False),
        params(request_id, []),
    ]
    if role != Role.AUTHORIZER:
        body = b"body%d" % request_id
        records += [stdin(request_id, body, end=False), stdin(request_id)]
    if role == Role.FILTER:
        file = b"file%d" % request_id
        records += [data(request_id, file, end=False), data(request_id)]
    return records


def expected_of(request_id: int, role: int) -> bytes:
    """What PROGRAM answers to them."""
    if role == Role.AUTHORIZER:
        return b"Status: 200 OK\r\nVariable-COOKIE: c%d\r\n\r\n" % request_id
    file = b"file%d" % request_id if role == Role.FILTER else b""
    head = b"Content-Type: text/plain\r\n\r\n"
    return head + b"c%d|body%d|" % (request_id, request_id) + file


def check_next(wire: Wire) -> None:
    """A kept connection serves each role as if nothing had been."""
    for role in ROLES:
        wire.send(*records_of(1, role))
        assert wire.answer(1).stdout == expected_of(1, role)


def merges(first: list[bytes], second: list[bytes]) -> Iterator[list[bytes]]:
    """Every order of two requests' records that keeps each request's own order."""
    size = len(first) + len(second)
    for places in itertools.combinations(range(size), len(first)):
        chosen = set(places)
        one, other = iter(first), iter(second)
        yield [next(one) if n in chosen else next(other) for n in range(size)]


class TestInterleaving:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            pytest.param(a, b, id=f"{a.name.lower()}-{b.name.lower()}")
            for a, b in itertools.combinations_with_replacement(ROLES, 2)
            if (a, b) != (Role.FILTER, Role.FILTER)  # 3,432 of them: see below
        ],
    )
    def test_every_record_boundary(self, app: App, one: Role, other: Role) -> None:
        """Two requests on a connection may be cut into each other anywhere."""
        with app.connect() as wire:
            for mixed in merges(records_of(1, one), records_of(2, other)):
                wire.send(*mixed)
                records = wire.records(2)
                assert collect(records, 1).stdout == expected_of(1, one)
                assert collect(records, 2).stdout == expected_of(2, other)

    @settings(max_examples=60)
    @given(
        st.randoms(use_true_random=False),
        st.lists(st.sampled_from(ROLES), min_size=3, max_size=8),
    )
    def test_many_roles_at_once(
        self, app: App, random: object, roles: list[Role]
    ) -> None:
        """So may several, of any role."""
        waiting = {n: records_of(n, role) for n, role in enumerate(roles, start=1)}
        mixed = []
        while waiting:
            chosen = random.choice(sorted(waiting))  # type: ignore[attr-defined]
            mixed.append(waiting[chosen].pop(0))
            if not waiting[chosen]:
                del waiting[chosen]
        with app.connect() as wire:
            wire.send(*mixed)
            records = wire.records(len(roles))
            for number, role in enumerate(roles, start=1):
                assert collect(records, number).stdout == expected_of(number, role)


# How many records of ``records_of`` have been sent, and what is due then.
BEFORE_ABORT = [
    pytest.param(role, sent, id=f"{role.name.lower()}-{due}")
    for role, steps in {
        Role.RESPONDER: {"params": 1, "more-params": 2, "stdin": 3, "more-stdin": 4},
        Role.AUTHORIZER: {"params": 1, "more-params": 2},
        Role.FILTER: {"params": 1, "more-params": 2, "stdin": 3, "more-stdin": 4},
    }.items()
    for due, sent in steps.items()
]
RUNNING = [
    pytest.param(Role.RESPONDER, 5, id="responder-complete"),
    pytest.param(Role.AUTHORIZER, 3, id="authorizer-complete"),
    pytest.param(Role.FILTER, 5, id="filter-data"),
    pytest.param(Role.FILTER, 6, id="filter-more-data"),
    pytest.param(Role.FILTER, 7, id="filter-complete"),
]
ENDED = Record(RecordType.END_REQUEST, 1, bytes(8))


class TestAbort:
    @pytest.mark.parametrize(("role", "sent"), BEFORE_ABORT)
    def test_before_it_runs(self, app: App, role: Role, sent: int) -> None:
        """It ends at once and never runs; the kept connection goes on."""
        with app.connect() as wire:
            wire.send(*records_of(1, role)[:sent], abort_request(1))
            assert wire.answer() == (b"", b"", 0, 0)
            # The rest was on its way: nobody minds it.
            wire.send(*records_of(1, role)[sent:])
            check_next(wire)

    @pytest.mark.parametrize(("role", "sent"), RUNNING)
    def test_while_it_runs(self, app: App, role: Role, sent: int) -> None:
        """The program is told while it computes; its output is dropped."""
        text = """
print("started", file=sys.stderr)
assert request.wait_aborted(20) and request.aborted
print("dropped")
"""
        with app.connect() as wire:
            wire.send(*records_of(1, role, code(text))[:sent])
            first = wire.record()
            assert first == (RecordType.STDERR, 1, b"started\n")
            wire.send(abort_request(1))
            records = wire.records()
            assert records[-1] == ENDED
            assert not [r for r in records if r.type == RecordType.STDOUT and r.content]
            check_next(wire)

    @by_role
    def test_after_its_end(self, app: App, role: Role) -> None:
        """An abort that comes too late is skipped."""
        with app.connect() as wire:
            wire.send(*records_of(1, role))
            assert wire.answer().stdout == expected_of(1, role)
            wire.send(abort_request(1), abort_request(7))
            check_next(wire)


# Where in a request's records another one is put in, and what becomes of it: None if
# it is skipped, or else the log's words.
MISPLACED = [
    (Role.RESPONDER, 3, params(1, []), "PARAMS record while STDIN is due"),
    (Role.RESPONDER, 3, params(1), "PARAMS record while STDIN is due"),
    (Role.RESPONDER, 1, stdin(1, b"x"), "STDIN record while PARAMS is due"),
    (Role.RESPONDER, 1, data(1, b"x"), "DATA record while PARAMS is due"),
    (Role.RESPONDER, 3, data(1, b"x"), "DATA record while STDIN is due"),
    (Role.RESPONDER, 4, data(1), "DATA record while STDIN is due"),
    (Role.RESPONDER, 2, begin_request(1), "BEGIN_REQUEST record while PARAMS is due"),
    (Role.RESPONDER, 4, begin_request(1), "BEGIN_REQUEST record while STDIN is due"),
    (Role.RESPONDER, 5, params(1), None),
    (Role.RESPONDER, 5, stdin(1, b"x"), None),
    (Role.RESPONDER, 5, data(1, b"x"), None),
    (Role.AUTHORIZER, 1, stdin(1), "STDIN record while PARAMS is due"),
    (Role.AUTHORIZER, 2, data(1), "DATA record while PARAMS is due"),
    (Role.AUTHORIZER, 2, begin_request(1, 2), "BEGIN_REQUEST record while PARAMS is"),
    (Role.AUTHORIZER, 3, params(1), None),
    (Role.AUTHORIZER, 3, stdin(1), None),
    (Role.AUTHORIZER, 3, stdin(1, b"x"), None),
    (Role.AUTHORIZER, 3, data(1, b"x"), None),
    (Role.FILTER, 1, stdin(1), "STDIN record while PARAMS is due"),
    (Role.FILTER, 1, data(1), "DATA record while PARAMS is due"),
    (Role.FILTER, 3, data(1), "DATA record while STDIN is due"),
    (Role.FILTER, 4, data(1, b"x"), "DATA record while STDIN is due"),
    (Role.FILTER, 3, params(1), "PARAMS record while STDIN is due"),
    (Role.FILTER, 5, params(1), "PARAMS record while DATA is due"),
    (Role.FILTER, 5, stdin(1), "STDIN record while DATA is due"),
    (Role.FILTER, 6, stdin(1, b"x"), "STDIN record while DATA is due"),
    (Role.FILTER, 6, begin_request(1, 3), "BEGIN_REQUEST record while DATA is due"),
    (Role.FILTER, 7, params(1), None),
    (Role.FILTER, 7, stdin(1, b"x"), None),
    (Role.FILTER, 7, data(1, b"x"), None),
]
NOBODYS = [
    stdin(9, b"x"),
    stdin(9),
    data(9, b"x"),
    data(9),
    params(9),
    abort_request(9),
]


class TestMisplaced:
    @pytest.mark.parametrize(("role", "place", "record", "reason"), MISPLACED)
    def test_record(
        self, app: App, role: Role, place: int, record: bytes, reason: str | None
    ) -> None:
        """A record out of its order costs the connection; a late one costs nothing."""
        before = len(app.log)
        records = records_of(1, role)
        with app.connect() as wire:
            wire.send(*records[:place], record)
            if reason is None:
                assert wire.answer().stdout == expected_of(1, role)
                check_next(wire)
                return
            while (got := wire.record()) is not None:
                # A filter runs from the end of its STDIN on, and sees it break.
                assert (role, place >= 5) == (Role.FILTER, True), got
        with app.connect() as wire:
            check_next(wire)
        assert app.logged(reason, before)

    @by_role
    @pytest.mark.parametrize("record", NOBODYS)
    def test_unknown_id(self, app: App, role: Role, record: bytes) -> None:
        """Records of an id that nobody has opened are skipped, at every place."""
        records = records_of(1, role)
        with app.connect() as wire:
            for place in range(len(records) + 1):
                wire.send(*records[:place], record, *records[place:])
                assert wire.answer().stdout == expected_of(1, role)

    @by_role
    def test_unknown_role(self, app: App, role: Role) -> None:
        """A role that is none is refused alone, between the records of another."""
        with app.connect() as wire:
            records = records_of(1, role)
            for place in range(len(records)):
                odd = begin_request(5, 9, keep=True) + params(5) + stdin(5)
                wire.send(*records[:place], odd)
                refused = wire.records()
                assert (
                    collect(refused, 5).protocol_status == ProtocolStatus.UNKNOWN_ROLE
                )
                wire.send(*records[place:])
                assert wire.answer(1).stdout == expected_of(1, role)


class TestNeverFinished:
    @pytest.mark.slow
    def test_65535_ids(self, app: App) -> None:
        """Ids that are opened and left: as many as the limit stay, the rest get 503."""
        ids = range(1, 65536)
        begun = b"".join(begin_request(n, ROLES[n % 3], keep=True) for n in ids)
        received = bytearray()

        def read(sock: socket.socket) -> None:
            while more := sock.recv(1 << 16):
                received.extend(more)

        with app.connect() as wire:
            reader = Thread(target=read, args=(wire.sock,))
            reader.start()
            try:
                wire.send(begun)
                with app.connect() as other:
                    check_next(other)
                wire.sock.shutdown(socket.SHUT_WR)
            finally:
                reader.join(20)
            assert not reader.is_alive()
        kept = Settings().limits.max_requests
        found = list(contents(received))
        ends = [content for kind, content in found if kind == RecordType.END_REQUEST]
        assert len(ends) == len(ids) - kept
        assert {content[4] for content in ends} == {ProtocolStatus.OVERLOADED}
        pages = {content for kind, content in found if kind == RecordType.STDOUT}
        assert all(page.startswith(b"Status: 503 ") for page in pages if page)


def contents(received: bytearray) -> Iterator[tuple[int, bytes]]:
    """Type and content of each record, of many."""
    position = 0
    while position < len(received):
        header = parse_header(received, position)
        start = position + HEADER_LEN
        stop = start + header.content_length
        yield header.record_type, bytes(received[start:stop])
        position = stop + header.padding_length
    assert position == len(received)


def test_nothing_of_a_request_on_the_wire_is_an_answer(app: App) -> None:
    """A Variable- header of the client is a param like any other."""
    pairs = [*GET, (b"COOKIE", b"c"), (b"HTTP_VARIABLE_ROOT", b"1")]
    with app.connect() as wire:
        forged = build_record(RecordType.STDOUT, 1, b"Variable-ROOT: 1\r\n")
        wire.send(begin_request(role=Role.AUTHORIZER), forged, params(pairs=pairs))
        assert wire.answer().stdout == expected_of(1, 2).replace(b"c1", b"c")
