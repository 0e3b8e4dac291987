"""Apache with mod_proxy_fdpass; the receiver of the sockets is the test's affair."""

from __future__ import annotations

import array
import fcntl
import re
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .http import ask, open_request
from .process import free_port, require, wait_until
from .webservers import Apache

__all__ = [
    "HEAD",
    "HTTP2",
    "MODULES",
    "SECURE",
    "Delivery",
    "FdpassSite",
    "listen_raw",
    "read_head",
    "read_to_end",
    "receiver",
]

MODULES = "/usr/lib/apache2/modules"

STATUS = f"""
LoadModule status_module {MODULES}/mod_status.so
<Location "/server-status">
    SetHandler server-status
</Location>
"""

SECURE = f"""
LoadModule ssl_module {MODULES}/mod_ssl.so
LoadModule socache_shmcb_module {MODULES}/mod_socache_shmcb.so
Listen 127.0.0.1:@SECURE@ https
<VirtualHost 127.0.0.1:@SECURE@>
    SSLEngine on
    SSLCertificateFile "@RUN@/certificate.pem"
    SSLCertificateKeyFile "@RUN@/key.pem"
</VirtualHost>
"""

HTTP2 = f"""
LoadModule http2_module {MODULES}/mod_http2.so
Listen 127.0.0.1:@HTTP2@
<VirtualHost 127.0.0.1:@HTTP2@>
    Protocols h2c
</VirtualHost>
"""


class FdpassSite:
    """Apache on examples/servers/apache-fdpass.conf, in a directory of its own.

    A context manager. The directory is removed if all went well.

    Args:
        extra: more configuration, read behind the file; @RUN@ is the directory, @NAME@
            its last part.
        options: more words for Apache's command line, such as "-DPREFORK".

    Attributes:
        path: of the socket that Apache connects to.
        secure: the port of HTTPS, with SECURE in ``extra``.
        http2: the port of HTTP/2, with HTTP2 in ``extra``.
    """

    def __init__(self, extra: str = "", options: Sequence[str] = ()) -> None:
        # A short path: a Unix socket's has room for 107 bytes.
        self.run = Path(tempfile.mkdtemp(prefix="fcgi-app-"))
        (self.run / "run").mkdir()
        self.path = str(self.run / "run" / "fd.sock")
        file = self.run / "extra.conf"
        self.secure, self.http2 = free_port(), free_port()
        names = {
            "@RUN@": str(self.run),
            "@NAME@": self.run.name,
            "@SECURE@": str(self.secure),
            "@HTTP2@": str(self.http2),
        }
        text = STATUS + extra
        for name, value in names.items():
            text = text.replace(name, value)
        file.write_text(text)
        if SECURE in extra:
            self._make_certificate()
        self._options = ["-c", f"Include {file}", *options]

    def __enter__(self) -> FdpassSite:
        values = {"FDSOCK": "run/fd.sock"}
        self.server = Apache(self.run, "apache-fdpass.conf", values, self._options)
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        self.server.stop()
        if kind is None:
            shutil.rmtree(self.run)

    def _make_certificate(self) -> None:
        command = [require("openssl"), "req", "-x509", "-newkey", "ec", "-nodes"]
        command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
        command += ["-keyout", f"{self.run}/key.pem"]
        command += ["-out", f"{self.run}/certificate.pem"]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    @property
    def port(self) -> int:
        """The port of plain HTTP."""
        return self.server.port

    def open(self, target: str = "/push", **request: object) -> socket.socket:
        """A request of which the caller reads the answer, and closes."""
        return open_request(self.port, target, **request)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Remove the socket file that a test has left."""
        Path(self.path).unlink(missing_ok=True)

    def log(self) -> str:
        """What Apache has logged."""
        return self.server.log()

    def wait_for_log(self, text: str) -> None:
        """Wait until Apache has logged this text."""
        wait_until(lambda: text in self.log(), f"{text!r} in the error log")

    def busy_workers(self) -> int:
        """How many of Apache's threads or processes work, but for the one asked."""
        found = re.search(
            r"(?m)^BusyWorkers: (\d+)$", ask(self.port, "/server-status?auto").text
        )
        assert found
        return int(found[1]) - 1

    def wait_until_idle(self) -> None:
        """Wait until no thread or process of Apache works."""
        wait_until(lambda: self.busy_workers() == 0, "no busy thread")


def listen_raw(path: str, *, backlog: int = 64) -> socket.socket:
    """A listening Unix socket without any of our code; the caller closes it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(backlog)
    listener.settimeout(20)
    return listener


def read_head(client: socket.socket) -> bytes:
    """Read the response head, and nothing behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the connection ends in the head: {head!r}"
        head += byte
    return head


def read_to_end(client: socket.socket) -> bytes:
    """Read until the other side closes; a reset is an OSError."""
    return b"".join(iter(lambda: client.recv(65536), b""))


HEAD = re.compile(
    rb"HTTP/1\.1 200 OK\r\nDate: [^\r\n]+\r\nServer: Apache[^\r\n]*\r\n"
    rb"Connection: close\r\n\r\n"
)
"""The response head that Apache sends, whatever was asked."""


@contextmanager
def receiver(site: FdpassSite, where: str = "run") -> Iterator[socket.socket]:
    """Listen where Apache connects to."""
    path = site.run / where / "fd.sock"
    with listen_raw(str(path)) as listener:
        try:
            yield listener
        finally:
            path.unlink()


class Delivery:
    """What one connection of Apache brings, taken as it comes, with room for more."""

    def __init__(self, listener: socket.socket) -> None:
        with listener.accept()[0] as control:
            control.settimeout(20)
            size = socket.CMSG_SPACE(8 * array.array("i").itemsize)
            self.payload, ancillary, self.flags, _ = control.recvmsg(64, size)
            credentials = control.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            self.pid, self.uid, _ = struct.unpack("3i", credentials)
            self.rest = control.recv(64)
        ((self.level, self.type, data),) = ancillary
        self.descriptors = list(array.array("i", data))
        first = self.descriptors[0]
        self.status_flags = fcntl.fcntl(first, fcntl.F_GETFL)
        self.descriptor_flags = fcntl.fcntl(first, fcntl.F_GETFD)
        self.client = socket.socket(fileno=first)
        self.client.settimeout(20)

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
