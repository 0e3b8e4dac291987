"""``fcgi-app`` and ``fcgi-app dev``: real processes, real HTTP, real signals."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fcgi_app
from fcgi_app._version import __version__
from fcgi_app.cli.main import SUBCOMMANDS, group
from fcgi_app.errors import AppLoadError, ConfigError
from fcgi_app.launcher.dev import DevOptions, DevServer
from fcgi_app.launcher.dev.script import (
    Script,
    describe_status,
    find_script_command,
    script_environment,
)
from fcgi_app.launcher.filewatch import Watcher

from .test_client import build_c_program

pytestmark = pytest.mark.slow  # nearly all of them start an interpreter or two

WAIT = 30.0
PACKAGE_HOME = Path(fcgi_app.__file__).parent.parent
MANPAGES = Path(__file__).parent.parent / "manpages"

HELLO = """\
import os
from fcgi_app import accept

while accept():
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print("Hello from", os.getpid())
"""

SHOW = """\
import os, sys
from fcgi_app import accept

while accept():
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    for name in sorted(os.environ):
        print(name, os.environ[name], sep="=")
    print("body", len(sys.stdin.buffer.read()))
    print("argv", sys.argv[1:])
"""

# Says on a FIFO that the request is there, answers the first half, and the second one
# when the test has read the FIFO's other side.
SLOW = """\
import os, sys
from fcgi_app import accept

while accept():
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print("first")
    sys.stdout.flush()
    with open({fifo!r}) as gate:
        gate.read()
    print("second from", os.getpid())
"""

TALKATIVE = """\
import sys
from fcgi_app import accept

print("hello, terminal", flush=True)
print("hello, log", file=sys.stderr)
while accept():
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print("oh", file=sys.stderr)
"""


class Dev:
    """A running ``fcgi-app dev``; what it writes is collected line by line."""

    def __init__(self, *args: str | Path, env: dict[str, str] | None = None) -> None:
        self._changed = threading.Condition()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fcgi_app", "dev", "--port", "0", *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=command_environment(env),
            cwd="/",
            # A shell may have started the tests in the background, which ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._readers = [
            threading.Thread(target=self._collect, args=(stream,))
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _collect(self, stream: Iterator[bytes]) -> None:
        for line in stream:
            with self._changed:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._changed.notify_all()

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until that many lines match; give them."""

        def matching() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(matching()) >= count, WAIT), (
                f"no {count} lines with {pattern!r} in {self.lines}"
            )
            return matching()

    @property
    def port(self) -> int:
        (line,) = self.wait_for(r"http://")
        match = re.search(r" (http://127\.0\.0\.1:(\d+)\S*/) ", line)
        assert match is not None, line
        return int(match[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def get(self, path: str = "/") -> tuple[int, str]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def script_pid(self) -> int:
        """Ask a script that says hello for its process."""
        status, text = self.get()
        assert (status, text[:11]) == (200, "Hello from "), text
        return int(text[11:])

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; give the exit status."""
        return self.process.wait(WAIT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.wait()
                raise
        for reader in self._readers:
            reader.join(WAIT)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def command_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **(extra or {})}
    if "site-packages" not in PACKAGE_HOME.parts:
        env["PYTHONPATH"] = str(PACKAGE_HOME)
    return env


@pytest.fixture
def start() -> Iterator[Callable[..., Dev]]:
    """Start ``fcgi-app dev --port 0`` with more arguments; stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(*args: str | Path, env: dict[str, str] | None = None) -> Dev:
            dev = Dev(*args, env=env)
            stack.callback(dev.close)
            return dev

        yield start


Start = Callable[..., Dev]


def write(path: Path, text: str) -> Path:
    """Write a script at one go, as an editor does."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)
    return path


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is no child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    try:
        assert poller.poll(WAIT * 1000), f"process {pid} still runs"
    finally:
        os.close(descriptor)


# ---- serving ---------------------------------------------------------------------


def test_first_line(start: Start, tmp_path: Path) -> None:
    """The first line names the URL, and says what the server is for."""
    dev = start(write(tmp_path / "app.py", HELLO))
    assert dev.get()[0] == 200
    assert re.fullmatch(
        r"Serving app\.py at http://127\.0\.0\.1:\d+/ - for development only, "
        r"Ctrl-C stops it",
        dev.lines[0],
    )


def test_get(start: Start, tmp_path: Path) -> None:
    """A script gets the meta-variables and its arguments; each request has a line."""
    script = write(tmp_path / "app.py", SHOW)
    dev = start(script, "--port", "x y")
    status, text = dev.get("/a%20b?c=d")
    lines = text.splitlines()
    assert status == 200
    for line in [
        "REQUEST_METHOD=GET",
        "PATH_INFO=/a b",
        "QUERY_STRING=c=d",
        f"SERVER_PORT={dev.port}",
        "REMOTE_ADDR=127.0.0.1",
        f"SCRIPT_FILENAME={script}",
        f"DOCUMENT_ROOT={tmp_path}",
        f"SERVER_SOFTWARE=fcgi-app-dev/{__version__}",
        "FCGI_ROLE=RESPONDER",
        "body 0",
        "argv ['--port', 'x y']",
    ]:
        assert line in lines
    pattern = rf"^GET /a%20b\?c=d 200 {len(text)} bytes \d+\.\d ms$"
    dev.wait_for(pattern)


def test_post(start: Start, tmp_path: Path) -> None:
    """Bodies arrive, with Content-Length and chunked, on one connection."""
    dev = start(write(tmp_path / "app.py", SHOW))
    with contextlib.closing(dev.connect()) as connection:
        connection.request("POST", "/", b"x" * 300000, {"Content-Type": "a/b"})
        text = connection.getresponse().read().decode()
        assert "CONTENT_LENGTH=300000\nCONTENT_TYPE=a/b\n" in text
        assert "\nbody 300000\n" in text
        connection.request("PUT", "/", iter([b"x" * 100000] * 3))
        text = connection.getresponse().read().decode()
        assert "CONTENT_LENGTH" not in text
        assert "\nbody 300000\n" in text


def test_curl(start: Start, tmp_path: Path) -> None:
    """curl can HEAD, and POST so much that it asks with Expect: 100-continue first."""
    dev = start(write(tmp_path / "app.py", SHOW))
    url = f"http://127.0.0.1:{dev.port}/"
    curl = ["curl", "--silent", "--show-error", "--max-time", "20"]
    head = subprocess.run([*curl, "--head", url], capture_output=True, timeout=WAIT)
    assert head.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.stdout.endswith(b"\r\n\r\n")
    big = tmp_path / "big"
    big.write_bytes(bytes(3_000_000))
    post = subprocess.run(
        [*curl, "--verbose", "--data-binary", f"@{big}", url],
        capture_output=True,
        timeout=WAIT,
    )
    assert b"\nbody 3000000\n" in post.stdout
    assert b"HTTP/1.1 100 Continue" in post.stderr


def test_streaming(start: Start, tmp_path: Path) -> None:
    """What the script flushes is with the client before the script goes on."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    dev = start(write(tmp_path / "app.py", SLOW.format(fifo=str(fifo))))
    with contextlib.closing(dev.connect()) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        with open(fifo, "w"):  # blocks until the script waits for it
            pass
        assert response.readline().startswith(b"second from ")


def test_mount_and_document_root(start: Start, tmp_path: Path) -> None:
    """--mount becomes SCRIPT_NAME, --document-root DOCUMENT_ROOT."""
    script = write(tmp_path / "app.py", SHOW)
    dev = start("--mount", "/x/y/", "--document-root", "/usr", script)
    status, text = dev.get("/x/y/z")
    assert status == 200
    assert "SCRIPT_NAME=/x/y\n" in text
    assert "PATH_INFO=/z\nPATH_TRANSLATED=/usr/z\n" in text
    assert dev.get("/z")[0] == 404
    assert f":{dev.port}/x/y/ " in dev.lines[0]


def test_stderr_and_stdout_of_the_script(start: Start, tmp_path: Path) -> None:
    """What the script says outside and inside of requests is on the terminal."""
    script = write(tmp_path / "app.py", TALKATIVE)
    dev = start(script)
    assert dev.get()[0] == 200
    dev.wait_for("^hello, terminal$")
    dev.wait_for("^hello, log$")
    dev.wait_for("^oh$")


def test_other_program(start: Start, tmp_path: Path) -> None:
    """A program in another language, with the C library, is run itself."""
    program = build_c_program(tmp_path)
    dev = start(program)
    status, text = dev.get("/?env")
    assert status == 200
    assert f"SCRIPT_FILENAME={program}\n" in text
    with contextlib.closing(dev.connect()) as connection:
        connection.request("POST", "/?echo", b"x" * 100000)
        response = connection.getresponse()
        assert response.read() == b"x" * 100000
        assert response.getheader("X-Request") == "2"


def test_settings_for_real_servers(start: Start, tmp_path: Path) -> None:
    """Settings that would lock the script away from this server are not passed on."""
    env = {"FCGI_FORCE_CGI": "1", "FCGI_WEB_SERVER_ADDRS": "192.0.2.1"}
    dev = start(write(tmp_path / "app.py", HELLO), env=env)
    assert dev.get()[0] == 200


def test_long_temporary_directory(start: Start, tmp_path: Path) -> None:
    """A temporary directory too deep for a Unix socket is replaced by /tmp."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    dev = start(write(tmp_path / "app.py", HELLO), env={"TMPDIR": str(deep)})
    assert dev.get()[0] == 200


# ---- reload ----------------------------------------------------------------------


def test_reload(start: Start, tmp_path: Path) -> None:
    """A change of the script, or of a module around it, starts a new process."""
    script = write(tmp_path / "app.py", HELLO)
    dev = start(script)
    first = dev.script_pid()
    write(script, HELLO + "# changed\n")
    dev.wait_for(r"^app\.py changed: restarting app\.py$")
    second = dev.script_pid()
    assert second != first
    wait_until_gone(first)
    (tmp_path / "lib").mkdir()
    write(tmp_path / "lib" / "module.py", "")
    dev.wait_for(r"^lib/module\.py changed: restarting app\.py$")
    assert dev.script_pid() not in (first, second)


def test_reload_finishes_the_request(start: Start, tmp_path: Path) -> None:
    """The old process finishes its request while the new one takes the next."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = write(tmp_path / "app.py", SLOW.format(fifo=str(fifo)))
    dev = start(script)
    with contextlib.closing(dev.connect()) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        write(script, HELLO)
        dev.wait_for("changed")
        new = dev.script_pid()
        with open(fifo, "w"):
            pass
        assert response.readline().startswith(b"second from ")
        assert response.read() == b""
    assert dev.script_pid() == new


def test_no_reload(start: Start, tmp_path: Path) -> None:
    """With --no-reload a change goes unnoticed until the process is gone."""
    script = write(tmp_path / "app.py", HELLO)
    dev = start("--no-reload", script)
    pid = dev.script_pid()
    write(script, HELLO.replace("Hello", "Good morning"))
    assert dev.script_pid() == pid
    os.kill(pid, signal.SIGKILL)
    dev.wait_for(r"app\.py ended with signal SIGKILL")
    assert dev.get()[1].startswith("Good morning")
    assert not [line for line in dev.lines if "changed" in line]


# ---- a script that dies ----------------------------------------------------------


def test_syntax_error(start: Start, tmp_path: Path) -> None:
    """A script that cannot run is reported once per try, and tried after a change."""
    script = write(tmp_path / "app.py", "while accept(:\n")
    dev = start(script)
    dev.wait_for("SyntaxError")
    dev.wait_for(r"^app\.py ended with exit status 1; the next request or change")
    status, text = dev.get()
    assert status == 502
    assert "The script ended" in text
    dev.wait_for("ended with exit status 1", 2)
    dev.wait_for(r"^GET / 502 ")
    write(script, HELLO)
    dev.wait_for("changed")
    dev.script_pid()
    assert len(dev.wait_for("ended with")) == 2


def test_killed_while_idle(start: Start, tmp_path: Path) -> None:
    """The next request starts a script that was killed."""
    dev = start(write(tmp_path / "app.py", HELLO))
    pid = dev.script_pid()
    os.kill(pid, signal.SIGKILL)
    dev.wait_for(r"^app\.py ended with signal SIGKILL; the next request or change")
    assert dev.script_pid() != pid


def test_death_in_a_request(start: Start, tmp_path: Path) -> None:
    """A script that dies before its answer gives a 502 page and its exit status."""
    text = "import os\nfrom fcgi_app import accept\naccept()\nos._exit(7)\n"
    dev = start(write(tmp_path / "app.py", text))
    status, page = dev.get()
    assert status == 502
    assert "The script ended" in page
    dev.wait_for(r"^app\.py ended with exit status 7")


def test_output_without_head(start: Start, tmp_path: Path) -> None:
    """A page without a response head is no answer, and the page says what came."""
    text = "from fcgi_app import accept\nwhile accept():\n    print('<p>Hello')\n"
    dev = start(write(tmp_path / "app.py", text))
    status, _ = dev.get()
    assert status in (500, 502)  # 500: the runtime has seen it first


def test_one_request_per_process(start: Start, tmp_path: Path) -> None:
    """Requests that wait for a process that goes after each one are all served."""
    dev = start(
        write(tmp_path / "app.py", HELLO.replace("while accept", "if accept")),
        "--no-reload",
    )
    dev.wait_for("http://")
    answers: list[tuple[int, str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(dev.get())) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert [status for status, _ in answers] == [200] * 5
    assert len({text for _, text in answers}) == 5


def test_script_that_never_accepts(start: Start, tmp_path: Path) -> None:
    """A script that ends without accepting is started once for each request."""
    dev = start("--no-reload", write(tmp_path / "app.py", "print('just this')\n"))
    dev.wait_for(r"ended with exit status 0; the next request")
    for _ in range(3):
        assert dev.get()[0] == 502
    assert len(dev.wait_for("^just this$", 4)) == 4


def test_script_removed_and_back(start: Start, tmp_path: Path) -> None:
    """A script that vanishes for a while is not restarted until it is back."""
    script = write(tmp_path / "app.py", HELLO)
    dev = start(script)
    pid = dev.script_pid()
    script.unlink()
    assert dev.script_pid() == pid
    write(script, HELLO.replace("Hello from", "Hello from "))
    dev.wait_for("changed")
    assert dev.script_pid() != pid


def test_timeout(start: Start, tmp_path: Path) -> None:
    """--timeout bounds the silence of a script: 504."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = (
        "from fcgi_app import accept\nwhile accept():\n"
        f"    print(open({str(fifo)!r}).read())\n"
    )
    dev = start("--timeout", "0.2", write(tmp_path / "app.py", text))
    status, page = dev.get()
    assert status == 504
    assert "did not go on for 0.2 seconds" in page
    with open(fifo, "w") as gate:
        gate.write("A: b\n\n")


# ---- the end ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_stop(start: Start, tmp_path: Path, number: int, status: int) -> None:
    """A signal ends the script too, leaves nothing behind, and is the exit status."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    dev = start(write(tmp_path / "app.py", HELLO), env={"TMPDIR": str(folder)})
    pid = dev.script_pid()
    if len(os.fsencode(folder)) < 60:
        assert len(list(folder.iterdir())) == 1
    dev.send(number)
    assert dev.wait() == status
    wait_until_gone(pid)
    assert list(folder.iterdir()) == []
    assert not [line for line in dev.lines if "Traceback" in line]


def test_stop_finishes_the_request(start: Start, tmp_path: Path) -> None:
    """A request that runs at Ctrl-C is answered to its end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    dev = start(write(tmp_path / "app.py", SLOW.format(fifo=str(fifo))))
    with contextlib.closing(dev.connect()) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        dev.send(signal.SIGINT)
        with open(fifo, "w"):
            pass
        assert response.readline().startswith(b"second from ")
        assert response.read() == b""
    assert dev.wait() == 130


STUBBORN = """\
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def test_second_signal(start: Start, tmp_path: Path) -> None:
    """A script that does not heed SIGTERM is killed at the second Ctrl-C."""
    dev = start(write(tmp_path / "app.py", STUBBORN))
    pid = int(dev.wait_for("^ready ")[0].split()[1])
    started = time.monotonic()
    dev.send(signal.SIGINT)
    dev.wait_for(r"^SIGINT: stopping app\.py; once more kills it$")
    dev.send(signal.SIGINT)
    assert dev.wait() == 130
    assert time.monotonic() - started < 4
    wait_until_gone(pid)


def test_stubborn_script(start: Start, tmp_path: Path) -> None:
    """A script that does not heed SIGTERM is killed after five seconds."""
    dev = start(write(tmp_path / "app.py", STUBBORN))
    pid = int(dev.wait_for("^ready ")[0].split()[1])
    started = time.monotonic()
    dev.send(signal.SIGTERM)
    assert dev.wait() == 143
    assert 4 < time.monotonic() - started < 10
    wait_until_gone(pid)


def test_killed_itself(start: Start, tmp_path: Path) -> None:
    """When the command itself is killed, the script goes too."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    dev = start(write(tmp_path / "app.py", HELLO), env={"TMPDIR": str(folder)})
    pid = dev.script_pid()
    dev.send(signal.SIGKILL)
    dev.wait()
    wait_until_gone(pid)


# ---- errors at the start ---------------------------------------------------------


def run_command(*args: str | Path) -> tuple[int, str, str]:
    """Run ``fcgi-app`` to its end; give status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "fcgi_app", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=command_environment(),
        cwd="/",
    )
    return done.returncode, done.stdout, done.stderr


def test_missing_target() -> None:
    """A script that is not there is one line and exit status 1."""
    status, out, err = run_command("dev", "/no/such/app.py")
    assert (status, out) == (1, "")
    assert err == "fcgi-app: error: /no/such/app.py: no such file\n"


def test_occupied_port(tmp_path: Path) -> None:
    """A port that is taken is one line with the address, and exit status 1."""
    script = write(tmp_path / "app.py", HELLO)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, out, err = run_command("dev", "--port", str(port), script)
    assert (status, out) == (1, "")
    assert err == f"fcgi-app: error: 127.0.0.1:{port}: Address already in use\n"


def test_unknown_host(tmp_path: Path) -> None:
    """An address that this machine does not have is one line, exit status 1."""
    script = write(tmp_path / "app.py", HELLO)
    status, _, err = run_command("dev", "--host", "192.0.2.1", "--port", "0", script)
    assert status == 1
    assert re.fullmatch(r"fcgi-app: error: 192\.0\.2\.1:0: .*\n", err)


def test_bad_mount(tmp_path: Path) -> None:
    """A wrong setting is one line and exit status 2."""
    script = write(tmp_path / "app.py", HELLO)
    for mount in ("x", "/a//b", "/../x"):
        status, _, err = run_command("dev", "--mount", mount, script)
        assert status == 2
        assert err.startswith(f"fcgi-app: error: mount: '{mount}")
        assert err.count("\n") == 1


def test_program_without_interpreter(tmp_path: Path) -> None:
    """A program that cannot be executed is one line and exit status 1."""
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    status, _, err = run_command("dev", "--port", "0", program)
    assert status == 1
    assert err.startswith(f"fcgi-app: error: cannot start '{program}': ")
    assert err.count("\n") == 1


def test_usage_errors(tmp_path: Path) -> None:
    """Wrong options are exit status 2, with the usage."""
    for args in (
        ["dev"],
        ["dev", "--nonsense", "x"],
        ["dev", "--port", "70000", "x"],
        ["dev", "--document-root", str(tmp_path / "none"), "x"],
        ["nonsense"],
    ):
        status, _, err = run_command(*args)
        assert status == 2
        assert "Usage: fcgi-app" in err


def test_address_for_everybody(start: Start, tmp_path: Path) -> None:
    """An address that others can reach is taken with a warning."""
    dev = start("--host", "0.0.0.0", write(tmp_path / "app.py", HELLO))
    dev.wait_for(r"^warning: every host that reaches 0\.0\.0\.0 can use this server")


def test_version() -> None:
    """--version tells the package, Python, and the backend with its reason."""
    status, out, err = run_command("--version")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"fcgi-app {__version__}"
    assert lines[1].endswith(".".join(map(str, sys.version_info[:3])))
    assert re.fullmatch(r"backend \w+ \(.+\)", lines[2])


def test_wrong_backend_setting() -> None:
    """A wrong setting in the environment is one line and exit status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "fcgi_app", "--version"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=command_environment({"FCGI_APP_BACKEND": "quantum"}),
        cwd="/",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fcgi-app: error: FCGI_APP_BACKEND: 'quantum': ")


# ---- parts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "mode", "told"),
    [
        pytest.param("folder/", "", 0o755, "is a directory", id="directory"),
        pytest.param(
            "plain", "x", 0o644, "neither a Python script", id="not-executable"
        ),
        pytest.param("data.bin", "\0", 0o644, "nor executable", id="binary"),
    ],
)
def test_unusable_target(
    tmp_path: Path, name: str, content: str, mode: int, told: str
) -> None:
    """The error of a target that cannot be run names it and says why."""
    target = tmp_path / name
    if name.endswith("/"):
        target.mkdir()
    else:
        target.write_text(content)
        target.chmod(mode)
    with pytest.raises(AppLoadError, match=told) as caught:
        DevServer(DevOptions(str(target)), announce=print, report=print)
    assert str(target) in str(caught.value)


def test_unreadable_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python script that cannot be read is an error at the start."""
    script = write(tmp_path / "app.py", HELLO)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    with pytest.raises(AppLoadError, match="cannot be read"):
        find_script_command(str(script), [])


def test_script_command(tmp_path: Path) -> None:
    """Python runs .py files, and #! python without execute bit; others run alone."""
    script = write(tmp_path / "app.py", HELLO)
    script.chmod(0o755)
    command = [sys.executable, str(script), "a"]
    assert find_script_command(str(script), ["a"]) == (command, True)
    hashbang = write(tmp_path / "app", "#!/usr/bin/env python3\n")
    command = [sys.executable, str(hashbang)]
    assert find_script_command(str(hashbang), []) == (command, True)
    hashbang.chmod(0o755)
    assert find_script_command(str(hashbang), []) == ([str(hashbang)], False)


def test_script_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout is put on PYTHONPATH before what is there; an installed one is not."""
    module = "fcgi_app.launcher.dev.script.__file__"
    monkeypatch.setattr(module, "/src/fcgi_app/launcher/dev/script.py")
    assert script_environment({"A": "b"}) == {"A": "b", "PYTHONPATH": "/src"}
    env = {"PYTHONPATH": "/x", "FCGI_FORCE_CGI": "1"}
    assert script_environment(env) == {"PYTHONPATH": "/src:/x"}
    installed = "/v/lib/site-packages/fcgi_app/launcher/dev/script.py"
    monkeypatch.setattr(module, installed)
    assert script_environment({"A": "b"}) == {"A": "b"}


def test_describe_status() -> None:
    """An end is described by its exit status or by the name of the signal."""
    assert describe_status(3) == "exit status 3"
    assert describe_status(-11) == "signal SIGSEGV"
    assert describe_status(-40) == "signal 40"


def test_script_that_cannot_be_started_again(tmp_path: Path) -> None:
    """A program that vanishes is reported, and the request that waits is let go."""
    lines: list[str] = []
    script = Script([str(tmp_path / "gone")], "gone", lines.append)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT)
            client.connect(script.address.removeprefix("unix:"))
            script.try_start()
            assert client.recv(1) == b""
    finally:
        script.close()
    assert not script.running
    assert lines == [f"cannot start '{tmp_path}/gone': No such file or directory"]


def look(watcher: Watcher) -> list[str]:
    """Poll twice: a change counts when it is seen twice."""
    return [os.path.basename(path) for path in watcher.poll() or watcher.poll()]


def test_watcher(tmp_path: Path) -> None:
    """Changed, new and removed .py files are noticed once; other files are not."""
    script = write(tmp_path / "app.py", "1")
    watcher = Watcher([str(script)], [str(script.parent)])
    assert look(watcher) == []
    write(script, "2")
    assert (watcher.poll(), watcher.unsettled) == ([], True)
    assert (watcher.poll(), watcher.unsettled) == ([str(script)], False)
    assert look(watcher) == []
    (tmp_path / "a" / "b").mkdir(parents=True)
    module = write(tmp_path / "a" / "b" / "module.py", "")
    assert look(watcher) == ["module.py"]
    module.unlink()
    assert look(watcher) == ["module.py"]
    write(tmp_path / "data.txt", "")
    (tmp_path / "link.py").symlink_to("nowhere")
    assert look(watcher) == []


def test_watcher_leaves_out(tmp_path: Path) -> None:
    """Hidden folders, environments and links to folders are not looked into."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    project = tmp_path / "project"
    project.mkdir()
    script = write(project / "app.py", "1")
    folders = [project / name for name in (".hidden", "__pycache__", "env")]
    for folder in folders:
        folder.mkdir()
    (project / "env" / "pyvenv.cfg").touch()
    (project / "link").symlink_to(elsewhere)
    watcher = Watcher([str(script)], [str(script.parent)])
    for folder in [*folders, elsewhere]:
        write(folder / "module.py", "")
    assert look(watcher) == []


def test_watcher_script_alone(tmp_path: Path) -> None:
    """Without the tree only the script counts; while it is missing nothing does."""
    script = write(tmp_path / "app", "1")
    watcher = Watcher([str(script)])
    write(tmp_path / "module.py", "")
    assert look(watcher) == []
    script.unlink()
    assert look(watcher) == []
    assert watcher.unsettled
    write(script, "2")
    assert look(watcher) == ["app"]


def test_watcher_in_a_big_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many folders the watcher stops: the nearest ones are watched."""
    monkeypatch.setattr("fcgi_app.launcher.filewatch.MAX_FOLDERS", 2)
    (tmp_path / "a" / "b").mkdir(parents=True)
    script = write(tmp_path / "app.py", "1")
    watcher = Watcher([str(script)], [str(script.parent)])
    write(tmp_path / "a" / "b" / "far.py", "")
    assert look(watcher) == []
    write(tmp_path / "a" / "near.py", "")
    assert look(watcher) == ["near.py"]


def test_bad_options() -> None:
    """The mount is checked before anything is opened."""
    with pytest.raises(ConfigError, match="mount: 'x'"):
        DevServer(DevOptions("x", mount="x"), announce=print, report=print)


# ---- help and man pages ----------------------------------------------------------


def commands() -> Iterator[tuple[str, click.Command]]:
    yield "fcgi-app", group
    for name in SUBCOMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield f"fcgi-app-{name}", command


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(*entry, id=entry[0]) for entry in commands()]
)
def test_options_in_man_page(page: str, command: click.Command) -> None:
    """Each option that --help shows is in the man page."""
    text = (MANPAGES / f"{page}.1").read_text()
    for parameter in command.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--"):
                assert f"Fl {option[1:]}" in text


@pytest.mark.parametrize("page", ["fcgi-app.1", "fcgi-app-dev.1"])
def test_man_page_is_clean(page: str) -> None:
    """mandoc has nothing to say about the page."""
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(MANPAGES / page)],
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_help_says_what_it_is_for() -> None:
    """The help of the group and of the command say that it is for development."""
    for args in (["--help"], ["dev", "--help"]):
        result = CliRunner().invoke(group, args)
        assert result.exit_code == 0
        assert "for development only" in result.output
