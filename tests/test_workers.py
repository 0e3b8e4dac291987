"""fcgi_app.launcher.workers, with real processes; waits are on pipes and pidfds."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fcgi_app
from fcgi_app.errors import AppLoadError, WorkerError
from fcgi_app.launcher import Worker, find_command, spawn, spawn_all, stop, workers

PATIENCE = 20.0
"""Seconds that a loaded machine may need for what takes milliseconds."""

ANSWER_ONE = """
import os, socket, sys
with socket.socket(fileno=0) as listener:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d" % os.getpid())
"""

LIST_DESCRIPTORS = """
import os
folder = "/proc/self/fd/"
numbers = os.listdir(folder)  # one of them is the listing's own, gone now
print(*(n for n in numbers if os.path.lexists(folder + n)), sep="\\n")
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


@contextmanager
def reaped(worker: Worker) -> Iterator[Worker]:
    """Leave no process behind, whatever the test does."""
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def python(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", source, *arguments]


def executable(path: Path, content: str) -> str:
    path.write_text(content)
    path.chmod(0o755)
    return str(path)


def output_of(
    command: Sequence[str], listener: socket.socket, **options: Any
) -> dict[str, str]:
    """Start a worker that prints ``name: value`` lines, and return them."""
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as lines:
        try:
            worker = spawn(command, listener, stdout=writer, **options)
        finally:
            os.close(writer)
        with reaped(worker):
            text = lines.read()
            assert worker.wait(PATIENCE) == 0
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    return {name: value.strip() for name, value in pairs}


def await_end(pid: int) -> None:
    """Wait until the process, which need not be a child, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE)[0], f"{pid} still runs"
    finally:
        os.close(pidfd)


def run_script(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code that imports this package in a process with one thread."""
    where = str(Path(fcgi_app.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        env={**os.environ, "PYTHONPATH": where},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


# ---- spawn ---------------------------------------------------------------------


def test_spawn_gives_the_listener_as_descriptor_0(listener: socket.socket) -> None:
    """The worker accepts on descriptor 0 what connects to the listener's address."""
    with reaped(spawn(python(ANSWER_ONE), listener)) as worker:
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            assert int(client.recv(100)) == worker.pid
        assert worker.wait(PATIENCE) == 0


def test_spawn_leaves_the_listener_to_the_caller(listener: socket.socket) -> None:
    """The caller's own descriptor stays open and close-on-exec."""
    with reaped(spawn(["/bin/true"], listener)):
        assert not listener.get_inheritable()
        assert listener.getsockname()


def test_spawn_closes_every_other_descriptor(listener: socket.socket) -> None:
    """Even an inheritable descriptor of ours does not reach the worker."""
    foreign = os.dup(listener.fileno())
    os.set_inheritable(foreign, True)
    try:
        assert sorted(output_of(python(LIST_DESCRIPTORS), listener)) == ["0", "1", "2"]
    finally:
        os.close(foreign)


@contextmanager
def disturbed_signals(*ignored: signal.Signals) -> Iterator[None]:
    """Ignore some signals, and block SIGUSR2, in this thread."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def signal_sets(listener: socket.socket) -> tuple[int, int]:
    """Return what a worker ignores and blocks, as the bits of proc_pid_status(5).

    Signals 32 and 33 belong to the C library, whose posix_spawn(3) ignores them.
    """
    status = output_of(["/bin/cat", "/proc/self/status"], listener)
    ours = sum(1 << (number - 1) for number in signal.valid_signals())
    return int(status["SigIgn"], 16) & ours, int(status["SigBlk"], 16) & ours


def test_spawn_resets_ignored_and_blocked_signals(listener: socket.socket) -> None:
    """What the launcher ignores or blocks does not reach the worker, SIGPIPE least."""
    with disturbed_signals(signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
        # Without its SIGCHLD a process learns no exit status.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        assert signal_sets(listener) == (0, 0)


def test_spawn_needs_no_setup_when_signals_are_normal(listener: socket.socket) -> None:
    """Without disturbance SIGPIPE is at its default too, and nothing is blocked."""
    assert workers._child_setup(None) is None
    assert signal_sets(listener) == (0, 0)


def test_spawn_keeps_what_nohup_ignores(listener: socket.socket) -> None:
    """An ignored SIGHUP stays ignored."""
    with disturbed_signals(signal.SIGHUP):
        assert signal_sets(listener) == (1 << (signal.SIGHUP - 1), 0)


def test_spawn_passes_environment_and_directory(
    listener: socket.socket, tmp_path: Path
) -> None:
    """``env`` is the whole environment, ``cwd`` the working directory."""
    shown = output_of(
        ["/bin/sh", "-c", 'echo "dir: $(pwd)"; echo "who: $WHO"; echo "home: $HOME"'],
        listener,
        env={"WHO": "naïve", "PATH": os.environ["PATH"]},
        cwd=str(tmp_path),
    )
    assert shown == {"dir": str(tmp_path), "who": "naïve", "home": ""}


def test_spawn_joins_stderr_to_stdout(listener: socket.socket) -> None:
    """``subprocess.STDOUT`` as stderr goes where stdout goes."""
    shown = output_of(
        ["/bin/sh", "-c", "echo a: 1; echo b: 2 >&2"],
        listener,
        stderr=subprocess.STDOUT,
    )
    assert shown == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        pytest.param(None, 0, "No such file or directory", id="missing"),
        pytest.param("#!/bin/sh\n", 0o644, "Permission denied", id="not-executable"),
        pytest.param("print(1)\n", 0o755, "Exec format error", id="no-first-line"),
        pytest.param(
            "#!/nowhere/python3\r\n",
            0o755,
            r"its interpreter is missing, first line '#!/nowhere/python3\r\n'",
            id="no-interpreter",
        ),
    ],
)
def test_spawn_reports_a_failed_exec(
    listener: socket.socket, tmp_path: Path, content: str | None, mode: int, reason: str
) -> None:
    """A program that cannot be executed is a WorkerError that names it and says why."""
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    with pytest.raises(WorkerError) as caught:
        spawn([str(program)], listener)
    assert str(caught.value) == f"cannot start '{program}': {reason}"


def test_spawn_reports_a_missing_directory(
    listener: socket.socket, tmp_path: Path
) -> None:
    """It is the directory that is named, not only the program."""
    missing = str(tmp_path / "none")
    with pytest.raises(
        WorkerError, match=f"'/bin/true' in the directory '{missing}': No such"
    ):
        spawn(["/bin/true"], listener, cwd=missing)


def test_spawn_reports_a_binary_without_its_loader(
    listener: socket.socket, tmp_path: Path
) -> None:
    """An ELF file whose loader is missing has no first line to show."""
    source = Path("/bin/true").read_bytes()
    loader = source[source.index(b"/lib") :].split(b"\0", 1)[0]
    program = tmp_path / "program"
    program.write_bytes(source.replace(loader, b"/none" + loader[5:]))
    program.chmod(0o755)
    with pytest.raises(WorkerError, match=r"its interpreter is missing$"):
        spawn([str(program)], listener)


def test_spawn_refuses_an_empty_command(listener: socket.socket) -> None:
    """No word at all is the caller's mistake."""
    with pytest.raises(ValueError, match="needs a command"):
        spawn([], listener)


def test_spawn_refuses_a_pipe_that_nobody_reads(listener: socket.socket) -> None:
    """A worker must not fill a pipe without a reader."""
    with pytest.raises(ValueError, match=r"subprocess\.PIPE"):
        spawn(["/bin/true"], listener, stderr=subprocess.PIPE)


def test_spawn_new_session(listener: socket.socket) -> None:
    """With ``new_session`` the worker leads one, without it stays in ours."""
    for new_session in (True, False):
        command = ["/bin/sleep", "60"]
        with reaped(spawn(command, listener, new_session=new_session)) as worker:
            leader = os.getsid(worker.pid)
        assert (leader == worker.pid) is new_session


# ---- die_with_parent -----------------------------------------------------------

PARENT = """
import signal, socket
from fcgi_app.launcher import spawn
signal.signal(signal.SIGTERM, lambda *_: None)
listener = socket.create_server(("127.0.0.1", 0))
worker = spawn(["/bin/sleep", "60"], listener, die_with_parent=True)
print(worker.pid, flush=True)
signal.alarm(60)
signal.pause()
"""


def test_die_with_parent_ends_the_worker_of_a_killed_launcher() -> None:
    """SIGKILL for the launcher, which cannot be handled, is SIGTERM for the worker."""
    where = str(Path(fcgi_app.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "PYTHONPATH": where},
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    await_end(worker)


def test_die_with_parent_sees_that_the_parent_is_gone(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent that died before the prctl: the worker ends without exec."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    command = ["/bin/sleep", "60"]
    with reaped(spawn(command, listener, die_with_parent=True)) as worker:
        assert worker.wait(PATIENCE) == 128 + signal.SIGTERM


def test_die_with_parent_reports_a_refused_prctl(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that would outlive us is not started."""
    monkeypatch.setattr(workers, "PR_SET_PDEATHSIG", 99999)
    with pytest.raises(WorkerError, match="cannot start '/bin/true'"):
        spawn(["/bin/true"], listener, die_with_parent=True)


def test_die_with_parent_has_no_effect_without_prctl(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system that has no prctl the worker starts all the same."""
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    with reaped(spawn(["/bin/true"], listener, die_with_parent=True)) as worker:
        assert worker.wait(PATIENCE) == 0


# ---- Worker --------------------------------------------------------------------


def no_pidfd(pid: int) -> int:
    raise OSError(38, os.strerror(38))


@pytest.fixture(params=["pidfd", "refused", "missing"])
def pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pidfd_open(2), with one that a filter refuses, and without."""
    if request.param == "refused":
        monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    elif request.param == "missing":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.mark.usefixtures("pidfd")
class TestWait:
    def test_wait_returns_none_after_the_timeout(self, listener: socket.socket) -> None:
        """A worker that runs on has no status; no time but the timeout is lost."""
        with reaped(spawn(["/bin/sleep", "60"], listener)) as worker:
            began = time.monotonic()
            assert worker.wait(0.05) is None
            assert worker.wait(0) is None
            assert worker.wait(-1) is None
            assert 0.05 <= time.monotonic() - began < PATIENCE
            assert worker.poll() is None

    @pytest.mark.parametrize("timeout", [None, PATIENCE])
    def test_wait_returns_the_exit_status(
        self, listener: socket.socket, timeout: float | None
    ) -> None:
        """An exit status is given as it is, and again when asked again."""
        with reaped(spawn(["/bin/sh", "-c", "exit 7"], listener)) as worker:
            assert worker.wait(timeout) == 7
            assert worker.wait(timeout) == 7
            assert worker.poll() == 7

    def test_wait_wakes_when_the_worker_ends(self, listener: socket.socket) -> None:
        """The end of the worker ends the wait before its timeout."""
        with reaped(spawn(["/bin/sleep", "0.05"], listener)) as worker:
            began = time.monotonic()
            assert worker.wait(10 * PATIENCE) == 0
            assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    ("act", "number"),
    [(Worker.terminate, signal.SIGTERM), (Worker.kill, signal.SIGKILL)],
)
def test_a_death_by_signal_is_a_negative_status(
    listener: socket.socket, act: Callable[[Worker], None], number: int
) -> None:
    """The status is the signal's number, negative; later calls hit nobody."""
    with reaped(spawn(["/bin/sleep", "60"], listener)) as worker:
        act(worker)
        assert worker.wait(PATIENCE) == -number
        act(worker)
        assert worker.poll() == -number


def test_worker_repr_shows_pid_command_and_state(listener: socket.socket) -> None:
    """What a log line needs is in the text."""
    with reaped(spawn(["/bin/sh", "-c", "exit 3"], listener)) as worker:
        assert worker.command == ("/bin/sh", "-c", "exit 3")
        assert repr(worker) == f"<Worker {worker.pid} /bin/sh -c 'exit 3': running>"
        worker.wait(PATIENCE)
        assert repr(worker).endswith("exit status 3>")


# ---- spawn_all and stop --------------------------------------------------------


def test_spawn_all_starts_as_many_as_asked(listener: socket.socket) -> None:
    """Each connection is answered by another worker of the same listener."""
    started = spawn_all(python(ANSWER_ONE), listener, 3)
    try:
        answers = set()
        for _ in started:
            with socket.create_connection(listener.getsockname(), PATIENCE) as client:
                answers.add(int(client.recv(100)))
        assert answers == {worker.pid for worker in started}
    finally:
        stop(started)


def test_spawn_all_leaves_nothing_when_one_fails(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the program vanishes after the first start, that worker is stopped."""
    program = executable(
        tmp_path / "program",
        f"#!{sys.executable}\nimport os, sys, time\nos.unlink(sys.argv[0])\n"
        f"{ANSWER_ONE}time.sleep(60)\n",
    )
    started: list[Worker] = []

    def spawn_and_await_answer(command: Sequence[str], on: socket.socket) -> Worker:
        started.append(spawn(command, on))
        with socket.create_connection(on.getsockname(), PATIENCE) as client:
            client.recv(100)
        return started[-1]

    monkeypatch.setattr(workers, "spawn", spawn_and_await_answer)
    with pytest.raises(WorkerError, match=r"^instance 2 of 3: cannot start .*No such"):
        spawn_all([program], listener, 3)
    assert [worker.poll() for worker in started] == [-signal.SIGTERM]


def test_stop_is_polite_first(listener: socket.socket) -> None:
    """A worker that leaves on SIGTERM is not killed; one that has ended is skipped."""
    done = spawn(["/bin/true"], listener)
    done.wait(PATIENCE)
    polite = spawn(["/bin/sleep", "60"], listener)
    stop([polite, done])
    assert polite.poll() == -signal.SIGTERM


def test_stop_kills_the_stubborn(listener: socket.socket) -> None:
    """A worker that ignores SIGTERM is killed when the grace is over."""
    reader, writer = os.pipe()
    source = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); "
    source += "signal.pause()"
    stubborn = spawn(python(source), listener, stdout=writer)
    os.close(writer)
    with reaped(stubborn), open(reader, "rb") as ready:
        assert ready.read(1) == b"\n"
        stop([stubborn], grace=0.05)
        assert stubborn.poll() == -signal.SIGKILL


# ---- find_command --------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with files, and a PATH with one program."""
    for name in ("app", "both", "my app", "bob's", "sub/app", "bin/both", "bin/tool"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        executable(path, "#!/bin/sh\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{}/app", ["app"], id="absolute"),
        pytest.param("./app", ["app"], id="relative"),
        pytest.param("sub/../app", ["sub/../app"], id="dots-are-kept"),
        pytest.param("app", ["app"], id="in-the-current-directory"),
        pytest.param("tool", ["bin/tool"], id="in-PATH"),
        pytest.param("both", ["bin/both"], id="PATH-goes-first"),
        pytest.param("./both", ["both"], id="a-slash-means-no-PATH"),
        pytest.param("tool -a 'b c' \"\"", ["bin/tool", "-a", "b c", ""], id="words"),
        pytest.param("./app x", ["app", "x"], id="path-with-argument"),
        pytest.param("{}/my app", ["my app"], id="file-with-blank"),
        pytest.param("my app", ["my app"], id="bare-file-with-blank"),
        pytest.param("'my app' x", ["my app", "x"], id="quoted-file"),
        pytest.param("./bob's", ["bob's"], id="file-with-quote"),
        pytest.param("app $HOME *", ["app", "$HOME", "*"], id="no-expansion"),
    ],
)
def test_find_command(here: Path, text: str, words: list[str]) -> None:
    """The program is found and made absolute; arguments stay as they are."""
    expected = [f"{here}/{words[0]}", *words[1:]]
    assert find_command(text.format(here)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param(" \t", "empty", id="blank"),
        pytest.param("none", "no such file, and no such program in PATH", id="bare"),
        pytest.param("./none x", "no such file", id="path"),
        pytest.param("sub", "no such file, and no such program in PATH", id="folder"),
        pytest.param("'app", "no closing quotation", id="quote"),
        pytest.param("app\0", "no such file, and no such program in PATH", id="nul"),
    ],
)
@pytest.mark.usefixtures("here")
def test_find_command_refuses(text: str, reason: str) -> None:
    """What names no program is an error that shows the text and the reason."""
    with pytest.raises(AppLoadError) as caught:
        find_command(text)
    assert str(caught.value) == f"command {text!r}: {reason}"


# ---- run_detached, each in a process with one thread -----------------------------

DETACHED = """
import json, os, signal, stat, sys
from fcgi_app.launcher.detached import run_detached
def start():
    nulls = [stat.S_ISCHR(os.fstat(n).st_mode) for n in (0, 1, 2)]
    facts = {
        "pid": os.getpid(), "sid": os.getsid(0), "cwd": os.getcwd(),
        "devices": [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)],
        "ignored": signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN,
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "umask": os.umask(0), "env": os.environ["FACT"],
    }
    with open(sys.argv[1], "w") as report:
        json.dump(facts, report)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.umask(0o027)
os.environ["FACT"] = "kept"
run_detached(start)
print(os.getpid())
"""


def test_run_detached_leaves_terminal_directory_and_signals(tmp_path: Path) -> None:
    """start() runs in its own session, in /, on /dev/null, and the caller goes on."""
    report = tmp_path / "report"
    ran = run_script(DETACHED, str(report))
    assert (ran.returncode, ran.stderr) == (0, "")
    facts = json.loads(report.read_text())
    assert facts.pop("pid") == facts.pop("sid") != int(ran.stdout)
    assert facts == {
        "cwd": "/",
        "devices": ["/dev/null"] * 3,
        "ignored": False,
        "blocked": [],
        "umask": 0o027,
        "env": "kept",
    }


FAILING = """
import os, signal, sys, subprocess
from fcgi_app.errors import FcgiAppError, WorkerError
from fcgi_app.launcher.detached import run_detached
{before}
def start():
    {body}
try:
    run_detached(start)
except WorkerError as error:
    print(error)
    print(sorted(os.listdir("/proc/self/fd")) == before, file=sys.stderr)
"""


def failure_of(body: str, before: str = "") -> str:
    """Return the message of the WorkerError that a failing start() becomes."""
    before += "\nbefore = sorted(os.listdir('/proc/self/fd'))"
    ran = run_script(FAILING.format(body=body, before=before))
    assert (ran.returncode, ran.stderr) == (0, "True\n")
    return ran.stdout.rstrip("\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param("raise FcgiAppError('no luck: é')", "no luck: é", id="ours"),
        pytest.param("raise FcgiAppError", "FcgiAppError()", id="without-text"),
        pytest.param("raise FcgiAppError('x' * 200000)", "x" * 200000, id="long"),
        pytest.param(
            "open('/nowhere/x')",
            "[Errno 2] No such file or directory: '/nowhere/x'",
            id="system",
        ),
        pytest.param(
            "os._exit(3)", "the detached process ended early: exit status 3", id="exit"
        ),
        pytest.param(
            "os.kill(os.getpid(), 9)",
            "the detached process ended early: killed by signal 9",
            id="signal",
        ),
    ],
)
def test_run_detached_reports_a_failure(body: str, message: str) -> None:
    """What start() raises, and an early death, is the caller's WorkerError."""
    assert failure_of(body) == message


def test_run_detached_reports_a_bug_with_its_traceback() -> None:
    """An unexpected exception comes with the place where it was raised."""
    message = failure_of("raise KeyError('bug')")
    assert message.startswith("Traceback (most recent call last):")
    assert message.endswith("KeyError: 'bug'")


def test_run_detached_works_where_sigchld_is_ignored() -> None:
    """A caller whose children reap themselves gets the report all the same."""
    ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    assert failure_of("raise FcgiAppError('told')", ignore) == "told"
    message = failure_of("os._exit(3)", ignore)
    assert message == "the detached process ended early: status unknown"


def test_run_detached_leaves_nothing_running_after_a_failure(tmp_path: Path) -> None:
    """What start() left in the process group, even a grandchild, is killed."""
    with end_of_fifo(tmp_path / "fifo") as fifo:
        orphan = f"(echo >{tmp_path}/go; exec sleep 60) >{fifo} & read line <{fifo}"
        os.mkfifo(tmp_path / "go")
        body = (
            f"subprocess.Popen(['/bin/sh', '-c', {orphan!r}]); "
            f"open('{tmp_path}/go').read(); "
            "raise FcgiAppError('no')"
        )
        assert failure_of(body) == "no"


@contextmanager
def end_of_fifo(path: Path) -> Iterator[Path]:
    """Make a pipe with a name; at the end, wait until nobody has it open any more."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield path
        assert select.select([reader], [], [], PATIENCE)[0], "a process has it open"
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


INTERRUPTED = """
import os, signal, sys
from fcgi_app.launcher.detached import run_detached
def start():
    os.open(sys.argv[1], os.O_WRONLY)
    signal.alarm(60)
    os.kill(caller, signal.SIGINT)
    signal.pause()
caller = os.getpid()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    run_detached(start)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_run_detached_ends_what_ctrl_c_interrupts(tmp_path: Path) -> None:
    """KeyboardInterrupt while the start is awaited ends the detached process too."""
    with end_of_fifo(tmp_path / "fifo") as fifo:
        ran = run_script(INTERRUPTED, str(fifo))
        assert (ran.stdout, ran.stderr) == ("interrupted\n", "")


def test_run_detached_does_not_wait_for_forks_that_hold_the_pipe() -> None:
    """A worker that is forked without exec does not delay the report."""
    source = """
import os
from fcgi_app.launcher.detached import run_detached
hold, release = os.pipe()
def start():
    if os.fork() == 0:
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
run_detached(start)
print("returned")
"""
    assert run_script(source).stdout == "returned\n"
