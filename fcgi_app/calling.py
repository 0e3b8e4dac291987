"""Calling a handler for one request, so that nothing it does harms the next one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context

from ._log import log_info
from .codec.constants import Role
from .errors import RequestAborted
from .request import Request, serving

__all__ = ["Handler", "call", "exit_status_of"]

Handler = Callable[[Request], object]


def call(handler: Handler, request: Request) -> None:
    """Call ``handler(request)`` in a fresh context; the request is not ended yet.

    An exception goes to the request's log, and is answered with 500 if no head has
    gone out; ``SystemExit`` becomes the app_status. What is neither an ``Exception``
    nor ``SystemExit`` is raised on after that.
    """
    request.strict = True
    try:
        copy_context().run(_call, handler, request)
    except RequestAborted as reason:
        log_info("%s: %s", request, reason)
    except SystemExit as leaving:
        request.app_status = exit_status_of(leaving.code)
        if isinstance(leaving.code, str):
            request.tell(leaving.code + "\n")
    except Exception as error:  # noqa: BLE001 - the others feel nothing of it
        _failed(request, error)
    except BaseException as error:
        _failed(request, error)
        raise


def _call(handler: Handler, request: Request) -> None:
    serving.set(request)
    handler(request)


def _failed(request: Request, error: BaseException) -> None:
    from traceback import format_exception  # slow to load, and seldom needed

    request.strict = False
    text = "".join(format_exception(error))
    if request.role == Role.AUTHORIZER:  # mod_fcgid reads nothing behind the head
        request.tell(text)
        request.fail()
    else:
        request.fail()
        request.tell(text)


def exit_status_of(code: object) -> int:
    """Return the exit status that ``SystemExit(code)`` gives a process."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1
