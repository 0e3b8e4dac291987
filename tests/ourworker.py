"""A worker of ``fcgi-app start`` that uses fcgi_app, and requests to it."""

from __future__ import annotations

import sys
from pathlib import Path

from fcgi_app.client import Response, build_cgi_params, request

from .pools import Pool
from .webserver import PACKAGE_PARENT

__all__ = ["OURS", "ask", "ask_pid"]

# Without the site module nothing is found by itself: neither the package nor, where that
# is a checkout, what its native backend needs.
_cffi = getattr(sys.modules.get("_cffi_backend"), "__file__", None)
_PLACES = [PACKAGE_PARENT, *([str(Path(_cffi).parent)] if _cffi else [])]
OURS = f"""
import sys
sys.path[:0] = {_PLACES!r}
import os, signal, time
import fcgi_app

hoard = []


def wedge():
    print("wedged", file=sys.__stderr__, flush=True)
    while True:
        time.sleep(0.01)


while fcgi_app.accept():
    query = os.environ.get("QUERY_STRING", "")
    print("Content-Type: text/plain\\n")
    if query == "wedge":
        sys.stdout.flush()
        wedge()
    elif query == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wedge()
    elif query.startswith("sleep="):
        time.sleep(float(query.partition("=")[2]))
    elif query == "hoard":
        hoard.append(b"x" * (100 << 20))
    print(os.getpid())
"""
"""It does what the query says, and answers with its process id."""


def ask(pool: Pool, query: str = "", uri: str = "/app") -> Response:
    """One request on a connection of its own; it is refused after 20 s of silence."""
    params = build_cgi_params(f"{uri}?{query}")
    return request(f"unix:{pool.path}", params, timeout=20)


def ask_pid(pool: Pool, query: str = "") -> int:
    """The process id of the worker that has answered."""
    return int(ask(pool, query).body)
