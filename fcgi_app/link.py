"""One connection's state: what is under way and owed on it, and how it ends.

What comes over it is in ``transport``, what goes out in ``sending``. Here it is decided
whether it stays open; which connection has its turn is the acceptor's business.
"""

from __future__ import annotations

import socket
from _thread import get_ident  # threading has the same one, and loads more
from collections.abc import Mapping
from math import inf
from time import monotonic

from .codec.constants import Role
from .outlet import Outlet
from .protocol import Connection, RecurringParams, RequestState, State
from .request import Request
from .settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Owner(Protocol):
        """Who holds the connections: the acceptor."""

        recurring: RecurringParams
        """What the params of all connections have in common."""

        def request_ready(self, request: Request) -> bool:
            """Take a request that may run now; False when there is no room for it."""

        def settle(self, link: Link) -> None:
            """Wait for what comes next on a connection that stays."""

        def rest(self, link: Link) -> None:
            """Keep a connection on which nothing is owed: ``settle`` in that case."""

        def aborted(self, request: Request) -> None:
            """Tell who waits for the end of ``request`` that it is unwanted or lost."""

        def transport_closed(self, link: Link) -> None:
            """Forget a connection; its socket is still open during the call."""


__all__ = ["Link"]

_MAX_REPLIES = 1 << 20
"""Bytes of short answers that a web server may leave unread; it is not read beyond."""
_COMPLETE = State.COMPLETE  # a look into the class is slow before Python 3.12
_AUTHORIZER = int(Role.AUTHORIZER)


class Link:
    """One connection from a web server.

    Attributes:
        fd: the descriptor of ``sock``.
        requests: those that have their params and no end yet, in order of arrival.
        owed: the end-request records of requests that were answered before their
            input had ended; see ``end``.
        eof: the peer sends no more.
        deaf: what the peer sends is not looked at any more.
        keep: whether the connection may stay when nothing is owed on it.
        lingering: our side is shut down; input is discarded until the peer closes.
        until: when lingering, or owing, ends at the latest (monotonic clock).
        watched, place: the acceptor's notes on where it has this connection.
    """

    __slots__ = (
        "_connection",
        "_outlet",
        "_owner",
        "_peer",
        "_quiet",
        "_receiver",
        "_settings",
        "closed",
        "deaf",
        "eof",
        "fd",
        "keep",
        "lingering",
        "owed",
        "place",
        "requests",
        "seen_bytes",
        "sock",
        "until",
        "watched",
    )

    _parser: type[Connection] = Connection

    def __init__(
        self,
        sock: socket.SocketType,
        peer: Any,
        settings: Settings,
        values: Mapping[bytes, bytes],
        owner: Owner,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._peer = peer
        self._settings = settings
        self._connection = self._parser(settings.limits, values, owner.recurring)
        self._owner = owner
        self._outlet = self._make_outlet(sock)
        self.requests: list[Request] = []
        self.owed: dict[RequestState, bytes] = {}
        self.closed = False
        self.deaf = False
        self.eof = False
        self.keep = True
        self.lingering = False
        self._receiver = 0  # the thread that receives
        self._quiet = False  # the last request's end leaves no input behind
        self.watched = 0  # for which events of the selector
        self.seen_bytes = False
        self.until = inf
        self.place: dict[Link, float] | None = None

    def _make_outlet(self, sock: socket.SocketType) -> Outlet:
        return Outlet(sock)

    def _is_inside(self) -> bool:
        """Whether a signal handler asks, which came in the middle of receiving."""
        return self._receiver == get_ident()

    # What the acceptor asks

    @property
    def paused(self) -> bool:
        """Whether reading on must wait until the application wants the input."""
        for request in self.requests:
            if request.dispatched and request.input_open:
                return True
        return False

    @property
    def unsent(self) -> int:
        """How many bytes the web server has not taken yet."""
        return self._outlet.pending

    @property
    def choked(self) -> bool:
        """Whether reading on must wait until the web server takes short answers."""
        outlet = self._outlet
        return outlet.replied > _MAX_REPLIES and outlet.pending > _MAX_REPLIES

    @property
    def serving(self) -> bool:
        """Whether it has one complete request to be served, and waits for nothing."""
        requests = self.requests
        return (
            len(requests) == 1
            and requests[0].state.state is _COMPLETE
            and not (self.eof or self.deaf or self.owed or self._outlet.queue)
        )

    @property
    def uploading(self) -> bool:
        """Whether the body of a request is due that has not been dispatched."""
        return any(not request.dispatched for request in self.requests)

    @property
    def begun(self) -> bool:
        """Whether a request, or any record, has come in part."""
        connection = self._connection
        return connection.receiving() or connection.mid_record

    @property
    def can_rest(self) -> bool:
        """Whether nothing at all is under way on it, and it is to stay."""
        return (
            self.keep
            and self._connection.idle
            and not (self.requests or self.owed or self.lingering)
            and not (self.closed or self.eof or self.deaf or self._outlet.queue)
        )

    @property
    def peer_name(self) -> str:
        """The peer, for the log."""
        if isinstance(self._peer, tuple):
            host, port = self._peer[:2]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self.sock.family != socket.AF_UNIX:
            return "a web server that has gone"
        return "a Unix socket" + (f" bound to {self._peer!r}" if self._peer else "")

    # What comes next

    def _after_end(self, state: RequestState) -> None:
        """Note what a request's end means for its connection."""
        if not state.keep_conn:
            self.keep = False
        self._quiet = not state.keep_conn and state.input_ended
        if self._quiet and state.role == _AUTHORIZER:
            self._quiet = not self._has_unread()
        self._next_step()

    def _has_unread(self) -> bool:
        """Whether input is waiting in the socket; an authorizer's was not expected."""
        try:
            return bool(self.sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except OSError:
            return False

    def _next_step(self) -> None:
        """Close the connection, linger, or wait: only here that is decided."""
        if self.closed:
            return
        if self._outlet.lost:
            self._gone()
            if not self.requests:
                self.close()
                return
        elif not (self.requests or self.owed or self.unsent or self.lingering):
            neighbour = not self.deaf and self._connection.receiving()
            if not (self.keep or neighbour):
                if self.eof or (self._quiet and not self._connection.mid_record):
                    self.close()
                    return
                self._linger()
        elif self.lingering and self.eof:
            self.close()
            return
        self._owner.settle(self)

    def refuse_keeping(self) -> None:
        """Close when nothing is owed any more; at once if nothing is owed now."""
        self.keep = False
        busy = self.requests or self.owed or self.unsent or self.lingering
        # The first request of a connection that was just made is on its way.
        if not busy and not self.begun and self.seen_bytes:
            self.close()

    def _linger(self) -> None:
        """Shut our side down and discard input: a reset would destroy the answer."""
        self.lingering = True
        self.until = monotonic() + (self._settings.linger_timeout or inf)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _gone(self) -> None:
        """Abort every request of the connection: the web server takes no more."""
        self.eof = self.deaf = True
        self.keep = False
        self.owed.clear()
        for request in list(self.requests):
            self._abort(request)
            if not request.running:
                request.drop()
                self.requests.remove(request)

    def _abort(self, request: Request) -> None:
        request.abort()
        self._owner.aborted(request)

    def give_up(self) -> None:
        """End what is owed, or drop it and close: the peer was silent for too long."""
        raise NotImplementedError

    def give_up_socket(self) -> int:
        """Be closed, without closing the socket; return its descriptor."""
        self.closed = self.eof = self.deaf = True
        return self.sock.detach()

    def close(self) -> None:
        """Close the socket; idempotent."""
        if not self.closed:
            self.closed = True
            self.eof = self.deaf = True
            self._owner.transport_closed(self)
            self.sock.close()
            if self._outlet.queue:
                self._outlet.close_files()
