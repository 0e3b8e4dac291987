"""WSGI applications (PEP 3333) as handlers of requests.

::

    from fcgi_app import run
    from fcgi_app.wsgi import WSGIHandler

    run(WSGIHandler(app), threads=8)

The same program is FastCGI or CGI, as any other. What WSGI asks of a server is the
standard library's (``wsgiref.handlers``); here is what joins it to a request.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.handlers import BaseCGIHandler
from wsgiref.headers import Headers
from wsgiref.util import FileWrapper as _FileWrapper

from .request import Request

__all__ = ["FileWrapper", "WSGIHandler"]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_BLOCK_SIZE = 65536
_LONGEST_NUMBER = 18
"""Digits of a length that is looked at."""
_BUFFERED = (io.BufferedReader, io.BufferedRandom)


class FileWrapper(_FileWrapper):
    """``wsgi.file_wrapper``: an iterable over the rest of a file, in blocks.

    Of a file that the kernel can read, the blocks never pass through Python
    (``Request.send_file``): one that ``open(path, "rb")`` gives. Any other object with
    ``read`` is read; if it has ``close``, that is called in the end.

    Args:
        filelike: what is to be sent, from its position on.
        blksize: bytes to read at a time.
    """

    def __init__(self, filelike: Any, blksize: int = _BLOCK_SIZE) -> None:
        super().__init__(filelike, blksize)


class WSGIHandler:
    """Makes a handler for ``fcgi_app.run`` and ``Server`` of a WSGI application.

    ``environ`` has the request's params and nothing of the process's environment; in
    CGI they are the same. ``wsgi.multithread`` is true outside of the main thread.
    An exception of the application goes to the log, and is answered with 500 where no
    head has gone out.

    Args:
        application: called with ``environ`` and ``start_response``.
        script_name: the path under which the application is mounted, such as ``/app``,
            or ``""`` for all of the site: how SCRIPT_NAME and PATH_INFO divide the
            path. nginx's stock params, httpd's ProxyPass and HAProxy put all of it
            into SCRIPT_NAME. None: they stay as the web server has set them.

    Raises:
        ValueError: ``script_name`` does not begin with a slash, or ends with one.
    """

    def __init__(
        self, application: Application, script_name: str | None = None
    ) -> None:
        if script_name and (script_name[0] != "/" or script_name[-1] == "/"):
            raise ValueError(
                f"script_name: {script_name!r} is neither empty nor a path such as /app"
            )
        self._application = application
        # As the values of environ: bytes, each as the character of that number.
        self._script_name = script_name and script_name.encode().decode("latin-1")

    def __call__(self, request: Request) -> None:
        """Answer a request; the caller ends it."""
        _Exchange(request, self._environ(request)).run(self._application)

    def _environ(self, request: Request) -> dict[str, str]:
        environ = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in request.params_map.items()
        }
        name = environ.setdefault("SCRIPT_NAME", "")
        info = environ.setdefault("PATH_INFO", "")
        mount = self._script_name
        if mount is not None and f"{name}{info}/".startswith(f"{mount}/"):
            environ["SCRIPT_NAME"] = mount
            environ["PATH_INFO"] = (name + info)[len(mount) :]
        return environ


class _Errors(io.TextIOBase):
    """``wsgi.errors``: the web server's log, which most requests have nothing for."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, request: Request) -> None:
        self._request = request

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        """Write ``text``; whole lines go out at once."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._request.stderr.write(text.encode(self.encoding, self.errors))
        return len(text)

    def close(self) -> None:
        """Do nothing: it is the request's."""


class _Exchange(BaseCGIHandler):
    """One call of an application."""

    wsgi_file_wrapper = FileWrapper
    environ: dict[str, Any] | None
    status: str | None
    headers: Headers | None
    headers_sent: bool
    bytes_sent: int
    result: Any

    def __init__(self, request: Request, environ: dict[str, str]) -> None:
        self._request = request
        stdin: Any = request.stdin
        stdout: Any = request.stdout
        in_main = threading.current_thread() is threading.main_thread()
        super().__init__(
            *(stdin, stdout, _Errors(request), environ),
            multithread=not in_main,
            multiprocess=True,
        )
        self.os_environ = {}  # the process's own is not for applications
        self.wsgi_run_once = request.is_cgi

    def run(self, application: Any) -> None:
        """Call it, and send what it gives; unlike the original, hide no exception."""
        self.setup_environ()
        self.result = application(self.environ, self.start_response)
        self.finish_response()

    def write(self, data: bytes) -> None:
        """Send a block; an empty one is no reason to send the head (PEP 3333)."""
        if data or type(data) is not bytes:
            super().write(data)

    def finish_content(self) -> None:
        """Send the head of a response without content."""
        if not self.status:
            raise AssertionError("start_response() has not been called")
        if self._is_bare and not self.headers_sent:
            self.send_headers()
        else:
            super().finish_content()

    def set_content_length(self) -> None:
        """Tell the length, if there is one block, but none of what is not sent."""
        if self.bytes_sent or not self._is_bare:
            super().set_content_length()

    @property
    def _is_bare(self) -> bool:
        """Whether the response has no content by its kind (RFC 9110)."""
        status = self.status or ""
        return self._request.is_head or status.startswith(("1", "204", "304"))

    def _flush(self) -> None:
        """Send what there is, unless all of the rest is there as well."""
        if type(self.result) not in (list, tuple):
            self._request.stdout.flush()

    def get_scheme(self) -> str:
        if self.base_env.get("REQUEST_SCHEME") == "https":
            return "https"
        return super().get_scheme()

    def sendfile(self) -> bool:
        """Have the kernel send the file of the result; False: it is to be read."""
        found = _find_file(self.result.filelike)
        if found is None:
            return False
        file, offset, size = found
        if not self.status:
            raise AssertionError("a file is returned before start_response()")
        assert self.headers is not None
        if not self.headers_sent:
            self.headers.setdefault("Content-Length", str(size))
        told = self.headers.get("Content-Length") or ""
        if told.isascii() and told.isdigit() and len(told) <= _LONGEST_NUMBER:
            size = min(size, max(int(told) - self.bytes_sent, 0))
        if not self.headers_sent:
            self.send_headers()
        self._request.send_file(file, offset, size)
        return True


def _find_file(file: Any) -> tuple[Any, int, int] | None:
    """Tell where in a file on the disk the rest is that an object would read.

    Not by its ``fileno``: that of a ``gzip.GzipFile`` is of what is compressed.

    Returns:
        The file, an offset, and bytes up to its end; None: it is no such file.
    """
    raw = file.raw if type(file) in _BUFFERED else file
    if type(raw) is not io.FileIO or file.closed or not file.readable():
        return None
    if type(file) is io.BufferedRandom:
        file.flush()  # what is still to be written counts
    status = os.fstat(file.fileno())
    # Those of /proc have no size, and content all the same.
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return None
    offset = file.tell()
    return file, offset, max(status.st_size - offset, 0)
