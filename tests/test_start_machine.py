"""What ``fcgi-app start`` looks up: programs, users, directories, variables."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.errors import AppLoadError, ConfigError
from fcgi_app.launcher.command import find_pool_command
from fcgi_app.launcher.identity import (
    UNCHANGED,
    find_identity,
    find_owner,
    worker_environment,
)
from fcgi_app.launcher.pool import PREFIX, PoolConfig
from fcgi_app.settings import Settings

from .startconfig import loader

ME = pwd.getpwuid(os.geteuid())
MY_GROUP = grp.getgrgid(ME.pw_gid)


# ---- what this machine has ----------------------------------------------------------


def test_load_finds_the_program(tmp_path: Path) -> None:
    """It is searched in the PATH of the pool, or else of the launcher."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prog").write_text("#!/bin/sh\n")
        (tmp_path / folder / "prog").chmod(0o755)
    flags: dict[str, Any] = {"bind": ("@x",), "command": ("prog", "-v")}
    environ = {"PATH": f"{tmp_path}/one"}
    (pool,) = loader(tmp_path, environ, **flags).load().pools
    assert pool.command == (f"{tmp_path}/one/prog", "-v")
    flags["env"] = (f"PATH=relative:{tmp_path}/two",)
    (pool,) = loader(tmp_path, environ, **flags).load().pools
    assert pool.command == (f"{tmp_path}/two/prog", "-v")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('user = "no such user"', "app.toml:3: user: 'no such user': there is no such"),
        ('user = "4294967295"', "user: '4294967295': there is no such user"),
        ('user = "4242424242"', "'4242424242': has no login group, so a group must be"),
        ('group = "no such group"', "app.toml:3: group: .*there is no such group"),
        ('chroot = "/none"', "app.toml:3: chroot: '/none': there is no such directory"),
        ('chdir = "none"', "app.toml:3: chdir: .*none': there is no such directory"),
        (
            'chroot = "/etc"\nchdir = "none"',
            "'/none': there is no such directory in /etc",
        ),
    ],
)
def test_load_finds_what_is_missing(toml: str, message: str, tmp_path: Path) -> None:
    """Users, groups and directories are looked up before anything starts."""
    (tmp_path / "app.toml").write_text('bind = "@x"\ncommand = "/bin/sh"\n' + toml)
    with pytest.raises(ConfigError, match=message):
        loader(tmp_path, config="app.toml").load()


def test_load_looks_the_owner_of_the_socket_up(tmp_path: Path) -> None:
    """So a socket is not opened in vain."""
    flags: dict[str, Any] = {"bind": ("/x",), "command": ("/bin/sh",)}
    with pytest.raises(ConfigError, match=r"^--socket-owner: 'none': there is no such"):
        loader(tmp_path, socket_owner="none", **flags).load()


def find(command: str, directory: Path, path: str = "/bin", **more: Any) -> list[str]:
    words = command.split()
    found = find_pool_command(words, directory=os.fspath(directory), path=path, **more)
    return list(found)


def script(path: Path, first_line: str = "", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(first_line + "\n")
    path.chmod(mode)
    return path


def test_python_script_needs_no_execute_bit(tmp_path: Path) -> None:
    """This interpreter runs it, with or without a slash in its name."""
    path = script(tmp_path / "app.py")
    ours = [sys.executable, os.fspath(path)]
    assert find("app.py -v", tmp_path) == [*ours, "-v"]
    assert find("./app.py", tmp_path) == ours
    assert find(f"{path}", Path("/")) == ours
    path.chmod(0o755)  # it has no #! line, so the system cannot run it
    assert find("app.py", tmp_path) == ours


def test_script_is_python_by_its_first_line(tmp_path: Path) -> None:
    """A name without .py is good enough then."""
    path = script(tmp_path / "app", "#!/usr/bin/env python3")
    assert find("./app", tmp_path) == [sys.executable, os.fspath(path)]


def test_executable_script_chooses_its_interpreter(tmp_path: Path) -> None:
    """The ``#!`` line may name another environment than ours."""
    path = script(tmp_path / "app.py", "#!/other/python3", 0o755)
    assert find("app.py", tmp_path) == [os.fspath(path)]


def test_path_goes_before_the_directory(tmp_path: Path) -> None:
    """A file that lies about takes the place of no program."""
    script(tmp_path / "sh", "#!/bin/evil", 0o755)
    assert find("sh", tmp_path) == ["/bin/sh"]
    assert find("sh", tmp_path, path=".:") == [f"{tmp_path}/sh"]


def test_program_inside_a_root(tmp_path: Path) -> None:
    """All names are those that the worker will see."""
    root = tmp_path / "root"
    script(root / "bin" / "prog", "#!/bin/sh", 0o755)
    script(root / "srv" / "app.py")
    jail = {"chroot": os.fspath(root)}
    assert find("prog", Path("/srv"), **jail) == ["/bin/prog"]
    with pytest.raises(AppLoadError, match=f"there is no '{sys.executable}' in {root}"):
        find("app.py", Path("/srv"), **jail)
    script(root / sys.executable.lstrip("/"), "", 0o755)
    assert find("app.py", Path("/srv"), **jail) == [sys.executable, "/srv/app.py"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("none", "command 'none': no such file '.*/none', and no such program in PATH"),
        ("./none", "command './none': no such file '.*/none'$"),
        ("./folder", "folder': is not a file"),
        ("./pipe", "pipe': is not a file"),
        ("./text", "text': not executable"),
    ],
)
def test_program_that_cannot_run(command: str, message: str, tmp_path: Path) -> None:
    """The message has the file that was looked for."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    script(tmp_path / "text")
    with pytest.raises(AppLoadError, match=message):
        find(command, tmp_path)


# ---- users --------------------------------------------------------------------------


def test_identity_by_name_and_number() -> None:
    """Both mean the same user, with the groups of the login."""
    identity = find_identity(ME.pw_name, None)
    assert identity == find_identity(str(ME.pw_uid), None)
    assert identity is not None
    assert (identity.uid, identity.gid) == (ME.pw_uid, ME.pw_gid)
    assert identity.groups is not None
    assert ME.pw_gid in identity.groups


def test_identity_of_a_number_without_a_name() -> None:
    """With a group it needs no entry anywhere, and it has no other groups."""
    identity = find_identity("4242424242", "4242424241")
    assert identity is not None
    assert (identity.uid, identity.gid) == (4242424242, 4242424241)
    assert identity.groups == (4242424241,)


def test_identity_of_a_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root gives its other groups up; nobody else can."""
    for euid, groups in ((0, (MY_GROUP.gr_gid,)), (1000, None)):
        monkeypatch.setattr(os, "geteuid", lambda uid=euid: uid)
        identity = find_identity(None, MY_GROUP.gr_name)
        assert identity is not None
        assert (identity.uid, identity.gid) == (None, MY_GROUP.gr_gid)
        assert identity.groups == groups


def test_identity_that_stays() -> None:
    """Nothing asked for, nothing to change."""
    assert find_identity(None, None) is None


@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        (None, (UNCHANGED, UNCHANGED)),
        (ME.pw_name, (ME.pw_uid, UNCHANGED)),
        (f"{ME.pw_name}:{MY_GROUP.gr_name}", (ME.pw_uid, MY_GROUP.gr_gid)),
        (":4242424242", (UNCHANGED, 4242424242)),
        ("4242424242", (4242424242, UNCHANGED)),
    ],
)
def test_owner(owner: str | None, ids: tuple[int, int]) -> None:
    """Names and numbers become what chown(2) takes."""
    assert find_owner(owner) == ids


def test_environment_of_the_workers() -> None:
    """Nothing of the supervisor's own gets there, and the pool has the last word."""
    environ = {
        "KEPT": "1",
        "SET": "outside",
        "HOME": "/elsewhere",
        "FCGI_APP_STOP_TIMEOUT": "3",
        "FCGI_APP_START_WORKERS": "3",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "a",
    }
    pool = PoolConfig(bind=("@x",), command=("/x",), env=(("SET", "pool"),))
    kept = {"KEPT": "1", "SET": "pool", "FCGI_APP_STOP_TIMEOUT": "3"}
    assert worker_environment(pool, environ) == {**kept, "HOME": "/elsewhere"}
    pool = PoolConfig(
        bind=("@x",), command=("/x",), env=(("SET", "pool"),), user=ME.pw_name
    )
    assert worker_environment(pool, environ) == {
        **kept,
        "HOME": ME.pw_dir,
        "USER": ME.pw_name,
        "LOGNAME": ME.pw_name,
    }


def test_scripts_do_not_mind_our_variables(caplog: pytest.LogCaptureFixture) -> None:
    """A script that is started by hand in the same shell logs nothing about them."""
    assert Settings.from_environ({PREFIX + "WORKERS": "3"}) == Settings()
    assert caplog.records == []
