"""Worker processes: the place of fork, exec, wait and kill.

A worker is a FastCGI program in any language, started as the specification says (§2.2):
the listening socket is its descriptor 0, and it inherits no other descriptor than its
standard output and error. :mod:`subprocess` does the fork and the exec.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from ..errors import WorkerError
from .signals import ignored_signals, reset_signals

__all__ = ["Worker", "spawn", "spawn_all", "stop"]

STOP_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL, unless the caller says otherwise."""

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


class Worker:
    """One started process; owns the duty to reap it.

    Keep it until :meth:`poll` or :meth:`wait` has returned a status: until then the
    process stays in the process table, and the pid cannot come to mean another one.
    """

    __slots__ = ("_process", "command")

    def __init__(
        self, process: subprocess.Popen[bytes], command: tuple[str, ...]
    ) -> None:
        self._process = process
        self.command = command

    def __repr__(self) -> str:
        status = self._process.returncode
        state = "running" if status is None else f"exit status {status}"
        return f"<Worker {self.pid} {shlex.join(self.command)}: {state}>"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs; never blocks.

        The status is negative, ``-n``, after a death by signal ``n``.
        """
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end and return the exit status, as :meth:`poll` gives it.

        Args:
            timeout: seconds, at most; None waits without limit.

        Returns:
            None when the process still runs after ``timeout``.
        """
        if timeout is None:
            return self._process.wait()
        status = self.poll()
        if status is not None:
            return status
        if not _await_exit(self.pid, timeout):
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout)
        return self.poll()

    def terminate(self) -> None:
        """Send SIGTERM: finish the current request and go; nothing if it has ended."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL; nothing if the process has ended."""
        self._process.kill()


def _await_exit(pid: int, timeout: float) -> bool:
    """Sleep until our child ``pid`` has ended or ``timeout`` seconds have passed.

    Returns:
        False, at once, where the system has no pidfd (Linux before 5.3, other systems,
        a seccomp filter that knows no pidfd_open): the caller has to wait by itself.
    """
    pidfd_open = getattr(os, "pidfd_open", None)
    if pidfd_open is None:
        return False
    try:
        pidfd = pidfd_open(pid)
    except OSError:
        return False
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(max(0.0, timeout) * 1000)
    finally:
        os.close(pidfd)
    return True


def spawn(
    command: Sequence[str],
    listener: socket.socket,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    new_session: bool = False,
    die_with_parent: bool = False,
    death_signal: signal.Signals = signal.SIGTERM,
    prepare: Callable[[], None] | None = None,
    pass_fds: Sequence[int] = (),
) -> Worker:
    """Start ``command`` with ``listener`` as its descriptor 0.

    The worker starts with an empty signal mask and every signal at its default; only an
    ignored SIGHUP stays ignored, because that is what nohup(1) promises. Descriptors
    from 3 up are closed, but for ``pass_fds``. When this returns, the exec has
    succeeded.

    Args:
        command: program and arguments. A program without a slash is searched in the
            PATH of ``env``; one with a slash is relative to ``cwd``.
        listener: borrowed; it can be closed or used for the next worker afterwards. The
            worker shares its file description, hence also O_NONBLOCK.
        env: the whole environment; None: that of this process.
        cwd: working directory; None: that of this process.
        stdout: descriptor that becomes descriptor 1, or ``subprocess.DEVNULL``;
            None: inherited.
        stderr: the same for descriptor 2; ``subprocess.STDOUT`` joins it to stdout.
        new_session: the worker leads a session and process group of its own, so that
            the terminal's Ctrl-C does not reach it.
        die_with_parent: ``death_signal`` for the worker when the *thread* that called
            this ends, or the process does, even by SIGKILL. Only on Linux; elsewhere
            without effect. Not for set-user-ID programs (prctl(2), PR_SET_PDEATHSIG).
        death_signal: see ``die_with_parent``.
        prepare: called in the child before exec, with all descriptors still open.
        pass_fds: descriptors from 3 up that the worker inherits, with these numbers.

    Raises:
        WorkerError: the program could not be executed; the message names it and tells
            the system's reason.
        ValueError: no command, or a pipe is asked for, which nobody would read.
    """
    if not command:
        raise ValueError("a worker needs a command")
    if subprocess.PIPE in (stdout, stderr):
        raise ValueError("subprocess.PIPE: pass a descriptor of a pipe instead")
    words = tuple(command)
    try:
        # None for preexec_fn whenever possible: only then can it be a vfork.
        process = subprocess.Popen(
            words,
            stdin=listener.fileno(),
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            close_fds=True,
            restore_signals=True,
            pass_fds=pass_fds,
            start_new_session=new_session,
            preexec_fn=_child_setup(death_signal if die_with_parent else None, prepare),
        )
    except OSError as error:
        raise WorkerError(_describe_failure(words[0], cwd, error)) from error
    except subprocess.SubprocessError as error:
        raise WorkerError(f"cannot start {words[0]!r}: {error}") from error
    return Worker(process, words)


def _child_setup(
    death_signal: signal.Signals | None, prepare: Callable[[], None] | None = None
) -> Callable[[], None] | None:
    """Return what the child has to do before exec; None if subprocess does it all."""
    ignored = [n for n in ignored_signals() if n != signal.SIGHUP]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    bind = None if death_signal is None else _death_binder(death_signal)
    if not (ignored or blocked or bind or prepare):
        return None

    def setup() -> None:
        reset_signals(ignored)
        if prepare is not None:
            prepare()
        if bind is not None:  # last: a change of the user would undo it
            bind()

    return setup


def _death_binder(number: signal.Signals) -> Callable[[], None] | None:
    """Return what binds a forked child's life to the caller's, or None off Linux.

    Everything that loads or allocates happens here, before the fork.
    """
    import ctypes

    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError:
        return None
    arguments = tuple(ctypes.c_ulong(n) for n in (number, 0, 0, 0))
    parent = os.getpid()

    def bind() -> None:
        # A handler inherited from the parent would swallow the signal until exec.
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        if prctl(PR_SET_PDEATHSIG, *arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        # A parent that died before the prctl sends no signal any more.
        if os.getppid() != parent:
            os._exit(128 + number)

    return bind


def _describe_failure(program: str, cwd: str | None, error: OSError) -> str:
    """Say which program could not be started, and why."""
    reason = error.strerror or str(error)
    if cwd is not None and error.filename == cwd:
        return f"cannot start {program!r} in the directory {cwd!r}: {reason}"
    path = os.path.join(cwd or "", program)
    if error.errno == errno.ENOENT and "/" in program and os.path.isfile(path):
        # The file is there: what execve(2) misses is the interpreter that it names.
        reason = f"its interpreter is missing{_shown_first_line(path)}"
    return f"cannot start {program!r}: {reason}"


def _shown_first_line(path: str) -> str:
    """Return the ``#!`` line of a script for a message; nothing for other files."""
    try:
        with open(path, "rb") as script:
            line = script.readline(80)
    except OSError:
        return ""
    if not line.startswith(b"#!"):
        return ""
    return f", first line {line.decode('ascii', 'backslashreplace')!r}"


def spawn_all(
    command: Sequence[str], listener: socket.socket, count: int
) -> list[Worker]:
    """Start ``count`` workers on one listener: all of them, or none.

    Raises:
        WorkerError: one could not be started (see :func:`spawn`); those before it have
            been stopped and reaped.
    """
    workers: list[Worker] = []
    try:
        for number in range(1, count + 1):
            workers.append(_spawn_one_of(command, listener, number, count))
    except BaseException:
        stop(workers)
        raise
    return workers


def _spawn_one_of(
    command: Sequence[str], listener: socket.socket, number: int, count: int
) -> Worker:
    """Start one worker; a failure of a later one says which it was."""
    try:
        return spawn(command, listener)
    except WorkerError as error:
        if number == 1:
            raise
        raise WorkerError(f"instance {number} of {count}: {error}") from error


def stop(workers: Iterable[Worker], *, grace: float = STOP_GRACE) -> None:
    """Stop and reap ``workers``: SIGTERM to all, SIGKILL to those that remain.

    Args:
        workers: may include some that have ended.
        grace: seconds that all of them together have after SIGTERM.
    """
    workers = list(workers)
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + grace
    for worker in workers:
        if worker.wait(deadline - time.monotonic()) is None:
            worker.kill()
            worker.wait()
