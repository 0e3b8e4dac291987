"""What ``fcgi-app start`` does once its options have been read; imports no click.

A supervisor lives for months, and what it has loaded stays in its memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from .._log import log_info, log_to
from .._version import __version__
from ..errors import AppLoadError, WorkerError
from ..launcher.attendant import Attendant
from ..launcher.config import ConfigLoader
from ..launcher.daemon import fork_daemon
from ..launcher.handover import is_executed_again
from ..launcher.memory import release_memory
from ..launcher.pool import ServiceConfig
from ..launcher.relay import Outlet
from ..launcher.supervisor import Supervisor
from ..sockets import plug_standard_descriptors
from .exits import EXIT_COMMAND, EXIT_SIGNAL, report_error, working_directory

__all__ = ["serve"]


def serve(flags: Mapping[str, Any]) -> int:
    """Run the pools until a signal and return the exit status.

    Args:
        flags: values of the command line, as text, by their keys.

    Raises:
        ConfigError: a setting is not usable.
        OSError: the system refuses something.
    """
    loader = ConfigLoader(flags, os.environ.copy(), working_directory())
    try:
        return _serve(loader.load(), loader.load)
    except (AppLoadError, WorkerError) as error:
        report_error(str(error))
        return EXIT_COMMAND


def _serve(service: ServiceConfig, load: Callable[[], ServiceConfig]) -> int:
    plug_standard_descriptors()
    tell_ready: Callable[[], object] = lambda: None  # noqa: E731 - of two kinds
    directory = working_directory()
    executed_again = is_executed_again()
    if service.daemon:  # nothing new after SIGUSR2
        forked = fork_daemon()
        if isinstance(forked, int):
            return forked
        tell_ready = forked
    outlet = Outlet()
    log_to(_make_log(outlet))
    if not executed_again:
        log_info("fcgi-app %s starts, pid %d", __version__, os.getpid())

    def note_ready() -> None:
        tell_ready()
        release_memory()

    if executed_again:  # nobody says again that it is ready
        release_memory()
    command = [sys.executable, *sys.orig_argv[1:]]
    supervisor = Supervisor(
        service,
        load=load,
        command=command,
        directory=directory,
        on_ready=note_ready,
        outlet=outlet,
        attendants=_find_attendants(service, load),
    )
    number = supervisor.run()
    return EXIT_SIGNAL + number if number else 0


def _find_attendants(
    service: ServiceConfig, load: Callable[[], ServiceConfig]
) -> list[Attendant]:
    """Return what is asked for besides workers; the rest is not even loaded.

    A reload changes none of it.
    """
    found: list[Attendant] = []
    if service.control is not None:
        from ..launcher.control import ControlServer

        found.append(ControlServer(service.control))
    if service.status_listen is not None or any(p.status_path for p in service.pools):
        from ..launcher.observing import Observer

        found.append(Observer())
    if service.touch_reload is not None:
        from ..launcher.reloading import TouchReload

        found.append(TouchReload(service.touch_reload))
    if service.reload:
        from ..launcher.reloading import SourceReload

        found.append(SourceReload(lambda: load().pools))
    if "NOTIFY_SOCKET" in os.environ:
        from ..launcher.notify import SystemdNotifier

        notifier = SystemdNotifier.from_environ()
        if notifier is not None:
            found.append(notifier)
    return found


def _make_log(outlet: Outlet) -> Callable[[str], None]:
    """Return what writes a line of the log, as ``logging`` would do it.

    A terminal or pipe that nobody reads must not stop the supervisor.
    """

    def write(text: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        line = f"{stamp},{int(now % 1 * 1000):03d} fcgi-app: {text}\n"
        outlet.write(line.encode("utf-8", "backslashreplace"))

    return write
