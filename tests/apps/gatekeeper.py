"""An authorizer for tests: does what the query says, tells what it was told.

It lets ann in, whose password is pässword, and tells what runs behind it what it has
seen, in a variable. The query may ask for another answer: ``do=deny``, ``do=raise`` …
``phase`` says which of several questions is meant. THREADS: so many threads.
"""

from __future__ import annotations

import json
import os
from urllib.parse import parse_qsl

from fcgi_app import Request, run
from fcgi_app.roles import credentials

NAMES = ("FCGI_ROLE", "FCGI_APACHE_ROLE", "REMOTE_USER", "REMOTE_PASSWD")
MORE = ("HTTP_AUTHORIZATION", "CONTENT_LENGTH", "REQUEST_METHOD")


def saw(request: Request) -> str:
    """What came, as JSON; the body, too, which an authorizer must not have."""
    asked = request.params
    found = {name: asked[name] for name in NAMES + MORE if name in asked}
    return json.dumps({**found, "body": len(request.stdin.read())})


def permit(request: Request) -> None:
    phase = request.params.get("FCGI_APACHE_ROLE", "ONCE")
    given = credentials(request)
    if phase == "AUTHORIZER":  # the second question; mod_fcgid joins what comes twice
        request.allow({"SAW_AUTHORIZER": saw(request)})
    elif phase == "ACCESS_CHECKER" or given == ("ann", "pässword"):
        # Those of authorizer.py are what nginx is configured to hand on.
        told, who = saw(request), given.user if given else ""
        request.allow(
            {f"SAW_{phase}": told, "WHO": who, "REMOTE_USER": who, "PROCESS_ID": told}
        )
    else:
        request.challenge("Basic", "gate")


def handle(request: Request) -> None:
    query = dict(parse_qsl(request.params.get("QUERY_STRING", "")))
    phase = request.params.get("FCGI_APACHE_ROLE", "ONCE")
    do = query.get("do") if query.get("phase", phase) == phase else None
    if do == "deny":
        headers = {"X-Refused": "yes", "Set-Cookie": "refused=1"}
        if "location" in query:
            headers["Location"] = query["location"]
        request.deny(int(query["status"]), headers, query.get("text", ""))
    elif do == "raise":
        raise RuntimeError("the authorizer failed")
    elif do == "raise-late":
        request.allow({"LATE": "1"})
        raise RuntimeError("the authorizer failed late")
    elif do == "injection":
        request.allow({"A": "b\r\nVariable-ROOT: 1"})
    elif do == "long":
        request.allow({"WHO": "ann", "LONG": "x" * int(query["size"])})
    else:
        permit(request)


run(handle, threads=int(os.environ.get("THREADS", "0")) or None)
