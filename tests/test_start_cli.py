"""``fcgi-app start``: real processes, as a shell or an init script starts them."""

from __future__ import annotations

import json
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pytest

from fcgi_app.cli.start import start
from fcgi_app.client import request
from fcgi_app.launcher.keys import POOL_KEYS, SERVICE_KEYS

from .servers import wait_until
from .webserver import PACKAGE_PARENT

pytestmark = pytest.mark.slow  # nearly all of them start an interpreter

WORDS = [sys.executable, "-m", "fcgi_app", "start"]
TIMEOUT = 30.0
MANPAGES = Path(__file__).parent.parent / "manpages"

TELL = """
import json, os, resource, sys
from fcgi_app import accept
mask = os.umask(0)
os.umask(mask)
own = dict(os.environ)
while accept():
    print("Content-Type: application/json", end="\\r\\n\\r\\n")
    print(json.dumps({
        "pid": os.getpid(), "argv": sys.argv, "cwd": os.getcwd(), "umask": mask,
        "python": sys.executable, "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "env": own,
    }))
"""


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PACKAGE_PARENT, **extra}


def run(
    *words: str, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*WORDS, *words],
        cwd=cwd,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of a short name, for a socket's has room for 107 bytes, with a script.

    Anybody may enter it: workers may be somebody else.
    """
    path = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
    path.chmod(0o755)
    (path / "app.py").write_text(TELL)
    yield path
    shutil.rmtree(path)


def ask(address: str) -> dict[str, Any]:
    """What a worker tells of itself."""
    answer = request(address, {"REQUEST_METHOD": "GET"}, timeout=TIMEOUT)
    assert answer.status == 200
    facts: dict[str, Any] = json.loads(answer.body)
    return facts


class Running:
    """A started command, in the foreground."""

    def __init__(self, folder: Path, words: Sequence[str], environ: dict[str, str]):
        self.log_path = folder / "stderr"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*WORDS, *words],
                cwd=folder,
                env=environment(**environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for_log(self, text: str, times: int = 1) -> None:
        wait_until(
            lambda: self.log().count(text) >= times or self.process.poll() is not None,
            f"{text!r} in the log",
            seconds=TIMEOUT,
        )
        assert self.log().count(text) >= times, self.log()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)


@contextmanager
def running(folder: Path, *words: str, **environ: str) -> Iterator[Running]:
    """Start the command; it has to end well if the test does not end it."""
    started = Running(folder, words, environ)
    try:
        started.wait_for_log("listening on")
        yield started
        if started.process.poll() is None:
            assert started.stop() == 0, started.log()
    finally:
        started.process.kill()  # by which its workers end, too
        started.process.wait()


# ---- serving ------------------------------------------------------------------------


def test_script_without_execute_bit(folder: Path) -> None:
    """It is run by our interpreter, in our directory, and gets its arguments."""
    words = ["--bind", "unix:sock", "--", "app.py", "-x", "--workers", "a b"]
    with running(folder, *words) as service:
        facts = ask(f"unix:{folder}/sock")
        assert facts["argv"] == [f"{folder}/app.py", "-x", "--workers", "a b"]
        assert facts["python"] == sys.executable
        assert facts["cwd"] == str(folder)
        assert facts["pid"] != service.process.pid
        assert service.stop() == 0
    assert not (folder / "sock").exists()


def test_lines_of_the_start(folder: Path) -> None:
    """Version, address, and the pids of supervisor and workers are told."""
    with running(folder, "--bind", "unix:sock", "--workers", "2", "app.py") as service:
        log = service.log()
        pid = service.process.pid
    assert re.search(rf"fcgi-app \d\S* starts, pid {pid}\n", log)
    assert f"listening on unix:{folder}/sock, pid {pid}\n" in log
    assert len(re.findall(r"worker \d+ started\n", log)) == 2


def test_what_a_worker_gets(folder: Path) -> None:
    """Directory, mask, limits and variables are those that were asked for."""
    (folder / "work").mkdir()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = [
        *("--bind", "unix:sock", "--chdir", "work", "--umask", "0027"),
        *("--rlimit", "nofile=64:128", "--env", "A=x=y", "--env", "KEPT=changed"),
        *("--socket-mode", "0640", "--", "app.py"),
    ]
    with running(folder, *words, KEPT="here", FCGI_APP_START_WORKERS="1"):
        facts = ask(f"unix:{folder}/sock")
        mode = (folder / "sock").stat().st_mode & 0o777
    assert facts["cwd"] == f"{folder}/work"
    assert facts["umask"] == 0o027
    assert facts["nofile"] == [64, 128]
    assert hard == resource.RLIM_INFINITY or hard >= 128
    assert (facts["env"]["A"], facts["env"]["KEPT"]) == ("x=y", "changed")
    assert [n for n in facts["env"] if n.startswith("FCGI_APP_START_")] == []
    assert mode == 0o640


def test_worker_as_another_user(folder: Path) -> None:
    """With its groups and its home; who is not root can only become himself."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.getuid())
    words = ["--bind", "unix:sock", "--user", user.pw_name, "--socket-owner"]
    # That user may not be allowed to run our interpreter.
    with running(folder, *words, user.pw_name, "--", "sleep", "1000"):
        owner = (folder / "sock").stat().st_uid
        pids = worker_pids(folder)
        status = Path(f"/proc/{pids[0]}/status").read_text()
        variables = Path(f"/proc/{pids[0]}/environ").read_bytes().split(b"\0")
    assert owner == user.pw_uid
    fields = dict(re.findall(r"(?m)^(\w+):\s*(.*)$", status))
    assert fields["Uid"].split() == [str(user.pw_uid)] * 4
    assert fields["Gid"].split() == [str(user.pw_gid)] * 4
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    assert sorted(map(int, fields["Groups"].split())) == sorted(groups)
    assert f"HOME={user.pw_dir}".encode() in variables
    assert f"USER={user.pw_name}".encode() in variables


def worker_pids(folder: Path) -> list[int]:
    """The pids in the lines of the start."""
    log = (folder / "stderr").read_text()
    return [int(pid) for pid in re.findall(r"worker (\d+) started\n", log)]


def test_variables_of_the_environment(folder: Path) -> None:
    """All of it can be set without any option."""
    environ = {
        "FCGI_APP_START_BIND": "unix:one unix:two",
        "FCGI_APP_START_COMMAND": f"{folder}/app.py 'a b'",
        "FCGI_APP_START_STOP_TIMEOUT": "5",
        "WEB_CONCURRENCY": "2",
    }
    with running(folder, **environ) as service:
        for name in ("one", "two"):
            assert ask(f"unix:{folder}/{name}")["argv"][1:] == ["a b"]
        assert len(worker_pids(folder)) == 4
        service.wait_for_log("listening on", times=2)


def test_pools_of_a_file(folder: Path) -> None:
    """Each has its own command, environment and socket."""
    (folder / "fcgi-app.toml").write_text(
        'env = { WHO = "all" }\n'
        '[pool.one]\nbind = "unix:one"\ncommand = "./app.py"\n'
        '[pool.two]\nbind = "unix:two"\ncommand = ["./app.py", "2"]\nworkers = 2\n'
        'env = { WHO = "two" }\n'
    )
    with running(folder) as service:
        one, two = ask(f"unix:{folder}/one"), ask(f"unix:{folder}/two")
        assert (one["argv"][1:], one["env"]["WHO"]) == ([], "all")
        assert (two["argv"][1:], two["env"]["WHO"]) == (["2"], "two")
        assert service.log().count("pool two") >= 2


def test_reload_reads_the_file_again(folder: Path) -> None:
    """A changed file is obeyed, a wrong one is reported and changes nothing."""
    file = folder / "fcgi-app.toml"
    pool = 'bind = "unix:sock"\ncommand = "./app.py"\n'
    file.write_text(pool)
    with running(folder) as service:
        first = ask(f"unix:{folder}/sock")
        file.write_text(pool + "worker = 1\n")
        service.process.send_signal(signal.SIGHUP)
        service.wait_for_log("fcgi-app.toml:3: worker: 1: no such key")
        assert ask(f"unix:{folder}/sock")["pid"] == first["pid"]
        file.write_text(pool + 'env = { NEW = "1" }\n')
        service.process.send_signal(signal.SIGHUP)
        service.wait_for_log("reloaded")
        wait_until(lambda: "NEW" in ask(f"unix:{folder}/sock")["env"], "the new worker")


# ---- the daemon ---------------------------------------------------------------------


@contextmanager
def daemon(folder: Path, *words: str) -> Iterator[int]:
    """Start with ``--daemon``; gives the pid. It has to end at SIGTERM."""
    done = run(
        *("--daemon", "--pid-file", "pid", "--log-file", "log", *words), cwd=folder
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    pid = int((folder / "pid").read_text())
    try:
        yield pid
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not (folder / "pid").exists(), "the end", seconds=TIMEOUT)
    finally:
        if (folder / "pid").exists():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_daemon(folder: Path) -> None:
    """It serves when the command returns, without terminal, output in the log file."""
    with daemon(folder, "--bind", "unix:sock", "--", "app.py") as pid:
        facts = ask(f"unix:{folder}/sock")
        assert facts["cwd"] == str(folder)
        assert os.getsid(pid) == pid
        targets = [os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1, 2)]
        assert targets == ["/dev/null", f"{folder}/log", f"{folder}/log"]
        log = (folder / "log").read_text()
        assert f"listening on unix:{folder}/sock, pid {pid}\n" in log


def test_daemon_knows_its_relative_paths(folder: Path) -> None:
    """Reload and a new execution find file, script and socket where they were."""
    file = folder / "pools.toml"
    pool = 'bind = "unix:sock"\ncommand = "./app.py"\n'
    file.write_text(pool)
    log = folder / "log"
    with daemon(folder, "--config", "pools.toml") as pid:
        file.write_text(pool + 'env = { NEW = "1" }\n')
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: "reloaded" in log.read_text(), "reloaded", seconds=TIMEOUT)
        wait_until(lambda: "NEW" in ask(f"unix:{folder}/sock")["env"], "the new worker")
        os.kill(pid, signal.SIGUSR2)
        wait_until(
            lambda: "executed again" in log.read_text(), "executed", seconds=TIMEOUT
        )
        assert ask(f"unix:{folder}/sock")["env"]["NEW"] == "1"
        assert int((folder / "pid").read_text()) == pid
        os.kill(pid, signal.SIGHUP)
        wait_until(
            lambda: log.read_text().count("reloaded") == 2, "again", seconds=TIMEOUT
        )


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--bind", "unix:app.py", "app.py"], 1, "a file that is not a socket is in"),
        (["--bind", "unix:s", "/bin/sh", "-c", "echo gone >&2; exit 7"], 3, "\ngone\n"),
        (["--bind", "unix:s", "none"], 3, "command 'none': no such file"),
        (["--bind", "s", "app.py"], 2, "--bind: 's': has no port"),
    ],
)
def test_daemon_that_cannot_start(
    words: list[str], status: int, message: str, folder: Path
) -> None:
    """Who called it sees the error and the status, and nothing is left."""
    done = run("--daemon", "--pid-file", "pid", *words, cwd=folder)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert sorted(os.listdir(folder)) == ["app.py"]


def test_pid_file_of_a_living_process(folder: Path) -> None:
    """The second start is refused and names the first."""
    with daemon(folder, "--bind", "unix:sock", "--", "app.py") as pid:
        done = run("--bind", "unix:two", "--pid-file", "pid", "app.py", cwd=folder)
        assert done.returncode == 2
        assert f"{folder}/pid" in done.stderr
        assert str(pid) in done.stderr
        assert int((folder / "pid").read_text()) == pid
        assert not (folder / "two").exists()


# ---- wrong words --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "pool main: bind: '': an address is needed: --bind"),
        (["--bind", "@x"], 2, "pool main: command: '': a program is needed: COMMAND"),
        (["--bind", "@x", "--workers", "0", "true"], 2, "--workers: 0: must be from 1"),
        (["--bind", "@x", "--workers", "many", "true"], 2, "'many': must be a whole"),
        (["--bind", "@x", "--manager", "auto", "true"], 2, "static, dynamic, ondemand"),
        (["--bind", "@x", "--min-spare", "2", "true"], 2, "is only for the manager"),
        (
            ["--bind", "@x", "--rlimit", "core", "true"],
            2,
            "--rlimit: 'core': must be",
        ),
        (
            ["--bind", "@x", "--user", "no such", "true"],
            2,
            "--user: 'no such': there is",
        ),
        (["--bind", "@x", "--socket-mode", "600", "true"], 2, "is a socket file"),
        (["--bind", "@x", "--option", "true"], 2, "No such option"),
        (["--config", "none.toml"], 1, "none.toml: No such file or directory"),
        (["--config", "."], 1, "Is a directory"),
        (["--config", ""], 1, "Is a directory"),
        (["--bind", "@x", "--", "none"], 3, "and no such program in PATH"),
        (["--bind", "@x", "--", "/etc/passwd"], 3, "'/etc/passwd': not executable"),
        (["--bind", "unix:none/sock", "app.py"], 1, "No such file or directory"),
    ],
)
def test_wrong_words(words: list[str], status: int, message: str, folder: Path) -> None:
    """One line says which value is wrong; nothing is started."""
    done = run(*words, cwd=folder)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_variable(folder: Path) -> None:
    """The same for the environment."""
    done = run("--bind", "@x", "true", cwd=folder, FCGI_APP_START_WORKERS="-1")
    assert done.returncode == 2
    assert "FCGI_APP_START_WORKERS: -1: must be from 1 to 10000" in done.stderr


def test_port_that_is_taken(folder: Path) -> None:
    """The message has the address."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("--bind", address, "app.py", cwd=folder)
    assert done.returncode == 1
    assert f"fcgi-app: error: {address}: Address already in use\n" in done.stderr


def test_worker_that_ends_at_once(folder: Path) -> None:
    """Status 3, and the last lines that it has printed."""
    (folder / "app.py").write_text("import no_such_module\n")
    done = run("--bind", "unix:sock", "--workers", "2", "app.py", cwd=folder)
    assert done.returncode == 3
    error = done.stderr.partition("fcgi-app: error: ")[2]
    assert "pool main: worker " in error
    assert "No module named 'no_such_module'" in error
    assert not (folder / "sock").exists()


# ---- looking at the configuration ---------------------------------------------------


def test_check_config(folder: Path) -> None:
    """Good or bad, nothing is opened."""
    good = run("--bind", "unix:sock", "--check-config", "app.py", cwd=folder)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == "configuration is good: main\n"
    (folder / "x.toml").write_text('bind = "unix:sock"\nworkers = "2"\n')
    bad = run("--config", "x.toml", "--check-config", cwd=folder)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (
        f"fcgi-app: error: {folder}/x.toml:2: workers: '2': must be a whole number\n"
    )
    assert not (folder / "sock").exists()


def test_print_config(folder: Path) -> None:
    """What is shown is a file that means the same, wherever it lies."""
    words = ["--bind", "unix:sock", "--umask", "22", "--env", 'A="é\n', "--daemon"]
    shown = run(*words, "--print-config", "--", "app.py", "a b", cwd=folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f'command = ["{sys.executable}", "{folder}/app.py", "a b"]\n' in shown.stdout
    assert 'umask = "0022"\n' in shown.stdout
    (folder / "work").mkdir()
    (folder / "work" / "shown.toml").write_text(shown.stdout)
    again = run("--print-config", "--config", "work/shown.toml", cwd=folder)
    assert again.stdout == shown.stdout


# ---- the pages ----------------------------------------------------------------------


def option_names() -> list[str]:
    return sorted(
        name.removeprefix("--")
        for parameter in start.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    )


def test_options_in_man_page() -> None:
    """Each option has its entry in fcgi-app-start(1), and no other has."""
    page = (MANPAGES / "fcgi-app-start.1").read_text()
    entries = re.findall(r"(?m)^\.It (Fl -.*)$", page)
    found = [name for entry in entries for name in re.findall(r"Fl -([\w-]+)", entry)]
    assert sorted(found) == option_names()


def test_every_key_has_an_option() -> None:
    """Whatever a file can say, the command line can."""
    keys = {p.name for p in start.params}
    assert keys - {"config", "check_config", "print_config"} == {
        *POOL_KEYS,
        *SERVICE_KEYS,
    }


def test_keys_in_man_page() -> None:
    """Each key has its entry in fcgi-app.toml(5), and no other has."""
    page = (MANPAGES / "fcgi-app.toml.5").read_text()
    entries = re.findall(r"(?m)^\.It Cm (.*)$", page)
    found = [name for entry in entries for name in entry.split(" , ")]
    assert sorted(found) == sorted((*POOL_KEYS, *SERVICE_KEYS))


def test_example_of_the_man_page(folder: Path) -> None:
    """The file that fcgi-app.toml(5) shows is right, but for its users and paths."""
    page = (MANPAGES / "fcgi-app.toml.5").read_text()
    example = page.partition(".Bd -literal\n")[2].partition(".Ed\n")[0]
    me = pwd.getpwuid(os.geteuid()).pw_name
    for there, here in (
        ('"site"', f'"{me}"'),
        ('"www-data"', f'"{me}"'),
        ("/srv/site/app.py", f"{folder}/app.py"),
        ("/srv/site/reports.py", f"{folder}/app.py"),
    ):
        assert there in example
        example = example.replace(there, here)
    (folder / "fcgi-app.toml").write_text(example)
    done = run("--check-config", cwd=folder)
    assert (done.stdout, done.stderr) == ("configuration is good: site, reports\n", "")
