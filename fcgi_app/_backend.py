"""Which implementation does the hot work: pure Python, or its native twin.

``FCGI_APP_BACKEND`` chooses: ``auto`` (the default) takes the native one where it is
there, ``pure`` never, ``native`` only.
"""

from __future__ import annotations

import os

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = ["BACKEND", "REASON", "describe", "ffi", "lib"]

_CHOICES = ("auto", "pure", "native")

lib: Any = None
"""The functions in C; None: the backend is pure."""
ffi: Any = None
"""What cffi has for them."""


def _choose(wanted: str) -> tuple[str, str]:
    """Return the backend's name and why it is that one.

    Raises:
        ConfigError: the choice is none, or cannot be had.
    """
    global ffi, lib
    if wanted not in _CHOICES:
        raise ConfigError("FCGI_APP_BACKEND", wanted, f"must be one of {_CHOICES}")
    if wanted == "pure":
        return "pure", "FCGI_APP_BACKEND=pure"
    try:
        from ._native import ffi as found_ffi
        from ._native import lib as found_lib
    except ImportError as error:  # not built, or no cffi, or for another platform
        if wanted == "native":
            raise ConfigError(
                "FCGI_APP_BACKEND", wanted, f"there is no native backend: {error}"
            ) from error
        return "pure", f"no native backend: {error}"
    ffi, lib = found_ffi, found_lib
    return "native", "FCGI_APP_BACKEND=native" if wanted == "native" else "it is there"


BACKEND, REASON = _choose(os.environ.get("FCGI_APP_BACKEND", "auto"))


def describe() -> str:
    """Return the backend and the reason for it, for ``--version``."""
    return f"{BACKEND} ({REASON})"
