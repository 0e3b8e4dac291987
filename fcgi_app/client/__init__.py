"""The web server's side of FastCGI: send a request, read the answer.

Tests, health checks and the development gateway use it::

    from fcgi_app.client import build_cgi_params, request

    answer = request("unix:/run/app.sock", build_cgi_params("/path?a=1"))
    assert (answer.status, answer.stderr) == (200, b"")

`Client` keeps a connection for several requests and streams in both directions. One
request at a time runs on a connection: this side does not multiplex. Params are sent
exactly as given, in their order; nothing is added to them.
"""

from __future__ import annotations

from .answer import AnswerError
from .cgiparams import build_cgi_params
from .connection import DEFAULT_TIMEOUT, Client, request
from .exitstatus import ExitStatus, exit_status, exit_status_of_error
from .head import Head, parse_head
from .response import Response, StreamedResponse
from .upload import Body, BodySource, Params

__all__ = [
    "DEFAULT_TIMEOUT",
    "AnswerError",
    "Body",
    "BodySource",
    "Client",
    "ExitStatus",
    "Head",
    "Params",
    "Response",
    "StreamedResponse",
    "build_cgi_params",
    "exit_status",
    "exit_status_of_error",
    "parse_head",
    "request",
]
