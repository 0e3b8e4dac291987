#!/usr/bin/env python3
"""Send an answer that grows while the client watches: /stream.py?ticks=5&pause=1.

Watch with ``curl -N``. A browser's EventSource gets server-sent events.
"""

from __future__ import annotations

import sys
import time
from urllib.parse import parse_qsl

from fcgi_app import Request, requests

MOST_TICKS = 1000
LONGEST_PAUSE = 10.0  # seconds; one process serves one request at a time

# Without flush() the text waits until a buffer of ours is full; without these
# headers it may wait in the web server (nginx) or in a cache.
HEAD = ("Cache-Control: no-store", "X-Accel-Buffering: no")


def stream(request: Request, ticks: int, pause: float) -> None:
    events = "text/event-stream" in request.params.get("HTTP_ACCEPT", "")
    kind = "text/event-stream" if events else "text/plain"
    print(*HEAD, f"Content-Type: {kind}; charset=utf-8", sep="\r\n", end="\r\n\r\n")
    for tick in range(1, ticks + 1):
        if tick > 1:
            time.sleep(pause)
        line = f"tick {tick} of {ticks}"
        print(f"data: {line}\n" if events else line)
        sys.stdout.flush()  # now, not when the buffer is full
        if request.aborted:  # the client left: nobody reads the rest
            break


for request in requests():
    query = dict(parse_qsl(request.params.get("QUERY_STRING", "")))
    try:
        # In this order, max() also turns a "nan" into 0.
        ticks = min(MOST_TICKS, max(1, int(query.get("ticks", "5"))))
        pause = min(LONGEST_PAUSE, max(0.0, float(query.get("pause", "1"))))
    except ValueError:
        print("Status: 400 Bad Request", end="\r\n")
        print("Content-Type: text/plain; charset=utf-8", end="\r\n\r\n")
        print("ticks and pause must be numbers, such as ?ticks=5&pause=0.5")
        continue
    stream(request, ticks, pause)
