"""fcgi_app.testing: scripts and handlers under test, with and without pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import fcgi_app
from fcgi_app.client import AnswerError, Body
from fcgi_app.codec.constants import Role
from fcgi_app.errors import AppLoadError, ConfigError, WorkerError
from fcgi_app.testing import Application, Start, run_handler, run_script

from .webserver import PACKAGE_PARENT

pytest_plugins = ["fcgi_app.testing.plugin"]
MANPAGES = Path(__file__).parent.parent / "manpages"

SCRIPT = """
import os, sys
from fcgi_app import requests, set_exit_status
print("up", *sys.argv[1:], os.getcwd(), os.environ.get("SETTING"), file=sys.stderr)
for request in requests():
    what = os.environ["PATH_INFO"]
    if what == "/die":
        print("the last words", file=sys.__stderr__, flush=True)
        os._exit(4)
    if what == "/complain":
        print("a complaint", file=sys.stderr)
    print("Content-Type: text/plain; charset=utf-8\\nX-Pid:", os.getpid(), "\\n")
    if what == "/param":
        print(os.environ[os.environ["QUERY_STRING"]], end="")
    else:
        print(sys.stdin.read(), end="")
    set_exit_status(7 if what == "/seven" else 0)
"""


def hello(request: fcgi_app.Request) -> None:
    """A handler that prints."""
    body = sys.stdin.read()
    print("Content-Type: text/plain\n")
    print(request.params["REQUEST_METHOD"], request.params["PATH_INFO"], body, end="")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def early(fastcgi: Start) -> Application:
    """An application that has been started before the test, in pytest's setup phase."""
    return fastcgi(hello)


@pytest.fixture
def other(fastcgi: Start) -> Application:
    """One more."""
    return fastcgi(hello)


# ---- scripts


def test_script_answers(script: Path) -> None:
    """A script without an execute bit is run by this Python and asked."""
    with run_script(script) as app:
        answer = app.post("/", b"sent")
        assert (answer.status, answer.text, answer.app_status) == (200, "sent", 0)
        assert int(answer.header("x-pid") or 0) == app.pid
        assert app.get("/seven").app_status == 7


def test_script_gets_arguments_environment_and_directory(
    script: Path, tmp_path: Path
) -> None:
    """What the caller says reaches the process; what it prints is in the log."""
    with run_script(script, "one", env={"SETTING": "two"}, cwd=tmp_path) as app:
        app.get()
        assert app.log == f"up one {tmp_path} two\n"


def test_script_stderr_of_a_request(script: Path) -> None:
    """FCGI_STDERR is the answer's, not the log's."""
    with run_script(script) as app:
        assert app.get("/complain").stderr == b"a complaint\n"
        assert "complaint" not in app.log


@pytest.mark.slow
def test_script_that_dies_says_its_last_words(script: Path) -> None:
    """The error has exit status and output of the process, and so has the next."""
    with run_script(script) as app:
        with pytest.raises(WorkerError, match=r"exit status 4; .*\n.*\nthe last words"):
            app.get("/die")
        with pytest.raises(WorkerError, match="the last words"):
            app.get("/")


@pytest.mark.slow
def test_script_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A syntax error is in the message, and nothing waits for a time limit."""
    (tmp_path / "bad.py").write_text("while accept()\n")
    with (
        run_script(tmp_path / "bad.py") as app,
        pytest.raises(WorkerError, match="SyntaxError"),
    ):
        app.get()


def test_script_that_is_missing(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(AppLoadError, match=r"no\.py"), run_script(tmp_path / "no.py"):
        pass


def test_script_that_does_not_answer(tmp_path: Path) -> None:
    """A request fails after the time limit, and the process is stopped."""
    (tmp_path / "silent.py").write_text("import time; time.sleep(600)")
    with run_script(tmp_path / "silent.py", timeout=0.2) as app:
        with pytest.raises(TimeoutError, match=r"0\.2 seconds"):
            app.get()
        assert app.stop() == -15
    assert not os.path.exists(app.log_path)


def test_cut_off_answer_of_a_living_script(tmp_path: Path) -> None:
    """As long as the process lives, the client's own error is the right one."""
    source = """
    import socket
    listener = socket.socket(fileno=0)
    while True:
        listener.accept()[0].close()
    """
    (tmp_path / "rude.py").write_text(textwrap.dedent(source))
    with (
        run_script(tmp_path / "rude.py") as app,
        pytest.raises((AnswerError, ConnectionError)),
    ):
        app.get()


# ---- requests


def test_request_with_all_that_can_be_said(script: Path) -> None:
    """Headers, params, mount and a whole URL become params."""
    with run_script(script) as app:

        def param(name: str, **options: object) -> str:
            base = options.pop("base", "")
            return app.get(f"{base}/param?{name}", **options).text

        assert param("HTTP_X_Y", headers={"X-Y": "1"}) == "1"
        assert param("HTTP_X_Y", headers=[("X-Y", "1"), ("x-y", "2")]) == "1, 2"
        assert param("REMOTE_USER", params={"REMOTE_USER": "me"}) == "me"
        assert param("SERVER_NAME", base="https://a.example:444") == "a.example"
        assert param("SCRIPT_NAME", base="/m", mount="/m") == "/m"
        assert param("FCGI_ROLE") == "RESPONDER"
        with pytest.raises(ConfigError, match="is not below /m"):
            app.get("/elsewhere", mount="/m")


def test_form(script: Path) -> None:
    """A form is a POST with its type."""
    with run_script(script) as app:
        answer = app.request("/", form={"a": "1 2", "ä": "&"})
        assert answer.text == "a=1+2&%C3%A4=%26"
        text = app.request("/param?CONTENT_TYPE", form={"a": "1"}).text
        assert text == "application/x-www-form-urlencoded"
        assert app.request("/param?REQUEST_METHOD", form={}).text == "POST"
        own = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
        text = app.request("/param?CONTENT_TYPE", form={"a": "1"}, headers=own).text
        assert text == own["content-type"]
        with pytest.raises(ConfigError, match="leaves no room for another body"):
            app.post("/", b"body", form={"a": "1"})


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_length_of_a_body(script: Path, kind: Callable[[bytes], Body]) -> None:
    """Bytes of any kind have their CONTENT_LENGTH."""
    with run_script(script) as app:
        assert app.post("/param?CONTENT_LENGTH", kind(b"four")).text == "4"


def test_filter_role() -> None:
    """A filter's file is sent after the body."""

    def answer(request: fcgi_app.Request) -> None:
        body = request.stdin.read()
        request.start_filter_data()
        request.stdout.write(b"Content-Type: text/plain\n\n" + body + b"|")
        request.stdout.write(request.stdin.read())

    with run_handler(answer) as app:
        length = {"FCGI_DATA_LENGTH": "4", "FCGI_DATA_LAST_MOD": "0"}
        text = app.post(
            "/", b"body", role=Role.FILTER, data=b"file", params=length
        ).text
    assert text == "body|file"


def test_client_keeps_its_connection(script: Path) -> None:
    """The client underneath can be had."""
    with run_script(script) as app, app.client(keep_conn=True) as client:
        params = {"REQUEST_METHOD": "GET", "PATH_INFO": ""}
        client.request(params)
        assert client.connected
        assert client.request(params).status == 200


# ---- handlers


def test_handler_answers() -> None:
    """A handler runs in this process; its standard streams are the request's."""
    before = sys.stdout
    with run_handler(hello) as app:
        assert app.post("/path", b"body").text == "POST /path body"
    assert sys.stdout is before


def test_handler_that_raises() -> None:
    """It is a 500 and an exit status, with the traceback on stderr."""

    def broken(request: fcgi_app.Request) -> None:
        raise LookupError("of the handler")

    with run_handler(broken) as app:
        answer = app.get()
    assert (answer.status, answer.app_status) == (500, 1)
    assert b"of the handler" in answer.stderr


def test_handlers_side_by_side() -> None:
    """``threads`` requests run at the same time."""
    both = threading.Barrier(2, timeout=20)

    def meet(request: fcgi_app.Request) -> None:
        both.wait()
        request.stdout.write(b"Content-Type: text/plain\n\nmet")

    with run_handler(meet, threads=2) as app:
        texts: list[str] = []
        other = threading.Thread(target=lambda: texts.append(app.get().text))
        other.start()
        texts.append(app.get().text)
        other.join()
    assert texts == ["met", "met"]


# ---- the fixture


def test_fixture_starts_a_script(fastcgi: Start, script: Path) -> None:
    """The fixture takes a path."""
    assert fastcgi(script, "x", env={"SETTING": "y"}).get().status == 200


def test_fixture_starts_a_handler(fastcgi: Start) -> None:
    """The fixture takes a handler, and several of them."""
    one, two = fastcgi(hello), fastcgi(hello, threads=2)
    assert one.get("/1").text == "GET /1 "
    assert two.get("/2").text == "GET /2 "


def test_fixture_used_by_another(early: Application, other: Application) -> None:
    """Handlers print into the response though pytest has changed sys.stdout since."""
    assert early.get("/early").text == "GET /early "
    assert other.get("/other").text == "GET /other "


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a folder as a user does, without our own configuration."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


def blocks(page: str) -> list[str]:
    """The literal blocks of a man page, their escapes resolved."""
    found = re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$", page, re.MULTILINE)
    return [block.replace(r"\e", "\\").replace(r"\&", "") for block in found]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example of the man page, as files."""
    page = (MANPAGES / "fcgi_app.testing.3").read_text()
    for block in blocks(page.partition(".Sh EXAMPLES")[2]):
        first, _, rest = block.partition("\n")
        (tmp_path / first.removeprefix("# ")).write_text(rest)
    assert {each.name for each in tmp_path.iterdir()} == {
        "conftest.py",
        "greeting.py",
        "test_greeting.py",
    }
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-s",)], ids=["captured", "not captured"])
def test_example_of_the_man_page(example: Path, options: tuple[str, ...]) -> None:
    """It passes, with pytest's capturing and without."""
    done = run_pytest(example, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_log_of_a_failing_test(example: Path) -> None:
    """What the script has printed is shown with the failure."""
    (example / "test_greeting.py").write_text(
        "def test_it(fastcgi):\n    assert fastcgi('greeting.py').get().status == 5\n"
    )
    script = example / "greeting.py"
    script.write_text("import sys; sys.stderr.write('a hint')\n" + script.read_text())
    done = run_pytest(example)
    assert done.returncode == 1
    assert "a hint" in done.stdout


def test_fixture_is_nobodys_who_does_not_ask(tmp_path: Path) -> None:
    """Neither pytest knows of the plugin, nor the helpers of pytest."""
    code = "import sys, fcgi_app.testing; print('pytest' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
