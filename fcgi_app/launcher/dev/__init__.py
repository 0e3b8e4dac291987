"""The development server: a script, an HTTP gateway in front of it, reload on change.

``params.py``   an HTTP request becomes CGI meta-variables
``body.py``     its body, with Content-Length or chunked, as it comes
``gateway.py``  HTTP on one side, `fcgi_app.client` on the other
``watch.py``    which files have changed
``script.py``   the script's process and its listening socket
``server.py``   one loop that holds all of them together
"""

from __future__ import annotations

from .server import DevOptions, DevServer

__all__ = ["DevOptions", "DevServer"]
