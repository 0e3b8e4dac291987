"""The measured program on flipflop; the argument is the handler."""

from __future__ import annotations

import sys

from flipflop import WSGIServer  # type: ignore[import-not-found,unused-ignore]

from tests.bench.apps.handlers import HANDLERS

WSGIServer(HANDLERS[sys.argv[1]]).run()
