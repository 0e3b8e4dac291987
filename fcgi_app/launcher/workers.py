"""Worker processes: the place of fork, exec, wait and kill.

A worker is a FastCGI program in any language, started as the specification says (§2.2):
the listening socket is its descriptor 0, and it inherits no other descriptor than its
standard output and error. :mod:`subprocess` does the fork and the exec; the only fork
of our own is the one that leaves the terminal (:func:`run_detached`).
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from ..errors import AppLoadError, FcgiAppError, WorkerError

__all__ = ["Worker", "find_command", "run_detached", "spawn", "spawn_all", "stop"]

STOP_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL, unless the caller says otherwise."""

SIGNAL_TICK = 0.5
"""Seconds after which a signal is seen that came between Python and a system call."""

PYTHON_IGNORES = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""What every Python process ignores; subprocess itself resets these for a child."""

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
    prepare: Callable[[], None] | None = None,
) -> Worker:
    """Start ``command`` with ``listener`` as its descriptor 0.

    The worker starts with an empty signal mask and every signal at its default; only an
    ignored SIGHUP stays ignored, because that is what nohup(1) promises. Descriptors
    from 3 up are closed. When this returns, the exec has succeeded.

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
        die_with_parent: SIGTERM for the worker when the *thread* that called this ends,
            or the process does, even by SIGKILL. Only on Linux; elsewhere without
            effect. Not for set-user-ID programs (prctl(2), PR_SET_PDEATHSIG).
        prepare: called in the child before exec, with all descriptors still open.

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
            start_new_session=new_session,
            preexec_fn=_child_setup(die_with_parent, prepare),
        )
    except OSError as error:
        raise WorkerError(_describe_failure(words[0], cwd, error)) from error
    except subprocess.SubprocessError as error:
        raise WorkerError(f"cannot start {words[0]!r}: {error}") from error
    return Worker(process, words)


def _child_setup(
    die_with_parent: bool, prepare: Callable[[], None] | None = None
) -> Callable[[], None] | None:
    """Return what the child has to do before exec; None if subprocess does it all."""
    ignored = [n for n in _ignored_signals() if n != signal.SIGHUP]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    bind = _death_binder() if die_with_parent else None
    if not (ignored or blocked or bind or prepare):
        return None

    def setup() -> None:
        _reset_signals(ignored)
        if prepare is not None:
            prepare()
        if bind is not None:  # last: a change of the user would undo it
            bind()

    return setup


def _ignored_signals() -> list[signal.Signals | int]:
    """Return the signals that this process ignores and exec would pass on."""
    return [
        number
        for number in signal.valid_signals()
        if number not in PYTHON_IGNORES and signal.getsignal(number) == signal.SIG_IGN
    ]


def _reset_signals(ignored: Iterable[signal.Signals | int]) -> None:
    """Give ``ignored`` their default action back and block no signal."""
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _death_binder() -> Callable[[], None] | None:
    """Return what binds a forked child's life to the caller's, or None off Linux.

    Everything that loads or allocates happens here, before the fork.
    """
    import ctypes

    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError:
        return None
    arguments = tuple(ctypes.c_ulong(n) for n in (signal.SIGTERM, 0, 0, 0))
    parent = os.getpid()

    def bind() -> None:
        # A handler inherited from the parent would swallow the signal until exec.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if prctl(PR_SET_PDEATHSIG, *arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        # A parent that died before the prctl sends no signal any more.
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

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


def find_command(text: str) -> list[str]:
    """Turn a command line, such as the value of ``fcgistarter -c``, into words.

    The program becomes an absolute path, so that a later chdir does no harm; symbolic
    links stay, because an interpreter finds its virtual environment through its name.
    The first of these that exists is taken:

    1. if the first word has no slash: the program of that name in PATH;
    2. the file with exactly this name, blanks and all, without arguments;
    3. the file that the first word names; the other words are its arguments.

    Words are split as by a POSIX shell (:func:`shlex.split`); there are no variables,
    patterns or redirections. PATH goes before the current directory, lest a file that
    lies about there takes the place of the program that was meant.

    Raises:
        AppLoadError: no such file, nothing but blanks, or a quote that does not end.
    """
    try:
        words, problem = shlex.split(text), "no such file"
    except ValueError as error:
        words, problem = [], str(error).lower()
    if words and "/" not in words[0]:
        problem += ", and no such program in PATH"
        found = shutil.which(words[0])
        if found:
            return [_absolute(found), *words[1:]]
    for candidate in ([text], words):
        if candidate and os.path.isfile(candidate[0]):
            return [_absolute(candidate[0]), *candidate[1:]]
    raise AppLoadError(f"command {text!r}: {problem if text.strip() else 'empty'}")


def _absolute(path: str) -> str:
    """Make ``path`` absolute as the system reads it: a link leads ``x/..`` astray."""
    path = os.path.join(os.getcwd(), path)
    return path if ".." in path.split("/") else os.path.normpath(path)


def run_detached(start: Callable[[], object]) -> None:
    """Call ``start`` in a process without terminal; return when it has succeeded.

    The process is forked, leads a session of its own, works in ``/``, has /dev/null as
    descriptors 0, 1 and 2, and resets its signals. It ends when ``start`` returns, so
    that what ``start`` has spawned becomes a child of init; the umask, the environment
    and the other descriptors stay.

    Descriptors 0, 1 and 2 must be open (``sockets.plug_standard_descriptors``), and
    this must be the only thread. What was written to buffered streams should be
    flushed: the new process drops its copy.

    Args:
        start: spawns workers; what it raises is reported to the caller.

    Raises:
        WorkerError: ``start`` raised; the message is that of its error (its traceback
            if it is no :class:`FcgiAppError` or OSError). Nothing in the new session's
            process group survives; nor does it when Ctrl-C ends the wait.
    """
    # SIGINT waits while there is a process that the clean-up does not know yet.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid, reader = _fork_detached(start)
        report = None
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            report = _read_report(reader)
        finally:
            os.close(reader)
            if report != "":
                _kill_group(pid)
            status = _reap(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if report is None:
        raise WorkerError(f"the detached process ended early: {status}")
    if report:
        raise WorkerError(report)


def _fork_detached(start: Callable[[], object]) -> tuple[int, int]:
    """Fork the detached process; return its pid and the pipe that its report is on."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _be_detached(start, writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return pid, reader


def _be_detached(start: Callable[[], object], writer: int) -> NoReturn:
    """Live the detached process's life; the report ends with a NUL, empty is good."""
    report = ""
    try:
        _leave_terminal()
        start()
    except (FcgiAppError, OSError) as error:
        report = str(error) or repr(error)
    except BaseException:  # noqa: BLE001  # raised to the caller, through the pipe
        report = traceback.format_exc()
    try:
        os.write(writer, report.encode("utf-8", "surrogateescape") + b"\0")
    finally:
        os._exit(1 if report else 0)


def _leave_terminal() -> None:
    """Become a session leader in ``/`` whose standard descriptors are /dev/null."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    _reset_signals(_ignored_signals())


def _read_report(reader: int) -> str | None:
    """Read up to the NUL that ends a report; None if the pipe ends before it.

    A process that ``start`` has forked may hold the pipe open, so its end is not
    waited for.
    """
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    report = b""
    while not report.endswith(b"\0"):
        # Ctrl-C just before a system call does not interrupt it: the call has to end.
        while not poller.poll(SIGNAL_TICK * 1000):
            pass
        piece = os.read(reader, 65536)
        if not piece:
            return None
        report += piece
    return report[:-1].decode("utf-8", "surrogateescape")


def _kill_group(pid: int) -> None:
    """Kill our unreaped child ``pid`` and the process group that it leads, if it does.

    The child goes first: it may not lead a group yet.
    """
    with suppress(ProcessLookupError):  # SIGCHLD is ignored: the system has reaped it
        os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reap(pid: int) -> str:
    """Wait for the end of our child ``pid`` and describe it."""
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # SIGCHLD is ignored: the system has reaped it
        return "status unknown"
    if status < 0:
        return f"killed by signal {-status}"
    return f"exit status {status}"
