"""Resource pools, in the sense of Apache's: what is in one is released with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from ._log import log_exception

__all__ = ["Pool"]

_T = TypeVar("_T")


class Pool:
    """Things to release together, last one first.

    Unlike ``contextlib.ExitStack``, an error in one release is logged and the others
    go on: the response has gone out by then, and nobody could handle it.
    """

    __slots__ = ("_releases",)

    def __init__(self) -> None:
        self._releases: list[Callable[[], object]] = []

    def enter_context(self, manager: AbstractContextManager[_T]) -> _T:
        """Enter ``manager`` now, leave it with the pool; return what it gives.

        It is left as after success: errors of the request do not reach it.
        """
        value = manager.__enter__()
        self._releases.append(lambda: manager.__exit__(None, None, None))
        return value

    def callback(self, function: Callable[..., object], *args: Any, **kw: Any) -> None:
        """Call ``function(*args, **kw)`` when the pool is released."""
        self._releases.append(lambda: function(*args, **kw))

    def make_subpool(self) -> Pool:
        """Return a pool that is released with this one, or earlier by itself.

        As a context manager it is released at the end of its block: for the passes
        of a long loop.
        """
        subpool = Pool()
        self._releases.append(subpool.release)
        return subpool

    def release(self) -> None:
        """Release everything, last first; the pool is empty and usable again."""
        releases = self._releases
        while releases:
            release = releases.pop()
            try:
                release()
            except Exception:  # noqa: BLE001 - the next one must not suffer
                log_exception("error while a request's resources were released")

    def __enter__(self) -> Pool:
        """Return the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything."""
        self.release()
