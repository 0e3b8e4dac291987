"""Whom a request deals with: what carries its bytes, runs it, and watches it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from .codec.records import Buffer
    from .filepart import FileSource
    from .request import Request

__all__ = ["Channel", "DescriptorStreams", "Host", "Observer"]


class Channel(Protocol):
    """What carries the bytes of a request."""

    def fill(self, request: Request, *, wait: bool) -> bool:
        """Receive more input of ``request``; whether anything at all has happened."""

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send output; raises ``OSError`` when it cannot be delivered."""

    def send_file(
        self, request: Request, pieces: list[Buffer], source: FileSource
    ) -> None:
        """Send output and a file behind it; raises ``OSError`` as ``send_stdout``.

        What is wrong with the file stands in ``source.error`` afterwards.
        """

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Send log lines; raises ``OSError`` when they cannot be delivered."""

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send the last output and end the request; never raises ``OSError``."""

    def refuse(self, request: Request) -> None:
        """Answer 503 to a request that no application has seen."""

    def wait_aborted(self, request: Request, timeout: float | None) -> None:
        """Wait until the request is aborted, ``timeout`` seconds at most."""

    def watch(
        self, request: Request, callback: Callable[[], object]
    ) -> AbstractContextManager[object]:
        """Have ``callback`` called once it is aborted; leaving the result ends that."""

    def detach(self, request: Request) -> None:
        """Make ready for a forked child that shall answer the request."""

    def hand_over(self, request: Request) -> None:
        """Give the request up: another process answers it (``detach``)."""

    def fileno(self, request: Request, descriptor: int) -> int:
        """Return the descriptor of a standard stream.

        Raises:
            io.UnsupportedOperation: there is none.
        """


class Host(Protocol):
    """Who runs the application for a request: the loop."""

    def request_ending(self, request: Request) -> None:
        """Put what was written elsewhere into the request, which is about to end."""

    def request_ended(self, request: Request) -> None:
        """Take the process back: the web server has its answer."""


class Observer(Protocol):
    """Who wants to know how a request goes: ``watching``."""

    def sent(self, pieces: Sequence[Buffer]) -> None:
        """Take note of what has gone out of STDOUT."""

    def sent_file(self, size: int) -> None:
        """Take note of ``size`` bytes that have gone out of a file behind that."""

    def ended(self, request: Request) -> None:
        """Take note that the application has no more to do with the request."""


class DescriptorStreams(Protocol):
    """Descriptors 0, 1 and 2 of a request, while it has them."""

    @property
    def stdin(self) -> BinaryIO:
        """Descriptor 0."""

    @property
    def stdout(self) -> io.BufferedIOBase:
        """Descriptor 1."""

    @property
    def stderr(self) -> io.BufferedIOBase:
        """Descriptor 2."""

    def start_filter_data(self) -> None:
        """Put DATA in place of STDIN."""

    def leave(self) -> None:
        """Give the process its own back."""
