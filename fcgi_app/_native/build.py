"""Builds the extension: beside this file for a checkout, and for setuptools' wheels.

    python fcgi_app/_native/build.py [--sanitize] [--output DIR]

builds ``_core.abi3.so`` here, for a checkout that is used as it is. Needs cffi,
setuptools, the headers of Python and a C compiler (``CC``).

``pyproject.toml`` makes the classes below setuptools' commands. They compile before
anything else is decided: where that does not work the wheel is a pure one, and named
so. ``FCGI_APP_BUILD`` chooses: ``auto`` (the default), ``pure`` does not try, with
``native`` a failure is an error.

setuptools loads this file by its path: it imports nothing of the package, and nothing
of the package imports it. It is not in wheels.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import setuptools.command.bdist_wheel
import setuptools.command.build_ext
import setuptools.command.build_py
import setuptools.command.editable_wheel
from setuptools import Distribution, Extension

if TYPE_CHECKING:
    from cffi import FFI

__all__ = ["FLAGS", "FOLDER", "MODULE", "SOURCES", "compile_core", "make_ffi"]

FOLDER = Path(__file__).parent
MODULE = "fcgi_app._native._core"
SOURCES = (
    *("params.c", "whole.c", "body.c", "output.c", "layout.c", "environ.c"),
    *("waiting.c", "lane.c", "slot.c", "step.c"),
)
FLAGS = ("-std=gnu11", "-O2", "-fvisibility=hidden")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")

OLDEST = "cp310"
"""The tag of the oldest Python that a wheel with the extension is for."""
IS_STABLE = not hasattr(sys, "gettotalrefcount")
"""Whether what is compiled fits later Pythons too: cffi does without the limited API
where Python is built for debugging."""

VARIABLE = "FCGI_APP_BUILD"
_CHOICES = ("auto", "pure", "native")


class BuildError(Exception):
    """There will be no extension; the message says why."""


# --- Compiling -----------------------------------------------------------------------


def make_ffi() -> FFI:
    """Give the cffi builder of the module.

    Raises:
        ImportError: there is no cffi.
    """
    from cffi import FFI

    ffi = FFI()
    ffi.cdef((FOLDER / "core.cdef").read_text(encoding="ascii"))
    ffi.set_source(MODULE, '#include "fcgi.h"')
    return ffi


def compile_core(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compile the extension into an empty folder, and return where in it that is.

    Not by cffi's own ``compile``, which reads the ``pyproject.toml`` of where it runs.

    Args:
        folder: for the file and for what is made on the way.
        flags: more of them, for compiler and linker.

    Raises:
        Exception: of many classes; it did not work.
    """
    source = folder / "_core.c"
    make_ffi().emit_c_code(os.fspath(source))
    extension = Extension(
        MODULE,
        [os.fspath(path) for path in (source, *(FOLDER / name for name in SOURCES))],
        include_dirs=[os.fspath(FOLDER)],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=list(flags),
        py_limited_api=IS_STABLE,
    )
    command = setuptools.command.build_ext.build_ext(
        Distribution({"ext_modules": [extension]})
    )
    command.build_lib = command.build_temp = os.fspath(folder)
    command.ensure_finalized()
    command.run()
    (made,) = command.get_outputs()
    return Path(made)


def build_in_place(target: Path, flags: Sequence[str] = ()) -> Path:
    """Compile, and put the file into a folder that exists.

    Processes that have an earlier one loaded keep it: it is replaced, not written over.
    """
    with tempfile.TemporaryDirectory(dir=target, prefix=".build-") as folder:
        made = compile_core(Path(folder), flags)
        return made.replace(target / made.name)


def main() -> None:
    """Build for a checkout, as the command line says."""
    parser = argparse.ArgumentParser(description="Build the native backend.")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument(
        "--sanitize", action="store_true", help="with ASan and UBSan, for tests"
    )
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    obstacle = find_obstacle()
    if obstacle is not None:
        sys.exit(f"{parser.prog}: {obstacle}")
    print(build_in_place(chosen.output, SANITIZE if chosen.sanitize else ()))


# --- Which package it will be --------------------------------------------------------


def find_obstacle() -> str | None:
    """Say why it need not be tried on this Python and this system."""
    if sys.implementation.name != "cpython":
        return f"it is for CPython, and this is {sys.implementation.name}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it is not for free-threaded Python"
    if sys.platform != "linux":
        return f"it is for Linux, and this is {sys.platform}"
    return None


def compiled() -> tuple[str, bytes]:
    """Compile for a package; give the name and the content of the file.

    Raises:
        BuildError: it is not wanted, or did not work.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in _CHOICES:
        sys.exit(f"fcgi_app: {VARIABLE}: {wanted!r}: must be one of {_CHOICES}")
    if wanted == "pure":
        raise BuildError(f"{VARIABLE}=pure")
    try:
        obstacle = find_obstacle()
        if obstacle is not None:
            raise BuildError(obstacle)
        with tempfile.TemporaryDirectory() as folder:
            made = compile_core(Path(folder))
            return made.name, made.read_bytes()
    except Exception as error:  # a user's installation never fails here
        reason = f"{error}" if isinstance(error, BuildError) else _explain(error)
        if wanted == "native":
            sys.exit(f"fcgi_app: {VARIABLE}=native, but there is none: {reason}")
        raise BuildError(reason) from error


def _explain(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if len(text) > 160:  # with the compiler's whole command line; what it says is above
        text = f"{text[:70]} … {text[-70:]}"
    return f"it could not be compiled: {text}"


class _Compiled(Extension):
    """An extension that is there already."""

    def __init__(self, content: bytes) -> None:
        super().__init__(MODULE, [], py_limited_api=IS_STABLE)
        self.content = content


def provide(dist: Distribution) -> None:
    """Compile, and let ``dist`` have the extension only where that worked."""
    try:
        name, content = compiled()
    except BuildError as error:
        say(f"building the pure Python package, without the native backend: {error}")
        return
    say(f"building the package with the native backend, {name}")
    dist.ext_modules = [_Compiled(content)]
    # Where things are built depends on whether there is an extension, and some command
    # has asked for it already.
    dist.reinitialize_command("build", reinit_subcommands=True)


def say(message: str) -> None:
    """Tell whoever builds; not on stdout, where frontends look for results."""
    print(f"fcgi_app: {message}", file=sys.stderr, flush=True)


# --- setuptools' commands, which are found by the names of these classes -------------


class bdist_wheel(setuptools.command.bdist_wheel.bdist_wheel):
    """Compile first; the name of the wheel depends on it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self._heed_extension()

    def run(self) -> None:
        provide(self.distribution)
        self._heed_extension()
        super().run()

    def _heed_extension(self) -> None:
        if self.distribution.ext_modules:
            self.root_is_pure = False
            self.py_limited_api = OLDEST if IS_STABLE else False


class editable_wheel(setuptools.command.editable_wheel.editable_wheel):
    """Compile first, into the checkout."""

    def run(self) -> None:
        provide(self.distribution)
        if not self.distribution.ext_modules:
            # What an earlier build has left may not fit what is there now.
            for stale in FOLDER.glob("_core*.so"):
                stale.unlink()
        super().run()


class build_ext(setuptools.command.build_ext.build_ext):
    """Write what has been compiled to where it is wanted."""

    def build_extension(self, ext: Extension) -> None:
        assert isinstance(ext, _Compiled)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(ext.content)


class build_py(setuptools.command.build_py.build_py):
    """Leave this file out."""

    def find_package_modules(
        self, package: str, package_dir: str
    ) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)  # type: ignore[no-untyped-call]
        return [each for each in found if each[:2] != ("fcgi_app._native", "build")]


if __name__ == "__main__":
    main()
