"""The measured program on fcgi_app; its argument is the handler.

``modules`` answers with the names of all imported modules, one a line; ``backend`` with
which backend does the hot work.
"""

from __future__ import annotations

import os
import sys

from fcgi_app import accept, requests

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is measured is what a user's program loads
    from typing import IO

BLOCK = b"x" * 65536


def hello() -> None:
    """Read two variables, print a head and a line."""
    while accept():
        os.environ["REQUEST_METHOD"]
        os.environ["REMOTE_ADDR"]
        print("Content-Type: text/plain\n\nHello, world")


def echo() -> None:
    """Give the whole body back."""
    while accept():
        print("Content-Type: application/octet-stream\n")
        sys.stdout.buffer.write(sys.stdin.buffer.read())


def download() -> None:
    """Write 64 MiB in pieces of 64 KiB."""
    while accept():
        print("Content-Type: application/octet-stream\n")
        write = sys.stdout.buffer.write
        for _ in range(1024):
            write(BLOCK)


def _big_file() -> IO[bytes]:
    """Make an unnamed file of 64 MiB."""
    import tempfile

    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's
    for _ in range(1024):
        file.write(BLOCK)
    file.flush()
    return file


def reads() -> None:
    """Read 64 MiB from a file and write them, in pieces of 64 KiB."""
    with _big_file() as file:
        while accept():
            print("Content-Type: application/octet-stream\n")
            write = sys.stdout.buffer.write
            file.seek(0)
            while block := file.read(65536):
                write(block)


def sendfile() -> None:
    """Send a file of 64 MiB."""
    with _big_file() as file:
        for request in requests():
            print("Content-Type: application/octet-stream\n")
            request.send_file(file)


def modules() -> None:
    """List what is imported while a request is running."""
    while accept():
        print("Content-Type: text/plain\n")
        print("\n".join(sys.modules))


def backend() -> None:
    """Say what FCGI_APP_BACKEND has come to."""
    # here, so that the others import what a user's program does
    from fcgi_app._backend import describe

    while accept():
        print(f"Content-Type: text/plain\n\n{describe()}")


HANDLERS = (hello, echo, download, reads, sendfile, modules, backend)
{handler.__name__: handler for handler in HANDLERS}[sys.argv[1]]()
