"""What ``fcgi-app request`` does once its options are read; imports no click."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import BinaryIO

from ..client import (
    AnswerError,
    Client,
    ExitStatus,
    StreamedResponse,
    exit_status,
    exit_status_of_error,
)
from ..client.timing import Times, format_times
from ..codec.constants import ProtocolStatus
from ..errors import FcgiAppError
from .exits import fail, report_error

__all__ = ["Asking", "Content", "Output", "read_content"]


@dataclass(frozen=True)
class Content:
    """Bytes that can be sent more than once.

    Attributes:
        source: the bytes, or a regular file of them.
        size: how many.
        changed: when the file was last changed, seconds since 1970; else 0.
    """

    source: bytes | BinaryIO
    size: int
    changed: int = 0

    def again(self) -> bytes | BinaryIO:
        """Give it from its beginning on."""
        if not isinstance(self.source, bytes):
            self.source.seek(0)
        return self.source


def read_content(path: str, stack: ExitStack) -> Content:
    """Take a file, which ``stack`` closes; ``-`` is standard input.

    What is no regular file is read to its end, to know its length.

    Raises:
        OSError: it cannot be read.
    """
    if path == "-":
        if sys.stdin is None:
            raise _closed()
        content = sys.stdin.buffer.read()
        return Content(content, len(content))
    with ExitStack() as opened:
        file = opened.enter_context(open(path, "rb"))
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            stack.push(opened.pop_all())
            return Content(file, status.st_size, int(status.st_mtime))
        content = file.read()
    return Content(content, len(content))


def _closed() -> OSError:
    """Give the error for a standard stream that was closed when we began."""
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


class WriteError(Exception):
    """The answer cannot be written; the message says where and why."""


class Output:
    """Where answers go: standard output, or a file that is made for the first one."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._descriptor = 1 if path in (None, "-") else -1

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor > 1:
            os.close(self._descriptor)

    def write(self, content: bytes) -> None:
        """Write all of it; no bytes make the file, too.

        Raises:
            WriteError: that is not possible.
        """
        try:
            if self._descriptor == 1 and sys.stdout is None:
                raise _closed()
            if self._descriptor < 0:
                assert self._path is not None
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                self._descriptor = os.open(self._path, flags, 0o666)
            view = memoryview(content)
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:  # somebody has set it to non-blocking
                    _wait_for_room(self._descriptor)
        except OSError as error:
            where = "standard output" if self._descriptor == 1 else self._path
            raise WriteError(f"cannot write to {where}: {error.strerror}") from error


def _wait_for_room(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    poller.poll()


@dataclass(frozen=True)
class Asking:
    """A request that is sent once or more often.

    Attributes:
        client: where to.
        params: what is sent; so are the next three.
        role: a `Role`.
        body: STDIN.
        data: DATA of a filter; None for another role.
        output: where the answers go.
        include: the heads go there, too.
        fails: an answer with an HTTP status from 400 on does not, and is an error.
    """

    client: Client
    params: dict[str, str]
    role: int
    body: Content
    data: Content | None
    output: Output
    include: bool = False
    fails: bool = False

    def run(self, number: int, *, timed: bool) -> int:
        """Send so many requests, one after the other.

        The first that cannot be sent, or whose answer does not come, is the last.

        Args:
            number: how many.
            timed: show how long they took, on standard error.

        Returns:
            The exit status: the first that is not 0.
        """
        times: list[Times] = []
        statuses: list[int] = []
        try:
            while len(times) < number:
                statuses.append(self._ask(times))
        except _Failed as failure:
            statuses.append(failure.status)
        finally:
            if timed and sys.stderr is not None:
                sys.stderr.write(format_times(times))
                sys.stderr.flush()
        return next((status for status in statuses if status), 0)

    def _ask(self, times: list[Times]) -> int:
        """Send the request, write the answer, and give the exit status it asks for."""
        try:
            started = monotonic()
            self._connect()
            with self.client.stream(
                self.params,
                stdin=self.body.again(),
                role=self.role,
                data=None if self.data is None else self.data.again(),
                on_stderr=_show_stderr,
            ) as answer:
                self._write(answer)
            first, now = answer.first_byte_at - started, monotonic() - started
        except WriteError as error:
            report_error(str(error))
            raise _Failed(ExitStatus.CANNOT_WRITE) from error
        except (FcgiAppError, OSError) as error:
            fail(error)
            raise _Failed(exit_status_of_error(error)) from error
        connected = self.client.connected_at - started
        times.append(Times(connected if connected >= 0 else None, first, now))
        return self._judge(answer)

    def _connect(self) -> None:
        """Connect if need be."""
        try:
            self.client.connect()
        except TimeoutError:
            raise
        except OSError as error:
            fail(error)
            raise _Failed(ExitStatus.CANNOT_CONNECT) from error

    def _write(self, answer: StreamedResponse) -> None:
        shown = not (self.fails and answer.status >= 400)
        try:
            if shown:
                self.output.write(answer.head if self.include else b"")
            for piece in answer:
                if shown:
                    self.output.write(piece)
        except AnswerError as error:  # what came before it was cut off
            if shown:
                self.output.write(error.body)
            raise

    def _judge(self, answer: StreamedResponse) -> int:
        where = self.client.address
        assert answer.app_status is not None
        assert answer.protocol_status is not None
        status = exit_status(answer.app_status, answer.protocol_status)
        if answer.protocol_status != ProtocolStatus.REQUEST_COMPLETE:
            report_error(f"{where}: refused: {_name_of(answer.protocol_status)}")
        elif self.fails and answer.status >= 400:
            from ..status.render import plain  # not for every request

            reason = plain(answer.reason)  # a terminal may obey what is in it
            report_error(f"{where}: HTTP status {answer.status} {reason}".strip())
            status = ExitStatus.HTTP_ERROR
        return status


class _Failed(Exception):
    """A request has no answer; that has been reported."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _name_of(protocol_status: int) -> str:
    try:
        return ProtocolStatus(protocol_status).name
    except ValueError:
        return f"protocol status {protocol_status}"


def _show_stderr(received: bytes) -> None:
    if sys.stderr is not None:
        sys.stderr.buffer.write(received)
        sys.stderr.buffer.flush()
