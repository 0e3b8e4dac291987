"""Which implementation does the hot work: pure Python, or a native twin.

``FCGI_APP_BACKEND`` chooses: ``auto`` (the default) takes the native one where it is
there, ``pure`` never, ``native`` only. This version has the pure one only.
"""

from __future__ import annotations

import os

from .errors import ConfigError

__all__ = ["BACKEND", "REASON", "describe"]

_CHOICES = ("auto", "pure", "native")


def _choose(wanted: str) -> tuple[str, str]:
    """Return the backend's name and why it is that one.

    Raises:
        ConfigError: the choice is none, or cannot be had.
    """
    if wanted not in _CHOICES:
        raise ConfigError("FCGI_APP_BACKEND", wanted, f"must be one of {_CHOICES}")
    if wanted == "native":
        raise ConfigError(
            "FCGI_APP_BACKEND", wanted, "this version has no native backend"
        )
    if wanted == "pure":
        return "pure", "FCGI_APP_BACKEND=pure"
    return "pure", "this version has no native backend"


BACKEND, REASON = _choose(os.environ.get("FCGI_APP_BACKEND", "auto"))


def describe() -> str:
    """Return the backend and the reason for it, for ``--version``."""
    return f"{BACKEND} ({REASON})"
