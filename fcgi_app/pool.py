"""Resource pools, in the sense of Apache's: what is in one is released with it."""

from __future__ import annotations

from collections.abc import Callable

from ._log import log_exception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, TypeVar

    _T = TypeVar("_T")


__all__ = ["Pool"]


class Pool:
    """Things to release together, last one first.

    Unlike ``contextlib.ExitStack``, an error in one release is logged and the others
    go on: the response has gone out by then, and nobody could handle it.
    """

    __slots__ = ("_held", "_parent", "_releases")

    def __init__(self, parent: Pool | None = None) -> None:
        self._releases: list[Callable[[], object]] = []
        self._parent = parent
        self._held = False  # by the parent, which is to release this one

    def enter_context(self, manager: AbstractContextManager[_T]) -> _T:
        """Enter ``manager`` now, leave it with the pool; return what it gives.

        It is left as after success: errors of the request do not reach it.
        """
        value = manager.__enter__()
        self._add(lambda: manager.__exit__(None, None, None))
        return value

    def callback(self, function: Callable[..., object], *args: Any, **kw: Any) -> None:
        """Call ``function(*args, **kw)`` when the pool is released."""
        self._add(lambda: function(*args, **kw))

    def make_subpool(self) -> Pool:
        """Return a pool that is released with this one, or earlier by itself.

        As a context manager it is released at the end of its block: for the passes
        of a long loop.
        """
        subpool = Pool(self)
        subpool._hold()
        return subpool

    def _add(self, release: Callable[[], object]) -> None:
        self._hold()
        self._releases.append(release)

    def _hold(self) -> None:
        """Be released with the parent, if there is one."""
        if self._parent is not None and not self._held:
            self._held = True
            self._parent._add(self._release_held)

    def _release_held(self) -> None:
        """Be released by the parent, which has this one off its list."""
        self._held = False
        self.release()

    def _forget(self, release: Callable[[], object]) -> None:
        """Take a release off the list, where it is one of the last."""
        for index in range(len(self._releases) - 1, -1, -1):
            if self._releases[index] == release:
                del self._releases[index]
                return

    def release(self) -> None:
        """Release everything, last first; the pool is empty and usable again."""
        if self._held and self._parent is not None:
            self._held = False
            self._parent._forget(self._release_held)
        releases = self._releases
        while releases:
            release = releases.pop()
            try:
                release()
            except Exception:  # noqa: BLE001 - the next one must not suffer
                log_exception("error while a request's resources were released")
            except BaseException:  # the process is to end: when nothing is left
                self.release()
                raise

    def __enter__(self) -> Pool:
        """Return the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything."""
        self.release()
