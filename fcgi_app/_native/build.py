"""Makes the C source of the extension from ``core.cdef``, and builds it in place.

    python fcgi_app/_native/build.py

builds ``_core.abi3.so`` beside this file, for a checkout that is used as it is; a wheel
is built by ``setuptools`` (see ``pyproject.toml``). Needs cffi, and a C compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["MODULE", "SOURCES", "make_ffi"]

FOLDER = Path(__file__).parent
MODULE = "fcgi_app._native._core"
SOURCES = ("params.c", "whole.c", "environ.c", "lane.c")
FLAGS = ("-std=gnu11", "-O2", "-fvisibility=hidden")


def make_ffi():
    """Give the cffi builder of the module."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef((FOLDER / "core.cdef").read_text(encoding="ascii"))
    ffi.set_source(
        MODULE,
        '#include "fcgi.h"',
        sources=[str(FOLDER / name) for name in SOURCES],
        include_dirs=[str(FOLDER)],
        extra_compile_args=list(FLAGS),
        py_limited_api=True,
    )
    return ffi


if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        made = make_ffi().compile(tmpdir=folder)
        target = FOLDER / Path(made).name
        target.write_bytes(Path(made).read_bytes())
    print(target)
    sys.exit()
