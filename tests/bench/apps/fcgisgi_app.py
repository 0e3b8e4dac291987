"""The measured program on fcgisgi; arguments: the handler, and ``asgi`` or ``wsgi``."""

from __future__ import annotations

import asyncio
import sys

from fcgisgi import (  # type: ignore[import-not-found,unused-ignore]
    run_asgi_server,
    run_wsgi_server,
)

from tests.bench.apps.asgi_handlers import ASGI_HANDLERS
from tests.bench.apps.handlers import HANDLERS

handler, face = sys.argv[1:]
if face == "asgi":
    asyncio.run(run_asgi_server(ASGI_HANDLERS[handler]))
else:
    asyncio.run(run_wsgi_server(HANDLERS[handler]))
