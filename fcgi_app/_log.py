"""The package's logger, loaded only when there is something to say.

``logging`` costs a program that never logs 8 ms and a mebibyte at start.
"""

from __future__ import annotations

__all__ = ["log_exception", "log_info", "log_warning"]


def log_warning(message: str, *args: object) -> None:
    """Log at level WARNING through the logger ``fcgi_app``."""
    try:
        from logging import getLogger
    except (ImportError, OSError):  # no descriptor is left to load it with
        _print(message % args)
    else:
        getLogger("fcgi_app").warning(message, *args)


def _print(text: str) -> None:
    """Do what ``logging`` does where nobody has set it up."""
    import sys

    if sys.stderr is not None:
        sys.stderr.write(text + "\n")


def log_info(message: str, *args: object) -> None:
    """Log at level INFO, if the application has set logging up at all."""
    import sys

    if "logging" in sys.modules:  # else nobody could have asked for INFO
        sys.modules["logging"].getLogger("fcgi_app").info(message, *args)


def log_exception(message: str, *args: object) -> None:
    """Log at level ERROR with the traceback of the exception being handled."""
    try:
        from logging import getLogger
    except (ImportError, OSError):
        _print(message % args)
    else:
        getLogger("fcgi_app").error(message, *args, exc_info=True)
