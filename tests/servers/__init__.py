"""Real web servers for tests: start, ask, read the log, stop, leave nothing behind.

=================  ==================================================================
module             what lives there
=================  ==================================================================
``process.py``     a program of ours in the foreground: start, log files, stop by pid
``programs.py``    the application: as an external FastCGI process, as a wrapper script
``webservers.py``  nginx, Apache, lighttpd, HAProxy on the files of examples/servers
``ways.py``        every way from a web server to a program, by readable name
``fdpass.py``      Apache with mod_proxy_fdpass, and a receiver without our code
``http.py``        a small HTTP client that reads while it still writes
=================  ==================================================================

Tests run as an ordinary account start everything as that account.  Run as root, as in
a build container, the web servers are started as www-data, because Apache refuses to
serve as root, with one capability more than that account has: CAP_DAC_OVERRIDE.  Their
children inherit it (it is an ambient capability), so the scripts that a server spawns
can read a Python and a checkout below a closed home directory, and nothing on the
machine has to be made readable for the tests.
"""

from __future__ import annotations

from .http import Answer, ask, connect, established
from .process import wait_until
from .programs import APPS, EXAMPLES, ExternalProgram, Gate, wrapper_script
from .ways import WAYS, Site, SiteCache, Way, way_params
from .webservers import Apache, HAProxy, Lighttpd, Nginx, WebServer

__all__ = [
    "APPS",
    "EXAMPLES",
    "WAYS",
    "Answer",
    "Apache",
    "ExternalProgram",
    "Gate",
    "HAProxy",
    "Lighttpd",
    "Nginx",
    "Site",
    "SiteCache",
    "Way",
    "WebServer",
    "ask",
    "connect",
    "established",
    "wait_until",
    "way_params",
    "wrapper_script",
]
