"""Starting, watching and stopping the processes that serve requests.

Everything that forks, executes, waits or kills is in :mod:`.workers`. Launchers start
any FastCGI program, in whatever language: it gets its listening socket on descriptor 0
(spec §2.2) and nothing else of ours.
"""

from __future__ import annotations

from .workers import Worker, find_command, run_detached, spawn, spawn_all, stop

__all__ = ["Worker", "find_command", "run_detached", "spawn", "spawn_all", "stop"]
