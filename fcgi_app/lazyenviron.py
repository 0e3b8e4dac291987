"""The native environment swap: C lays its vector out, Python decodes what is asked for.

A request's params stay the name-value list that they came as. C points its variable
``environ`` at copies of them; ``os.environ`` has a dict that looks a variable up in the
list when somebody asks for it. Which names may enter is decided where it always is
(``envnames``), once for each sequence of names.
"""

from __future__ import annotations

import os
from _thread import allocate_lock  # threading has the same one, and loads more
from functools import partial, wraps
from types import FunctionType

from ._backend import ffi, lib
from .codec.params import build_params, parse_params
from .environ import EnvironSwap
from .frozen import Frozen
from .paramlist import parse_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from .environ import Asked

__all__ = ["LAYOUT", "LazyEnvironSwap"]

_MAX_LAYOUTS: int = lib.FCGI_LAYOUTS
_MAX_LAYOUT_NAMES = 4096
"""Greatest sum of the lengths of the names of a layout that is kept, in bytes."""
_LONGEST_NAME = 64
_MOST_NAMES = 512
"""Of what a program asks os.environ for, in characters, that is remembered encoded."""
_FEW = 8
"""Variables that are looked up singly; whoever wants more gets all of them decoded."""
_MAX_HOT: int = lib.FCGI_HOT
LAYOUT: int = lib.FCGI_STEP_LAYOUT
_SIZE_MASK = (1 << LAYOUT) - 1
_size = dict.__len__
_clear = dict.clear
_get: Callable[[dict[bytes, bytes], bytes], bytes | None] = dict.get
_items = dict.items
_keys = dict.keys
_update = dict.update
_call = partial.__call__
_heating = allocate_lock()
_find = lib.fcgi_environ_find
_heat = lib.fcgi_environ_heat
_show = lib.fcgi_environ_show
_UNKNOWN: int = lib.FCGI_UNKNOWN
_NO_MEMORY: int = lib.FCGI_NO_MEMORY


class _Layout(Frozen):
    """What follows from the names of a request's params."""

    hidden: frozenset[bytes]
    """Those that stay out of the environment."""
    kept: bool
    """It is kept for other requests."""
    hot: list[tuple[bytes, int, int]]
    """Names that were asked for, with where C notes begin and end of each value: the
    next request with this layout will be asked for them, too."""


class LazyData(dict[bytes, bytes]):
    """The content of os.environ, decoded when it is asked for.

    ``data[name]``, which is all that os.environ does to look a variable up, asks C
    where it is in the list of params that is shown; whatever else is done to it decodes
    all of them first.
    """

    __slots__ = (
        *("base", "environ", "layouts", "params", "process"),
        *("turn", "window"),
    )
    base: dict[bytes, bytes]
    """The variables that show where no param has their name; never changed."""
    process: dict[bytes, bytes]
    """Those that show outside of requests; never changed."""
    environ: Any
    """C's share, which knows where a param is."""
    layouts: list[_Layout]
    """What is known of lists of params, in the order of their numbers."""
    params: Any
    """The name-value list that is shown, if one is."""
    window: Any
    """C's buffer: if it is that, the list is at its begin."""
    turn: int
    """What is shown: the number of a list's layout << LAYOUT, and the bytes of the list
    where that is in the window; 0: the process's own; less: all of it is here."""

    # Threads may look, too, and be late: the request is over when they come back. What
    # they have found counts only if `turn` is the very object that it was before: each
    # request has its own, and nothing comes between that look and what follows it.

    def __missing__(self, name: bytes) -> bytes:
        turn = self.turn
        if turn <= 0 or _size(self) >= _FEW:
            return self._look_up(name)
        hot = self.layouts[(turn >> LAYOUT) - 1].hot
        try:
            span = _find(self.environ, name, len(name))
        except TypeError:  # nothing but bytes is a name
            raise KeyError(name) from None
        value: bytes
        if span < 0:
            value = self.base[name]
        else:
            value = self.params[span >> 32 : span & 0xFFFFFFFF]
            if len(hot) < _MAX_HOT:
                self._heat(name, turn, hot)
        if self.turn is turn:
            self[name] = value
            return value
        return self[name]

    def _heat(self, name: bytes, turn: int, hot: list[tuple[bytes, int, int]]) -> None:
        """Have the next request with this layout find the name at once."""
        if not _heating.acquire(False):
            return  # another thread does that
        try:
            if self.turn is turn and all(known != name for known, _, _ in hot):
                place = _heat(self.environ, turn >> LAYOUT, name, len(name))
                if place >= 0:
                    hot.append((name, 2 * place, 2 * place + 1))
        finally:
            _heating.release()

    def _look_up(self, name: bytes) -> bytes:
        """Find a variable outside of a request, or one of many."""
        turn = self.turn
        if turn < 0:
            value = _get(self, name)  # somebody may have put it there meanwhile
            if value is None:
                raise KeyError(name)
            return value
        if turn == 0 and _size(self) < _FEW:
            value = self.process[name]
            if self.turn is turn:
                self[name] = value
            return value
        self.fill()
        return self[name]

    def fill(self) -> None:
        """Decode all that has not been looked up or set yet."""
        while (turn := self.turn) >= 0:
            made = self._decode(turn)
            filled = ~turn
            steps = map(
                _call,
                (
                    partial(_update, made, _items(self)),
                    partial(_clear, self),  # else what was looked up would come first
                    partial(_update, self, made),
                ),
            )
            if self.turn is turn:
                self.turn = filled
                tuple(steps)  # all in one go: nobody finds it empty

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the names that there are now, whatever comes meanwhile."""
        self.fill()
        return iter([*_keys(self)])

    def _decode(self, turn: int) -> dict[bytes, bytes]:
        """Give all that shows, in order, but for what has been looked up or set."""
        if not turn:
            return self.process.copy()
        hidden = self.layouts[(turn >> LAYOUT) - 1].hidden
        base = self.base
        params = self.params
        if params is self.window:
            params = params[: turn & _SIZE_MASK]
        made = base.copy()
        made.update(parse_list(params))
        for name in hidden:
            if name in base:
                made[name] = base[name]
            else:
                made.pop(name, None)
        return made


def _filled(name: str) -> Callable[..., Any]:
    """Make a method of dict one that decodes everything before."""
    method = getattr(dict, name)

    @wraps(method)
    def first_fill(self: LazyData, *args: Any, **keywords: Any) -> Any:
        self.fill()
        return method(self, *args, **keywords)

    return first_fill


for _name in (
    *("__contains__", "__delitem__", "__eq__", "__ior__", "__len__"),
    *("__ne__", "__or__", "__repr__", "__reversed__", "__ror__", "clear", "copy"),
    *("get", "items", "keys", "pop", "popitem", "setdefault", "values"),
):
    setattr(LazyData, _name, _filled(_name))


class _Names(dict[str, bytes]):
    """Names of variables as they are encoded, for os.environ: programs ask for few."""

    __slots__ = ("_encode",)

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, name: str) -> bytes:
        found = self._encode(name)  # it raises for what is no name
        if type(name) is str and len(name) <= _LONGEST_NAME and len(self) < _MOST_NAMES:
            self[name] = found
        return found


def _quicken(environ: Any) -> None:
    """Have os.environ remember how names are encoded: a quarter of a look-up's time.

    It has the function in an attribute; the result is the same for every name, and an
    object that cannot be one is a TypeError as before.
    """
    encode = getattr(environ, "encodekey", None)
    if isinstance(encode, FunctionType):
        environ.encodekey = _Names(encode).__getitem__


class LazyEnvironSwap(EnvironSwap):
    """An ``EnvironSwap`` with the same results.

    Attributes:
        environ: C's share of it.
        data: the content of os.environ.
        layouts: what is known of lists of params, in the order of their numbers.
        spans: where C notes the values of names that are hot.
        is_lazy: os.environ has a content that can be exchanged, and is looked up.
    """

    def _prepare(self, is_base: Callable[[bytes], bool]) -> None:
        """Copy the process's variables for C; nothing of `cenviron` is needed."""
        made = lib.fcgi_environ_new()  # never freed: C code may look at its strings
        if made == ffi.NULL:
            raise MemoryError("no memory for a copy of the environment")
        self.environ = made
        _quicken(self._environ)
        found = ffi.buffer(lib.fcgi_environ_hot(made), 8 * _MAX_HOT)
        self.spans = memoryview(found).cast("I")
        names = (
            ffi.string(lib.fcgi_environ_string(made, index)).partition(b"=")[0]
            for index in range(lib.fcgi_environ_count(made))
        )
        self._strings = [name if is_base(name) else None for name in names]
        """The name of each of C's strings; None: it is hidden during requests."""
        self.layouts: list[_Layout] = []
        self._role_pairs: dict[bytes, bytes] = {}
        self.data = LazyData()
        self.data.environ = made
        self.data.layouts = self.layouts
        self.data.params = self.data.window = None
        self.data.turn = 0
        self.data.base = self._base
        self.data.process = self._process

    @property
    def is_lazy(self) -> bool:
        return self._has_data

    def enter_request(self, request: Asked) -> None:
        """Make the environment that of a request."""
        if request.params_list is not None:
            self.enter_list(request.params_list)
        elif request.params_content is not None:
            self.enter_list(request.params_content + self._role_pair(request))
        else:
            self.enter(request.params_map)

    def _role_pair(self, request: Asked) -> bytes:
        """Give the pair that no web server is believed."""
        role = request.params_map[b"FCGI_ROLE"]
        pair = self._role_pairs.get(role)
        if pair is None:
            pair = self._role_pairs[role] = build_params([(b"FCGI_ROLE", role)])
        return pair

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
        number = _show(self.environ, params, len(params))
        if number <= 0:
            number = self._enter_unknown(params, number)
            if number <= 0:
                return
        data = self.data
        data.params = params
        data.turn = number << LAYOUT  # before the content goes: nobody adds to it then
        _clear(data)
        self.put_data()
        if not self._has_data:  # putenv has made a vector of its own
            _show(self.environ, params, len(params))

    def put_data(self) -> None:
        """Make ours the content of os.environ, and that the object that it was."""
        environ = self._environ
        if (
            not self._has_data
            or environ._data is not self.data
            or os.environ is not environ
            or os.environb is not self._environb
        ):
            self._put(self.data)

    def leave(self) -> None:
        """Make the environment the process's again."""
        self.data.turn = 0
        _clear(self.data)
        self.put_data()
        lib.fcgi_environ_restore(self.environ)

    def _enter_unknown(self, params: bytes, result: int) -> int:
        """Learn the names of a list and show it; 0: it was entered without some.

        Raises:
            MemoryError: there is no memory for it.
        """
        if result == _UNKNOWN:
            self._learn(params)
            result = _show(self.environ, params, len(params))
            if result > 0:
                return result
        if result == _NO_MEMORY:
            raise MemoryError("no memory for a copy of the params")
        self.enter(self._without_nul(parse_list(params)))
        return 0

    def _learn(self, params: bytes) -> None:
        """Decide about the names of a list, and tell C."""
        names = [name for name, _ in parse_params(params)]
        hidden = self._find_hidden(names)
        last = {name: index for index, name in enumerate(names)}
        keep = bytes(
            name not in hidden and last[name] == index
            for index, name in enumerate(names)
        )
        base = bytes(
            name is not None and (name not in last or name in hidden)
            for name in self._strings
        )
        known = self.layouts
        if len(known) >= _MAX_LAYOUTS or (known and not known[-1].kept):
            self.data.turn = 0  # the number of none that is forgotten
            _clear(self.data)
            lib.fcgi_environ_forget(self.environ)
            known.clear()
        number = lib.fcgi_environ_learn(self.environ, params, len(params), keep, base)
        if number <= 0:
            raise MemoryError("no memory for a copy of the params")
        kept = sum(map(len, names)) <= _MAX_LAYOUT_NAMES
        known.append(_Layout(hidden, kept, []))
