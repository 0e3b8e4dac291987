"""An application of these bytes, for clients that must cope with any."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from fcgi_app.codec.constants import ProtocolStatus, RecordType
from fcgi_app.codec.records import build_end_request, build_stream

__all__ = ["HEAD", "Scripted", "build_answer"]

HEAD = b"Content-Type: text/plain\r\n\r\n"
TIMEOUT = 30


class Scripted:
    """A listening socket that answers one connection by these bytes, and closes."""

    def __init__(self, folder: Path, answer: bytes, close: bool = True) -> None:
        self.path = str(folder / "scripted.sock")
        self._answer = answer
        self._close = close
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(TIMEOUT)
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            connection.recv(65536)
            connection.sendall(self._answer)
            if not self._close:
                connection.recv(1)

    def __enter__(self) -> str:
        self._thread.start()
        return self.path

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


def build_answer(
    output: bytes, app_status: int = 0, protocol_status: int = 0, *, end: bool = True
) -> bytes:
    """The records of an answer."""
    ended = build_end_request(1, app_status, ProtocolStatus(protocol_status))
    return build_stream(RecordType.STDOUT, 1, output, end=end) + ended * end
