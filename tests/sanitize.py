"""The tests with a native backend that has AddressSanitizer and UBSan in it.

    python -m tests.sanitize [PYTEST ARGUMENTS]

copies the package, builds the extension in the copy with ``--sanitize``, makes sure that
this is what is loaded and that it ends at an overflow and at undefined behaviour, and runs
pytest on it; without arguments all tests that need no real web server and are not slow.
What fails is run once more, for everything takes longer here; but whatever ASan has to
say, of any process, is a failure. Leaks of our C are found by the replay of the seeds
(``tests/test_fuzz.py``): the interpreter itself leaves memory behind, so they are not
looked for here.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["Sanitized", "main"]

REPO = Path(__file__).resolve().parent.parent
REPORT = "report"
"""Name of the files that ASan writes, in front of a process's number."""
MOST_UNSTEADY = 5
"""Tests that may fail once, because of how busy the machine is."""
NOT_HERE = [
    # Its process must not have the LD_PRELOAD that the sanitizers need.
    "tests/test_swap.py::TestEnvironment::test_q5_which_variables",
    # What they see are the variables, the shell and the interpreter's name of the wrapper.
    "tests/test_bridge.py::test_environment_becomes_params",
    "tests/test_entry.py::test_directory_that_is_gone",
    "tests/test_start_cli.py::test_script_without_execute_bit",
    "tests/test_start_cli.py::test_print_config",
    # Programs of others get the LD_PRELOAD as well: ASan catches a shell's SIGSEGV, and
    # curl does not come to its end.
    "tests/test_fdpass_cli.py::test_failure_is_logged[kill -SEGV",
    "tests/test_dev.py::test_curl",
    # A child of a process with threads may wait for ever for a lock of ASan's allocator,
    # which another thread held at the fork.
    "tests/test_wire.py::test_w27_fork_in_a_request[threads-",
    # They measure memory, of which there is more here.
    "tests/test_acceptor.py::TestBigBodies::test_interleaved",
    "tests/test_acceptor.py::test_memory_of_unique_cookies",
    "tests/test_environ.py::test_unique_params_grow_nothing",
    "tests/test_entry.py::test_memory_of_a_supervisor",
    "tests/test_body.py::test_the_next_body_finds_the_memory_of_the_last",
]
RUN = """
import os, sys
import pytest
sys.executable = os.path.join(os.path.dirname(__file__), "python")
sys.exit(pytest.main(sys.argv[1:]))
"""
WRAPPER = """#!/bin/sh
# The Python of programs that get an environment of their own.
{exports}
exec {python} "$@"
"""

_LOADED = """
from fcgi_app._native import _core, ffi, lib
print(_core.__file__)
"""
# One byte behind a block of malloc's, which join_params reads as part of a list.
OVERFLOW = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(8))
ctypes.memset(block, 0, 8)
lib.fcgi_join_params(ffi.cast("uint8_t *", block), 9, ffi.new("uint8_t[]", 99), 99)
print("nobody has noticed")
"""
# memcpy(3) must not be given NULL, however short.
UNDEFINED = """
lib.fcgi_environ_show(lib.fcgi_environ_new(), ffi.NULL, 0)
print("nobody has noticed")
"""


class Sanitized:
    """The package with the sanitizers, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def build(self) -> None:
        """Copy the package, and build the extension in the copy.

        Raises:
            subprocess.CalledProcessError: it could not be built.
        """
        shutil.copytree(
            REPO / "fcgi_app",
            self.folder / "fcgi_app",
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
        build = REPO / "fcgi_app" / "_native" / "build.py"
        target = self.folder / "fcgi_app" / "_native"
        subprocess.run(
            [sys.executable, build, "--sanitize", "--output", target],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # Beside the package: Python then finds that one first, and not the checkout.
        (self.folder / "run_pytest.py").write_text(RUN)
        exports = "\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in self.needs.items()
        )
        wrapper = self.folder / "python"
        wrapper.write_text(
            WRAPPER.format(exports=exports, python=shlex.quote(sys.executable))
        )
        wrapper.chmod(0o755)

    @property
    def needs(self) -> dict[str, str]:
        """What a Python needs in whose middle a library with ASan is to be loaded."""
        found = subprocess.run(
            ["gcc", "-print-file-name=libasan.so"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        reports = f"log_path={self.folder / REPORT}"
        return {
            "LD_PRELOAD": os.path.realpath(found.stdout.strip()),
            "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{reports}",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same, and what makes it load this package, with this backend."""
        return {
            **os.environ,
            **self.needs,
            "PYTHONPATH": os.fspath(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "FCGI_APP_BACKEND": "native",
        }

    def say(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run some code behind the import of the extension."""
        return subprocess.run(
            [sys.executable, "-c", _LOADED + code],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def is_awake(self) -> str:
        """Say what is wrong with it; empty if the sanitizers see what they should."""
        done = self.say("")
        if done.returncode or not done.stdout.startswith(os.fspath(self.folder)):
            return f"another extension is loaded: {done.stdout}{done.stderr}"
        for code, wanted in (
            (OVERFLOW, "heap-buffer-overflow"),
            (UNDEFINED, "null pointer passed as argument"),
        ):
            done = self.say(code)
            said = f"{done.stdout}{done.stderr}{self.reports()}"
            if not done.returncode or wanted not in said:
                return f"no {wanted!r}: {said}"
        return ""

    def reports(self) -> str:
        """Give what ASan has said since the last time, in any process."""
        said = ""
        for path in sorted(self.folder.glob(f"{REPORT}.*")):
            said += path.read_text(errors="replace")
            path.unlink()
        return said

    def run(self, *arguments: str) -> int:
        """Run pytest from the checkout on the copy, and some once more; its status."""
        cache = self.folder / "cache"
        command = [sys.executable, os.fspath(self.folder / "run_pytest.py")]
        command += ["--backend=native", "-o", f"cache_dir={cache}", *arguments]
        command += [f"--deselect={name}" for name in NOT_HERE]
        status = self._pytest(command)
        if status == 1 and len(self._failed(cache)) <= MOST_UNSTEADY:
            print("== once more, what has failed", *self._failed(cache), flush=True)
            command += ["--last-failed", "--last-failed-no-failures=none"]
            status = self._pytest(command)
        return status

    def _pytest(self, command: list[str]) -> int:
        return subprocess.run(
            command, cwd=REPO, env=self.environment, check=False
        ).returncode

    def _failed(self, cache: Path) -> list[str]:
        return list(json.loads((cache / "v/cache/lastfailed").read_bytes()))


def main() -> None:
    """Build, check, run."""
    arguments = sys.argv[1:] or ["-q", "-m", "not e2e and not slow", "tests"]
    with tempfile.TemporaryDirectory() as folder:
        made = Sanitized(Path(folder))
        made.build()
        if problem := made.is_awake():
            sys.exit(f"tests.sanitize: {problem}")
        print(f"with sanitizers: {made.folder}", flush=True)
        status = made.run(*arguments)
        said = made.reports()
        print(said, end="")
        sys.exit(status or bool(said))


if __name__ == "__main__":
    main()
