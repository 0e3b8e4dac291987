"""The measured programs: ours, and peers, each with what it needs to run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["APPS", "BARE", "FLIPFLOP", "FLUP", "LIBFCGI", "LIBFCGI_16", "OURS"]
__all__ += ["PEERS", "POOL", "PROGRAMS", "PURE", "ROOT", "Program"]

APPS = Path(__file__).with_name("apps")
ROOT = Path(__file__).parents[2]
"""The checkout, whose fcgi_app is measured."""


class Program(NamedTuple):
    """A program of ``apps/`` and what it needs."""

    name: str
    script: str
    """Python, C that is linked with libfcgi, or Perl, as its suffix says."""
    requirement: str = ""
    """What pip installs for it, in an environment of its own. Without it a program in
    Python runs on the checkout."""
    arguments: tuple[str, ...] = ()
    """What follows the name of the handler on its command line."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables of its own."""
    keeps: bool = True
    """It can keep a connection."""
    at_a_time: int | None = None
    """Kept connections that it can serve at a time; None: any number."""

    def why_not(self, *, keep: bool, connections: int) -> str:
        """Say why it cannot serve such a load; empty if it can."""
        if keep and not self.keeps:
            return "it closes every connection"
        if keep and self.at_a_time is not None and connections > self.at_a_time:
            return f"it serves {self.at_a_time} kept connection at a time"
        return ""


OURS = Program("fcgi_app", "ours.py")
PURE = Program("fcgi_app, pure", "ours.py", environment=(("FCGI_APP_BACKEND", "pure"),))
POOL = Program("fcgi_app, in a pool", "pool.py")
LIBFCGI = Program("libfcgi stdio", "libfcgi_stdio.c", at_a_time=1)
LIBFCGI_16 = Program(
    "libfcgi fcgiapp, 16 processes", "libfcgi_app.c", arguments=("16",), at_a_time=16
)
PERL = Program("Perl FCGI", "perl_fcgi.pl", at_a_time=1)
FLUP = Program("flup", "flup_app.py", "flup==1.0.3")
FLIPFLOP = Program("flipflop", "flipflop_app.py", "flipflop==1.0")
FCGISGI_ASGI = Program(
    "fcgisgi, ASGI", "fcgisgi_app.py", "fcgisgi==0.2.3", arguments=("asgi",)
)
FCGISGI_WSGI = Program(
    "fcgisgi, WSGI", "fcgisgi_app.py", "fcgisgi==0.2.3", arguments=("wsgi",)
)
UWSGI = Program("uWSGI", "uwsgi_app.py", "uwsgi==2.0.31", keeps=False, at_a_time=1)
BARE = Program("bare interpreter", "bare.py")

PEERS = (
    LIBFCGI,
    LIBFCGI_16,
    FLIPFLOP,
    FLUP,
    PERL,
    FCGISGI_ASGI,
    FCGISGI_WSGI,
    UWSGI,
)
# The less time passes between two programs that are compared, the more alike is what
# the machine does besides.
PROGRAMS = (OURS, POOL, *PEERS[:3], PURE, *PEERS[3:])
"""What every comparison measures, as far as it can serve the load; ours first."""
