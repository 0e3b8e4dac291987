#!/usr/bin/env python3
"""Serve 20 requests at the same time: libfcgi's threaded example, in Python.

Each takes two seconds (or ?pause=0.5), and 20 of them together no longer. The calls
are libfcgi's; fcgi_app.run(handler, threads=20) does the same in fewer lines.
"""

from __future__ import annotations

import html
import os
import time
from threading import Lock, Thread
from urllib.parse import parse_qsl

from fcgi_app.fcgiapp import (
    FCGX_Accept_r,
    FCGX_FFlush,
    FCGX_Finish_r,
    FCGX_FPrintF,
    FCGX_GetParam,
    FCGX_Init,
    FCGX_InitRequest,
    FCGX_PutS,
    FCGX_Request,
)

THREAD_COUNT = 20
LONGEST_PAUSE = 10.0  # seconds

counts = [0] * THREAD_COUNT
counts_lock = Lock()


def pause_of(query: str) -> float:
    """Seconds that a request is to take."""
    try:
        # In this order, max() also turns a "nan" into 0.
        return min(LONGEST_PAUSE, max(0.0, float(dict(parse_qsl(query))["pause"])))
    except (KeyError, ValueError):
        return 2.0


def serve(thread_id: int) -> None:
    request = FCGX_Request()
    FCGX_InitRequest(request, 0, 0)
    # In C there is a lock around this call. Here all threads may wait in it at once.
    while FCGX_Accept_r(request) >= 0:
        query = FCGX_GetParam("QUERY_STRING", request.envp) or ""
        server_name = FCGX_GetParam("SERVER_NAME", request.envp) or "?"
        FCGX_FPrintF(
            request.out,
            "Content-Type: text/html; charset=utf-8\r\n\r\n"
            "<!DOCTYPE html>\n<title>FastCGI Hello! (multi-threaded)</title>"
            "<h1>FastCGI Hello! (multi-threaded)</h1>"
            "Thread %d, Process %ld<p>"
            "Request counts for %d threads running on host <i>%s</i><p><code>",
            thread_id,
            os.getpid(),
            THREAD_COUNT,
            html.escape(server_name),
        )
        FCGX_FFlush(request.out)  # the first half; the client sees us at work
        time.sleep(pause_of(query))
        with counts_lock:
            counts[thread_id] += 1
            FCGX_PutS(" ".join(f"{count:5}" for count in counts), request.out)
        FCGX_PutS("</code>\n", request.out)
        FCGX_Finish_r(request)


FCGX_Init()
threads = [Thread(target=serve, args=(number,)) for number in range(1, THREAD_COUNT)]
for thread in threads:
    thread.start()
serve(0)
for thread in threads:
    thread.join()
