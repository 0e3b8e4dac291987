"""What a user may set, from ``FCGI_APP_*`` environment variables or keywords."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from ._log import log_warning
from .errors import ConfigError
from .frozen import Frozen
from .protocol import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = ["Settings"]

PREFIX = "FCGI_APP_"
_OTHER_VARIABLES = ("FCGI_APP_BACKEND", "FCGI_APP_BUILD")
"""Variables with the prefix that are read elsewhere and are no settings."""
_OF_THE_LAUNCHER = PREFIX + "START_"
"""Begins the variables of fcgi-app-start(1)."""

_TRUE = frozenset(("1", "true", "yes", "on"))
_FALSE = frozenset(("", "0", "false", "no", "off"))


class Settings(Frozen):
    """Settings of the loop; each is ``FCGI_APP_`` and its name in upper case as well.

    Times are in seconds, sizes in bytes. A time of 0 means: no limit.

    Attributes:
        read_ahead: a request is given to the application when so much of its body
            has come, or all; 0: as soon as its params are in.
        spool: input beyond this that nobody has read yet goes to a temporary file.
        output_buffer: output is sent when so much is there, at flush, at finish.
            In a response that goes on for long and comes quickly, four times as much:
            larger pieces cost less for each byte.
        first_byte_timeout: from connect to the first byte. libfcgi waits 2 s.
        params_timeout: silence allowed while params are due (httpd: Timeout 60).
        body_timeout: silence allowed while a body is due (mod_fcgid: 40).
        write_timeout: a web server that takes no byte for so long has gone
            (nginx: fastcgi_send_timeout 60, httpd: Timeout 60).
        keep_timeout: an idle kept connection is closed after; 0: its web server does.
        linger_timeout: how long unread input is discarded after an early answer
            (nginx: lingering_time 30).
        linger_idle: the same, between two arrivals (nginx: lingering_timeout 5).
        stop_timeout: how long requests that are coming in are waited for at a stop.
            mod_fcgid repeats its SIGTERM after 1 s.
        max_connections: beyond it, the idle connection that is unused longest goes;
            less where RLIMIT_NOFILE would leave the application no descriptors.
        max_queued: complete requests that wait for their turn; beyond it, a 503.
        max_params_bytes, max_params, max_requests: see ``protocol.Limits``.
        replace_environ: os.environ holds the params only, as with libfcgi.
        passthrough: the response head is not looked at.
        descriptors: descriptors 0, 1 and 2 belong to the request while it runs.
        access_log: where a line goes for each FastCGI request that has ended: a path,
            ``-`` for descriptor 2, ``fd:N``; empty: nowhere.
        access_format: how that looks: ``common``, ``combined``, ``json``, or a format
            with Apache's directives (``accesslog.parse_format``).
    """

    read_ahead: int = 65536
    spool: int = 1 << 20
    output_buffer: int = 131072
    first_byte_timeout: float = 30.0
    params_timeout: float = 60.0
    body_timeout: float = 60.0
    write_timeout: float = 60.0
    keep_timeout: float = 0.0
    linger_timeout: float = 30.0
    linger_idle: float = 5.0
    stop_timeout: float = 0.8
    max_connections: int = 10_000
    max_queued: int = 1024
    max_params_bytes: int = Limits.max_params_bytes
    max_params: int = Limits.max_params
    max_requests: int = Limits.max_requests
    replace_environ: bool = False
    passthrough: bool = False
    descriptors: bool = False
    access_log: str = ""
    access_format: str = "common"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the ``FCGI_APP_*`` variables of ``environ``.

        One that is no setting is ignored; one line in the log names it, and the name
        that it comes nearest to. It may be the application's own.

        Raises:
            ConfigError: a value is not of its setting's kind; names both.
        """
        _report_unknown(environ)
        found: dict[str, Any] = {}
        for name, default in cls._defaults.items():
            variable = PREFIX + name.upper()
            text = environ.get(variable)
            if text is not None:
                found[name] = _parse(variable, text, type(default))
        return cls(**found)

    def changed(self, **changes: object) -> Settings:
        """Return a copy with ``changes``.

        Raises:
            ConfigError: a name is no setting, or a value is not of its kind.
        """
        kinds = {name: type(default) for name, default in self._defaults.items()}
        for name, value in changes.items():
            if name not in kinds:
                raise ConfigError(name, value, f"no such setting; there are {[*kinds]}")
            kind = kinds[name]
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or (
                isinstance(value, bool) is not (kind is bool)
            ):
                raise ConfigError(name, value, f"must be {kind.__name__}")
            if kind is not str and not _is_in_range(value):
                raise ConfigError(name, value, "must be a number from 0 on")
        values = {name: getattr(self, name) for name in kinds}
        return Settings(**{**values, **changes})

    @cached_property
    def limits(self) -> Limits:
        """The protocol's share of the settings."""
        return Limits(self.max_params_bytes, self.max_params, self.max_requests)


def _report_unknown(environ: Mapping[str, str]) -> None:
    """Log the names with our prefix that nothing here reads: probably misspelt."""
    given = [
        name
        for name in environ
        if name.startswith(PREFIX) and not name.startswith(_OF_THE_LAUNCHER)
    ]
    if not given:
        return
    known = [PREFIX + name.upper() for name in Settings._names]
    known += _OTHER_VARIABLES
    for name in sorted({*given}.difference(known)):
        from difflib import get_close_matches  # costs time that most starts save

        # Of what follows the prefix: with it, everything would be near.
        ends = [each.removeprefix(PREFIX) for each in known]
        near = get_close_matches(name.removeprefix(PREFIX), ends, n=1)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        log_warning("%r in the environment is no setting, and ignored%s", name, hint)


def _parse(variable: str, text: str, kind: type) -> object:
    if kind is str:
        return text
    value = text.strip().lower()
    if kind is bool:
        if value in _TRUE or value in _FALSE:
            return value in _TRUE
        raise ConfigError(variable, text, "must be 1 or 0 (true, yes, on, …)")
    try:
        number: float = int(value) if kind is int else float(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number of seconds"
        raise ConfigError(variable, text, f"must be {wanted}") from None
    if not _is_in_range(number):
        raise ConfigError(variable, text, "must be a number from 0 on")
    return number


def _is_in_range(number: float) -> bool:
    return 0 <= number < float("inf")  # nan is not
