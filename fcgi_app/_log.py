"""The package's logger, loaded only when there is something to say.

``logging`` costs a program that never logs 8 ms and a mebibyte at start.
"""

from __future__ import annotations

__all__ = ["log_exception", "log_info", "log_warning"]


def log_warning(message: str, *args: object) -> None:
    """Log at level WARNING through the logger ``fcgi_app``."""
    from logging import getLogger

    getLogger("fcgi_app").warning(message, *args)


def log_info(message: str, *args: object) -> None:
    """Log at level INFO, if the application has set logging up at all."""
    import sys

    if "logging" in sys.modules:  # else nobody could have asked for INFO
        sys.modules["logging"].getLogger("fcgi_app").info(message, *args)


def log_exception(message: str, *args: object) -> None:
    """Log at level ERROR with the traceback of the exception being handled."""
    from logging import getLogger

    getLogger("fcgi_app").error(message, *args, exc_info=True)
