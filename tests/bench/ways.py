"""Ways to make a request the process's, for the levers of ``levers.py``."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from fcgi_app._backend import REASON, lib
from fcgi_app.codec.params import build_params, parse_param_map
from fcgi_app.environ import EnvironSwap
from fcgi_app.protocol.recurring import RecurringParams
from fcgi_app.textio import TextOut

from .wire import NGINX_PARAMS

__all__ = ["LINE", "Way", "build_list", "native"]

LINE = "Content-Type: text/plain; charset=utf-8\r\n\r\nHello, world"
_VARYING = (b"REMOTE_PORT", b"HTTP_COOKIE")


class Way(NamedTuple):
    """One way to do it."""

    name: str
    run: Callable[[], object] | None
    """Does it once; None: this way cannot be had."""
    problem: str = ""
    """Why it cannot."""
    prepare: Callable[[int], object] = bool
    """Called outside of the time, before so many runs."""


def native(name: str, make: Callable[[], Callable[[], object]]) -> Way:
    """Give a way of the native backend, or say why there is none.

    ``make`` imports what exists with that backend only.
    """
    if lib is None:
        return Way(name, None, f"the backend is pure: {REASON}")
    return Way(name, make())


def build_list(pairs: Sequence[tuple[str, str]], **changed: str) -> bytes:
    """Build the content of PARAMS with some values of its own."""
    params = dict(pairs) | changed
    return build_params(
        (name.encode(), value.encode()) for name, value in params.items()
    )


@contextmanager
def _own_environment() -> Iterator[EnvironSwap]:
    """Give a swap, and the process its own environment in the end.

    What a swap allocates is never freed: some KB for each.
    """
    swap = EnvironSwap()
    try:
        yield swap
    finally:
        swap.leave()


@contextmanager
def params(pairs: Sequence[tuple[str, str]]) -> Iterator[list[Way]]:
    """From the content of PARAMS to a dict.

    What is looked up singly must have been shown to C, which is another lever's time.
    """
    content = build_list(pairs)
    recurring = RecurringParams()
    for cookie in ("one=1", "another=2"):
        recurring.parse(build_list(pairs, HTTP_COOKIE=cookie))
    hit = Way("RecurringParams, a hit", partial(recurring.parse, content))
    if recurring.parse(content)[1] is None:
        hit = Way(hit.name, None, "so long a list is not learnt from")

    def parse_in_c() -> Callable[[], object]:
        from fcgi_app.paramlist import parse_list

        return partial(parse_list, content)

    def look_up() -> Callable[[], object]:
        from fcgi_app.lazyenviron import LazyEnvironSwap

        swap = LazyEnvironSwap()
        swap.enter_list(content)
        data = swap.data
        clear = dict.clear

        def two() -> tuple[bytes, bytes]:
            clear(data)
            return data[b"QUERY_STRING"], data[b"HTTP_COOKIE"]

        return two

    with _own_environment():
        yield [
            Way("parse_param_map", partial(parse_param_map, content)),
            hit,
            native("parse_list: C joins, one split", parse_in_c),
            native("two look-ups, nothing else decoded", look_up),
        ]


class _Sink(io.RawIOBase):
    """The response of one request."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    @property
    def stdout(self) -> _Sink:
        return self

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.parts.append(data)
        return len(data)


@contextmanager
def text() -> Iterator[list[Way]]:
    """A text stream over the response, which is new for each request."""
    permanent = TextOut("stdout", None)

    def wrap() -> None:
        stream = io.TextIOWrapper(_Sink(), "utf-8", "surrogateescape", "\n")  # type: ignore[type-var]
        print(LINE, file=stream)
        stream.flush()

    def bind() -> None:
        permanent.bind(_Sink())
        print(LINE, file=permanent)
        permanent.bind(None)

    yield [Way("a new TextIOWrapper", wrap), Way("the permanent TextOut, bound", bind)]


@contextmanager
def c_environ() -> Iterator[list[Way]]:
    """C's variable ``environ`` alone."""
    content = build_list(NGINX_PARAMS)
    found = parse_param_map(content)
    values = [*found.values()]
    varied = {name: found[name] for name in _VARYING}

    def in_c() -> Callable[[], object]:
        from fcgi_app.lazyenviron import LazyEnvironSwap

        swap = LazyEnvironSwap()
        swap.enter_list(content)  # learns the names
        swap.leave()
        environ, size = swap.environ, len(content)
        show, restore = lib.fcgi_environ_show, lib.fcgi_environ_restore

        def show_and_restore() -> None:
            show(environ, content, size)
            restore(environ)

        return show_and_restore

    with _own_environment() as swap:
        vectors = swap._vectors
        if vectors is None:
            raise OSError("C's environ cannot be reached without ctypes")
        layout = swap._lay_out((*found,))
        vectors.show(layout, values)
        repeat = vectors.make_repeat(layout, varied)
        restore = vectors.restore

        def show() -> None:
            vectors.show(layout, values)
            restore()

        def show_again() -> None:
            vectors.show_again(repeat, varied)
            restore()

        yield [
            Way("Vectors.show, restore", show),
            Way("Vectors.show_again of 2 values, restore", show_again),
            native("fcgi_environ_show, _restore", in_c),
        ]


@contextmanager
def os_environ() -> Iterator[list[Way]]:
    """``os.environ`` and C's ``environ``, from params that are parsed, or a list.

    The plain way works on a copy of os.environ, but its putenv and unsetenv on C's. The
    params are always the same: glibc keeps each string for ever that it has not seen.
    """
    content = build_list(NGINX_PARAMS)
    own = dict(os.environ)
    request = own | dict(NGINX_PARAMS)
    like: Any = os.environ
    coders = (like.encodekey, like.decodekey, like.encodevalue, like.decodevalue)
    copy = type(like)({os.fsencode(k): os.fsencode(v) for k, v in own.items()}, *coders)
    recurring = RecurringParams()
    for port in ("1", "22"):
        recurring.parse(build_list(NGINX_PARAMS, REMOTE_PORT=port))
    found, varied = recurring.parse(content)

    def set_all() -> None:
        for content in (request, own):
            copy.clear()
            copy.update(content)

    def swap_lazily() -> Callable[[], object]:
        from fcgi_app.lazyenviron import LazyEnvironSwap

        swap = LazyEnvironSwap()

        def enter_and_leave() -> None:
            swap.enter_list(content)
            swap.leave()

        return enter_and_leave

    with _own_environment() as swap:

        def enter_and_leave() -> None:
            swap.enter(found, varied)
            swap.leave()

        yield [
            Way(f"clear, update: {len(request)} by putenv", set_all),
            Way("EnvironSwap, 2 params vary", enter_and_leave),
            native("LazyEnvironSwap.enter_list", swap_lazily),
        ]
