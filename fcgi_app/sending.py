"""One connection's way out: what requests print, and how each of them ends."""

from __future__ import annotations

import errno
import io
import socket
from math import inf
from time import monotonic

from ._log import log_info
from .codec.constants import MAX_CONTENT_LENGTH
from .codec.records import END_REQUEST_LEN, STREAM_CHUNK, Buffer
from .filepart import FileSource
from .link import Link
from .protocol import RequestState, State
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = ["SendingLink"]

_COMPLETE = State.COMPLETE  # a look into the class is slow before Python 3.12


class SendingLink(Link):
    """A connection, with the half of a request's ``Channel`` that sends."""

    __slots__ = ()

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDOUT records; waits for the web server to take them."""
        if request.unwanted:
            raise _unwanted()
        buffers = self._connection.stdout(request.state, pieces)
        if buffers:
            self._send(buffers)

    def send_file(
        self, request: Request, pieces: list[Buffer], source: FileSource
    ) -> None:
        """Send ``pieces`` and a file as STDOUT records; waits as ``send_stdout``.

        Some records at a time: an abort ends it, and so does a signal handler's
        exception, but for those that are waiting already.
        """
        buffers: list[Any] = self._connection.stdout(request.state, pieces)
        header = self._connection.stdout_header(request.state)
        corked = False
        try:
            self._outlet.admit_files()
            corked = self._cork()
            while (buffers or source.left) and source.error is None:
                if request.unwanted:
                    raise _unwanted()
                if source.left:
                    buffers.append(source.take(self._file_share, header))
                self._send_part(buffers, source)
                buffers = []
        finally:
            if corked:
                self._cork(0)
            self._release(source)

    _file_share = 16 * STREAM_CHUNK
    """Bytes of a file that are sent in one go."""

    def _send_part(self, buffers: list[Any], source: FileSource) -> None:
        self._send(buffers)

    def _release(self, source: FileSource) -> None:
        self._outlet.release(source)

    def send_stderr(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDERR records, one a piece."""
        stderr = self._connection.stderr
        records = b"".join([stderr(request.state, piece) for piece in pieces])
        if records:
            self._send([records])

    def end(self, request: Request, stderr: bytes, stdout: bytes) -> None:
        """Send all that is left of a response in one write; then keep or close.

        Of an early answer, end-request is held back until the body has come or no
        more of it comes: HAProxy and cgi-fcgi would stop reading their client at
        once, and the answer would be lost. nginx wants it at once: it sends no more.
        """
        connection = self._connection
        state = request.state
        if (
            self.keep
            and state.state is _COMPLETE
            and request._stderr is None
            and not request.unwanted
            and len(stdout) <= MAX_CONTENT_LENGTH
            and not (self.closed or self._outlet.queue)
        ):
            self._end_shortly(request, stdout)
            return
        early = not (state.input_ended or self.deaf or request.server_is(b"nginx"))
        buffers: list[Buffer] = []
        log = request._stderr
        if stderr:
            buffers.append(connection.stderr(state, stderr))
        if stdout and not request.unwanted:
            buffers += connection.stdout(state, (stdout,))
        used = bool(stderr) or (log is not None and log.used)
        end = connection.end_request(state, request.app_status, stderr_used=used)
        if early:
            end, self.owed[state] = end[:-END_REQUEST_LEN], end[-END_REQUEST_LEN:]
            self.until = monotonic() + (self._settings.linger_timeout or inf)
        buffers.append(end)
        try:
            self._send_end(buffers, self._is_last(request))
        except OSError as error:
            log_info("%s: its end could not be sent: %s", request, error)
        self.requests.remove(request)
        if state in self.owed:
            self._owner.settle(self)
            return
        self._after_end(state)
        if self.can_rest:
            self._owner.rest(self)

    def _end_shortly(self, request: Request, stdout: bytes, left: int = 0) -> None:
        """Send the usual end of a response: one short piece, and nothing owed.

        Args:
            request: its input has ended.
            stdout: the rest of the response.
            left: bytes of all this that are still to be sent; 0: all.
        """
        connection = self._connection
        state = request.state
        data = connection.short_response(state, stdout, request.app_status)
        requests = self.requests
        try:
            if not self._outlet.send_at_once(data[-left:]):
                self._send([])
        except OSError as error:
            log_info("%s: its end could not be sent: %s", request, error)
            self._note_loss()
        requests.remove(request)
        # With nothing owed on it, either way, the connection just waits.
        if (
            state.keep_conn
            and self.keep
            and not (requests or self.owed or self.lingering or self._outlet.queue)
            and connection.idle
        ):
            self._owner.rest(self)
        else:
            self._after_end(state)

    def _answer(self, state: RequestState, end: bytes) -> None:
        """Send the whole of a short answer without ever waiting."""
        self._outlet.push(end)
        self._after_end(state)

    def pay(self) -> None:
        """Send the end-request records that are owed, whatever may still come."""
        while self.owed:
            state, end = self.owed.popitem()
            self._quiet = False
            self.keep = self.keep and state.keep_conn
            self._outlet.push(end)

    def _is_last(self, request: Request) -> bool:
        """Whether a connection that was to be kept ends with this request."""
        return (
            not (self.keep or self.owed or self.deaf)
            and request.state.keep_conn
            and len(self.requests) == 1
            and not self._connection.receiving(but=request.state)
        )

    def detach(self, request: Request) -> None:
        """Nothing to do: the connection is one that a child can share."""

    def hand_over(self, request: Request) -> None:
        """Close this process's copy of the connection, without shutting it down."""
        self.requests.remove(request)
        self.close()

    def fileno(self, request: Request, descriptor: int) -> int:
        """Raise: a stream of records has no descriptor."""
        raise io.UnsupportedOperation("a FastCGI stream has no descriptor")

    # The bytes

    def _send(self, buffers: list[Buffer]) -> None:
        """Send all of ``buffers``, waiting for the web server where it is slow.

        What a signal handler sends in the middle of receiving waits for what is sent
        next, if need be.

        Raises:
            OSError: it has gone, or takes nothing for ``write_timeout``.
        """
        if self.closed:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed")
        try:
            if self._is_inside():  # the web server may wait for what is being received
                self._outlet.push_all(buffers)
            else:
                self._outlet.send(buffers, self._wait_writable)
        finally:
            self._note_loss()

    def _send_end(self, buffers: list[Buffer], last: bool) -> None:
        """Send the end of a response, which nothing may get in between.

        With ``last``, our FIN leaves in the same segment. A web server that saw the
        end first might reuse the connection for a request, which would be lost.

        Raises:
            OSError: as ``_send``.
        """
        if last:
            self._cork()
        self._send(buffers)
        if last:
            self.sock.shutdown(socket.SHUT_WR)  # this lets a corked segment go

    def _note_loss(self) -> None:
        if self._outlet.lost:
            self._gone()

    def _cork(self, on: int = 1) -> bool:
        """Hold back segments that are not full, if the socket can; whether it does."""
        if self.sock.family != socket.AF_UNIX and hasattr(socket, "TCP_CORK"):
            try:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)
                return bool(on)
            except OSError:  # then they leave one after the other
                pass
        return False

    def _wait_writable(self) -> None:
        """Wait until the web server takes more.

        Raises:
            OSError: it has gone, or takes nothing for ``write_timeout``.
        """
        raise NotImplementedError


def _unwanted() -> OSError:
    return ConnectionAbortedError(
        errno.ECONNABORTED, "the web server aborted the request"
    )
