"""From one usual request to the next, in one step: the bare loop on the native backend.

A request that came whole, and whose program only prints, needs no object of its own:
its text gathers in a list, and one call into C answers it and brings the next one. As
soon as anybody wants to know more (``current_request()``, ``sys.stdin``,
``sys.stdout.buffer``, a flush, the end of the process), `Shortcut.promote` makes the
``Request`` that there would have been from the beginning, and everything goes on as it
always does.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock  # threading has the same one, and loads more

from ._backend import ffi, lib
from .lazyenviron import LAYOUT
from .response import known_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import BufferedIOBase
    from typing import Any, BinaryIO

    from .lane import LaneAcceptor
    from .lazyenviron import LazyEnvironSwap
    from .lentslot import LentSlot
    from .loop import Loop
    from .request import Request
    from .settings import Settings
    from .textio import TextIn, TextOut

__all__ = ["Shortcut"]

_step_begin = lib.fcgi_step_begin
_step = lib.fcgi_step
_UNSENT: int = lib.FCGI_STEP_UNSENT
_clear = dict.clear
_join = b"".join
_NO_HEAD: tuple[()] = ()
"""For ``startswith``: what no response begins with."""


class Shortcut:
    """What the loop has of a usual request; the source of its text streams.

    Attributes:
        opened: what C has said of the request that is current and has no ``Request``;
            0 where there is none. Whoever finds it set and sets it to 0, at whatever
            moment a signal handler or another thread comes, is the one who deals with
            the request: ``step`` ends it, ``promote`` makes the ``Request``.
    """

    __slots__ = (
        "_acceptor",
        "_data",
        "_err",
        "_head",
        "_hooks",
        "_in",
        "_lane",
        "_layouts",
        "_limit",
        "_lock",
        "_loop",
        "_mended",
        "_os_environ",
        "_os_environb",
        "_out",
        "_parts",
        "_slot",
        "_spans",
        "_swap",
        "_window",
        "opened",
    )

    def __init__(
        self,
        loop: Loop,
        acceptor: LaneAcceptor,
        swap: LazyEnvironSwap,
        texts: tuple[TextIn, TextOut, TextOut],
        settings: Settings,
        slot: LentSlot | None,
    ) -> None:
        self._loop = loop
        self._hooks = loop.hooks
        self._acceptor = acceptor
        self._lane = acceptor.lane
        self._slot = slot
        noted = ffi.NULL if slot is None else slot.made
        lib.fcgi_step_use(self._lane, swap.environ, noted)
        self._swap = swap
        self._data = swap.data
        self._data.window = self._window = acceptor.window
        self._layouts = swap.layouts
        self._spans = swap.spans
        self._os_environ: Any = os.environ
        self._os_environb: Any = os.environb
        self._in, self._out, self._err = texts
        self._limit = settings.output_buffer - 1  # with that much it is sent
        self._parts: list[bytes] = []  # a new one for each request
        self.opened = 0
        self._lock = RLock()  # of who makes a Request; its signal handlers pass
        # The head that was printed last, as it was printed and as it was sent.
        self._head: bytes | tuple[()] = _NO_HEAD
        self._mended = b""

    def step(self) -> bool:
        """End the open request and begin the next, as far as all is as usual.

        Returns:
            Whether the next is open; else the loop goes on from where this has stopped.
        """
        out = self._out
        data = self._data
        mine: list[bytes] = []
        if self.opened:
            environ = self._os_environ
            if (
                sys.stdout is not out
                or sys.stderr is not self._err
                or sys.stdin is not self._in
                or environ._data is not data
                or os.environ is not environ
                or os.environb is not self._os_environb
            ):
                return False
            out._put = None  # who prints from now on, in a signal handler, promotes it
            parts = self._parts
            answer = _join(parts)
            if not (answer.startswith(self._head) or self._learn_head(answer)):
                return False
            size = len(answer)
            data.turn = 0
            _clear(data)
            # Neither a signal handler nor a thread comes between these lines: there is
            # no call, and no jump (which counts before Python 3.11). One that has come
            # before may have ended this request, and begun others.
            if self._parts is parts:
                opened, self.opened = self.opened, 0
                if opened:
                    self._parts = mine
                    turn = _step(self._lane, answer, size)
                else:
                    return self._outrun()
            else:
                return self._outrun()
            if turn <= 0:
                self._leave(turn, answer)
                return False
        else:
            turn = self._begin(mine)
            if turn <= 0:
                return False
        if self._parts is not mine:
            return self._outrun()
        data.turn = turn
        _clear(data)
        window = self._window
        spans = self._spans
        for name, begin, end in self._layouts[(turn >> LAYOUT) - 1].hot:
            data[name] = window[spans[begin] : spans[end]]
        self._hooks.leaving = None
        if self._parts is mine:  # as above
            out.room = self._limit
            out._put = mine.append
            self.opened = turn
            return True
        return self._outrun()

    def _outrun(self) -> bool:
        """Leave the request to whoever was here in the meantime, and is done now."""
        with self._lock:
            return False

    def _begin(self, parts: list[bytes]) -> int:
        """Wait for a request while none is open: what C says of it, 0 for nothing."""
        if self._loop.is_busy:
            return 0  # at once, as after each request that has got its Request
        with self._lock:  # somebody may be making a Request of the one before
            self._parts = parts
        if not self._acceptor.is_quiet or self._loop.is_busy:
            return 0
        slot = self._slot
        if slot is not None and not slot.lend():
            return 0
        turn: int = _step_begin(self._lane)
        for text in (self._in, self._out, self._err):
            text.bind(self)
        sys.stdin, sys.stdout, sys.stderr = self._in, self._out, self._err
        self._data.params = self._data.window
        self._swap.put_data()
        return turn

    def _learn_head(self, answer: bytes) -> bool:
        """Have C put a response's head as it is to be sent; False: it is a new one."""
        found = known_head(answer)
        if found is None:
            return False
        mended, rest = found
        size = len(answer) - len(rest)
        self._head = _NO_HEAD  # until both have the new one
        if not lib.fcgi_step_head(self._lane, mended, len(mended), size):
            return False
        self._mended, self._head = mended, answer[:size]
        return True

    def _leave(self, turn: int, answer: bytes) -> None:
        """Let the loop go on, with nothing open."""
        if turn != _UNSENT:
            for text in (self._in, self._out, self._err):
                text.bind(None)
            return
        left = lib.fcgi_lane_left(self._lane)
        self._parts.append(answer)
        request = self._make_request()
        if left > 0:
            request.forget_output()
            request.response.head_sent = True
            sent = self._mended + answer[len(self._head) :]
            request._channel = self._acceptor.sent_in_part(request, sent, left)
        request.finish()

    # When it is not usual

    def promote(self) -> Request | None:
        """Make the ``Request`` of the open request; None: none is open.

        Any thread may call it: one that comes second waits for the first.
        """
        with self._lock:
            turn, self.opened = self.opened, 0
            if not turn:
                return None
            try:
                return self._make_request()
            except BaseException:  # of a signal handler
                if not self._loop.is_busy:
                    self.opened = turn
                raise

    def _make_request(self) -> Request:
        """Make the ``Request`` of the open request, and let everything follow it."""
        request = self._acceptor.begin(lib.fcgi_lane_turn(self._lane))
        request.running = True
        request.host = self._loop
        stream = request.response
        # From here on it is the current one, with all that it has printed: no call.
        stream._parts = self._parts
        stream._size = self._limit - self._out.room
        self._parts = []
        self._loop._current = request
        self._in._source = self._err._source = request
        self._out.follow(request, stream)
        if self._slot is not None:
            self._slot.take_back(request)
        return request

    def give_back(self) -> None:
        """Leave waiting to Python, and the scoreboard: no request is open."""
        self._parts = []  # whoever is in the middle of a step is outrun
        if self._slot is not None:
            self._slot.take_back()

    def forget(self) -> None:
        """In a forked child: the open request, if there is one, is the parent's."""
        self._lock = RLock()  # another thread may have held it
        was_open, self.opened = self.opened, 0
        self._parts = []
        if self._slot is not None:
            self._slot.forget()
        if was_open:
            out = self._out
            out._put = out._source = self._in._source = self._err._source = None

    # What the text streams ask for; None: nothing is open any more

    @property
    def stdin(self) -> BinaryIO | None:
        """The body."""
        request = self.promote()
        return None if request is None else request.stdin

    @property
    def stdout(self) -> BufferedIOBase | None:
        """The response, as bytes."""
        request = self.promote()
        return None if request is None else request.stdout

    @property
    def stderr(self) -> BufferedIOBase | None:
        """The web server's log."""
        request = self.promote()
        return None if request is None else request.stderr
