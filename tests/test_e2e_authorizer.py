"""Authorizers behind every web server that asks one: mod_authnz_fcgi, mod_fcgid,
lighttpd, and nginx, whose auth_request asks a responder.

What the web servers make of a refusal differs; each row of ``GUARDS`` says how, and
fcgi_app-roles(7) tells it to users.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .servers import APPS, EXAMPLES, Answer, ask
from .servers.authorizers import SECRET, AuthorizerSite

pytestmark = pytest.mark.e2e

PASSWORD = "pässword"


@dataclass(frozen=True)
class Guard:
    """One place that a web server guards by asking an authorizer.

    Attributes:
        phases: what FCGI_APACHE_ROLE is in its questions, in order; ONCE: absent.
        program: whether a program is behind it, rather than a file.
        named: whether only variables named in the server's file reach the program.
        status: what deny(403) becomes; None: itself.
        redirect: what deny(302) becomes; None: itself.
        failure: the client's status if the authorizer fails.
        headers, page: whether those of deny() reach the client.
        shows_variables: whether the client sees them (mod_fcgid).
        logs: whether what follows the head on STDERR is logged. nginx closes the
            connection when it has the head.
    """

    name: str
    setup: str
    path: str
    phases: tuple[str, ...]
    program: bool = True
    named: bool = False
    status: int | None = None
    redirect: int | None = None
    failure: int = 500
    headers: bool = True
    page: bool = True
    shows_variables: bool = False
    logs: bool = True

    @property
    def asks_for_password(self) -> bool:
        return self.phases != ("ACCESS_CHECKER",)


def authnz(name: str, path: str, *phases: str, **more: Any) -> Guard:
    """mod_authnz_fcgi as a provider: a refusal is Apache's own 401 page."""
    kinds: dict[str, Any] = {"status": 401, "redirect": 401, "page": False, **more}
    return Guard(f"authnz-{name}", "authnz-fcgi", path, phases, **kinds)


def custom(name: str, path: str, **more: Any) -> Guard:
    """mod_authnz_fcgi with a scheme of the program's own: it sends what that says."""
    return Guard(f"authnz-{name}", "authnz-fcgi", path, ("AUTHENTICATOR",), **more)


def fcgid(name: str, path: str, *phases: str) -> Guard:
    """mod_fcgid: each refusal and each failure is Apache's 401 page."""
    kinds: dict[str, Any] = {"status": 401, "redirect": 401, "failure": 401}
    kinds |= {"page": False, "shows_variables": True}
    return Guard(f"fcgid-{name}", "fcgid-auth", path, phases, **kinds)


def lighttpd(name: str, path: str, **more: Any) -> Guard:
    return Guard(f"lighttpd-{name}", "lighttpd-authorizer", path, ("ONCE",), **more)


def nginx(name: str, path: str, **more: Any) -> Guard:
    """nginx: 401 and 403 with a page of its own, and 500 for all else."""
    kinds: dict[str, Any] = {"redirect": 500, "headers": False, "page": False}
    kinds |= {"logs": False, **more}
    return Guard(f"nginx-{name}", "nginx-auth-request", path, ("ONCE",), **kinds)


GUARDS = (
    authnz("separate", "/separate/x", "AUTHENTICATOR", "AUTHORIZER"),
    authnz("both", "/both/x", "ONCE"),
    authnz("password", "/password/a.txt", "AUTHENTICATOR", program=False),
    custom("custom", "/custom/x"),
    custom("custom-file", "/custom/files/a.txt", program=False),
    fcgid("password", "/password/x", "AUTHENTICATOR"),
    fcgid("user", "/user/x", "AUTHENTICATOR", "AUTHORIZER"),
    fcgid("access", "/access/x", "ACCESS_CHECKER"),
    lighttpd("file", "/private/a.txt", program=False),
    lighttpd("spawned", "/spawned/a.txt", program=False),
    lighttpd("program", "/app/x.py"),
    nginx("program", "/app/x", named=True),
    nginx("file", "/files/a.txt", program=False),
)


def guards(condition: Callable[[Guard], bool] = lambda _: True) -> list[Any]:
    """The guards that satisfy the condition, as parameters with readable ids."""
    return [pytest.param(g, id=g.name) for g in GUARDS if condition(g)]


with_program = pytest.mark.parametrize(
    "guard", guards(lambda g: g.program), indirect=True
)
with_password = pytest.mark.parametrize(
    "guard", guards(lambda g: g.asks_for_password), indirect=True
)


class Sites:
    """The sites of one setup at a time; asking for another stops what runs."""

    def __init__(self) -> None:
        self._setup = ""
        self._sites: dict[tuple[Any, ...], AuthorizerSite] = {}

    def get(
        self, setup: str, script: Path, responder: Path, **environment: str
    ) -> AuthorizerSite:
        if setup != self._setup:
            self.close()
            self._setup = setup
        key = (script, responder, *environment.items())
        if key not in self._sites:
            site = AuthorizerSite(setup, script, environment, responder)
            site.__enter__()
            self._sites[key] = site
        return self._sites[key]

    def close(self) -> None:
        """Stop everything; what does not stop properly is raised in the end."""
        sites, self._sites = self._sites, {}
        with ThreadPoolExecutor(len(sites) or 1) as pool:
            stops = [pool.submit(site.__exit__) for site in sites.values()]
        for stop in stops:
            stop.result()


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    running = Sites()
    yield running
    running.close()


@pytest.fixture(scope="module", params=guards())
def guard(request: pytest.FixtureRequest) -> Guard:
    found = request.param
    assert isinstance(found, Guard)
    return found


@pytest.fixture(scope="module", params=["0", "4"], ids=["one-at-a-time", "threads"])
def gate(request: pytest.FixtureRequest, sites: Sites, guard: Guard) -> AuthorizerSite:
    """gatekeeper.py decides, echo.py answers."""
    return sites.get(
        guard.setup,
        APPS / "gatekeeper.py",
        EXAMPLES / "echo.py",
        THREADS=request.param,
    )


def basic(user: str, password: str) -> dict[str, str]:
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


def visit(
    site: AuthorizerSite,
    guard: Guard,
    query: str = "",
    *,
    user: str | None = "ann",
    password: str = PASSWORD,
    **more: Any,
) -> Answer:
    headers = {} if user is None else basic(user, password)
    target = f"{guard.path}?{query}" if query else guard.path
    return ask(site.server.port, target, headers=headers, **more)


def environment(answer: Answer) -> dict[str, str]:
    """What echo.py shows of its request's environment."""
    found = re.search(
        r"Request environment:<br>\n<pre>\n(.*?)</pre>", answer.text, re.S
    )
    assert found, answer
    lines = html.unescape(found[1]).splitlines()
    return dict(line.split("=", 1) for line in lines)


def is_behind(guard: Guard, answer: Answer) -> bool:
    """Whether the answer comes from behind the authorizer."""
    return ("FastCGI echo" if guard.program else SECRET) in answer.text


def variables(answer: Answer) -> list[str]:
    return [name for name, _ in answer.headers if name.lower().startswith("variable-")]


# Permissions


def test_right_password(gate: AuthorizerSite, guard: Guard) -> None:
    """It lets the client in; the variables do not reach it, but from mod_fcgid."""
    for _ in range(3):
        answer = visit(gate, guard)
        assert (answer.status, is_behind(guard, answer)) == (200, True)
        assert bool(variables(answer)) == guard.shows_variables


@with_program
def test_variables_reach_the_program(gate: AuthorizerSite, guard: Guard) -> None:
    """Variable-NAME is NAME for what runs behind; REMOTE_USER is who was let in."""
    shown = environment(visit(gate, guard))
    if guard.asks_for_password:
        assert shown["REMOTE_USER"] == "ann"
    if not guard.named:
        assert shown["WHO"] == ("ann" if guard.asks_for_password else "")
        assert {f"SAW_{phase}" for phase in guard.phases} <= shown.keys()
    assert "REMOTE_PASSWD" not in shown


@with_program
def test_what_an_authorizer_is_told(gate: AuthorizerSite, guard: Guard) -> None:
    """Role, phase, user and password of each question, and no body."""
    shown = environment(visit(gate, guard, method="POST", body=b"the body"))
    for phase in guard.phases:
        name = "PROCESS_ID" if guard.named else f"SAW_{phase}"
        told = json.loads(shown[name])
        assert told["body"] == 0
        assert told["REQUEST_METHOD"] == "POST"
        role = "RESPONDER" if guard.setup.startswith("nginx") else "AUTHORIZER"
        assert told["FCGI_ROLE"] == role
        assert told.get("FCGI_APACHE_ROLE", "ONCE") == phase
        # The password as Apache's module passes it, or the header itself.
        given = (told.get("REMOTE_PASSWD"), "HTTP_AUTHORIZATION" in told)
        if phase in ("AUTHORIZER", "ACCESS_CHECKER"):
            assert given == (None, False)
        elif guard.name.startswith(("lighttpd", "nginx", "authnz-custom")):
            assert given == (None, True)
        else:
            assert given == (PASSWORD, False)
            assert told["REMOTE_USER"] == "ann"


@with_program
def test_the_body_is_for_the_program(gate: AuthorizerSite, guard: Guard) -> None:
    """The authorizer takes nothing of a request's body."""
    body = b"0123456789" * 10_000
    answer = visit(gate, guard, method="POST", body=body)
    assert body.decode() in answer.text


@with_program
def test_variable_of_3000_bytes(gate: AuthorizerSite, guard: Guard) -> None:
    """Variables may be as long as a line that every web server takes."""
    answer = visit(gate, guard, f"do=long&size=3000&phase={guard.phases[0]}")
    assert answer.status == 200
    if not guard.named:
        assert environment(answer)["LONG"] == "x" * 3000


def test_head(gate: AuthorizerSite, guard: Guard) -> None:
    """HEAD asks the authorizer like any other method."""
    assert visit(gate, guard, method="HEAD").status == 200
    if guard.asks_for_password:
        refused = visit(gate, guard, method="HEAD", password="wrong")
        assert (refused.status, refused.body) == (401, b"")


# Refusals


@with_password
@pytest.mark.parametrize(
    ("user", "password"),
    [("ann", "wrong"), ("bob", PASSWORD), ("ann", ""), (None, "")],
    ids=["password", "user", "empty", "nobody"],
)
def test_wrong_password(
    gate: AuthorizerSite, guard: Guard, user: str | None, password: str
) -> None:
    """A challenge: 401, and just one WWW-Authenticate for the browser."""
    answer = visit(gate, guard, user=user, password=password)
    assert (answer.status, is_behind(guard, answer)) == (401, False)
    (asked,) = answer.all("WWW-Authenticate")
    assert re.fullmatch(r'Basic realm="\w+"', asked)


def test_refusal(gate: AuthorizerSite, guard: Guard) -> None:
    """Status, headers and page of deny() become what the table says."""
    answer = visit(gate, guard, "do=deny&status=403&text=the+refusal")
    assert answer.status == (guard.status or 403)
    assert answer.header("X-Refused") == ("yes" if guard.headers else None)
    assert answer.header("Set-Cookie") == ("refused=1" if guard.headers else None)
    assert (answer.text == "the refusal") == guard.page
    assert not is_behind(guard, answer)


def test_redirect(gate: AuthorizerSite, guard: Guard) -> None:
    """So does a redirect to a page for logging in."""
    answer = visit(gate, guard, "do=deny&status=302&location=http://localhost/login")
    assert answer.status == (guard.redirect or 302)
    sent = None if guard.redirect else "http://localhost/login"
    assert answer.header("Location") == sent
    assert not is_behind(guard, answer)


@pytest.mark.parametrize(
    "guard", guards(lambda g: "AUTHORIZER" in g.phases), indirect=True
)
@pytest.mark.parametrize("phase", ["AUTHENTICATOR", "AUTHORIZER"])
def test_one_phase_refuses(gate: AuthorizerSite, guard: Guard, phase: str) -> None:
    """Where two questions are asked, one refusal is enough."""
    answer = visit(gate, guard, f"do=deny&status=403&phase={phase}")
    assert (answer.status, is_behind(guard, answer)) == (401, False)
    assert visit(gate, guard, "do=deny&status=403&phase=NONE").status == 200


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("raise", "RuntimeError: the authorizer failed"),
        ("raise-late", "RuntimeError: the authorizer failed late"),
        ("injection", "ValueError: variable A: control character in"),
    ],
)
def test_failure_lets_nobody_in(
    gate: AuthorizerSite, guard: Guard, what: str, told: str
) -> None:
    """An exception is a refusal, also behind allow(); its traceback is in the log."""
    answer = visit(gate, guard, f"do={what}")
    assert (answer.status, is_behind(guard, answer)) == (guard.failure, False)
    if guard.logs:
        gate.wait_for_log(told)
    assert visit(gate, guard).status == 200


@with_password
def test_many_at_once(gate: AuthorizerSite, guard: Guard) -> None:
    """Of many clients at once each gets its own answer."""

    def one(number: int) -> tuple[int, bool]:
        right = number % 3 > 0
        answer = visit(gate, guard, password=PASSWORD if right else str(number))
        return answer.status, is_behind(guard, answer)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(48)))
    assert answers == [(200, True) if n % 3 else (401, False) for n in range(48)]


# The examples


@pytest.fixture(scope="module")
def authorizer(sites: Sites, guard: Guard) -> AuthorizerSite:
    """authorizer.py decides, echo.py answers."""
    script = EXAMPLES / "authorizer.py"
    return sites.get(guard.setup, script, EXAMPLES / "echo.py", PASSWORD="secret")


# For a scheme of its own a program must say who it is (Variable-WHO).
@pytest.mark.parametrize(
    "guard",
    guards(lambda g: g.asks_for_password and "custom" not in g.name),
    indirect=True,
)
def test_example_authorizer(authorizer: AuthorizerSite, guard: Guard) -> None:
    """authorizer.py lets doe in, hands PROCESS_ID on, and takes the password away."""
    answer = visit(authorizer, guard, "42", user="doe", password="secret")
    assert (answer.status, is_behind(guard, answer)) == (200, True)
    if guard.program:
        shown = environment(answer)
        assert (shown["PROCESS_ID"], shown["REMOTE_USER"]) == ("42", "doe")
        assert shown.get("REMOTE_PASSWD", "") == ""
    for user, password in (("doe", "xxxx"), ("ann", "secret"), (None, "")):
        refused = visit(authorizer, guard, user=user, password=password)
        assert (refused.status, is_behind(guard, refused)) == (401, False)
        assert len(refused.all("WWW-Authenticate")) == 1


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "the.log"
    path.write_bytes(b"first %s%n <b>\nsecond \xff\n")
    return path


@pytest.fixture(scope="module")
def log_dump(sites: Sites, guard: Guard, log_file: Path) -> AuthorizerSite:
    """log_dump.py decides and answers."""
    script = EXAMPLES / "log_dump.py"
    return sites.get(guard.setup, script, script, LOG_FILE=str(log_file))


@pytest.mark.parametrize(
    "guard",
    guards(lambda g: g.name in ("authnz-both", "fcgid-access", "lighttpd-program")),
    indirect=True,
)
def test_example_log_dump(log_dump: AuthorizerSite, guard: Guard) -> None:
    """log_dump.py in both roles: who has the word sees the file, others do not."""
    shown = visit(log_dump, guard, "showme_the_log")
    assert shown.status == 200
    assert "<p>first %s%n &lt;b&gt;\n<p>second \\xff\n" in shown.text
    refused = visit(log_dump, guard, "show")
    assert refused.status == (guard.status or 403)
    assert ("You have not specified a valid password" in refused.text) == guard.page
    assert "first" not in refused.text
