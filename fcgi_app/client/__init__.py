"""The web server's side of FastCGI: send a request, read the answer.

Tests, health checks and the development gateway use it::

    from fcgi_app.client import request

    answer = request("unix:/run/app.sock", {"REQUEST_METHOD": "GET"})
    assert (answer.status, answer.stderr) == (200, b"")

`Client` keeps a connection for several requests and streams in both directions. One
request at a time runs on a connection: this side does not multiplex. Params are sent
exactly as given, in their order; nothing is added to them.
"""

from __future__ import annotations

from .answer import AnswerError
from .connection import Client, request
from .head import Head, parse_head
from .response import Response, StreamedResponse
from .upload import Body, BodySource, Params

__all__ = [
    "AnswerError",
    "Body",
    "BodySource",
    "Client",
    "Head",
    "Params",
    "Response",
    "StreamedResponse",
    "parse_head",
    "request",
]
