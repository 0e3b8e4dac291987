"""A receiver for the client sockets that mod_proxy_fdpass hands over."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterable
from time import monotonic
from types import TracebackType

from ..addresses import AddressKind
from ..errors import ConfigError
from ..sockets import open_socket
from .address import parse_unix_address
from .handover import WRITE_TIMEOUT, Handover
from .intake import Intake

__all__ = ["Receiver", "ReceiverBase"]

SENDER_TIMEOUT = 10.0
"""Seconds. httpd sends the response head to the client between connect and handover,
and that waits only for a client that takes not even so little."""


class ReceiverBase:
    """What `Receiver` and `AsyncReceiver` have in common.

    Args:
        path_or_fd: where to listen. A path; ``unix:PATH``, ``@name`` (abstract),
            ``fd:N``, ``systemd`` as in `fcgi_app.addresses`; or the number of a
            descriptor that listens, which is taken over: workers of one pool inherit
            one, and each makes its receiver after the fork. A socket file that
            nobody listens on is replaced.
        mode: permission bits of the socket file, exactly; a sender needs write
            permission. Other forms ignore it.
        allow_uids: user ids that may hand over (httpd's children have that of its
            User directive); None: whoever can connect.
        backlog: senders that wait for an accept; the kernel cuts it to
            net.core.somaxconn. When it is full, httpd's threads block.
        sender_timeout: seconds from connect to the descriptor; 0: no limit.
        max_queued: handovers that wait for `accept` beyond which senders stay in the
            backlog; None: as many as RLIMIT_NOFILE has room for, less a reserve. In
            a pool of workers 1 leaves to the others what this one is too busy for.
        write_timeout: what the handovers get, seconds.

    Raises:
        ConfigError: an argument is invalid, or a descriptor is not a listening Unix
            stream socket.
        OSError: the system refuses. Of a path that is listened on, errno is
            EADDRINUSE, of one that is another file EEXIST; both name it.
    """

    def __init__(
        self,
        path_or_fd: str | os.PathLike[str] | int,
        *,
        mode: int = 0o600,
        allow_uids: Iterable[int] | None = None,
        backlog: int = 4096,
        sender_timeout: float = SENDER_TIMEOUT,
        max_queued: int | None = None,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        if not sender_timeout >= 0:
            raise ConfigError("sender_timeout", sender_timeout, "must be from 0 on")
        if not write_timeout >= 0:
            raise ConfigError("write_timeout", write_timeout, "must be from 0 on")
        if max_queued is not None and max_queued < 1:
            raise ConfigError("max_queued", max_queued, "must be at least 1")
        uids = None if allow_uids is None else frozenset(allow_uids)
        listener, listener_is_new = _open(path_or_fd, mode, backlog)
        self._intake = Intake(
            listener,
            own=listener_is_new,
            allow_uids=uids,
            sender_timeout=sender_timeout,
            max_queued=_room() if max_queued is None else max_queued,
            write_timeout=write_timeout,
        )

    @property
    def address(self) -> str:
        """Where it listens: ``unix:PATH`` or ``@name``."""
        return self._intake.address

    def fileno(self) -> int:
        """Return a descriptor to wait on together with others.

        When it is readable, something has happened: call ``accept(0)`` until it
        raises TimeoutError. Call that once a second in any case, as deadlines do not
        make it readable.
        """
        return self._intake.fileno()

    def stop(self) -> None:
        """Take no new sender; safe in signal handlers and from any thread.

        Who has connected is still served, then `accept` returns None. A socket file
        that this receiver has made is removed.
        """
        self._intake.stop()

    def close(self) -> None:
        """Close everything, also the clients that nobody has taken. Idempotent.

        In a forked child this closes the child's copies and no more.
        """
        self._intake.close()


class Receiver(ReceiverBase):
    """Receives clients; an iterator over them and a context manager.

    One thread at a time; `stop` may come from anywhere.
    Arguments and their errors are those of `ReceiverBase`.
    """

    def accept(self, timeout: float | None = None) -> Handover | None:
        """Wait for the next client.

        Errors of a sender or of what it sent are logged, and the next one is waited
        for.

        Args:
            timeout: seconds; 0 takes only what is there; None waits for ever.

        Returns:
            The caller's, to be closed or detached; None after `stop`, when all that
            had come is delivered, and after `close`.

        Raises:
            TimeoutError: ``timeout`` seconds have passed without one.
        """
        intake = self._intake
        queue = intake.queue
        if queue:
            return queue.popleft()
        until = None if timeout is None else monotonic() + timeout
        while not intake.finished:
            left = None if until is None else until - monotonic()
            intake.turn(left)  # once at least: a timeout of 0 takes what is there
            if queue:
                return queue.popleft()
            if left is not None and left <= 0 and not intake.finished:
                raise TimeoutError(f"no client came within {timeout:g} s")
        return None

    def __iter__(self) -> Receiver:
        return self

    def __next__(self) -> Handover:
        handover = self.accept()
        if handover is None:
            raise StopIteration
        return handover

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _open(
    path_or_fd: str | os.PathLike[str] | int, mode: int, backlog: int
) -> tuple[socket.socket, bool]:
    """Open or adopt the listening socket; whether it is new."""
    path = f"fd:{path_or_fd}" if isinstance(path_or_fd, int) else path_or_fd
    where = parse_unix_address(path, listening=True)
    has_file = where.kind is AddressKind.UNIX
    listener = open_socket(str(where), backlog=backlog, mode=mode if has_file else None)
    if listener.family != socket.AF_UNIX:
        listener.close()
        raise ConfigError("address", str(where), "is not a Unix socket")
    return listener, has_file or where.kind is AddressKind.ABSTRACT


def _room() -> int:
    """How many clients leave the program descriptors for its own files."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(limit - 64, limit // 2)
