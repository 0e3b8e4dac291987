"""``fcgi-app status``, ``reload``, ``stop`` and ``scale``, with a real supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from fcgi_app.cli.main import group
from fcgi_app.client import Response, request

from .pools import RAW, Pool, environment
from .servers import Gate, wait_until

pytestmark = pytest.mark.slow  # nearly all of them start interpreters

TIMEOUT = 30.0
SCRIPT = """
import os, socket
from fcgi_app import accept
while accept():
    if os.environ["QUERY_STRING"] == "hold":
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(os.environ["GATE"])
            gate.recv(1)
    print("Content-Type: text/plain", end="\\r\\n\\r\\n")
    print(os.getpid(), end="")
"""
"""A worker that tells its pid; ``?hold`` waits for the test before."""
COMMAND = [sys.executable, "worker.py"]

CONFIG = """
control = "control"
bind = "unix:@PATH@"
command = ["@PYTHON@", "@SCRIPT@"]
workers = 2
"""


def run(
    pool: Pool | None, *words: str, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run ``fcgi-app`` with these words to its end, in the pool's directory."""
    return subprocess.run(
        [sys.executable, "-m", "fcgi_app", *words],
        cwd=pool.folder if pool is not None else cwd,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def control(pool: Pool, *words: str) -> subprocess.CompletedProcess[str]:
    """The same, and say which control socket."""
    return run(pool, *words[:1], "--control", "control", *words[1:])


def status(pool: Pool) -> dict[str, Any]:
    """What ``fcgi-app status --json`` says."""
    done = control(pool, "status", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def states(pool: Pool) -> list[str]:
    """What the workers of the only pool do."""
    return [worker["state"] for worker in status(pool)["pools"][0]["workers"]]


def fetch(pool: Pool, query: str = "", path: str = "/page") -> Response:
    """One request to a worker."""
    params = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": path,
        "QUERY_STRING": query,
        "REQUEST_URI": f"{path}?{query}",
    }
    return request(f"unix:{pool.path}", params, timeout=TIMEOUT)


class Held:
    """Requests that wait in their workers until `release`."""

    def __init__(self, pool: Pool, gate: Gate) -> None:
        self.pool = pool
        self.gate = gate
        self.answers: list[Response] = []
        self._threads: list[threading.Thread] = []

    def hold(self, number: int = 1) -> None:
        """Send so many, and wait until they have arrived."""
        for _ in range(number):
            thread = threading.Thread(target=self._fetch)
            thread.start()
            self._threads.append(thread)
            self.gate.wait_for_arrival()

    def _fetch(self) -> None:
        self.answers.append(fetch(self.pool, "hold"))

    def release(self) -> list[Response]:
        """Let them be answered, once, and return the answers."""
        threads, self._threads = self._threads, []
        if threads:
            self.gate.open()
        for thread in threads:
            thread.join(TIMEOUT)
        return self.answers


@contextmanager
def holding(*options: str, number: int = 1) -> Iterator[tuple[Pool, Held]]:
    """A pool whose workers hold so many requests."""
    words = ["--control", "control", *options, "--env", "GATE=gate"]
    pool = Pool(*words, source=SCRIPT, command=COMMAND)
    with pool, Gate(pool.folder / "gate") as gate:
        held = Held(pool, gate)
        try:
            held.hold(number)
            yield pool, held
        finally:
            held.release()


@contextmanager
def started(*options: str) -> Iterator[Pool]:
    """A pool of scripts with a control socket."""
    words = ["--control", "control", *options]
    with Pool(*words, source=SCRIPT, command=COMMAND) as pool:
        yield pool


# ---- status -------------------------------------------------------------------


def test_status_shows_what_each_worker_does() -> None:
    """A table for people: pid, state, age, requests, memory, CPU, the request."""
    with holding("--workers", "2") as (pool, _):
        done = control(pool, "status")
        (line,) = [x for x in done.stdout.splitlines() if "running " in x]
        (other,) = [x for x in done.stdout.splitlines() if " idle " in x]
        pids = pool.workers()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"fcgi-app 0.1.0, pid {pool.process.pid}, running")
    assert f"pool main, static, on unix:{pool.path}\n" in done.stdout
    assert "workers 2 (most 2), active 1; requests 1, slow 0; restarts 0; queue 0" in (
        done.stdout
    )
    assert re.search(r"(?m)^ *PID  STATE ", done.stdout)
    assert re.fullmatch(
        r" *\d+  running +[\dms.]+ +0 +\d+\.\dM +\d+\.\d% +[\dms.]+  GET /page\?hold",
        line,
    )
    assert {int(line.split()[0]), int(other.split()[0])} == pids


def test_status_as_json_has_everything() -> None:
    """The same for programs, and more."""
    with holding("--workers", "2") as (pool, held):
        found = status(pool)
        held.release()
        wait_until(lambda: states(pool) == ["idle", "idle"], "idle workers")
        later = status(pool)
    (main,) = found["pools"]
    (busy,) = [worker for worker in main["workers"] if worker["active"]]
    assert (found["pid"], found["state"]) == (pool.process.pid, "running")
    assert (main["active"], main["idle"], main["accepted"]) == (1, 1, 1)
    assert (busy["method"], busy["uri"]) == ("GET", "/page?hold")
    assert 0 < busy["request_seconds"] < TIMEOUT
    assert 2**20 < busy["rss"] < 2**30
    assert busy["cpu"] > 0
    assert found["taken"] - TIMEOUT < busy["started"] < found["taken"]
    assert sorted(x["requests"] for x in later["pools"][0]["workers"]) == [0, 1]


def test_status_shows_who_waits_in_the_queue() -> None:
    """Connections that no worker has accepted, at this very moment."""
    with holding("--workers", "1", "--backlog", "9") as (pool, _):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.connect(pool.path)
        # The one worker runs a request, and does not accept meanwhile.
        queue = status(pool)["pools"][0]["queue"]
        for client in clients:
            client.close()
    assert queue == {"waiting": 3, "limit": 9}


def test_status_of_foreign_workers_is_seen_from_outside() -> None:
    """Whether they wait for a client; what they do is not known."""
    words = ["--control", "control", "--workers", "2"]
    with Pool(*words, source=RAW) as pool, pool.client() as client:
        busy = client.pid()
        workers = status(pool)["pools"][0]["workers"]
        table = control(pool, "status").stdout
    by_pid = {worker["pid"]: worker for worker in workers}
    assert by_pid.pop(busy)["state"] == "running"
    (idle,) = by_pid.values()
    assert (idle["state"], idle["requests"]) == ("idle", None)
    assert re.search(rf"(?m)^ *{busy}  running +\S+ +-  +\S+ +\S+ +-  -$", table)


def test_status_watches_until_it_is_interrupted() -> None:
    """One line of JSON after the other; Ctrl-C is a good end."""
    with started() as pool:
        words = ["status", "--control", "control"]
        words += ["--json", "--watch", "--interval", "0.1"]
        child = subprocess.Popen(
            [sys.executable, "-m", "fcgi_app", *words],
            cwd=pool.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        found = [json.loads(child.stdout.readline()) for _ in range(3)]
        child.send_signal(signal.SIGINT)
        errors = child.stderr.read()
        child.stdout.close()
        child.stderr.close()
        assert (child.wait(TIMEOUT), errors) == (0, "")
    assert found[0]["taken"] < found[1]["taken"] < found[2]["taken"]


def test_status_after_an_exec() -> None:
    """The socket is there again, with all that was counted."""
    with started() as pool:
        fetch(pool)
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        wait_until(lambda: status(pool)["pools"][0]["accepted"] == 1, "the request")
        assert states(pool) == ["idle"]


def test_status_can_be_asked_while_the_pool_stops() -> None:
    """Who still finishes what."""
    with holding() as (pool, held):
        pool.send(signal.SIGTERM)
        pool.wait_for_log("stopping")
        found = status(pool)
        held.release()
        assert pool.wait() == 0
    (worker,) = found["pools"][0]["workers"]
    assert found["state"] == "stopping"
    assert (worker["leaving"], worker["uri"]) == (True, "/page?hold")


# ---- reload -------------------------------------------------------------------


def test_reload_returns_when_the_new_workers_serve() -> None:
    """No answer comes from an old one any more."""
    with started("--workers", "2") as pool:
        before = pool.workers()
        done = control(pool, "reload")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert int(fetch(pool).body) not in before
        assert "reloaded" in pool.log()


def test_reload_that_fails_says_why() -> None:
    """Exit status 1, with what is wrong with the file; the old workers stay."""
    with Pool(config=CONFIG, source=SCRIPT) as pool:
        before = pool.workers()
        pool.write_config(CONFIG + "wrokers = 3\n")
        done = control(pool, "reload")
        assert done.returncode == 1
        assert "the workers stay as they are" in done.stderr
        assert "did you mean workers?" in done.stderr
        assert pool.workers() == before


def test_reload_whose_workers_die_says_why() -> None:
    """With the last lines of one of them."""
    with Pool(config=CONFIG, source=SCRIPT) as pool:
        before = pool.workers()
        pool.script.write_text("raise SystemExit('no database')")
        done = control(pool, "reload")
        assert done.returncode == 1
        assert "no database" in done.stderr
        assert pool.workers() >= before
        pool.script.write_text(SCRIPT)
        assert control(pool, "reload").returncode == 0
        pool.wait_for_other_workers(before)


def test_reload_without_waiting() -> None:
    """Asked for, and no more."""
    with started() as pool:
        before = pool.workers()
        assert control(pool, "reload", "--no-wait").returncode == 0
        pool.wait_for_other_workers(before)


def test_reload_of_a_supervisor_that_stands_still() -> None:
    """Whoever does not want to wait for ever says so."""
    with started() as pool:
        pool.send(signal.SIGSTOP)
        done = control(pool, "reload", "--timeout", "0.5")
        pool.send(signal.SIGCONT)
        assert done.returncode == 1
        assert "control: no answer in time" in done.stderr


# ---- stop ---------------------------------------------------------------------


def test_stop_returns_when_all_has_ended() -> None:
    """The pid file and the sockets are free; requests have been answered."""
    with holding("--pid-file", "pid") as (pool, held):
        release = threading.Timer(0.3, held.release)
        release.start()
        done = control(pool, "stop")
        left = sorted(entry.name for entry in pool.folder.iterdir())
        release.join()
        assert (done.returncode, done.stderr) == (0, "")
        assert left == ["gate", "log", "worker.py"]
        assert [answer.status for answer in held.answers] == [200]
        assert pool.wait() == 0


def test_stop_that_takes_too_long_goes_on() -> None:
    """The command gives up, the supervisor does not."""
    with holding() as (pool, held):
        done = control(pool, "stop", "--timeout", "0.5")
        assert done.returncode == 1
        assert "no answer in time" in done.stderr
        assert not pool.has_ended()
        held.release()
        assert pool.wait() == 0


def test_stop_quickly_does_not_wait_for_requests() -> None:
    """As SIGINT."""
    with Pool("--control", "control", source=RAW) as pool, pool.client() as client:
        client.pid()
        assert control(pool, "stop", "--quick").returncode == 0
        assert pool.wait() in (0, 128 + signal.SIGINT)
        assert client.is_cut()


def test_stop_without_waiting() -> None:
    """Asked for, and no more."""
    with holding() as (pool, held):
        assert control(pool, "stop", "--no-wait").returncode == 0
        pool.wait_for_log("stopping")
        held.release()
        assert pool.wait() == 0


# ---- scale --------------------------------------------------------------------


def test_scale_changes_the_number_of_workers() -> None:
    """By sign, or to a number; never below one."""
    with started("--workers", "1") as pool:
        for word, number in (("+2", 3), ("-1", 2), ("4", 4), ("1", 1)):
            done = control(pool, "scale", word)
            shown = f"{number} worker{'s' if number > 1 else ''}"
            assert (done.returncode, done.stdout) == (0, f"pool main: {shown}\n")
            pool.wait_for_workers(number)
        assert status(pool)["pools"][0]["most"] == 1


@pytest.mark.parametrize(
    ("words", "returncode", "error"),
    [
        (("--pool", "site", "2"), 1, "site"),
        (("1000000",), 1, "10000"),
        (("two",), 2, "'two' is no whole number"),
        (("1.5",), 2, "'1.5' is no whole number"),
        ((), 2, "Missing argument"),
    ],
)
def test_scale_refuses_what_makes_no_sense(
    words: tuple[str, ...], returncode: int, error: str
) -> None:
    """It says why; nothing has changed."""
    with started() as pool:
        done = control(pool, "scale", *words)
        assert done.returncode == returncode
        assert error in done.stderr
        assert len(pool.workers()) == 1


# ---- the manual ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "reload", "stop", "scale"])
def test_options_are_in_the_man_page(name: str, repo: Path) -> None:
    """Each has its entry, and no other has."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    options = [word for p in command.params for word in p.opts if word[0] == "-"]
    page = (repo / "manpages" / f"fcgi-app-{name}.1").read_text()
    described = re.findall(r"(?m)^\.It Fl -([\w-]+)", page)
    used = re.findall(r"(?m)^\.Op Fl -([\w-]+)", page)
    assert sorted(described) == sorted(word[2:] for word in options)
    assert sorted(used) == sorted(described)


# ---- which supervisor ---------------------------------------------------------


def test_control_socket_of_another_supervisor_is_refused() -> None:
    """The second one does not start, and the first one keeps its socket."""
    with started() as pool:
        words = ["--control", "control", "--bind", "unix:other", "--", "worker.py"]
        done = run(pool, "start", *words)
        assert done.returncode == 1
        assert "another process listens" in done.stderr
        assert not (pool.folder / "other").exists()
        assert states(pool) == ["idle"]


def test_control_socket_that_was_left_is_replaced() -> None:
    """By a supervisor that was killed."""
    with started() as pool:
        pool.process.kill()
        pool.process.wait()
        assert (pool.folder / "control").exists()
        wait_until(lambda: not pool.workers(), "no worker")
        words = ["--control", "control", "--bind", "unix:other", "--daemon"]
        words += ["--pid-file", "pid", "--", "worker.py"]
        assert run(pool, "start", *words).returncode == 0
        assert states(pool) == ["idle"]
        assert control(pool, "stop").returncode == 0


def test_control_socket_is_found_by_the_environment_and_the_file() -> None:
    """The environment goes before the file, and needs no option."""
    with Pool(config=CONFIG, source=SCRIPT) as pool:
        pool.write_config(CONFIG + "nonsense = [1]\n")
        by_file = run(pool, "status", "--config", "service.toml", "--json")
        path = str(pool.folder / "control")
        by_variable = run(None, "status", cwd=Path("/"), FCGI_APP_START_CONTROL=path)
        by_directory = run(pool, "status")
        pool.config.rename(pool.folder / "fcgi-app.toml")
        found = run(pool, "status")
        assert (by_file.returncode, by_variable.returncode) == (0, 0)
        assert by_directory.returncode == 2
        assert "control socket: '': not known" in by_directory.stderr
        assert found.returncode == 0


def test_nobody_there(tmp_path: Path) -> None:
    """One line that says so, and exit status 1."""
    done = run(None, "stop", "--control", "no-such-socket", cwd=tmp_path)
    path = tmp_path / "no-such-socket"
    assert (done.returncode, done.stderr) == (
        1,
        f"fcgi-app: error: {path}: no supervisor listens there\n",
    )


def test_silent_callers_hold_nobody_up() -> None:
    """More than there may be; the pool serves, reloads and stops as ever."""
    with started() as pool:
        callers = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        for caller in callers:
            caller.connect(str(pool.folder / "control"))
        before = pool.workers()
        assert int(fetch(pool).body) in before
        pool.send(signal.SIGHUP)
        pool.wait_for_other_workers(before)
        assert pool.stop() == 0
        for caller in callers:
            caller.close()


def test_workers_have_no_part_of_the_control_socket() -> None:
    """Neither the socket nor a caller's connection is inherited."""
    with started("--workers", "1") as pool:
        before = pool.workers()
        assert control(pool, "reload").returncode == 0
        (worker,) = pool.wait_for_other_workers(before)
        targets = [os.readlink(entry) for entry in Path(f"/proc/{worker}/fd").iterdir()]
        assert sum(target.startswith("socket:") for target in targets) == 1
