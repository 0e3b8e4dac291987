"""The measured program on uWSGI; the argument is the handler.

Started as a program it becomes uWSGI, on the socket on descriptor 0, which then imports
this file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.bench.apps.handlers import HANDLERS

if __name__ == "__main__":
    server = str(Path(sys.executable).with_name("uwsgi"))
    options = ["--protocol", "fastcgi", "--processes", "1", "--need-app"]
    # without the second, SIGTERM means: start again; the third is for 30 KB of params
    options += ["--disable-logging", "--die-on-term", "--buffer-size", "65535"]
    options += ["--wsgi-file", __file__, "--pyargv", sys.argv[1]]
    os.execv(server, [server, *options])

application = HANDLERS[sys.argv[1]]
