"""The loop of the development server: HTTP clients, the script, its files, signals."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from types import FrameType

from ..._version import __version__
from ...errors import ConfigError
from ..filewatch import Watcher
from .gateway import Backend, Gateway
from .params import Site
from .script import Script, find_script_command

__all__ = ["DevOptions", "DevServer"]

POLL_SECONDS = 0.5
"""Between two looks at the files."""
SETTLE_SECONDS = 0.05
"""The same while they are changing."""
MAX_LOOK_SHARE = 0.05
"""Share of the time that looking at the files may take, in a big tree."""
DELIVERY_GRACE = 2.0
"""Seconds for answers that are still on their way to their clients at the end."""
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class DevOptions:
    """What to serve, and how.

    Attributes:
        target: path of the script or program.
        args: its arguments.
        host: name or address to listen on.
        port: 0 takes a free one.
        reload: start the script again when a file changes.
        mount: SCRIPT_NAME: empty, or a path that begins with ``/``.
        document_root: DOCUMENT_ROOT; None: the script's directory.
        timeout: seconds that the script may take without any progress; None: no limit.
    """

    target: str
    args: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    reload: bool = True
    mount: str = ""
    document_root: str | None = None
    timeout: float | None = 60.0


class DevServer:
    """Serves a script over HTTP until a signal says stop; for development only.

    Args:
        options: what to serve, and how.
        announce: takes the line that tells the URL.
        report: takes every other line for the terminal, from any thread.

    Raises:
        ConfigError: an option makes no sense.
        AppLoadError: the target is missing or cannot be run.
    """

    def __init__(
        self,
        options: DevOptions,
        *,
        announce: Callable[[str], object],
        report: Callable[[str], object],
    ) -> None:
        self._options = options
        self._announce = announce
        self._report = report
        self._mount = _checked_mount(options.mount)
        self._command, is_python = find_script_command(options.target, options.args)
        self._path = os.path.abspath(options.target)
        self._name = os.path.basename(self._path)
        trees = [os.path.dirname(self._path)] if is_python else []
        self._watcher = Watcher([self._path], trees) if options.reload else None
        self._next_look = 0.0
        self._wanted = False
        self._signal = 0
        self._kill: Callable[[], object] | None = None

    def run(self) -> int:
        """Serve; only in the main thread of the process, whose signals this takes.

        SIGINT, SIGTERM and SIGHUP stop it: the script gets SIGTERM and may finish its
        request, after 5 s, or at a second signal, it is killed.

        Returns:
            The number of the signal that ended it.

        Raises:
            OSError: the address cannot be listened on.
            WorkerError: the script cannot be executed.
        """
        with ExitStack() as stack:
            waker, sleeper = stack.enter_context(_wake_up_pair())
            stack.enter_context(self._signals_taken(waker))
            gateway = Gateway(self._options.host, self._options.port)
            stack.callback(gateway.close)
            stack.callback(gateway.wait_idle, DELIVERY_GRACE)
            script = Script(self._command, self._name, self._report)
            stack.callback(script.close)
            self._kill = script.kill

            def want() -> None:
                self._wanted = True
                _wake(waker)

            gateway.backend = Backend(
                address=script.address,
                site=self._site(gateway),
                timeout=self._options.timeout,
                report=self._report,
                on_request=want,
                on_answer=script.note_answer,
            )
            self._announce_url(gateway)
            script.start()
            self._loop(gateway, script, sleeper)
            name = signal.Signals(self._signal).name
            self._report(f"{name}: stopping {self._name}; once more kills it")
        return self._signal

    def _loop(self, gateway: Gateway, script: Script, sleeper: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(sleeper, selectors.EVENT_READ)
            selector.register(gateway, selectors.EVENT_READ)
            while not self._signal:
                for key, _ in selector.select(self._patience(script)):
                    if key.fileobj is gateway:
                        gateway.handle_request()
                    else:
                        _drain(sleeper)
                script.reap()
                if self._wanted:
                    self._wanted = False
                    script.try_start()
                self._look_for_changes(script)

    def _patience(self, script: Script) -> float | None:
        """Give the seconds until something is due that no descriptor tells."""
        due = [script.next_deadline]
        if self._watcher is not None:
            due.append(self._next_look)
        known = [moment for moment in due if moment is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    def _look_for_changes(self, script: Script) -> None:
        started = time.monotonic()
        if self._watcher is None or started < self._next_look:
            return
        changed = self._watcher.poll()
        took = time.monotonic() - started
        pause = SETTLE_SECONDS if self._watcher.unsettled else POLL_SECONDS
        self._next_look = started + max(pause, took / MAX_LOOK_SHARE)
        if changed:
            names = ", ".join(map(self._shown, changed[:3]))
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            self._report(f"{names}{more} changed: restarting {self._name}")
            script.restart()

    def _shown(self, path: str) -> str:
        return os.path.relpath(path, os.path.dirname(self._path))

    def _site(self, gateway: Gateway) -> Site:
        root = self._options.document_root
        return Site(
            address=gateway.address,
            mount=self._mount,
            script=self._path,
            document_root=os.path.abspath(root or os.path.dirname(self._path)),
            software=f"fcgi-app-dev/{__version__}",
        )

    def _announce_url(self, gateway: Gateway) -> None:
        host, port = gateway.address
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{self._mount}/"
        self._announce(
            f"Serving {self._name} at {url} - for development only, Ctrl-C stops it"
        )
        if not ip_address(host.partition("%")[0]).is_loopback:
            self._report(
                f"warning: every host that reaches {host} can use this server, which "
                "is for development only"
            )

    @contextmanager
    def _signals_taken(self, waker: socket.socket) -> Iterator[None]:
        """Wake the loop by signals: those that stop it, and SIGCHLD."""

        def on_stop(number: int, frame: FrameType | None) -> None:
            if self._signal and self._kill is not None:
                self._kill()  # the second one: no patience any more
            self._signal = self._signal or number

        def on_child(number: int, frame: FrameType | None) -> None:
            """Do nothing: that it came is written to the wake-up socket."""

        handlers = {number: on_stop for number in _STOPPING if not _is_ignored(number)}
        handlers[signal.SIGCHLD] = on_child
        old_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        old = {n: signal.signal(n, handler) for n, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_waker)


def _is_ignored(number: signal.Signals) -> bool:
    """Tell whether nohup(1), or a shell for a job in the background, said ignore."""
    return signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def _wake_up_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    waker, sleeper = socket.socketpair()
    with waker, sleeper:
        waker.setblocking(False)
        sleeper.setblocking(False)
        yield waker, sleeper


def _wake(waker: socket.socket) -> None:
    try:
        waker.send(b"\0")
    except OSError:
        return  # full: it will wake up anyway; closed: it has ended


def _drain(sleeper: socket.socket) -> None:
    try:
        while sleeper.recv(4096):
            pass
    except BlockingIOError:
        return


def _checked_mount(mount: str) -> str:
    mount = mount.rstrip("/")
    if mount and not mount.startswith("/"):
        raise ConfigError("mount", mount, "does not begin with /")
    if any(part in ("", ".", "..") for part in mount.split("/")[1:]):
        raise ConfigError("mount", mount, "has an empty segment or dots")
    return mount
