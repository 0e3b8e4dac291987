#!/usr/bin/env python3
"""A clock for hundreds of browsers at once: fdpass_clock.py unix:/run/app/fd.sock [1].

Apache's mod_proxy_fdpass hands the browsers over, with the response head sent already;
servers/apache-fdpass.conf says how, and makes server-sent events of it at /events. No
process or thread of Apache is busy with them afterwards.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from contextlib import suppress

from fcgi_app.fdpass import Receiver

FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def tell(client: socket.socket, event: bytes) -> bool:
    """Send an event without waiting; False: the client is gone, or far too slow."""
    try:
        told = client.send(event, FLAGS) == len(event)
    except OSError:
        told = False
    if not told:
        client.close()
    return told


def serve(receiver: Receiver, pause: float) -> None:
    """Tell all clients the time every ``pause`` seconds until the receiver stops."""
    clients: list[socket.socket] = []
    due = time.monotonic()
    event = b""
    while True:
        if time.monotonic() >= due:
            event = time.strftime("data: %Y-%m-%d %H:%M:%S\n\n").encode()
            clients = [client for client in clients if tell(client, event)]
            due = time.monotonic() + pause
        try:
            handover = receiver.accept(max(0.0, due - time.monotonic()))
        except TimeoutError:
            continue
        if handover is None:
            break
        client = handover.detach()  # of a Handover only the socket is needed here
        if tell(client, event):
            clients.append(client)
    for client in clients:
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()


def main(address: str, pause: str = "1") -> None:
    # Apache's user, www-data, has to be in the group of this process.
    with Receiver(address, mode=0o660) as receiver:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: receiver.stop())
        serve(receiver, float(pause))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
