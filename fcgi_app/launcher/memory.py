"""Memory that was needed once."""

from __future__ import annotations

import gc

__all__ = ["release_memory"]


def release_memory() -> None:
    """Give back to the system what the start has used and freed.

    The C library keeps it for later, and a supervisor will not need it again. Where
    there is no malloc_trim(3), as in other libraries than glibc, nothing happens.
    """
    gc.collect()
    try:
        import ctypes

        trim = ctypes.CDLL(None).malloc_trim
    except (ImportError, AttributeError, OSError):
        return
    trim(ctypes.c_size_t(0))
