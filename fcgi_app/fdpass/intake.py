"""The core of both receivers: a listening socket in, handovers out.

It waits only where it is told how long. All senders that there are get taken at once,
since httpd connects without a time limit: a full backlog blocks its threads. Each
sender has a deadline, so that a silent one costs a descriptor for some seconds and
nothing else.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from math import inf
from selectors import EVENT_READ
from time import monotonic

from .._log import log_info, log_warning
from ..sockets import bound_address, remove_socket_file
from .ancillary import DATA_MAX_BYTES, Message, close_descriptors, receive_message
from .client import adopt_client, examine_client
from .handover import Handover, Peer

__all__ = ["Intake"]

_BATCH = 64
"""Connections taken before the others are looked at again."""
_PASSING = (errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.EPROTO)
"""Errors of accept(2) that are about one connection."""
_FIRST_PAUSE = 0.05  # seconds without accept when the process is out of descriptors
_LONGEST_PAUSE = 1.0
_GRACE = 1.0
"""Seconds that a sender has even when the process is out of descriptors."""
_MOST_WAITING = 4096
"""Senders taken from the backlog at the end; net.core.somaxconn is no more."""
_LONGEST_WAIT = 1_000_000.0  # seconds; epoll and poll(2) take 24 days at most

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7)
_SOL_SOCKET = int(socket.SOL_SOCKET)
_PASSING_OPTIONS = (16, 34, 76)
"""SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD of Linux: a listening socket that was passed
to us may have them, and accepted ones inherit them. The last brings a descriptor with
every message."""


class _Sender:
    """A connection whose descriptor has not come yet."""

    __slots__ = ("connection", "data", "peer", "since", "watched")

    def __init__(self, connection: socket.socket, peer: Peer, data: bytes) -> None:
        self.connection = connection
        self.peer = peer
        self.data = data
        self.since = monotonic()
        self.watched = False


class Intake:
    """See the module's docstring.

    Args:
        listener: a listening Unix stream socket; owned, made non-blocking.
        own: no other process accepts from it.
        allow_uids: user ids of senders; None: everybody who can connect.
        sender_timeout: seconds from connect to the descriptor; 0: no limit.
        max_queued: handovers in the queue beyond which no sender is taken.
        write_timeout: of the handovers.

    Attributes:
        queue: handovers, oldest first; owned until they are taken out.
        address: where it listens, as text.
        stopping: whether `stop` has been asked.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        own: bool,
        allow_uids: Collection[int] | None,
        sender_timeout: float,
        max_queued: int,
        write_timeout: float,
    ) -> None:
        self.queue: deque[Handover] = deque()
        self.address = bound_address(listener)
        self.stopping = False
        self._listener: socket.socket | None = listener
        self._listening = False
        self._own = own
        self._allow_uids = None if allow_uids is None else frozenset(allow_uids)
        self._sender_timeout = sender_timeout or inf
        self._max_queued = max_queued
        self._write_timeout = write_timeout
        self._senders: dict[_Sender, None] = {}  # oldest first
        self._pid = os.getpid()
        self._paused_until = 0.0
        self._pause = _FIRST_PAUSE
        self._closed = False
        listener.setblocking(False)
        for option in _PASSING_OPTIONS:
            with suppress(OSError):  # an older kernel
                listener.setsockopt(_SOL_SOCKET, option, 0)
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._selector.register(self._wake_in, EVENT_READ, self._clear_wake)
        # A descriptor that is given up just before one is to arrive: without a free
        # number the kernel would drop the client's socket.
        self._reserve = os.dup(self._wake_in)
        self._listen_if_room()

    # For the receivers

    @property
    def finished(self) -> bool:
        """Whether nothing more will come into the queue."""
        return self._closed or (
            self.stopping and self._listener is None and not self._senders
        )

    def fileno(self) -> int:
        """Return a descriptor that is readable when `turn` has something to do."""
        return self._selector.fileno()

    def turn(self, wait: float | None) -> None:
        """Wait ``wait`` seconds at most, None: for ever; handle all that is there."""
        if not self._listening:
            self._listen_if_room()
        for key, _ in self._selector.select(self._time_to_wait(wait)):
            owner = key.data
            if type(owner) is not _Sender:
                owner()
            elif owner in self._senders:  # else dropped since the select
                self._receive_late(owner)
        if self._senders or self._paused_until:
            self._look_at_deadlines()
        if self.stopping and self._listener is not None and not self._paused_until:
            self._retire()
        if not self._listening:
            self._listen_if_room()

    def time_to_turn(self) -> float | None:
        """Seconds until `turn` is due though nothing is readable; None: it is not."""
        nearest = inf
        if self._senders:
            nearest = next(iter(self._senders)).since + self._sender_timeout
        if self._paused_until:
            nearest = min(nearest, self._paused_until)
        if not self._listening and not self._paused_until and self._wants_to_listen():
            return 0.0  # there is room again
        return None if nearest == inf else max(0.0, nearest - monotonic())

    def stop(self) -> None:
        """Ask for the end: safe in signal handlers and from any thread."""
        self.stopping = True
        try:
            os.write(self._wake_out, b"\0")
        except OSError:  # full (then it wakes anyway) or closed
            return

    def close(self) -> None:
        """Close everything, the queue, too. Idempotent.

        A forked child closes its copies only: the socket file is its parent's.
        """
        if self._closed:
            return
        self._closed = True
        self.stopping = True
        if self._listener is not None:
            self._remove_file(self._listener)
            self._listener.close()
            self._listener = None
        if self.queue and os.getpid() == self._pid:
            log_warning(
                "fdpass %s: %d clients closed that nobody has taken",
                self.address,
                len(self.queue),
            )
        for handover in self.queue:
            handover.socket.close()
        self.queue.clear()
        for sender in self._senders:
            sender.connection.close()
        self._senders.clear()
        self._selector.close()
        close_descriptors((self._wake_in, self._wake_out))
        self._wake_in = self._wake_out = -1
        self._give_up_reserve()

    # Waiting

    def _time_to_wait(self, wait: float | None) -> float | None:
        due = self.time_to_turn()
        if wait is None or (due is not None and due < wait):
            wait = due
        return None if wait is None else min(max(0.0, wait), _LONGEST_WAIT)

    def _clear_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_in, 4096)

    def _look_at_deadlines(self) -> None:
        now = monotonic()
        while self._senders:
            sender = next(iter(self._senders))
            if sender.since + self._sender_timeout > now:
                break
            self._refuse(
                sender.peer, f"no descriptor within {self._sender_timeout:g} s"
            )
            self._forget(sender)
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            for sender in list(self._senders):
                if not sender.watched:
                    self._watch(sender)

    # Accepting

    def _wants_to_listen(self) -> bool:
        return (
            not self.stopping
            and self._listener is not None
            and len(self.queue) < self._max_queued
        )

    def _listen_if_room(self) -> None:
        if self._wants_to_listen() and not self._paused_until:
            assert self._listener is not None
            self._selector.register(self._listener, EVENT_READ, self._accept_batch)
            self._listening = True

    def _stop_listening(self) -> None:
        if self._listening:
            assert self._listener is not None
            self._selector.unregister(self._listener)
            self._listening = False

    def _accept_batch(self) -> None:
        for _ in range(_BATCH):
            if len(self.queue) >= self._max_queued:
                self._stop_listening()
                return
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Take one sender; False when there is none, or none can be taken now."""
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False  # nobody, or another process was faster
        except OSError as error:
            if error.errno in _PASSING:
                return True
            return self._drop_oldest() or self._out_of_descriptors(error)
        if connection.gettimeout() is not None:  # by socket.setdefaulttimeout
            connection.settimeout(None)  # calls that must not wait say so themselves
        peer = Peer(
            *_CREDENTIALS.unpack(
                connection.getsockopt(
                    _SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
                )
            )
        )
        if self._allow_uids is not None and peer.uid not in self._allow_uids:
            self._refuse(peer, "this user may not hand over")
            connection.close()
            return True
        if self._senders:
            self._receive_earlier()
        # Most have sent all by now: one look saves a registration.
        data = self._receive(connection, peer, b"")
        if data is None:
            connection.close()  # before the next line, which needs its number
            self._take_reserve()
        else:
            sender = _Sender(connection, peer, data)
            self._senders[sender] = None
            self._watch(sender)
        return not self._paused_until

    def _out_of_descriptors(self, error: OSError) -> bool:
        """Try again after a pause; the senders wait in the backlog. Always False."""
        if self._pause == _FIRST_PAUSE:
            log_warning(
                "fdpass %s: no sender is taken: %s; trying again", self.address, error
            )
        self._paused_until = monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._stop_listening()
        return False

    def _drop_oldest(self) -> bool:
        """Make room: let the sender go that has been silent longest."""
        if self._senders:
            sender = next(iter(self._senders))
            if sender.since <= monotonic() - _GRACE:
                self._refuse(sender.peer, "no descriptor, and its place is needed")
                self._forget(sender)
                return True
        return False

    # Receiving

    def _receive_earlier(self) -> None:
        """Look at the senders that have come before, for they are to be first."""
        for key, _ in self._selector.select(0):
            if type(key.data) is _Sender:
                self._receive_late(key.data)

    def _receive_late(self, sender: _Sender) -> None:
        data = self._receive(sender.connection, sender.peer, sender.data)
        if data is None:
            self._forget(sender)
            self._take_reserve()
            return
        sender.data = data
        if self._reserve < 0:
            self._selector.unregister(sender.connection)
            sender.watched = False

    def _receive(
        self, connection: socket.socket, peer: Peer, before: bytes
    ) -> bytes | None:
        """Take what has come, without waiting.

        Returns:
            None when the connection is to be closed, and the reserve to be taken
            again after that; else the payload so far.
        """
        if self._reserve < 0 and not self._take_reserve():
            self._out_of_descriptors(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            return before
        self._give_up_reserve()
        data: bytes | None = before
        while data is not None:
            try:
                message = receive_message(connection)
            except BlockingIOError:
                self._take_reserve()
                return data
            except OSError as error:
                self._refuse(peer, f"no descriptor: {error.strerror}")
                return None
            data = self._handle(message, peer, data)
        return None

    def _handle(self, message: Message, peer: Peer, before: bytes) -> bytes | None:
        """Queue a handover or refuse what came; None unless there is more to come."""
        data = before + message.data
        cause = _find_fault(message, data)
        if cause:
            close_descriptors(message.descriptors)
            self._refuse(peer, cause)
            return None
        if not message.descriptors:
            return data
        client = adopt_client(message.descriptors[0])
        if isinstance(client, str):
            self._refuse(peer, client)
            return None
        cause, address, silent = examine_client(client)
        if silent:
            log_info(
                "fdpass %s: from pid %d: the client has closed its side; if it reads"
                " on it gets its answer",
                self.address,
                peer.pid,
            )
        if cause:
            client.close()
            self._refuse(peer, cause)
            return None
        self._pause = _FIRST_PAUSE
        self.queue.append(Handover(client, data, peer, address, self._write_timeout))
        return None

    def _refuse(self, peer: Peer, cause: str) -> None:
        log_warning(
            "fdpass %s: from pid %d of user %d: %s; closed",
            self.address,
            peer.pid,
            peer.uid,
            cause,
        )

    # Senders

    def _watch(self, sender: _Sender) -> None:
        self._selector.register(sender.connection, EVENT_READ, sender)
        sender.watched = True

    def _forget(self, sender: _Sender) -> None:
        del self._senders[sender]
        if sender.watched:
            self._selector.unregister(sender.connection)
        sender.connection.close()

    def _take_reserve(self) -> bool:
        try:
            self._reserve = os.dup(self._wake_in)
        except OSError:  # another thread was faster
            self._reserve = -1
        return self._reserve >= 0

    def _give_up_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    # The end

    def _retire(self) -> None:
        """Take no new sender, but those that wait already if nobody else will."""
        listener = self._listener
        assert listener is not None
        self._stop_listening()
        if self._own:
            self._remove_file(listener)
            # Without its file the backlog gets no longer; an abstract socket has none.
            for _ in range(_MOST_WAITING):
                if not self._accept():
                    break
            if self._paused_until:
                return  # out of descriptors: the others after the pause
        listener.close()
        self._listener = None

    def _remove_file(self, listener: socket.socket) -> None:
        if os.getpid() != self._pid:
            return
        try:
            remove_socket_file(listener)
        except OSError as error:
            log_warning("fdpass %s: not removed: %s", self.address, error)


def _find_fault(message: Message, data: bytes) -> str:
    """Say what is wrong with a message; empty if nothing is."""
    count = len(message.descriptors)
    if message.truncated:
        return (
            f"control data was truncated (MSG_CTRUNC) after {count} descriptors: too"
            " many were sent, or the process is out of descriptors"
        )
    if message.others:
        level, kind = message.others[0]
        return f"a control message of level {level}, type {kind}, not SCM_RIGHTS"
    if count > 1:
        return f"{count} descriptors in one message, one is expected"
    if len(data) > DATA_MAX_BYTES:
        return f"more than {DATA_MAX_BYTES} bytes of payload"
    if not message.data and not count:
        return "the connection ended without a descriptor"
    return ""
