"""The receiver for asyncio: ``async for handover in AsyncReceiver(path)``."""

from __future__ import annotations

import asyncio
from types import TracebackType

from .handover import Handover
from .receiver import ReceiverBase

__all__ = ["AsyncReceiver"]


class AsyncReceiver(ReceiverBase):
    """Receives clients in an event loop; an async iterator and context manager.

    It works for one event loop, the one in which `accept` is first waited for, and
    receives from then on, whether anybody waits or not. Several tasks may wait.

    The methods ``write`` and ``close`` of a `Handover` wait in a way that stops the
    loop. Give the socket to asyncio instead, or call them in a thread::

        reader, writer = await asyncio.open_connection(sock=handover.detach())
        await asyncio.to_thread(handover.close)

    Arguments and their errors are those of `ReceiverBase`.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _timer: asyncio.TimerHandle | None = None
    _changed: asyncio.Event

    async def accept(self) -> Handover | None:
        """Wait for the next client; see `Receiver.accept`.

        To be cancelled loses nothing. For a timeout use ``asyncio.wait_for``.

        Raises:
            RuntimeError: the receiver works in another event loop.
        """
        intake = self._intake
        if self._loop is None and not intake.finished:
            self._attach()
        while not intake.queue:
            if intake.finished:
                return None
            if asyncio.get_running_loop() is not self._loop:
                raise RuntimeError("the receiver works in another event loop")
            self._changed.clear()
            await self._changed.wait()
        handover = intake.queue.popleft()
        self._set_timer()  # there may be room again
        return handover

    def _attach(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._loop.add_reader(self._intake.fileno(), self._turn)
        self._turn()

    def _turn(self) -> None:
        intake = self._intake
        intake.turn(0)
        if intake.queue or intake.finished:
            self._changed.set()
        self._set_timer()

    def _set_timer(self) -> None:
        """Have `_turn` called when the core's next deadline is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None and not self._intake.finished:
            due = self._intake.time_to_turn()
            if due is not None:
                self._timer = self._loop.call_later(due, self._turn)

    def close(self) -> None:
        """Close everything, also the clients that nobody has taken. Idempotent.

        Call it before the event loop is closed, and in its thread.
        """
        if self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._intake.fileno())
            self._loop = None
            self._changed.set()
        super().close()
        self._set_timer()

    def __aiter__(self) -> AsyncReceiver:
        return self

    async def __anext__(self) -> Handover:
        handover = await self.accept()
        if handover is None:
            raise StopAsyncIteration
        return handover

    async def __aenter__(self) -> AsyncReceiver:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
