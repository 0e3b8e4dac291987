"""The native backend: the hot work in C, reached through cffi.

``core.cdef`` says what Python sees of it, ``fcgi.h`` what each function does, and
``build.py`` makes the extension ``_core`` of them. Where that has not been built,
importing this package raises ImportError; ``_backend`` is the only one that tries.
"""

from __future__ import annotations

try:
    from ._core import ffi, lib
except ModuleNotFoundError as error:
    if error.name == f"{__name__}._core":
        raise ImportError("this is the package without it") from error
    raise  # of cffi, which the extension needs

__all__ = ["ffi", "lib"]
