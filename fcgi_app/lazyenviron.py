"""The native environment swap: C lays its vector out, Python decodes what is asked for.

A request's params stay the name-value list that they came as. C points its variable
``environ`` at copies of them; ``os.environ`` gets a dict that looks a variable up in the
list when somebody asks for it. Which names may enter is decided where it always is
(``envnames``), once for each sequence of names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

from ._backend import ffi, lib
from .cenviron import Vectors
from .codec.params import build_params, parse_params
from .environ import Asked, EnvironSwap
from .paramlist import parse_list

__all__ = ["LazyEnvironSwap"]

_MAX_LAYOUTS = 32
"""C has room for as many."""
_MAX_LAYOUT_NAMES = 4096
"""Greatest sum of the lengths of the names of a layout that is kept, in bytes."""
_FEW = 2
"""Variables that are looked up singly; whoever wants more gets all of them decoded."""
_size = dict.__len__
_find = lib.fcgi_find_param
_show = lib.fcgi_environ_show
_restore = lib.fcgi_environ_restore
_UNKNOWN: int = lib.FCGI_UNKNOWN
_NO_MEMORY: int = lib.FCGI_NO_MEMORY


class _Layout(NamedTuple):
    """What follows from the names of a request's params."""

    hidden: frozenset[bytes]
    """Those that stay out of the environment."""
    base: dict[bytes, bytes]
    """The process's variables, which show where no param is of their name."""
    kept: bool
    """It is kept for other requests."""


class _LazyData(dict[bytes, bytes]):
    """The content of os.environ during a request, decoded when it is asked for.

    ``data[name]``, which is all that os.environ does to look a variable up, finds it in
    the list of params; whatever else is done to it decodes all of them first.
    """

    __slots__ = ("layout", "params")
    layout: _Layout
    params: bytes | None
    """The name-value list; None: all of it is here."""

    def __missing__(self, name: bytes) -> bytes:
        params = self.params
        if params is None or type(name) is not bytes:
            raise KeyError(name)
        if _size(self) >= _FEW:
            self.fill()
            return self[name]
        span = _find(params, len(params), name, len(name))
        layout = self.layout
        if span < 0 or name in layout.hidden:
            value = layout.base[name]
        else:
            start = span >> 32
            value = params[start : start + (span & 0xFFFFFFFF)]
        self[name] = value
        return value

    def fill(self) -> None:
        """Decode all that has not been looked up or set yet."""
        params, self.params = self.params, None
        if params is None:
            return
        own = dict.copy(self)
        hidden, base, _ = self.layout
        dict.update(self, base)
        dict.update(self, parse_list(params))
        for name in hidden:
            if name in base:
                dict.__setitem__(self, name, base[name])
            else:
                dict.pop(self, name, None)
        dict.update(self, own)


def _filled(name: str) -> Callable[..., Any]:
    """Make a method of dict one that decodes everything before."""
    method = getattr(dict, name)

    @wraps(method)
    def first_fill(self: _LazyData, *args: Any, **keywords: Any) -> Any:
        self.fill()
        return method(self, *args, **keywords)

    return first_fill


for _name in (
    "__contains__ __delitem__ __eq__ __ior__ __iter__ __len__ __ne__ __or__ __repr__"
    " __reversed__ __ror__ clear copy get items keys pop popitem setdefault values"
).split():
    setattr(_LazyData, _name, _filled(_name))


class LazyEnvironSwap(EnvironSwap):
    """An ``EnvironSwap`` with the same results."""

    def _make_vectors(self, is_base: Callable[[bytes], bool]) -> Vectors | None:
        """Copy the process's variables for C; nothing of `cenviron` is needed."""
        env = lib.fcgi_environ_new()  # never freed: C code may look at its strings
        if env == ffi.NULL:
            raise MemoryError("no memory for a copy of the environment")
        self._env = env
        self._strings = [
            name if is_base(name) else None
            for name in (
                ffi.string(lib.fcgi_environ_string(env, index)).partition(b"=")[0]
                for index in range(lib.fcgi_environ_count(env))
            )
        ]
        """The name of each of C's strings; None: it is hidden during requests."""
        self._known: dict[int, _Layout] = {}
        self._serial: int | None = None
        self._shown: _Layout | None = None
        return None

    def enter_request(self, request: Asked) -> None:
        """Make the environment that of a request."""
        params = request.params_list
        if params is None:
            self.enter(request.params_map)
        else:
            self.enter_list(params)

    def enter(
        self,
        params: Mapping[bytes, bytes],
        varied: tuple[object, Mapping[bytes, bytes]] | None = None,
    ) -> None:
        """Make the environment one with these params; ``varied`` is of no use here."""
        self.enter_list(build_params(params.items()))

    def enter_list(self, params: bytes) -> None:
        """Make the environment one with the params of this name-value list.

        Raises:
            MemoryError: there is no memory for a copy of the params; call ``leave``.
        """
        serial: int = _show(self._env, params, len(params))
        if serial != self._serial:
            if serial <= 0:
                found = self._enter_unknown(params, serial)
                if found is None:
                    return
                serial = found
            self._shown = self._known[serial]
            self._serial = serial
        data = _LazyData()
        data.params = params
        assert self._shown is not None
        data.layout = self._shown
        self._put(data)
        if not self._has_data:  # putenv has made a vector of its own
            _show(self._env, params, len(params))

    def _enter_unknown(self, params: bytes, result: int) -> int | None:
        """Learn the names of a list and enter it; None: it was entered without some.

        Raises:
            MemoryError: there is no memory for it.
        """
        if result == _UNKNOWN:
            serial = self._learn(params)
            result = _show(self._env, params, len(params))
            if result > 0:
                return serial
        if result == _NO_MEMORY:
            raise MemoryError("no memory for a copy of the params")
        self.enter(self._without_nul(parse_list(params)))
        return None

    def _learn(self, params: bytes) -> int:
        """Decide about the names of a list; return the number that C gives them."""
        names = [name for name, _ in parse_params(params)]
        hidden = self._find_hidden(names)
        last = {name: index for index, name in enumerate(names)}
        keep = bytes(
            name not in hidden and last[name] == index
            for index, name in enumerate(names)
        )
        shown = {name for name in last if name not in hidden}
        base = bytes(
            name is not None and name not in shown for name in self._strings
        )
        self._make_room()
        serial: int = lib.fcgi_environ_learn(
            self._env, params, len(params), keep, base
        )
        if serial <= 0:
            raise MemoryError("no memory for a copy of the params")
        kept = sum(map(len, names)) <= _MAX_LAYOUT_NAMES
        self._known[serial] = _Layout(hidden, self._base, kept)
        return serial

    def _make_room(self) -> None:
        """Forget all layouts when there are too many, or one is too long to keep."""
        known = self._known
        if len(known) >= _MAX_LAYOUTS or (known and not [*known.values()][-1].kept):
            lib.fcgi_environ_forget(self._env)
            known.clear()
            self._serial: int | None = None

    def leave(self) -> None:
        """Make the environment the process's again."""
        self._put(self._process.copy())
        _restore(self._env)
