"""Wrong values for ``fcgi-app start``: each message says where, what, and what else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.launcher.config import flag_of
from fcgi_app.launcher.pool import PREFIX, PoolConfig, ServiceConfig

from .startconfig import loader, parse, parse_pool

# ---- bad input ----------------------------------------------------------------------

GOOD = 'bind = "@x"\ncommand = "prog"\n'

BAD_FILES = {
    "unknown key": (
        GOOD + "worker = 3",
        r"app.toml:3: worker: 3: no such key, did you mean workers\? \(there are bind, ",
    ),
    "hyphen": (GOOD + "stop-timeout = 3", r"did you mean stop_timeout\?"),
    "unknown key of a pool": (
        GOOD + "# job = 1\n\n[pool.a]\nworkers = 1\njob = [\n 1,\n]\n",
        r"app.toml:7: pool.a.job: \[1\]: no such key",
    ),
    "key of the supervisor in a pool": (
        GOOD + "[pool.a]\ndaemon = true",
        r"app.toml:4: pool.a.daemon: True: .*belongs to the top of the file",
    ),
    "text for a number": (
        GOOD + 'workers = "3"',
        r"app.toml:3: workers: '3': must be a whole number",
    ),
    "bool for a number": (GOOD + "workers = true", "True: must be a whole number"),
    "fraction": (GOOD + "workers = 1.5", "1.5: must be a whole number"),
    "number for a text": (GOOD + "user = 33", "app.toml:3: user: 33: must be a string"),
    "number for a mode": (
        GOOD + "umask = 0o22",
        'umask: 18: must be an octal number as a string, from "0" to "0777"',
    ),
    "mode out of range": (GOOD + 'umask = "1777"', "umask: '1777': must be an octal"),
    "number for a bool": (GOOD + "daemon = 1", "daemon: 1: must be true or false"),
    "no workers": (GOOD + "workers = 0", "app.toml:3: workers: 0: must be from 1 to"),
    "infinite time": (GOOD + "stop_timeout = inf", "inf: must be a number from 0 on"),
    "negative time": (GOOD + "max_lifetime = -1", "must be a number from 0 on"),
    "no idle time": (GOOD + "idle_timeout = 0", "must be a number greater than 0"),
    "time beyond any float": (
        GOOD + f"idle_timeout = 1{'0' * 400}",
        "must be a number of seconds",
    ),
    "jitter": (GOOD + "jitter = 1.5", "must be a number from 0 to 1"),
    "manager": (
        GOOD + 'manager = "auto"',
        "app.toml:3: manager: 'auto': must be one of static, dynamic, ondemand",
    ),
    "spare": (
        GOOD + 'workers = 2\nmanager = "dynamic"\n[pool.a]\nmin_spare = 3',
        "app.toml:6: pool.a.min_spare: 3: must not be more than workers, which is 2",
    ),
    "max_spare": (
        GOOD + 'workers = 2\nmanager = "dynamic"\nmax_spare = 3',
        "app.toml:5: max_spare: 3: must be from min_spare, which is 1, to workers",
    ),
    "address": (
        'bind = "nowhere"\ncommand = "x"',
        "app.toml:1: bind: 'nowhere': has no",
    ),
    "address twice": (
        'bind = ["@x", "unix:@x"]\ncommand = "x"',
        "app.toml:1: bind: .* 'unix:@x' is there twice",
    ),
    "no address": ('command = "x"\nbind = []', "bind: .*at least one address"),
    "address missing": ('command = "x"', "pool main: bind: '': an address is needed"),
    "command missing": ('bind = "@x"', "pool main: command: '': a program is needed"),
    "command empty": ('bind = "@x"\ncommand = ""', "there must be a program"),
    "command of numbers": (
        'bind = "@x"\ncommand = [1]',
        "must be an array of strings, or one string of words",
    ),
    "command with a quote": (
        'bind = "@x"\ncommand = "it\'s"',
        "cannot be split into words: No closing quotation",
    ),
    "mode without a file": (
        GOOD + 'socket_mode = "600"',
        "app.toml:3: socket_mode: '0600': no address of @x is a socket file",
    ),
    "owner": ('bind = "/x"\ncommand = "x"\nsocket_owner = "a:"', "must be USER, USER:"),
    "variable of a number": (GOOD + "env = { A = 1 }", "env: .* a table of strings"),
    "variable of no name": (GOOD + 'env = { "A=B" = "" }', "'A=B' is no NAME=VALUE"),
    "limit": (GOOD + "rlimits = { files = 3 }", "'files' is no limit; there are as, "),
    "limit of three": (GOOD + "rlimits = { core = [1, 2, 3] }", "must be a table of"),
    "negative limit": (GOOD + "rlimits = { core = -1 }", "must be a table of whole"),
    "high limit": (
        GOOD + f"rlimits = {{ core = {2**63} }}",
        "'core' must be from 0 to",
    ),
    "soft above hard": (
        GOOD + 'rlimits = { core = ["unlimited", 1] }',
        "'core' has a soft limit above its hard limit",
    ),
    "NUL in a path": (GOOD + 'chroot = "/a\\u0000"', "chroot: .*contains a NUL"),
    "pool is no table": (GOOD + "pool = 3", "app.toml:3: pool: 3: must be a table of"),
    "pool has no table": (GOOD + "[pool]\na = 3", "app.toml:4: pool.a: 3: must be a"),
    "name of a pool": (
        GOOD + '[pool."a b"]',
        "app.toml:3: pool.a b: 'a b': must be of",
    ),
    "same address": (
        'command = "x"\n[pool.a]\nbind = "@x"\n[pool.b]\nbind = "unix:@x"\n',
        "configuration: bind: 'unix:@x': the pools a and b have the same address",
    ),
    "no TOML": (
        "a = 1\nworkers = = 3\n",
        r"app.toml:2: 'workers = = 3': Invalid value",
    ),
    "open string": ('a = "', "app.toml"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str, tmp_path: Path) -> None:
    """The message has the file, the line, the key, the value and what is accepted."""
    toml, message = BAD_FILES[case]
    with pytest.raises(ConfigError, match=message) as caught:
        parse(tmp_path, toml)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are told with their line."""
    (tmp_path / "app.toml").write_bytes(b"a = 1\nuser = '\xff'\n")
    with pytest.raises(ConfigError, match=r"app.toml:2: b'\\xff': is not UTF-8"):
        loader(tmp_path, config="app.toml").parse()


def test_file_nested_too_deeply(tmp_path: Path) -> None:
    """It is refused like any other bad file."""
    with pytest.raises(ConfigError, match=r"app.toml"):
        parse(tmp_path, "a = " + "[" * 100_000)


def test_file_that_is_missing(tmp_path: Path) -> None:
    """The system's error has the name."""
    with pytest.raises(FileNotFoundError) as caught:
        loader(tmp_path, config="none.toml").parse()
    assert caught.value.filename == f"{tmp_path}/none.toml"


BAD_VARIABLES = {
    "WORKERS": ("three", "FCGI_APP_START_WORKERS: 'three': must be a whole number"),
    "WORKER": ("3", "'3': no such key, did you mean FCGI_APP_START_WORKERS\\?"),
    "workers": ("3", "FCGI_APP_START_workers: '3': no such key, did you mean FCGI_"),
    "FOO": ("3", r"FCGI_APP_START_FOO: '3': no such key \(there are FCGI_APP_START_"),
    "JITTER": ("nan", "must be a number from 0 to 1"),
    "BACKLOG": ("1_000", "must be a whole number"),
    "STOP_TIMEOUT": ("1e3", "must be a number of seconds"),
    "UMASK": ("8", "must be an octal number"),
    "DAEMON": ("maybe", "must be 1 or 0"),
    "ENV": ("A", "FCGI_APP_START_ENV: 'A': must be NAME=VALUE"),
    "RLIMITS": ("core=-1", "must be NAME=NUMBER, NAME=unlimited or NAME=SOFT:HARD"),
    "BIND": ("'@x", "cannot be split into words"),
}


@pytest.mark.parametrize("name", BAD_VARIABLES)
def test_bad_variable(name: str, tmp_path: Path) -> None:
    """The message has the variable, its value and what is accepted."""
    text, message = BAD_VARIABLES[name]
    with pytest.raises(ConfigError, match=message):
        parse_pool(tmp_path, "", {PREFIX + name: text})


def test_bad_web_concurrency(tmp_path: Path) -> None:
    """The message names the variable that was set."""
    with pytest.raises(ConfigError, match=r"^WEB_CONCURRENCY: 'auto': must be a whole"):
        parse_pool(tmp_path, "", {"WEB_CONCURRENCY": "auto"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"workers": "x"}, "^--workers: 'x': must be a whole number"),
        ({"workers": "9" * 5000}, "^--workers: .*: must be"),
        ({"rlimits": ("core",)}, "^--rlimit: 'core': must be NAME="),
        ({"rlimits": ("x=1", "core=0")}, "^--rlimit: 'x core': 'x' is no limit"),
        ({"env": ("A=secret", "B\0=1")}, "^--env: 'A B.*': 'B.*' is no NAME=VALUE"),
        ({"bind": ("@x", "@x")}, "^--bind: '@x @x': '@x' is there twice"),
        ({"bind": ("x",)}, "^--bind: 'x': has no port"),
        ({"min_spare": "1"}, "^--min-spare: 1: is only for the manager dynamic"),
        ({"idle_timeout": "1"}, "is only for the manager dynamic or ondemand"),
        ({"bind": ("unix:" + "a" * 100,)}, "^--bind: 'unix:/.*has a path of"),
    ],
)
def test_bad_flag(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match=message):
        parse_pool(tmp_path, **flags)


@pytest.mark.parametrize("key", ["bind", "command"])
def test_address_and_command_for_several_pools(key: str, tmp_path: Path) -> None:
    """One command line cannot say what is different in each pool."""
    toml = 'command = "x"\n[pool.a]\nbind = "@a"\n[pool.b]\nbind = "@b"\n'
    message = f"^{flag_of(key)}: '@x': the file has several pools, .*: a, b$"
    with pytest.raises(ConfigError, match=message):
        parse(tmp_path, toml, None, **{key: ("@x",)})
    with pytest.raises(ConfigError, match=f"^{PREFIX}{key.upper()}: '@x': the file"):
        parse(tmp_path, toml, {PREFIX + key.upper(): "@x"})


def test_free_ports_are_not_the_same_address(tmp_path: Path) -> None:
    """Port 0 is another one each time."""
    toml = 'command = "x"\n[pool.a]\nbind = [":0", ":0"]\n[pool.b]\nbind = ":0"\n'
    assert len(parse(tmp_path, toml).pools) == 2


@pytest.mark.parametrize(
    ("attribute", "value"), [("pid_file", "pid"), ("log_file", "log\0")]
)
def test_service_takes_absolute_paths(attribute: str, value: str) -> None:
    """Whoever makes the values by hand is told, too."""
    pool = PoolConfig(bind=("@x",), command=("/prog",))
    with pytest.raises(ConfigError, match=attribute):
        ServiceConfig(pools=(pool,), **{attribute: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [{}, {"status_listen": "unix:/run/ctl"}])
def test_control_socket_has_an_address_of_its_own(words: dict[str, str]) -> None:
    """Not that of a pool, nor that of the status service."""
    bind = "@x" if words else "unix:/run/ctl"
    pool = PoolConfig(name="site", bind=(bind,), command=("/prog",))
    owner = "status" if words else "site"
    with pytest.raises(ConfigError, match=f"^control: .*: the pool {owner} has"):
        ServiceConfig(pools=(pool,), control="/run/ctl", **words)  # type: ignore[arg-type]


def test_service_needs_pools_of_different_names() -> None:
    """No pool, and two of one name, are refused."""
    pool = PoolConfig(bind=("@x",), command=("/prog",))
    with pytest.raises(ConfigError, match="at least one"):
        ServiceConfig(pools=())
    with pytest.raises(ConfigError, match="two pools have this name"):
        ServiceConfig(pools=(pool, pool))
