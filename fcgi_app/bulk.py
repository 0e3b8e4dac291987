"""What is long, by C: a body received out of its records, a response sent in some."""

from __future__ import annotations

import errno
import os

from ._backend import ffi, lib
from .codec.constants import HEADER_LEN, RecordType
from .codec.records import Buffer, stream_buffers
from .protocol import Connection, RequestState, State
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from .request import Request

__all__ = ["BulkConnection", "BulkTransport", "Room", "borrow_room", "return_room"]
__all__ += ["Output"]

_SIZE = 1 << 18
"""Bytes that are received at once. Linux keeps some 200 KiB for a socket."""
_LEAST_OUTPUT = 65536
"""Bytes from which C costs less."""
_MOST_OUTPUT: int = lib.FCGI_OUTPUT_SIZE
_MOST_PIECES: int = lib.FCGI_OUTPUT_PIECES
_STDOUT = int(RecordType.STDOUT)
_STDIN = State.STDIN  # a look into the class is slow before Python 3.12
_NOTHING_YET = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)
_receive_body = lib.fcgi_receive_body
_send_stdout = lib.fcgi_send_stdout
_from_buffer = ffi.from_buffer
_new = ffi.new
_POINTERS = ffi.typeof("uint8_t *[]")
_SIZES = ffi.typeof("uint32_t[]")
_unpack = ffi.unpack
_rooms: list[Room] = []


class Room:
    """Memory that bodies are received in, one after the other."""

    __slots__ = ("body", "buffer", "numbers", "space")

    def __init__(self) -> None:
        self.space = ffi.new("uint8_t[]", _SIZE)
        self.buffer = ffi.buffer(self.space)
        self.body = ffi.new("struct fcgi_body *")
        self.numbers = ffi.cast("uint32_t *", self.body)


def borrow_room() -> Room:
    """Give a room that nobody else uses."""
    try:
        return _rooms.pop()
    except IndexError:
        return Room()


def return_room(room: Room) -> None:
    """Take a room back; what has been received there is not needed any more."""
    if not _rooms:
        _rooms.append(room)


class BulkConnection(Connection):
    """A ``Connection`` whose long bodies C can receive.

    Attributes:
        is_behind: a record has come behind the body, and waits for ``receive_part``.
    """

    __slots__ = ("is_behind",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.is_behind = False

    @property
    def bulk(self) -> RequestState | None:
        """The request whose body C can go on with; None: there is none.

        Anything may come in its place: C stops there.
        """
        request = self._stream
        if (
            request is None
            or request.state is not _STDIN
            or len(self._pending) >= HEADER_LEN
        ):
            return None
        return request

    def receive_body(self, fd: int, room: Room) -> tuple[int, memoryview]:
        """Receive once from ``fd``, without waiting, and take the body of ``bulk``.

        Returns:
            How many bytes came (0: the end; less: an error number, negative), and what
            of them is of the body, in ``room``.
        """
        request, view = self._stream, memoryview(room.buffer)
        assert request is not None
        there = len(self._pending)
        if there:
            view[:there] = self._pending
        came = _receive_body(
            fd,
            request.request_id,
            room.space,
            _SIZE,
            there,
            self._left,
            self._skip,
            room.body,
        )
        if came <= 0:
            return came, view[:0]
        self._left, self._skip, size, consumed = _unpack(room.numbers, 4)
        self._pending = bytes(view[consumed : there + came])
        self.is_behind = len(self._pending) >= HEADER_LEN
        return came, view[:size]


class Output:
    """Pieces of a response, to be sent by C.

    Args:
        request_id: of the request, which may end meanwhile.
        pieces: no more than ``FCGI_OUTPUT_PIECES``, and ``FCGI_OUTPUT_SIZE`` bytes.
    """

    __slots__ = ("_pieces", "_request_id")

    def __init__(self, request_id: int, pieces: list[Buffer]) -> None:
        self._request_id = request_id
        self._pieces = pieces

    def send_to(self, sock: socket.SocketType) -> int:
        """Send what the socket takes, without waiting; how many bytes it did not.

        Raises:
            OSError: the socket says that it is over.
        """
        pieces = self._pieces
        views = list(map(_from_buffer, pieces))  # which hold them meanwhile
        addresses = _new(_POINTERS, views)
        sizes = _new(_SIZES, list(map(len, pieces)))
        left: int = _send_stdout(
            sock.fileno(), self._request_id, addresses, sizes, len(pieces)
        )
        if left < 0:
            raise OSError(-left, os.strerror(-left))
        return left

    def buffers(self) -> list[Buffer]:
        """Return the same records, to be sent by Python."""
        return stream_buffers(_STDOUT, self._request_id, self._pieces)


class BulkTransport(Transport):
    """A connection on which something else than whole requests has come.

    C receives its long bodies, and sends its long responses.
    """

    __slots__ = ()
    _parser = BulkConnection
    _connection: BulkConnection

    def send_stdout(self, request: Request, pieces: list[Buffer]) -> None:
        """Send STDOUT records; waits for the web server to take them."""
        if (
            not _LEAST_OUTPUT <= sum(map(len, pieces)) <= _MOST_OUTPUT
            or len(pieces) > _MOST_PIECES
            or request.unwanted
            or request.state.ended
            or self.closed
            or self._is_inside()
        ):
            super().send_stdout(request, pieces)
            return
        output = Output(request.state.request_id, pieces)
        try:
            self._outlet.send_output(output, self._wait_writable)
        finally:
            self._note_loss()

    def _receive(self) -> bool:
        connection = self._connection
        if connection.is_behind:  # a signal handler's exception came in between
            return self._feed_behind()
        state = connection.bulk
        if state is None or self.deaf or self.lingering:
            return super()._receive()
        room = borrow_room()
        try:
            came, content = connection.receive_body(self.fd, room)
            if came > 0:
                if content:
                    self._take_stdin(state, content)
            elif -came in _NOTHING_YET:
                return False
            else:
                self._peer_ended()
        finally:
            return_room(room)
        return self._feed_behind() if connection.is_behind else True

    def _feed_behind(self) -> bool:
        self._connection.is_behind = False
        self._feed(b"")
        return True
