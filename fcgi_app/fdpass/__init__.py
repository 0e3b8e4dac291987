"""The other end of Apache's mod_proxy_fdpass: clients' sockets, handed over.

httpd sends the response head and passes the client's connection on; its own thread is
free again. Whoever receives it writes the body, for as long as it likes::

    from fcgi_app.fdpass import Receiver

    with Receiver("/run/clock.sock", mode=0o660) as receiver:
        for handover in receiver:
            with handover:
                handover.write(b"Hello\\n")

What the module cannot do: the receiver learns neither URL nor method nor header
fields; of a request body it gets only what httpd has not read yet; TLS and HTTP/2 do
not work, and such clients are closed and logged. See fcgi_app.fdpass(3).

`AsyncReceiver` does the same for asyncio, `Sender` and `send` are the web server's
side. Nothing here knows of FastCGI. Linux only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ancillary import DATA_MAX_BYTES
from .handover import Handover, Peer
from .receiver import Receiver
from .sender import Sender, send

if TYPE_CHECKING:
    from .aio import AsyncReceiver

__all__ = [
    "DATA_MAX_BYTES",
    "AsyncReceiver",
    "Handover",
    "Peer",
    "Receiver",
    "Sender",
    "send",
]


def __getattr__(name: str) -> object:
    """Load asyncio only for who asks for `AsyncReceiver`."""
    if name == "AsyncReceiver":
        from .aio import AsyncReceiver

        return AsyncReceiver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
