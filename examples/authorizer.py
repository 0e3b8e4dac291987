#!/usr/bin/env python3
"""Decide who may come in: libfcgi's authorizer example, for every web server.

USER and PASSWORD of the process's environment name the one who may: doe with xxxx,
unless you set them. REALM is what the browser shows. man fcgi_app-roles tells more,
and servers/ has a configuration for each web server that can ask an authorizer.
"""

from __future__ import annotations

import hmac
import os

from fcgi_app import Request, run
from fcgi_app.roles import credentials

# Read once, before the first request: later the environment is the request's.
USER = os.environ.get("USER", "doe")
PASSWORD = os.environ.get("PASSWORD", "xxxx")
REALM = os.environ.get("REALM", "Test")


def same(text: str, secret: str) -> bool:
    """Compare in a time that tells nothing about how much of it is right."""
    errors = "surrogateescape"
    return hmac.compare_digest(
        text.encode("utf-8", errors), secret.encode("utf-8", errors)
    )


def is_known(request: Request) -> bool:
    """Whether the client has sent the right name and password."""
    given = credentials(request)
    if given is None:
        return False
    # Both are compared, so that a wrong name takes as long as a wrong password.
    return same(given.user, USER) & same(given.password, PASSWORD)


def handle(request: Request) -> None:
    # What Apache asks about; other web servers ask one question for all.
    phase = request.params.get("FCGI_APACHE_ROLE")
    if phase == "ACCESS_CHECKER":  # before anybody has been asked for a name
        request.allow()
    elif phase == "AUTHORIZER" and request.params.get("REMOTE_USER") == USER:
        request.allow()  # Apache has had the password checked before
    elif phase != "AUTHORIZER" and is_known(request):
        request.allow(
            {
                "AUTH_TYPE": "Basic",
                "REMOTE_PASSWD": "",  # nobody behind us needs to know it
                "REMOTE_USER": USER,
                "PROCESS_ID": request.params.get("QUERY_STRING") or "0",
            }
        )
    else:
        request.challenge("Basic", REALM)


# Whatever goes wrong in handle becomes a 500, which lets nobody in.
run(handle)
