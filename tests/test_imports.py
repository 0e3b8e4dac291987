"""What a worker loads: each module costs every start its time, and memory for good."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from fcgi_app._backend import BACKEND
from fcgi_app.scoreboard import Scoreboard

from .bench.wire import fetch
from .webserver import PACKAGE_PARENT

LOOP = """
import sys
before = {*sys.modules}
from fcgi_app import accept
while accept():
    print("Content-Type: text/plain")
    print()
    print(*sorted({*sys.modules} - before))
"""

HEAVY = """
_strptime argparse ast asyncio cffi click concurrent contextlib dataclasses datetime dis
email getopt gettext http importlib inspect ipaddress json linecache locale logging
platform queue random re resource shutil ssl string subprocess tempfile textwrap threading
token tokenize traceback typing typing_extensions urllib uuid warnings weakref
"""
"""What no loop needs before it is asked for it."""
OURS = """
abortwatch access accesslog addresses cgi channel client descriptors fdpass following
launcher roles sendfile server sockets status threaded
"""
"""Modules of ours that are loaded for whoever uses them."""


def modules_of_worker(
    folder: Path, *, fds: tuple[int, ...] = (), **more: str
) -> set[str]:
    """Start the loop with a socket on descriptor 0; return what it has loaded."""
    path = os.fspath(folder / "socket")
    # Without site, whose .pth files may load anything; cffi's share has to be found.
    # Not in the checkout, where -c finds a package without the native backend.
    search = os.pathsep.join([PACKAGE_PARENT, *filter(None, sys.path)])
    environ = {**os.environ, "PYTHONPATH": search, **more}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        command = [sys.executable, "-S", "-c", LOOP]
        worker = subprocess.Popen(
            command, cwd=folder, stdin=listener.fileno(), env=environ, pass_fds=fds
        )
        try:
            return set(fetch(path).decode().split())
        finally:
            worker.terminate()
            worker.wait(10)


def top_level(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_worker_loads_little(tmp_path: Path) -> None:
    """The bare loop has loaded nothing that it does not need to answer."""
    loaded = modules_of_worker(tmp_path)
    assert "fcgi_app.loop" in loaded
    assert top_level(loaded) & {*HEAVY.split()} == set()
    assert loaded & {f"fcgi_app.{name}" for name in OURS.split()} == set()


def test_only_the_pure_backend_needs_ctypes(tmp_path: Path) -> None:
    """C reaches its environ by itself."""
    loaded = modules_of_worker(tmp_path)
    pure = BACKEND == "pure"
    assert {n in loaded for n in ("ctypes", "_ctypes", "fcgi_app.cenviron")} == {pure}
    assert {n in loaded for n in ("_cffi_backend", "fcgi_app.lane")} == {not pure}


def test_worker_of_a_pool_loads_little_more(tmp_path: Path) -> None:
    """A slot in a scoreboard is kept without any of that either."""
    board = Scoreboard.create("www", 1)
    try:
        slot = board.take_slot()
        loaded = modules_of_worker(
            tmp_path,
            fds=(board.fileno(),),
            _FCGI_APP_SCOREBOARD=f"{board.fileno()}:{slot}",
        )
    finally:
        board.close()
    assert "fcgi_app.sight" in loaded
    assert top_level(loaded) & {*HEAVY.split()} == set()
