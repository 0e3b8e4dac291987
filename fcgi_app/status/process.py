"""What the system tells of a process: memory, time, age; Linux only (proc(5))."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

__all__ = ["ProcessSight", "read_process"]

# Fields of /proc/PID/stat behind the name in parentheses; proc_pid_stat(5) counts from
# 1 on and has two fields before these.
_USER_TICKS = 14 - 3
_SYSTEM_TICKS = 15 - 3
_START_TICKS = 22 - 3
_RESIDENT_PAGES = 24 - 3


class ProcessSight(NamedTuple):
    """What can be seen of a process.

    Attributes:
        started: seconds since 1970, right to some hundredths.
        cpu: seconds that all of its threads have used, user and system; without its
            children.
        rss: bytes of its memory that are resident, also those that it shares.
    """

    started: float
    cpu: float
    rss: int


def read_process(pid: int) -> ProcessSight | None:
    """Look at a process; None: it is gone, or this system does not show it."""
    if pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b") ")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
        age = uptime - int(fields[_START_TICKS]) / ticks
        return ProcessSight(
            started=time.time() - age,
            cpu=(int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / ticks,
            rss=int(fields[_RESIDENT_PAGES]) * os.sysconf("SC_PAGE_SIZE"),
        )
    except (OSError, AttributeError, ValueError, IndexError):
        return None
