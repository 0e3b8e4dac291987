"""The program behind ``--status-listen``: it answers with the state of all pools.

``fcgi-app start`` runs it as one more worker, with a socket of its own, so that pools
can be looked at while all of their workers are busy::

    python -m fcgi_app.status.service

It reads the scoreboards whose descriptors ``_FCGI_APP_STATUS=FD,FD,...`` names, and
nothing else. Every request is answered, whatever its path:

- at a pool's ping path with ``pong``;
- with ``pool=NAME`` in QUERY_STRING with this pool, as its own workers would;
- at the status path of one pool the same, at that of several with these;
- else with all pools.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import compress

from ..errors import ConfigError
from ..request import Request
from ..scoreboard import Scoreboard
from ..stdio import run
from .page import answer_ping, answer_pools, refuse, words_of
from .snapshot import take_snapshot

__all__ = ["VARIABLE", "StatusService", "main", "open_boards"]

VARIABLE = "_FCGI_APP_STATUS"
"""Names the descriptors of the scoreboards; removed from the environment when read."""


class StatusService:
    """Answers requests about pools.

    Args:
        boards: borrowed; each is read anew for each request.
    """

    def __init__(self, boards: Sequence[Scoreboard]) -> None:
        self._boards = boards

    def handle(self, request: Request) -> None:
        """Answer a request."""
        headers = [board.header for board in self._boards]
        path = request.params_map.get(b"SCRIPT_NAME", b"")
        if path and any(os.fsencode(header.ping_path) == path for header in headers):
            answer_ping(request)
            return
        name = words_of(request).get("pool")
        at_path = [
            path != b"" and os.fsencode(header.status_path) == path
            for header in headers
        ]
        if name is not None:
            wanted = [header.name == name for header in headers]
        else:
            wanted = at_path if any(at_path) else [True] * len(headers)
        pools = [take_snapshot(board) for board in compress(self._boards, wanted)]
        if name is not None and not pools:
            known = ", ".join(header.name for header in headers)
            refuse(request, "404 Not Found", f"no such pool (there are {known})\n")
            return
        single = name is not None or sum(at_path) == 1
        answer_pools(request, pools, single=single)


def open_boards(text: str) -> list[Scoreboard]:
    """Open the scoreboards of ``FD,FD,...``, which are the caller's to close.

    Raises:
        ConfigError: it is no list of descriptors of scoreboards.
    """
    boards: list[Scoreboard] = []
    try:
        for word in text.split(","):
            boards.append(Scoreboard.open_fd(int(word)))
    except (ValueError, OSError) as error:
        for board in boards:
            board.close()
        reason = f"must be descriptors of scoreboards, FD,FD,...: {error}"
        raise ConfigError(VARIABLE, text, reason) from None
    for board in boards:  # the memory does without
        board.close_descriptor()
    return boards


def main() -> None:
    """Serve until a stop signal.

    Raises:
        ConfigError: the variable is not there or wrong, or descriptor 0 is no socket
            to serve on.
    """
    boards = open_boards(os.environ.pop(VARIABLE, ""))
    try:
        run(StatusService(boards).handle)
    finally:
        for board in boards:
            board.close()


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"fcgi_app.status.service: {error}") from None
