"""A worker of the measured pools: hello, and what a worker should not do.

``START_LOG``, if it is not empty, names a file that gets a line when this process is about to
wait for requests: pid, when it was started, and when it is ready (CLOCK_BOOTTIME).

A request with the query string ``HOW:FILE`` creates ``FILE``, with the pid in it, and
never ends; when the file is there already, it is served like any other, so that a
repeated request does no harm twice. HOW is ``sleep``, ``spin``, or ``deaf``, which
ignores SIGTERM too.
"""

from __future__ import annotations

import os
import signal
import time

from fcgi_app import accept


def tell_start() -> None:
    """Write the line of ``START_LOG``."""
    if not (path := os.environ.get("START_LOG")):
        return
    with open("/proc/self/stat") as stat:
        ticks = int(stat.read().rpartition(") ")[2].split()[19])
    started = ticks / os.sysconf("SC_CLK_TCK")
    ready = time.clock_gettime(time.CLOCK_BOOTTIME)
    with open(path, "a") as log:
        log.write(f"{os.getpid()} {started} {ready}\n")


def hang(how: str, path: str) -> None:
    """Never return, unless the file is there already."""
    try:
        with open(path, "x") as file:
            print(os.getpid(), file=file)
    except FileExistsError:
        return
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        if how == "sleep":
            time.sleep(1000)


tell_start()
while accept():
    os.environ["REMOTE_ADDR"]
    how, colon, path = os.environ["QUERY_STRING"].partition(":")
    if colon:
        hang(how, path)
    print("Content-Type: text/plain\n\nHello, world")
