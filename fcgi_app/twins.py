"""Which classes do the hot work of the loop: those in Python, or their native twins."""

from __future__ import annotations

import selectors

from ._backend import BACKEND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .acceptor import Acceptor
    from .environ import EnvironSwap
    from .loop import Loop
    from .settings import Settings
    from .shortcut import Shortcut
    from .watching import Source

__all__ = ["choose", "is_native", "open_shortcut"]


def is_native() -> bool:
    """Whether it is the native ones."""
    # Somebody may have put another selector in the place of this one.
    epoll = getattr(selectors, "EpollSelector", None)
    return BACKEND == "native" and selectors.DefaultSelector is epoll


def choose() -> tuple[type[Acceptor], type[EnvironSwap]]:
    """Give the classes for connections and for the environment."""
    if is_native():
        from .lane import LaneAcceptor
        from .lazyenviron import LazyEnvironSwap

        return LaneAcceptor, LazyEnvironSwap
    from .acceptor import Acceptor
    from .environ import EnvironSwap

    return Acceptor, EnvironSwap


def open_shortcut(
    loop: Loop,
    acceptor: Acceptor,
    source: Source,
    swap: EnvironSwap,
    settings: Settings,
) -> Shortcut | None:
    """Make the short way for requests that are usual; None: there is none.

    Args:
        loop: whose it will be.
        acceptor: which connections there are.
        source: what gives the requests: ``acceptor``, or who watches them.
        swap: the environment.
        settings: of the loop.
    """
    if (
        not is_native()
        or settings.descriptors
        or settings.passthrough
        or settings.keep_timeout
    ):
        return None
    from .lane import LaneAcceptor
    from .lazyenviron import LazyEnvironSwap
    from .shortcut import Shortcut

    assert isinstance(acceptor, LaneAcceptor)
    assert isinstance(swap, LazyEnvironSwap)
    if not swap.is_lazy:
        return None
    slot = None
    if source is not acceptor:
        from .watching import Watcher

        # C notes what the scoreboard shows; an access log is written in Python.
        if not isinstance(source, Watcher) or source.log or source.sight is None:
            return None
        from .lentslot import LentSlot

        slot = LentSlot(source, source.sight, loop.take_long_way)
    return Shortcut(loop, acceptor, swap, loop.install_streams(), settings, slot)
