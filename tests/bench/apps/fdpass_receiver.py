"""Takes clients on descriptor 0 and answers each of them with one byte."""

from __future__ import annotations

from fcgi_app.fdpass import Receiver

with Receiver(0) as receiver:
    for handover in receiver:
        handover.write(b"x")
        handover.detach().close()  # the load hands over one client again and again
