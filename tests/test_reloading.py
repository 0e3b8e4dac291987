"""Reloads that files ask for: which files, which changes, and what it costs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.launcher.filewatch import Watcher
from fcgi_app.launcher.pool import PoolConfig
from fcgi_app.launcher.reloading import (
    LOOK_SECONDS,
    SourceReload,
    TouchReload,
    sources_of,
)

from .attendants import Unasked
from .pools import Pool


class Reloads(Unasked):
    """A supervision that counts what it is asked for."""

    def __init__(self) -> None:
        self.number = 0

    def reload(self) -> None:
        self.number += 1


def reloads_of(
    attendant: TouchReload | SourceReload, *changes: Callable[[], object]
) -> list[int]:
    """How many reloads each change has caused, a few looks later."""
    supervision = Reloads()
    attendant.open(supervision)
    found = []
    for change in changes:
        before = supervision.number
        change()
        for _ in range(3):
            attendant.turn(attendant.due())
        found.append(supervision.number - before)
    attendant.close()
    assert attendant.due() == inf
    return found


def touch(path: Path) -> Callable[[], None]:
    """What touch(1) does, at a time of its own even on a coarse file system."""

    def change() -> None:
        path.touch()
        stamp = path.stat().st_mtime_ns + 10**9
        os.utime(path, ns=(stamp, stamp))

    return change


def nothing() -> None:
    """No change."""


# ---- one file --------------------------------------------------------------------


def test_touch_of_a_file(tmp_path: Path) -> None:
    """Each touch is one reload; a look without a touch is none."""
    path = tmp_path / "reload"
    path.touch()
    changes = (nothing, touch(path), nothing, touch(path))
    assert reloads_of(TouchReload(str(path)), *changes) == [0, 1, 0, 1]


def test_file_that_comes_and_goes(tmp_path: Path) -> None:
    """That it is made is a touch, that it goes is none."""
    path = tmp_path / "reload"
    changes = (nothing, path.touch, path.unlink, nothing, path.touch)
    assert reloads_of(TouchReload(str(path)), *changes) == [0, 1, 0, 0, 1]


def test_file_that_is_replaced(tmp_path: Path) -> None:
    """A file with the same time and size is another one all the same."""
    path, other = tmp_path / "reload", tmp_path / "other"
    path.touch()
    other.touch()
    times = (path.stat().st_mtime_ns, path.stat().st_mtime_ns)
    os.utime(other, ns=times)
    changes = (lambda: other.replace(path),)
    assert reloads_of(TouchReload(str(path)), *changes) == [1]


def test_looks_are_a_second_apart(tmp_path: Path) -> None:
    """Nothing is looked at before it is due, and never more often than said."""
    path = tmp_path / "reload"
    touch_reload = TouchReload(str(path))
    supervision = Reloads()
    before = time.monotonic()
    touch_reload.open(supervision)
    due = touch_reload.due()
    assert due >= before + LOOK_SECONDS
    path.touch()
    touch_reload.turn(due - 0.01)
    assert supervision.number == 0
    touch_reload.turn(due)
    assert supervision.number == 1
    assert touch_reload.due() >= due + LOOK_SECONDS
    assert touch_reload.watched() == {}
    touch_reload.note("stopping", "")
    assert touch_reload.due() == inf
    touch_reload.close()


# ---- sources ---------------------------------------------------------------------


def pool(folder: Path, *command: str, **settings: Any) -> PoolConfig:
    """A pool that works in a directory."""
    chdir = settings.pop("chdir", str(folder))
    bind = ("@x",)
    return PoolConfig(name="p", command=command, bind=bind, chdir=chdir, **settings)


def test_sources_of_a_script(tmp_path: Path) -> None:
    """It is the script, and the Python code of its directory."""
    script = tmp_path / "code" / "app.py"
    script.parent.mkdir()
    script.touch()
    expected = ([str(script)], [str(script.parent)])
    assert sources_of([pool(tmp_path, str(script))]) == expected
    words = [sys.executable, "code/app.py", "--option", "code", "missing.py"]
    files, trees = sources_of([pool(tmp_path, *words)])
    assert files == [sys.executable, str(script)]
    assert trees == [str(script.parent)]


def test_sources_of_a_script_without_a_suffix(tmp_path: Path) -> None:
    """The first line says that it is Python."""
    script = tmp_path / "app"
    script.write_text("#!/usr/bin/env python3\n")
    assert sources_of([pool(Path("/"), str(script))]) == (
        [str(script)],
        [str(tmp_path)],
    )


def test_sources_of_a_compiled_program(tmp_path: Path) -> None:
    """It is the program alone, and files among its arguments."""
    program = tmp_path / "app"
    program.write_bytes(b"\x7fELF")
    (tmp_path / "settings").touch()
    found = sources_of([pool(tmp_path, str(program), "settings")])
    assert found == ([str(program), str(tmp_path / "settings")], [])


def test_sources_of_a_module(tmp_path: Path) -> None:
    """Python's -m loads from the working directory; that of another program does not."""
    assert sources_of([pool(tmp_path, sys.executable, "-m", "app")])[1] == [
        str(tmp_path)
    ]
    assert sources_of([pool(tmp_path, "/bin/cat", "-m", "app")])[1] == []


def test_sources_in_a_root_of_their_own(tmp_path: Path) -> None:
    """With chroot, paths begin there."""
    (tmp_path / "srv").mkdir()
    script = tmp_path / "srv" / "app.py"
    script.touch()
    there = {"chroot": str(tmp_path), "chdir": "/srv"}
    expected = ([str(script)], [str(script.parent)])
    assert sources_of([pool(tmp_path, "/srv/app.py", **there)]) == expected
    assert sources_of([pool(tmp_path, "app.py", **there)]) == expected


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text("1\n")
    return path


def source_reload(script: Path) -> SourceReload:
    return SourceReload(lambda: [pool(script.parent, str(script))])


def test_change_of_a_source(script: Path) -> None:
    """The script counts, and so does a module that is written, made or removed."""
    module = script.parent / "package" / "module.py"
    module.parent.mkdir()
    (script.parent / "notes.txt").touch()
    changes = (
        nothing,
        touch(script),
        module.touch,
        touch(module),
        module.unlink,
        touch(script.parent / "notes.txt"),
    )
    assert reloads_of(source_reload(script), *changes) == [0, 1, 1, 1, 1, 0]


def test_source_that_is_being_written(script: Path) -> None:
    """A change counts when it is over; until then looks are more frequent."""
    supervision = Reloads()
    watch = source_reload(script)
    watch.open(supervision)
    for text in ("22", "333", "4444"):
        script.write_text(text)
        now = watch.due()
        watch.turn(now)
        assert supervision.number == 0
        assert watch.due() < now + LOOK_SECONDS
    watch.turn(watch.due())
    assert supervision.number == 1
    watch.close()


def test_other_sources_after_a_reload(script: Path) -> None:
    """After a reload the files of what runs now are looked at."""
    other = script.parent / "other" / "other.py"
    other.parent.mkdir()
    other.touch()
    far = script.parent.parent / f"{script.parent.name}-far" / "far.py"
    far.parent.mkdir()
    far.touch()
    running = [str(script)]
    watch = SourceReload(lambda: [pool(script.parent, *running)])

    def run_the_far_one() -> None:
        running[:] = [str(far)]
        watch.note("reloaded", "")

    changes = (touch(far), run_the_far_one, touch(far), touch(script))
    assert reloads_of(watch, *changes) == [0, 0, 1, 0]


def test_change_during_a_reload(script: Path) -> None:
    """It is not lost: the workers that have just started may be older."""
    watch = source_reload(script)

    def change_and_be_reloaded() -> None:
        touch(script)()
        watch.note("reloaded", "")

    assert reloads_of(watch, change_and_be_reloaded) == [1]


def test_reload_that_failed_keeps_the_sources(script: Path) -> None:
    """The next change is the next try."""
    watch = source_reload(script)

    def fail() -> None:
        watch.note("reloading", "")
        watch.note("reload failed", "")

    assert reloads_of(watch, touch(script), fail, touch(script)) == [1, 0, 1]


def test_configuration_that_cannot_be_read(script: Path, caplog: Any) -> None:
    """It is a warning; nothing is watched until the next reload, and nothing raised."""
    good = True

    def pools() -> list[PoolConfig]:
        if not good:
            raise ConfigError("x", "y", "is wrong")
        return [pool(script.parent, str(script))]

    watch = SourceReload(pools)

    def break_it() -> None:
        nonlocal good
        good = False
        watch.note("reloaded", "")

    assert reloads_of(watch, touch(script), break_it, touch(script)) == [1, 0, 0]
    assert "is wrong" in caplog.text


def test_tree_within_a_tree_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scripts of one project cost no more than one."""
    inner = tmp_path / "inner"
    inner.mkdir()
    read: list[str] = []
    scandir = os.scandir

    def scan(path: str) -> Any:
        read.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    Watcher([], [str(tmp_path), str(inner)])
    assert sorted(read) == [str(tmp_path), str(inner)]


def test_script_in_a_virtual_environment(tmp_path: Path) -> None:
    """Those on the way are left out, but not the directory that was asked for."""
    for folder in (tmp_path, tmp_path / "venv"):
        folder.mkdir(exist_ok=True)
        (folder / "pyvenv.cfg").touch()
        (folder / "code.py").touch()
    watch = source_reload(tmp_path / "app.py")
    (tmp_path / "app.py").touch()
    changes = (touch(tmp_path / "code.py"), touch(tmp_path / "venv" / "code.py"))
    assert reloads_of(watch, *changes) == [1, 0]


def test_big_tree_takes_its_time(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking takes no more than a fiftieth of the time."""
    now = [100.0]
    monkeypatch.setattr("fcgi_app.launcher.reloading.monotonic", lambda: now[0])
    watch = source_reload(script)
    watch.open(Reloads())
    due = watch.due()
    now[0] = due + 0.2  # the look has taken so long
    watch.turn(due)
    assert watch.due() == pytest.approx(due + 10)
    watch.close()


# ---- a service -------------------------------------------------------------------


@pytest.mark.slow
def test_service_reloads_when_a_file_is_touched(tmp_path: Path) -> None:
    """New workers take over; the file is named in the log."""
    path = tmp_path / "reload"
    with Pool("--workers", "2", "--touch-reload", str(path)) as service:
        before = service.wait_for_workers(2)
        path.touch()
        after = service.wait_for_other_workers(before)
        assert f"{path} was touched: reloading" in service.log()
        assert service.ask() in after


@pytest.mark.slow
def test_service_reloads_when_a_source_changes() -> None:
    """A script that cannot start leaves the workers as they are; mended, it takes over."""
    with Pool("--reload") as service:
        good = service.script.read_text()
        before = service.wait_for_workers(1)
        service.script.write_text("this is no Python\n")
        service.wait_for_log("reload failed")
        assert service.workers() == before
        assert service.ask() in before
        service.script.write_text(good)
        after = service.wait_for_other_workers(before)
        assert service.ask() in after


@pytest.mark.slow
def test_service_looks_on_after_an_exec(tmp_path: Path) -> None:
    """SIGUSR2 ends no watch."""
    path = tmp_path / "reload"
    with Pool("--touch-reload", str(path)) as service:
        before = service.wait_for_workers(1)
        service.send(signal.SIGUSR2)
        service.wait_for_log("executed again")
        path.touch()
        service.wait_for_other_workers(before)
