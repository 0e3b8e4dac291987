"""The measured handlers as ASGI applications, for the peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.bench.apps.handlers import BLOCK

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Message, Receive, Send], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


async def _begin(send: Send, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _write(send: Send, data: bytes, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def hello(scope: Message, receive: Receive, send: Send) -> None:
    """Read two variables, answer with a line."""
    scope["method"], scope["client"]
    await _begin(send, b"text/plain")
    await _write(send, b"Hello, world\n")


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Give the whole body back."""
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    await _begin(send, b"application/octet-stream")
    await _write(send, b"".join(pieces))


async def download(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with 64 MiB in pieces of 64 KiB."""
    await _begin(send, b"application/octet-stream")
    for _ in range(1024):
        await _write(send, BLOCK, more=True)
    await _write(send, b"")


async def _lifespan(receive: Receive, send: Send) -> None:
    """Take part in start and end, as ASGI asks for."""
    for what in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{what}.complete"})


async def _dispatch(
    handler: Handler, scope: Message, receive: Receive, send: Send
) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    else:
        await handler(scope, receive, send)


ASGI_HANDLERS: dict[str, Application] = {
    handler.__name__: partial(_dispatch, handler) for handler in (hello, echo, download)
}
