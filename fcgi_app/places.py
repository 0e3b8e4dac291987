"""Where connections wait, what for and until when."""

from __future__ import annotations

import selectors
from math import inf
from selectors import EVENT_READ, EVENT_WRITE
from time import monotonic

from ._log import log_warning
from .link import Link
from .settings import Settings

__all__ = ["Places"]

_END_DELAY = 0.2
"""Seconds without input after which an early answer is ended all the same."""

_Place = dict[Link, float]


class Places:
    """The selector that watches the connections, and their deadlines."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        # Where a connection may wait, oldest first, with its deadline.
        self._first: _Place = {}
        self._coming: _Place = {}
        self._uploading: _Place = {}
        self._blocked: _Place = {}
        self._idle: _Place = {}
        self._lingering: _Place = {}
        self._owing: _Place = {}
        self._places = (
            (self._first, "sent nothing"),
            (self._coming, "sent part of a request and then nothing"),
            (self._uploading, "sent part of a body and then nothing"),
            (self._blocked, "took no answer"),
            (self._idle, ""),
            (self._lingering, ""),
            (self._owing, ""),
        )
        self._nearest = inf  # deadline that the last wait knew of

    def settle(self, link: Link) -> None:
        """Put a connection where it belongs after anything has happened to it."""
        if link.closed:
            return
        events = EVENT_READ
        settings = self._settings
        if link.lingering:
            self._put(link, self._lingering, settings.linger_idle, link.until)
        elif link.unsent:
            self._put(link, self._blocked, settings.write_timeout)
            events = EVENT_WRITE
            if not (link.choked or link.paused or link.deaf):
                events |= EVENT_READ
        elif link.deaf:
            self._put(link, None)
            events = 0
        elif link.owed:
            self._put(link, self._owing, _END_DELAY, link.until)
        elif link.paused:
            self._put(link, None)
            events = 0
        elif link.uploading:
            self._put(link, self._uploading, settings.body_timeout)
        elif link.requests:
            self._put(link, None)
        elif link.begun:
            self._put(link, self._coming, settings.params_timeout)
        elif link.seen_bytes:
            self._put(link, self._idle, settings.keep_timeout)
        else:
            self._put(link, self._first, settings.first_byte_timeout)
        if link.watched != events:
            self._watch(link, events)

    def rest(self, link: Link) -> None:
        """Keep a connection on which nothing is owed: the usual case of ``settle``."""
        self._put(link, self._idle, self._settings.keep_timeout)
        if link.watched != EVENT_READ:
            self._watch(link, EVENT_READ)

    def _watch(self, link: Link, events: int) -> None:
        """Have the selector tell of ``events`` on a connection; 0: of none."""
        if not events:
            self._selector.unregister(link.fd)
        elif link.watched:
            self._selector.modify(link.fd, events, link)
        else:
            self._selector.register(link.fd, events, link)
        link.watched = events

    def _put(
        self,
        link: Link,
        place: _Place | None,
        wait: float = 0.0,
        latest: float = inf,
    ) -> None:
        """Move a connection to the end of ``place``, due in ``wait`` seconds."""
        if link.place is not None:
            link.place.pop(link, None)
        link.place = place
        if place is not None:
            if wait:
                latest = min(monotonic() + wait, latest)
            place[link] = latest
            if latest < self._nearest:
                self._nearest = latest

    def _expire(self) -> None:
        """Close the connections whose deadline has passed."""
        now = 0.0
        self._nearest = inf
        for place, what in self._places:
            while place:
                link, deadline = next(iter(place.items()))
                if deadline == inf:
                    break
                now = now or monotonic()
                if deadline > now:
                    self._nearest = min(self._nearest, deadline)
                    break
                if link.serving:  # not idle at all, only left in its place
                    self._put(link, None)
                    continue
                if what:
                    log_warning("connection from %s %s; closed", link.peer_name, what)
                self._put(link, None)
                link.give_up()
