"""The answer to a request for the status path or the ping path of a pool.

As php-fpm's ``pm.status_path`` and ``ping.path``. The words of QUERY_STRING, joined by
``&``, are ``json`` or ``openmetrics`` in place of text, and ``full`` for each worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..request import Request
from ..scoreboard import Scoreboard
from .openmetrics import CONTENT_TYPE, render_openmetrics
from .render import describe_pool, render_json, render_text
from .snapshot import PoolView, take_snapshot

__all__ = ["answer", "answer_ping", "answer_pools", "refuse", "words_of"]

_PLAIN = "text/plain;charset=UTF-8"


def answer(request: Request, board: Scoreboard) -> None:
    """Answer a request whose SCRIPT_NAME is the pool's status path or ping path.

    Head and body are written; to end the request is left to the caller. Only a
    responder's request may come here: to an authorizer's, it would be a permission.
    """
    ping = os.fsencode(board.header.ping_path)
    if request.params_map.get(b"SCRIPT_NAME") == ping:
        answer_ping(request)
    else:
        answer_pools(request, [take_snapshot(board)], single=True)


def answer_ping(request: Request) -> None:
    """Say that somebody is here."""
    _write(request, _PLAIN, "pong")


def answer_pools(
    request: Request, pools: Sequence[PoolView], *, single: bool = False
) -> None:
    """Answer with pools, in the form that the request asks for.

    Args:
        request: whose QUERY_STRING counts.
        pools: any number.
        single: there is one, and JSON is it; else JSON has a list ``pools``.
    """
    words = words_of(request)
    full = "full" in words
    if "json" in words:
        found = [describe_pool(pool, full=full) for pool in pools]
        content: dict[str, Any] = found[0] if single else {"pools": found}
        _write(request, "application/json", render_json(content))
    elif "openmetrics" in words:
        _write(request, CONTENT_TYPE, render_openmetrics(pools, full=full))
    else:
        _write(request, _PLAIN, render_text(pools, full=full))


def refuse(request: Request, status: str, text: str) -> None:
    """Answer with an error: ``404 Not Found``."""
    _write(request, _PLAIN, text, status=status)


def words_of(request: Request) -> dict[str, str]:
    """Return the words of QUERY_STRING, each with what follows its ``=``."""
    words = {}
    for word in request.params.get("QUERY_STRING", "").split("&"):
        name, _, value = word.partition("=")
        words[name] = value
    return words


def _write(request: Request, content_type: str, text: str, *, status: str = "") -> None:
    body = text.encode("utf-8", "replace")
    head = (
        (f"Status: {status}\r\n" if status else "")
        + f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Expires: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        "Cache-Control: no-cache, no-store, must-revalidate, max-age=0\r\n"
        "\r\n"
    )
    request.stdout.write(head.encode() + body)
