"""What ``fcgi-app start`` runs: the file, the environment and the command line."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.errors import ConfigError
from fcgi_app.launcher.config import format_config
from fcgi_app.launcher.keys import POOL_KEYS, SERVICE_KEYS
from fcgi_app.launcher.pool import MANAGERS, PREFIX, PoolConfig, Rlimit, ServiceConfig

from .startconfig import loader, parse, parse_pool

UNLIMITED = resource.RLIM_INFINITY


# ---- the same value from each source ------------------------------------------------

# key → TOML, text of the environment, value of the command line, what it means
SAMPLES: dict[str, tuple[str, str, str | bool | tuple[str, ...], object]] = {
    "bind": (
        '["@a", "localhost:9000"]',
        "@a localhost:9000",
        ("@a", "localhost:9000"),
        ("@a", "localhost:9000"),
    ),
    "command": (
        '["prog", "a b", "-c"]',
        "prog 'a b' -c",
        ("prog", "a b", "-c"),
        ("prog", "a b", "-c"),
    ),
    "manager": ('"ondemand"', "ondemand", "ondemand", "ondemand"),
    "workers": ("7", "7", "7", 7),
    "min_spare": ("2", "2", "2", 2),
    "max_spare": ("3", "3", "3", 3),
    "idle_timeout": ("2.5", "2.5", "2.5", 2.5),
    "stop_timeout": ("0", "0", "0", 0.0),
    "max_lifetime": ("3600", "3600", "3600", 3600.0),
    "max_requests": ("500", "500", "500", 500),
    "max_rss": ('"512M"', "512m", "536870912", 512 << 20),
    "jitter": ("0.25", "0.25", "0.25", 0.25),
    "request_timeout": ("30", "30", "30.0", 30.0),
    "slow_log": ("0.5", "0.5", "0.5", 0.5),
    "status_path": ('"/status"', "/status", "/status", "/status"),
    "ping_path": ('"/ping"', "/ping", "/ping", "/ping"),
    "access_log": ('"/var/log/x"', "/var/log/x", "/var/log/x", "/var/log/x"),
    "access_format": ('"json"', "json", "json", "json"),
    "backlog": ("16", "16", "16", 16),
    "socket_mode": ('"0660"', "660", "0o660", 0o660),
    "socket_owner": ('"www:web"', "www:web", "www:web", "www:web"),
    "user": ('"www"', "www", "www", "www"),
    "group": ('"web"', "web", "web", "web"),
    "chroot": ('"/jail"', "/jail", "/jail", "/jail"),
    "chdir": ('"/srv"', "/srv", "/srv", "/srv"),
    "umask": ('"0027"', "027", "27", 0o027),
    "env": (
        '{ A = "1", B = "x = y" }',
        "A=1 'B=x = y'",
        ("A=1", "B=x = y"),
        (("A", "1"), ("B", "x = y")),
    ),
    "rlimits": (
        '{ nofile = [64, 128], core = "unlimited", nproc = 9 }',
        "nofile=64:128 core=unlimited nproc=9",
        ("nofile=64:128", "core=unlimited", "nproc=9"),
        (
            Rlimit("nofile", 64, 128),
            Rlimit("core", UNLIMITED, UNLIMITED),
            Rlimit("nproc", 9, 9),
        ),
    ),
    "daemon": ("true", "yes", True, True),
    "pid_file": ('"/run/a.pid"', "/run/a.pid", "/run/a.pid", "/run/a.pid"),
    "log_file": ('"/var/log/a"', "/var/log/a", "/var/log/a", "/var/log/a"),
    "control": ('"/run/a.ctl"', "/run/a.ctl", "/run/a.ctl", "/run/a.ctl"),
    "status_listen": ('":9001"', ":9001", ":9001", ":9001"),
    "reload": ("true", "1", True, True),
    "touch_reload": ('"/run/touch"', "/run/touch", "/run/touch", "/run/touch"),
}

NEEDED: dict[str, tuple[str, dict[str, str]]] = {
    # What else must be said for the sample to be allowed.
    "min_spare": ("workers = 5", {"manager": "dynamic"}),
    "max_spare": ("workers = 5", {"manager": "dynamic"}),
    "idle_timeout": ("", {"manager": "ondemand"}),
    "socket_mode": ("", {}),
    "socket_owner": ("", {}),
}


def value_of(service: ServiceConfig, key: str) -> object:
    return getattr(service if key in SERVICE_KEYS else service.pools[0], key)


def test_samples_are_all_keys() -> None:
    """The table above has every key, and the keys are the attributes."""
    attributes = {field.name for field in fields(PoolConfig)} - {"name"}
    assert attributes == set(POOL_KEYS)
    assert {f.name for f in fields(ServiceConfig)} - {"pools"} == set(SERVICE_KEYS)
    assert set(SAMPLES) == {*POOL_KEYS, *SERVICE_KEYS}


@pytest.mark.parametrize("key", SAMPLES)
@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_key_from_each_source(key: str, source: str, tmp_path: Path) -> None:
    """Each source says the same value in its own form."""
    toml, text, flag, meant = SAMPLES[key]
    needed, flags = NEEDED.get(key, ("", {}))
    lines = [
        needed,
        "" if key == "bind" else 'bind = "/tmp/x.sock"',
        "" if key == "command" else 'command = "prog"',
        f"{key} = {toml}" if source == "file" else "",
    ]
    environ = {PREFIX + key.upper(): text} if source == "environment" else {}
    extra: dict[str, Any] = dict(flags)
    if source == "flag":
        extra[key] = flag
    service = parse(tmp_path, "\n".join(lines), environ, **extra)
    assert value_of(service, key) == meant


# ---- precedence ---------------------------------------------------------------------


def test_flag_before_environment_before_pool_before_top(tmp_path: Path) -> None:
    """Each source hides the next one; what none says has its default."""
    toml = (
        "workers = 2\nbacklog = 2\njitter = 0.2\n[pool.a]\nworkers = 3\nbacklog = 3\n"
    )
    environ = {"FCGI_APP_START_WORKERS": "4"}
    toml = 'bind = "@x"\ncommand = "prog"\n' + toml
    (pool,) = parse(tmp_path, toml, environ, workers="5").pools
    assert (pool.workers, pool.backlog, pool.jitter) == (5, 3, 0.2)
    (pool,) = parse(tmp_path, toml, environ).pools
    assert (pool.workers, pool.backlog, pool.jitter) == (4, 3, 0.2)
    (pool,) = parse(tmp_path, toml).pools
    assert (pool.workers, pool.backlog, pool.jitter) == (3, 3, 0.2)
    assert (pool.name, pool.stop_timeout) == ("a", 30.0)


def test_pairs_of_several_sources_are_joined(tmp_path: Path) -> None:
    """A variable of a nearer source replaces the one of its name only."""
    toml = 'env = { A = "top", B = "top", C = "top" }\n[pool.p.env]\nB = "pool"\n'
    environ = {"FCGI_APP_START_ENV": "C=environment D=environment"}
    pool = parse_pool(tmp_path, toml, environ, env=("D=flag", "E=1", "E=2"))
    assert dict(pool.env) == {
        "A": "top",
        "B": "pool",
        "C": "environment",
        "D": "flag",
        "E": "2",
    }


def test_limits_of_several_sources_are_joined(tmp_path: Path) -> None:
    """The same for limits, each once."""
    toml = "rlimits = { nofile = 10, core = 0 }"
    pool = parse_pool(tmp_path, toml, rlimits=("nofile=20", "nofile=30:40"))
    assert pool.rlimits == (Rlimit("nofile", 30, 40), Rlimit("core", 0, 0))


def test_web_concurrency_is_the_number_of_workers(tmp_path: Path) -> None:
    """It stands for our own variable, which goes before it; empty is not there."""
    toml = "workers = 2"
    assert parse_pool(tmp_path, toml, {"WEB_CONCURRENCY": "6"}).workers == 6
    assert parse_pool(tmp_path, toml, {"WEB_CONCURRENCY": ""}).workers == 2
    both = {"WEB_CONCURRENCY": "6", "FCGI_APP_START_WORKERS": "7"}
    assert parse_pool(tmp_path, toml, both).workers == 7
    assert parse_pool(tmp_path, toml, both, workers="8").workers == 8


def test_empty_variable_is_not_there(tmp_path: Path) -> None:
    """Many tools cannot unset a variable."""
    assert parse_pool(tmp_path, 'user = "www"', {PREFIX + "USER": ""}).user == "www"


def test_false_on_the_command_line_beats_the_file(tmp_path: Path) -> None:
    """``--no-daemon`` is an answer, too."""
    toml = 'bind = "@x"\ncommand = "prog"\ndaemon = true\n'
    assert parse(tmp_path, toml).daemon
    assert not parse(tmp_path, toml, daemon=False).daemon
    assert not parse(tmp_path, toml, {PREFIX + "DAEMON": "off"}).daemon


def test_fraction_without_a_digit_before_the_point(tmp_path: Path) -> None:
    """It is how many people write it; TOML alone wants the zero."""
    assert parse_pool(tmp_path, jitter=".25").jitter == 0.25
    with pytest.raises(ConfigError, match=r"^--jitter: '\.': must be a number"):
        parse_pool(tmp_path, jitter=".")


def test_max_spare_follows_min_spare(tmp_path: Path) -> None:
    """Who says only how many always run need not say it twice."""
    pool = parse_pool(tmp_path, 'manager = "dynamic"\nworkers = 9\nmin_spare = 4')
    assert (pool.min_spare, pool.max_spare) == (4, 4)


# ---- files --------------------------------------------------------------------------


def test_several_pools(tmp_path: Path) -> None:
    """Each table is a pool; the top of the file is for all of them."""
    toml = (
        'workers = 3\npid_file = "/run/a.pid"\n'
        '[pool.site]\nbind = "/run/site.sock"\ncommand = "site"\n'
        '[pool."a.b-c_1"]\nbind = [":9000", "[::1]:9001"]\ncommand = "api -v"\nworkers = 1\n'
    )
    service = parse(tmp_path, toml)
    assert service.pid_file == "/run/a.pid"
    assert [(p.name, p.workers, p.command) for p in service.pools] == [
        ("site", 3, ("site",)),
        ("a.b-c_1", 1, ("api", "-v")),
    ]


def test_pyproject_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Of a pyproject.toml only ``[tool.fcgi-app]`` counts."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[tool.fcgi-app]\nbind = "@x"\ncommand = "prog"\n'
        "[tool.fcgi-app.pool.one]\nworkers = 2\n"
    )
    (pool,) = loader(tmp_path, config="pyproject.toml").parse().pools
    assert (pool.name, pool.bind, pool.workers) == ("one", ("@x",), 2)


def test_pyproject_without_our_table(tmp_path: Path) -> None:
    """Who names the file wants something of it."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(
        ConfigError, match=r"'\[tool.fcgi-app\]': there is no such table"
    ):
        loader(tmp_path, config="pyproject.toml").parse()


def test_file_of_the_current_directory(tmp_path: Path) -> None:
    """Without a command, fcgi-app.toml is read, or else pyproject.toml."""
    with pytest.raises(ConfigError, match=r"pool main: bind: '': an address is needed"):
        loader(tmp_path).parse()
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.fcgi-app]\nbind = "@p"\ncommand = "project"\n')
    assert loader(tmp_path).parse().pools[0].command == ("project",)
    (tmp_path / "fcgi-app.toml").write_text('bind = "@o"\ncommand = "own"\n')
    assert loader(tmp_path).parse().pools[0].command == ("own",)
    environ = {"FCGI_APP_START_CONFIG": "pyproject.toml"}
    assert loader(tmp_path, environ).parse().pools[0].command == ("project",)
    named = loader(tmp_path, environ, config="fcgi-app.toml")
    assert named.parse().pools[0].command == ("own",)


def test_file_of_the_current_directory_has_no_say_in_a_given_command(
    tmp_path: Path,
) -> None:
    """Else whoever may write to the directory could set LD_PRELOAD."""
    (tmp_path / "fcgi-app.toml").write_text('env = { LD_PRELOAD = "evil.so" }\n')
    flags: dict[str, Any] = {"bind": ("@x",), "command": ("prog",)}
    assert loader(tmp_path, **flags).parse().pools[0].env == ()
    environ = {PREFIX + "COMMAND": "prog", PREFIX + "BIND": "@x"}
    assert loader(tmp_path, environ).parse().pools[0].env == ()


def test_file_is_read_again_at_each_load(tmp_path: Path) -> None:
    """A reload sees what has changed."""
    source = loader(tmp_path, config="app.toml")
    for number in (1, 2):
        text = f'bind = "@x"\ncommand = "prog"\nworkers = {number}'
        (tmp_path / "app.toml").write_text(text)
        assert source.parse().pools[0].workers == number


def test_paths_are_relative_to_who_says_them(tmp_path: Path) -> None:
    """Those of a file to its directory, those of a command line to the current one."""
    etc, here = tmp_path / "etc", tmp_path / "here"
    etc.mkdir()
    here.mkdir()
    (etc / "app.toml").write_text(
        'bind = "unix:a.sock"\ncommand = "prog"\nlog_file = "log"\nchdir = "work"\n'
    )
    source = loader(here, config="../etc/app.toml", pid_file="pid")
    service = source.parse()
    folder = os.fspath(here / ".." / "etc")
    assert service.pools[0].bind == (f"unix:{folder}/a.sock",)
    assert service.log_file == f"{folder}/log"
    assert service.pools[0].chdir == f"{folder}/work"
    assert service.pid_file == f"{here}/pid"


def test_working_directory(tmp_path: Path) -> None:
    """It is the current one; with a root it is /, and what is said is inside it."""
    assert parse_pool(tmp_path).chdir == os.fspath(tmp_path)
    assert parse_pool(tmp_path, chdir="sub").chdir == f"{tmp_path}/sub"
    assert parse_pool(tmp_path, chroot="/jail").chdir == "/"
    assert parse_pool(tmp_path, 'chdir = "sub"', chroot="/jail").chdir == "/sub"


# ---- showing ------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
names = st.text("abcXYZ019_-.", min_size=1)
paths = words.map(lambda text: "/" + text)
limits = st.one_of(st.just(UNLIMITED), st.integers(0, 2**63 - 1))


def at_most_hard(soft: int, hard: int) -> tuple[int, int]:
    if UNLIMITED in (soft, hard):
        return (min(soft, hard) if soft != UNLIMITED else hard, UNLIMITED)
    return min(soft, hard), max(soft, hard)


@st.composite
def pools(draw: Callable[[st.SearchStrategy[Any]], Any], name: str = "p") -> PoolConfig:
    manager = draw(st.sampled_from(MANAGERS))
    spare: dict[str, Any] = {}
    if manager == "dynamic":
        low = draw(st.integers(1, 5))
        spare = {"min_spare": low, "max_spare": draw(st.integers(low, 9))}
    if manager != "static":
        spare["idle_timeout"] = draw(st.floats(0.001, 1e18))
    variables = draw(
        st.dictionaries(words.filter(lambda n: n and "=" not in n), words, max_size=3)
    )
    numbers = draw(
        st.dictionaries(
            st.sampled_from(["core", "nofile", "cpu"]), st.tuples(limits, limits)
        )
    )
    return PoolConfig(
        name=name,
        bind=(f"unix:/run/{name}.sock", "[::1]:0"),
        command=("/prog", *draw(st.lists(words, max_size=3))),
        manager=manager,
        workers=draw(st.integers(9, 10_000)),
        **spare,
        stop_timeout=draw(st.floats(0, 1e18)),
        max_lifetime=draw(st.floats(0, 1e18)),
        jitter=draw(st.floats(0, 1)),
        backlog=draw(st.integers(1, 2**31 - 1)),
        socket_mode=draw(st.none() | st.integers(0, 0o777)),
        socket_owner=draw(st.none() | st.just("a:b")),
        user=draw(st.none() | words.filter(bool)),
        group=draw(st.none() | words.filter(bool)),
        chroot=draw(st.none() | paths),
        chdir=draw(paths),
        umask=draw(st.none() | st.integers(0, 0o777)),
        env=tuple(variables.items()),
        rlimits=tuple(Rlimit(n, *at_most_hard(*pair)) for n, pair in numbers.items()),
    )


@given(
    names.flatmap(lambda name: pools(name=name)),
    st.booleans(),
    st.none() | paths,
    st.none() | paths,
)
def test_what_is_shown_can_be_read(
    tmp_path_factory: pytest.TempPathFactory,
    pool: PoolConfig,
    daemon: bool,
    pid_file: str | None,
    log_file: str | None,
) -> None:
    """The shown configuration is a file that makes the same one."""
    service = ServiceConfig(
        pools=(pool,), daemon=daemon, pid_file=pid_file, log_file=log_file
    )
    path = tmp_path_factory.getbasetemp() / "shown.toml"
    path.write_bytes(format_config(service).encode())
    assert loader(path.parent, config=os.fspath(path)).parse() == service


def test_what_toml_cannot_say(tmp_path: Path) -> None:
    """A path that is not UTF-8 runs, and cannot be shown."""
    pool = parse_pool(tmp_path, command=("prog", "\udcff"))
    with pytest.raises(ConfigError, match=r"^command: .*has bytes that are not UTF-8"):
        format_config(ServiceConfig(pools=(pool,)))
