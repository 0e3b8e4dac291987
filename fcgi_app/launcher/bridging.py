"""A CGI program that has its request answered by a FastCGI program."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from ..client.answer import AnswerError
from ..client.exitstatus import ExitStatus, exit_status, exit_status_of_error
from ..client.head import Head
from ..client.relay import DescriptorSource, Outflow, OutputLost, Relay, drain
from ..client.upload import Upload
from ..codec.constants import Role
from ..envnames import find_objection
from ..errors import ConfigError, FcgiAppError
from ..sockets import plug_standard_descriptors

__all__ = ["Bridge"]

_REASONS = {502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}


@dataclass(frozen=True)
class Bridge:
    """Passes the request of a CGI process on, and the answer back.

    Attributes:
        address: of the application, for messages.
        connect: connects to it.
        timeout: seconds without progress; None waits for ever.
        report: takes an error, to say what went wrong.
    """

    address: str
    connect: Callable[[], socket.socket]
    timeout: float | None
    report: Callable[[FcgiAppError | OSError], object]

    def run(self, environ: Mapping[bytes, bytes]) -> int:
        """Serve the request of this process: its environment and descriptors 0 to 2.

        What goes wrong before the head of the answer has come makes a page of status
        502, 503 or 504; all of it is reported.

        Returns:
            The exit status: the application's, or an `ExitStatus`; 141, as of a program
            that SIGPIPE ends, when the web server wants no answer any more.

        Raises:
            ConfigError: the address is malformed.
        """
        plug_standard_descriptors()
        source = DescriptorSource(0, _body_length(environ))
        stdout, stderr = Outflow(1), Outflow(2)
        try:
            status = self._serve(environ, source, stdout, stderr)
            drain(stdout, stderr, source, self.timeout)
        except OutputLost as lost:
            if lost.gone:
                return 128 + signal.SIGPIPE
            self.report(OSError(f"cannot write the answer: {lost}"))
            return ExitStatus.CANNOT_WRITE
        return status

    def _serve(
        self,
        environ: Mapping[bytes, bytes],
        source: DescriptorSource,
        stdout: Outflow,
        stderr: Outflow,
    ) -> int:
        """Have the request answered, and give the exit status.

        Raises:
            OutputLost: the answer cannot be written.
        """
        try:
            connection = self.connect()
        except ConfigError:
            raise
        except (FcgiAppError, OSError) as error:
            self.report(error)
            stdout.add(_page(503))
            timed_out = isinstance(error, TimeoutError)
            return ExitStatus.TIMEOUT if timed_out else ExitStatus.CANNOT_CONNECT
        params = {n: v for n, v in environ.items() if find_objection(n) is None}
        body = b"" if source.ended else source
        upload = Upload.of_request(Role.RESPONDER, params, body, None, keep_conn=False)
        with closing(connection):
            connection.setblocking(False)
            relay = Relay(
                self.address,
                connection,
                upload,
                source,
                stdout,
                stderr,
                timeout=self.timeout,
            )
            try:
                stdout.add(_head(relay.read_head(), relay.head))
                while relay.answer.end is None:
                    stdout.add(relay.answer.take_stdout())
                    relay.pump()
                stdout.add(relay.answer.take_stdout())
            except (FcgiAppError, OSError) as error:
                self.report(error)
                if not relay.head:
                    stdout.add(_page(504 if isinstance(error, TimeoutError) else 502))
                elif isinstance(error, AnswerError):
                    stdout.add(error.body)
                return exit_status_of_error(error)
            return exit_status(*relay.answer.end)


def _body_length(environ: Mapping[bytes, bytes]) -> int | None:
    """Give the bytes of the body; None: up to its end.

    Without CONTENT_LENGTH there is none (RFC 3875 §4.1.2), and descriptor 0 may be a
    connection that stays open; unless the client has sent a body in chunks.
    """
    text = environ.get(b"CONTENT_LENGTH", b"").strip()
    if text.isdigit() and len(text) < 20:
        return int(text)
    return None if text or environ.get(b"HTTP_TRANSFER_ENCODING") else 0


def _head(head: Head, received: bytes) -> bytes:
    """Give the head as a CGI program writes it.

    It is passed on as it came, but for a status line, which only NPH programs may
    write (RFC 3875 §5), and for a refusal, which has none.
    """
    if not received:
        return _page(head.status)
    if not received.startswith(b"HTTP/"):
        return received
    status = f"Status: {head.status} {head.reason}".rstrip()
    lines = [status, *(f"{name}: {value}" for name, value in head.headers)]
    return "".join(line + "\r\n" for line in [*lines, ""]).encode("latin-1")


def _page(status: int) -> bytes:
    """Give a short answer of our own."""
    reason = _REASONS.get(status, "Not Implemented")
    return (
        f"Status: {status} {reason}\r\nContent-Type: text/plain\r\n\r\n"
        f"{status} {reason}\n"
    ).encode("ascii")
