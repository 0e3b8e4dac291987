"""Starting, watching and stopping the processes that serve requests.

What executes programs is in :mod:`.workers`, what copies the launcher itself in
:mod:`.prefork`, :mod:`.daemon` and :mod:`.detached`. Launchers start any FastCGI
program, in whatever language: it gets its listening socket on descriptor 0 (spec §2.2)
and nothing else of ours. :mod:`.inetd` starts programs that know nothing of FastCGI,
with a client on descriptors 0 and 1. :mod:`.supervisor` keeps pools of workers running,
as :mod:`.config` has read them.
"""

from __future__ import annotations

from .command import find_command
from .workers import Worker, spawn, spawn_all, stop

__all__ = ["Worker", "find_command", "spawn", "spawn_all", "stop"]
