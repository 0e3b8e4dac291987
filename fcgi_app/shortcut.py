"""From one usual request to the next, in one step: the bare loop on the native backend.

A request that came whole, and whose program only prints, needs no object of its own:
its text gathers in a list, and two calls into C answer it and bring the next one. As
soon as anybody wants to know more (``current_request()``, ``sys.stdin``,
``sys.stdout.buffer``, a flush, the end of the process), `Shortcut.promote` makes the
``Request`` that there would have been from the beginning, and everything goes on as it
always does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

from ._backend import lib
from .lane import CONTENT, END_MASK, HEAD, LAYOUT, LaneAcceptor
from .response import known_head

if TYPE_CHECKING:
    from io import BufferedIOBase

    from .lazyenviron import LazyEnvironSwap
    from .loop import Loop
    from .request import Request
    from .settings import Settings
    from .textio import TextIn, TextOut

__all__ = ["Shortcut"]

_step_begin = lib.fcgi_step_begin
_step = lib.fcgi_step
_UNSENT: int = lib.FCGI_STEP_UNSENT


class Shortcut:
    """What the loop has of a usual request; the source of its text streams.

    Attributes:
        open: a request is current that has no ``Request``.
    """

    __slots__ = (
        "_acceptor",
        "_environ",
        "_err",
        "_head",
        "_head_length",
        "_in",
        "_lane",
        "_limit",
        "_loop",
        "_mended",
        "_out",
        "_parts",
        "_size",
        "_swap",
        "_turn",
        "_window",
        "open",
    )

    def __init__(
        self,
        loop: Loop,
        acceptor: LaneAcceptor,
        swap: LazyEnvironSwap,
        texts: tuple[TextIn, TextOut, TextOut],
        settings: Settings,
    ) -> None:
        self._loop = loop
        self._acceptor = acceptor
        self._lane = acceptor.lane
        self._window = acceptor.window
        self._swap = swap
        self._environ = swap.environ
        self._in, self._out, self._err = texts
        self._limit = settings.output_buffer
        self._parts: list[bytes] = []
        self._size = 0
        self._turn = 0
        self.open = False
        # The head that was printed last, as it was printed and as it was sent.
        self._head = b"\0"  # which begins no response
        self._head_length = 0
        self._mended = b""

    def step(self) -> bool:
        """End the open request and begin the next, as far as all is as usual.

        Returns:
            Whether the next is open; else the loop goes on from where this has stopped.
        """
        acceptor = self._acceptor
        if self._loop.before_swap or not acceptor.is_quiet:
            return False
        out = self._out
        if self.open:
            if sys.stdout is not out or sys.stderr is not self._err:
                return False
            parts = self._parts
            data = b"".join(parts)
            if data.startswith(self._head):
                data = self._mended + data[self._head_length :]
            else:
                found = self._mend(data)
                if found is None:
                    return False
                data = found
            parts.clear()
            out._source = out._put = self._in._source = self._err._source = None
            self._swap.leave_shown()
            # The last before C: a signal handler may raise as soon as that is back.
            self.open = False
            turn = _step(self._lane, self._environ, data, len(data))
            if turn == _UNSENT:
                self._end_unsent(data)
                return False
        elif self._loop.is_busy:
            return False
        else:
            turn = _step_begin(self._lane, self._environ)
        layout = turn >> LAYOUT
        if layout <= 0 or turn & HEAD:
            return False  # C gives again what is to be done
        self._turn = turn
        self._size = size = (turn & END_MASK) - CONTENT
        self._swap.enter_shown(self._window, size, layout)
        self._loop.hooks.leaving = None
        if out._changed:
            out._forget_changes()
        out._put = self._parts.append
        out.room = self._limit
        out._source = self._in._source = self._err._source = self
        self.open = True
        sys.stdin = self._in
        sys.stdout = out
        sys.stderr = self._err
        return True

    def _mend(self, data: bytes) -> bytes | None:
        """Return a response as it is to be sent; None: its head is a new one."""
        found = known_head(data)
        if found is None:
            return None
        self._mended, rest = found
        self._head_length = len(data) - len(rest)
        self._head = data[: self._head_length]
        return self._mended + rest

    def _end_unsent(self, data: bytes) -> None:
        """End the request in Python: C could not send all of its answer."""
        left = lib.fcgi_lane_left(self._lane)
        self._parts.append(data)
        request = self.promote()
        if left > 0:
            request.forget_output()
            request._channel = self._acceptor.sent_in_part(request, data, left)
        request.finish()

    # When it is not usual

    def promote(self) -> Request:
        """Make the ``Request`` of the open request, and let everything follow it."""
        self.open = False
        acceptor = self._acceptor
        request = acceptor.begin(self._turn, self._window[: self._size])
        request.running = True
        request.host = self._loop
        stream = request.response
        parts, self._parts = self._parts, []
        stream.take_over(parts, self._limit - self._out.room)
        self._loop.current = request
        self._in._source = self._err._source = request
        self._out.follow(request, stream)
        return request

    def forget(self) -> None:
        """In a forked child: the open request is the parent's."""
        self.open = False
        self._parts.clear()
        out = self._out
        out._source = out._put = self._in._source = self._err._source = None

    @property
    def stdin(self) -> BinaryIO:
        """The body: none."""
        return self.promote().stdin

    @property
    def stdout(self) -> BufferedIOBase:
        """The response, as bytes."""
        return self.promote().stdout

    @property
    def stderr(self) -> BufferedIOBase:
        """The web server's log."""
        return self.promote().stderr
