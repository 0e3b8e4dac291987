"""The environment swap: a request's params as the process environment, then back.

``os.environ`` and ``os.environb`` stay the same objects all the time; only their
content changes. The C vector ``environ`` changes with them, so that ``getenv`` in a C
library, ``os.system`` and ``subprocess`` (``env=None``) see what Python sees, as they
do in CGI.

What lives here is the swap; which request's params they are, and when to swap, is the
caller's business. The rules about names are in ``envnames``, C's side in ``cenviron``.
"""

from __future__ import annotations

import os
from functools import lru_cache

from ._log import log_info, log_warning
from .envnames import WARNING, find_objection, is_meta_variable
from .frozen import Frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Protocol

    from .cenviron import Layout, Repeat

    class Asked(Protocol):
        """What is looked at of a request."""

        @property
        def params_map(self) -> dict[bytes, bytes]:
            """Names and values as they came."""

        varied: tuple[object, Mapping[bytes, bytes]] | None
        """See `EnvironSwap.enter`."""
        params_content: bytes | None
        """The params as a name-value list, as they came."""
        params_list: bytes | None
        """The same with FCGI_ROLE behind it, where they are parsed only when needed."""


__all__ = ["EnvironSwap"]

_MAX_LAYOUTS = 32
_MAX_LAYOUT_NAMES = 4096
"""Greatest sum of the lengths of the names, in bytes, of a layout that is kept; nginx's
and Apache's usual params have 400 to 700."""
_MAX_CACHED_NAME = 100
_MAX_REPORTS = 100
"""A client that may choose names must fill neither the memory nor the log."""


_find_cached_objection = lru_cache(maxsize=512)(find_objection)


class _Usual(Frozen):
    """The environment of requests that differ in the values of a few params only."""

    pattern: object
    """The caller's name for it."""
    data: dict[bytes, bytes]
    """All of it, empty where it varies."""
    repeat: Repeat | None
    """The same for C; None where C has none."""


class EnvironSwap:
    """Makes the process environment a request's, and the process's own again.

    Making one takes the snapshot of the process environment, and changes nothing. The
    *base* is that snapshot without CGI meta-variables (those of RFC 3875, section 4.1,
    and what the usual web servers add) and without ``HTTP_*``. During a request the
    environment is the base overlaid by the params.

    Some params stay out of the environment:

    - ``HTTP_PROXY``, in any case of letters;
    - names that steer the loader, the C library, a shell, an interpreter or this
      package: ``PATH``, ``HOME``, ``LD_*``, ``PYTHON*``, ``MALLOC_*``, ``BASH_FUNC_*``,
      ``FCGI_*`` but ``FCGI_ROLE``, ``FCGI_APACHE_ROLE``, ``FCGI_DATA_LENGTH`` and
      ``FCGI_DATA_LAST_MOD``, and what glibc ignores in set-user-id programs and sudo
      removes, such as ``TMPDIR``, ``IFS`` and ``ENV``. The process's own stays as it
      is, also where there is none;
    - a name that is empty or holds ``=`` or NUL, a value that holds NUL.

    Each such name gives one line in the log ``fcgi_app``, without the value.

    The environment belongs to the process, not to a thread: use one object, from one
    thread, for one request at a time. Other threads see the request's environment
    while it lasts; C code that calls getenv() in one of them at the moment of the swap
    is in the same danger as beside any setenv(). A child made by ``os.fork()`` keeps
    the environment of the request in which it was made.

    Linux refuses to start a program with a variable of more than 128 KiB (execve(2)):
    children of a request with such a param fail with E2BIG, as they would in CGI.

    Without ctypes only ``os.environ`` and ``os.environb`` change, and one line in the
    log says so; children then need ``env=os.environ``. In an interpreter whose
    ``os.environ`` has no content to exchange, its own methods do the work: slower,
    and putenv, which they call, keeps every value for ever on glibc.

    Args:
        replace: no base: during a request there are only the params, as libfcgi does
            it, under the same rules.

    Raises:
        MemoryError: there is no memory for a copy of the environment.
    """

    def __init__(self, *, replace: bool = False) -> None:
        self._environ: Any = os.environ
        self._environb: Any = os.environb
        self._process = {
            os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()
        }

        def is_base(name: bytes) -> bool:
            return not (replace or is_meta_variable(name))

        self._base = {n: v for n, v in self._process.items() if is_base(n)}
        self._reported: set[bytes] = set()
        self._prepare(is_base)
        self._has_data = self._find_data()

    def _prepare(self, is_base: Callable[[bytes], bool]) -> None:
        """Make what C sees of the process, and what is remembered of requests."""
        from .cenviron import Layout, Vectors, open_libc  # the native twin has its own

        libc = open_libc()
        self._vectors = None if libc is None else Vectors(*libc, is_base)
        self._make_layout: Callable[..., Layout] = Layout
        self._layouts: dict[tuple[bytes, ...], Layout] = {}
        self._latest = self._lay_out(())
        self._usual: _Usual | None = None

    def enter_request(self, request: Asked) -> None:
        """Make the environment that of a request: `enter` with its params."""
        self.enter(request.params_map, request.varied)

    def enter(
        self,
        params: Mapping[bytes, bytes],
        varied: tuple[object, Mapping[bytes, bytes]] | None = None,
    ) -> None:
        """Make the environment that of a request; from another request's, too.

        Args:
            params: names and values as they came; copied.
            varied: what makes it quicker, if it is known: an object that stands for
                ``params`` but for the values of a few, and these values by name.
                Calls with the same object must agree in all the rest.

        Raises:
            MemoryError: there is no memory for a copy of the params; call ``leave``.
        """
        if varied is not None and self._enter_usual(*varied):
            return
        given = params if type(params) is dict else dict(params)
        names = (*given,)
        layout = self._latest
        if names != layout.all_names:
            kept = self._layouts.get(names)
            layout = kept or self._lay_out(names)
            self._latest = kept or self._latest
        base = self._base
        data = base | given
        in_order = [*given.values()]
        for index, name in layout.dropped:
            del in_order[index]
            if name in base:
                data[name] = base[name]
            else:
                del data[name]
        if b"\0" in b"".join(in_order):
            self.enter(self._without_nul(given))
            return
        self._put(data)
        vectors = self._vectors
        repeatable = vectors is None or vectors.show(layout, in_order)
        if varied is not None and repeatable:
            self._remember(varied, layout, data)

    def _enter_usual(self, pattern: object, values: Mapping[bytes, bytes]) -> bool:
        """Do what ``enter`` does for params that are known but for ``values``.

        Returns:
            Whether it was done; else nothing has been changed that ``enter`` does not.
        """
        usual = self._usual
        if usual is None or usual.pattern is not pattern:
            return False
        if b"\0" in b"".join(values.values()):
            return False
        if usual.repeat is not None:
            assert self._vectors is not None
            if not self._vectors.show_again(usual.repeat, values):
                return False
        data = usual.data.copy()
        data.update(values)
        self._put(data)
        return True

    def _remember(
        self,
        varied: tuple[object, Mapping[bytes, bytes]],
        layout: Layout,
        data: dict[bytes, bytes],
    ) -> None:
        """Note an environment that is likely to come again, without what varies."""
        pattern, values = varied
        self._usual = None
        if any(name in values for _, name in layout.dropped):
            return
        vectors = self._vectors
        repeat = None if vectors is None else vectors.make_repeat(layout, values)
        self._usual = _Usual(pattern, data | dict.fromkeys(values, b""), repeat)

    def leave(self) -> None:
        """Make the environment the process's again: the snapshot, all of it.

        Nothing is left of what was done to the environment since, from Python or from
        C. Calling it again, or without ``enter``, does the same.
        """
        self._put(self._process.copy())
        if self._vectors is not None:
            self._vectors.restore()

    def _find_data(self) -> bool:
        data = getattr(self._environ, "_data", None)
        if isinstance(data, dict) and getattr(self._environb, "_data", None) is data:
            return True
        log_warning(
            "os.environ (%s) has no content that can be exchanged: its own methods "
            "set it, and putenv keeps the memory of every value",
            type(self._environ).__qualname__,
        )
        return False

    def _put(self, data: dict[bytes, bytes]) -> None:
        """Make ``data``, of which we keep nothing, the content of os.environ.

        The only place that knows the private attribute ``_data``: one dict of encoded
        names and values that both objects share, since Python 3.2. os.reload_environ()
        of Python 3.14 fills the same dict from C's vector, where ours is.
        """
        # An application may have put something else in their place.
        os.environ = self._environ  # noqa: B003 - the object that it always was
        os.environb = self._environb
        if self._has_data:
            self._environ._data = self._environb._data = data
            return
        self._environ.clear()
        self._environ.update(
            (os.fsdecode(name), os.fsdecode(value))
            for name, value in data.items()
            if name  # "=x" in C's vector; putenv refuses it
        )

    def _find_hidden(self, names: Iterable[bytes]) -> frozenset[bytes]:
        """Return those that may not enter the environment, each reported once."""
        hidden: set[bytes] = set()
        for name in names:
            short = len(name) <= _MAX_CACHED_NAME
            objection = (_find_cached_objection if short else find_objection)(name)
            if objection is not None:
                self._report(name, *objection)
                hidden.add(name)
        return frozenset(hidden)

    def _lay_out(self, names: tuple[bytes, ...]) -> Layout:
        layout = self._make_layout(names, self._find_hidden(names), self._vectors)
        # Clients choose names of headers: what is kept of them has a bound.
        if sum(map(len, names)) <= _MAX_LAYOUT_NAMES:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[names] = layout
        return layout

    def _without_nul(self, given: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        clean = {name: value for name, value in given.items() if b"\0" not in value}
        for name in given.keys() - clean.keys():
            self._report(name, WARNING, "its value holds NUL")
        return clean

    def _report(self, name: bytes, level: int, reason: str) -> None:
        start = name[:_MAX_CACHED_NAME]
        if start in self._reported or len(self._reported) > _MAX_REPORTS:
            return
        self._reported.add(start)
        if len(self._reported) > _MAX_REPORTS:
            start, level, reason = b"...", WARNING, "no more are reported"
        log = log_warning if level == WARNING else log_info
        log("param %r is not in the environment: %s", start, reason)
