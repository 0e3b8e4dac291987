"""The environment swap: a request's params as the process environment, then back.

``os.environ`` and ``os.environb`` stay the same objects all the time; only their
content changes. The C vector ``environ`` changes with them, so that ``getenv`` in a C
library, ``os.system`` and ``subprocess`` (``env=None``) see what Python sees, as they
do in CGI.

What lives here is the swap and the rules about names; which request's params they are,
and when to swap, is the caller's business.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from operator import add, ge
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from ._log import log_info, log_warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from ctypes import CDLL, c_void_p

__all__ = ["EnvironSwap"]

INFO, WARNING = 20, 30
"""Levels of ``logging``, which is loaded only when there is something to say."""

_META_VARIABLES = frozenset(
    # RFC 3875, section 4.1.
    b"AUTH_TYPE CONTENT_LENGTH CONTENT_TYPE GATEWAY_INTERFACE PATH_INFO"
    b" PATH_TRANSLATED QUERY_STRING REMOTE_ADDR REMOTE_HOST REMOTE_IDENT REMOTE_USER"
    b" REQUEST_METHOD SCRIPT_NAME SERVER_NAME SERVER_PORT SERVER_PROTOCOL"
    b" SERVER_SOFTWARE"
    # What nginx, Apache and lighttpd add to it.
    b" CONTEXT_DOCUMENT_ROOT CONTEXT_PREFIX DOCUMENT_ROOT DOCUMENT_URI HTTPS"
    b" ORIG_PATH_INFO ORIG_PATH_TRANSLATED ORIG_SCRIPT_FILENAME ORIG_SCRIPT_NAME"
    b" REMOTE_PORT REQUEST_SCHEME REQUEST_URI SCRIPT_FILENAME SCRIPT_URI SCRIPT_URL"
    b" SERVER_ADDR SERVER_ADMIN SERVER_SIGNATURE UNIQUE_ID"
    # Apache's mod_ssl. SSL_CERT_FILE and SSL_CERT_DIR are OpenSSL's: not in here.
    b" SSL_CIPHER SSL_COMPRESS_METHOD SSL_PROTOCOL SSL_SECURE_RENEG SSL_TLS_SNI"
    # Params of the protocol itself.
    b" FCGI_APACHE_ROLE FCGI_DATA_LAST_MOD FCGI_DATA_LENGTH FCGI_ROLE".split()
)
_META_PREFIXES = (
    b"HTTP_",
    b"REDIRECT_",
    b"SSL_CIPHER_",
    b"SSL_CLIENT_",
    b"SSL_SERVER_",
    b"SSL_SESSION_",
    b"SSL_VERSION_",
)
"""With ``_META_VARIABLES``: what describes a request, so that the process's own
(left by the CGI program or the shell that started it) is hidden during ours."""

_STEERING_NAMES = frozenset(
    # Where programs, libraries and Python's user site are found.
    b"PATH HOME __PYVENV_LAUNCHER__ LIBPATH SHLIB_PATH"
    # glibc: sysdeps/generic/unsecvars.h, what a set-user-id program does not trust.
    b" ARGP_HELP_FMT DATEMSK GCONV_PATH GETCONF_DIR GLIBC_TUNABLES GMON_OUT_PREFIX"
    b" HESIOD_CONFIG HES_DOMAIN HOSTALIASES LOCALDOMAIN LOCPATH NIS_PATH NLSPATH"
    b" RESOLV_HOST_CONF RES_OPTIONS TMPDIR TZDIR"
    # Shells: what sudo takes away ("environment variables to remove" of sudo -V).
    b" BASHOPTS BASH_ENV CDPATH ENV FPATH GLOBIGNORE IFS NULLCMD PS4 READNULLCMD"
    b" SHELLOPTS TMPPREFIX ZDOTDIR PATH_LOCALE TERMCAP TERMINFO TERMINFO_DIRS"
    b" TERMPATH"
    # Other interpreters (the first five from sudo), and the TLS library in Python.
    b" JAVA_TOOL_OPTIONS PERLIO_DEBUG PERLLIB RUBYLIB RUBYOPT NODE_OPTIONS NODE_PATH"
    b" OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES SSLKEYLOGFILE SSL_CERT_DIR"
    b" SSL_CERT_FILE".split()
)
_STEERING_PREFIXES = (
    b"LD_",
    b"_RLD",
    b"DYLD_",
    b"MALLOC_",
    b"PYTHON",
    b"PERL5",
    b"BASH_FUNC_",
    b"FCGI_",
)
"""With ``_STEERING_NAMES``: what makes the loader, the C library, a shell, an
interpreter or this package behave differently. Only the process's own counts."""

_SLOT = 128
"""Least number of bytes for a value and its NUL."""
_LONGEST_SLOT = 4096
"""Values from this length on, in bytes, get no place that is kept for the next one."""
_MAX_LAYOUTS = 32
_MAX_LAYOUT_NAMES = 4096
"""Greatest sum of the lengths of the names, in bytes, of a layout that is kept; nginx's
and Apache's usual params have 400 to 700."""
_MAX_CACHED_NAME = 100
_MAX_REPORTS = 100
"""A client that may choose names must fill neither the memory nor the log."""


def _is_meta_variable(name: bytes) -> bool:
    return name in _META_VARIABLES or name.startswith(_META_PREFIXES)


def _find_objection(name: bytes) -> tuple[int, str] | None:
    """Why a param of this name stays out of the environment, or None.

    Returns:
        The level and the reason for the log. Never depends on a value.
    """
    if not name:
        return WARNING, "its name is empty"
    if b"=" in name or b"\0" in name:
        return WARNING, "its name holds '=' or NUL"
    # A client makes this one by the header "Proxy", and libraries take it for the
    # proxy of their own requests (CVE-2016-1000110, "httpoxy").
    if name.upper() == b"HTTP_PROXY":
        return INFO, "libraries would take it for their own proxy"
    if name in _STEERING_NAMES or (
        name.startswith(_STEERING_PREFIXES) and name not in _META_VARIABLES
    ):
        return INFO, "only the process's own has a meaning"
    return None


_find_cached_objection = lru_cache(maxsize=512)(_find_objection)


def _environ_cell(libc: CDLL) -> c_void_p:
    """Give libc's variable ``environ``; its value is the address of the vector."""
    from ctypes import c_void_p

    # macOS: a shared library must not name the variable (environ(7)).
    if hasattr(libc, "_NSGetEnviron"):
        libc._NSGetEnviron.restype = c_void_p
        return c_void_p.from_address(libc._NSGetEnviron())
    return c_void_p.in_dll(libc, "environ")


@cache
def _open_libc() -> tuple[c_void_p, Callable[[int, int], int | None]] | None:
    """Give ``environ`` and ``calloc``; None, and a line in the log, without ctypes.

    There is no good second way: putenv keeps every value for ever on glibc, and
    nothing else in the standard library reaches the vector.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        calloc = libc.calloc
        calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        calloc.restype = ctypes.c_void_p
        return _environ_cell(libc), calloc
    except (ImportError, OSError, ValueError, AttributeError) as error:
        log_warning(
            "C's environ cannot be reached (%s): os.environ follows the request, but "
            "getenv() in C and children do not; give children env=os.environ",
            error,
        )
        return None


def _read_strings(vector: int | None) -> list[bytes]:
    """Copy the strings of the vector at this address; None is an empty one."""
    from ctypes import POINTER, c_char_p, cast

    if vector is None:
        return []
    pointers = cast(vector, POINTER(c_char_p))
    strings: list[bytes] = []
    while (string := pointers[len(strings)]) is not None:
        strings.append(string)
    return strings


class _Slots(NamedTuple):
    """Places for the values of a layout's params."""

    address: int
    """Where the memory began that ``pointers`` point into."""
    sizes: Sequence[int]
    """Bytes for each value and its NUL."""
    fill: Callable[..., None]
    """``pack_into`` for ``arguments``; fills up with NUL."""
    arguments: list[bytes]
    """``NAME=``, each followed by a place for its value."""
    pointers: array[int]
    """The whole vector: to the slots, to the base strings, and NULL."""


@dataclass(slots=True)
class _Layout:
    """All that follows from the names of a request's params, in their order."""

    all_names: tuple[bytes, ...]
    """Of each param."""
    dropped: Sequence[tuple[int, bytes]]
    """Position and name of what stays out, last first."""
    template: bytes
    """``NAME=%b`` and NUL, for each of the others."""
    lengths: Sequence[int]
    """Of each of the others in C, in bytes, NUL included, without the value."""
    pack: Callable[..., None]
    """``pack_into`` for one pointer more than there are others."""
    names: Sequence[bytes]
    """Of each of the others."""
    tail: array[int]
    """The end of the C vector: pointers to the base strings, and NULL."""
    slots: _Slots | None = None
    """Made when they are first needed."""


class _Vectors:
    """Two vectors for C: the process's and the current request's.

    Vectors and strings lie in memory of ours that is never freed. libc gives away
    neither its vectors (setenv reallocates the one it made last) nor its strings, so
    we never point back at them; and C code may look at ours when this object, and
    the interpreter, are gone. A pointer that C code has got by getenv() for a
    variable of the process stays good for ever, one for a param until the next
    request, and reading it later is harmless.
    """

    def __init__(
        self,
        environ: c_void_p,
        calloc: Callable[[int, int], int | None],
        is_base: Callable[[bytes], bool],
    ) -> None:
        self._environ = environ
        self._calloc = calloc
        strings = [string + b"\0" for string in _read_strings(environ.value)]
        self._text = b"".join(strings) + b"\0"
        address, self._text_view = self._allocate(len(self._text))
        # unsigned long is as wide as a pointer in ILP32 and LP64, so on all of POSIX.
        pointers = [*accumulate(map(len, strings), initial=address)][:-1]
        self._pointers = array("L", [*pointers, 0])
        self._vector, self._vector_view = self._allocate_vector(len(self._pointers))
        named = [
            (string[:-1].partition(b"=")[0], pointer)
            for string, pointer in zip(strings, pointers, strict=True)
        ]
        self._base = [(name, pointer) for name, pointer in named if is_base(name)]
        self._room = self._slots = 0
        self._reserve(8192, 128)

    def _allocate(self, size: int) -> tuple[int, memoryview]:
        from ctypes import c_char

        address = self._calloc(size, 1)
        if address is None:
            raise MemoryError(f"no {size} bytes for the environment")
        return address, memoryview((c_char * size).from_address(address)).cast("B")

    def _allocate_vector(self, slots: int) -> tuple[int, memoryview]:
        address, view = self._allocate(slots * self._pointers.itemsize)
        return address, view.cast("L")

    def _reserve(self, size: int, slots: int) -> None:
        """Make room for a request's strings, in bytes, and for its pointers.

        Sizes double at least, so all old ones together are smaller than the new one.
        """
        if size > self._room:
            room = max(size, 2 * self._room)
            # One NUL that is never overwritten: a reader that is late finds an end.
            self._strings, self._strings_view = self._allocate(room + 1)
            self._room = room
        if slots > self._slots:
            slots = max(slots, 2 * self._slots)
            self._shown, self._shown_view = self._allocate_vector(slots)
            self._slots = slots

    def tail(self, overlaid: Iterable[bytes]) -> array[int]:
        """Give pointers to the base strings without these names, and NULL."""
        names = frozenset(overlaid)
        return array(
            "L", [pointer for name, pointer in self._base if name not in names] + [0]
        )

    def show(self, layout: _Layout, values: Sequence[bytes]) -> None:
        """Point C at a request with these values of the layout's names.

        Each value has a place with room to spare, so that the addresses stay the same
        from one request to the next.
        """
        if not values:
            self._show_text(layout, values)
            return
        slots = layout.slots
        lengths = [*map(len, values)]
        longest = max(lengths)
        if (
            slots is None
            or slots.address != self._strings
            or (longest >= _SLOT and any(map(ge, lengths, slots.sizes)))
        ):
            if longest >= _LONGEST_SLOT:
                self._show_text(layout, values)
                return
            slots = layout.slots = self._make_slots(layout, values)
        # A C library may have written into what getenv() gave it.
        self._text_view[:] = self._text
        arguments = slots.arguments.copy()  # which keeps no value
        arguments[1::2] = values
        slots.fill(self._strings_view, 0, *arguments)
        self._shown_view[: len(slots.pointers)] = slots.pointers
        self._environ.value = self._shown

    def _make_slots(self, layout: _Layout, values: Sequence[bytes]) -> _Slots:
        """Lay the places out: none is smaller than it was, or than ``_SLOT``."""
        before = (_SLOT,) * len(values) if layout.slots is None else layout.slots.sizes
        sizes = [
            max(size, 1 << len(value).bit_length())
            for size, value in zip(before, values, strict=True)
        ]
        starts = [length - 1 for length in layout.lengths]  # name and "="
        form = Struct(
            "".join([f"{n}s{v}s" for n, v in zip(starts, sizes, strict=True)])
        )
        end = len(sizes) + len(layout.tail)
        if form.size > self._room or end > self._slots:
            self._reserve(form.size, end)
        pointers = [*accumulate(map(add, starts, sizes), initial=self._strings)]
        arguments: list[bytes] = []
        for name in layout.names:
            arguments += (name + b"=", b"")
        return _Slots(
            self._strings,
            sizes,
            form.pack_into,
            arguments,
            array("L", pointers[:-1]) + layout.tail,
        )

    def _show_text(self, layout: _Layout, values: Sequence[bytes]) -> None:
        """Point C at a request with values of any length, one behind the other."""
        text = layout.template % (*values,)
        count = len(values)
        tail = layout.tail
        size = len(text)
        end = count + len(tail)
        if size > self._room or end > self._slots:
            self._reserve(size, end)
        self._text_view[:] = self._text
        self._strings_view[:size] = text
        view = self._shown_view
        layout.pack(
            view,
            0,
            *accumulate(
                map(add, layout.lengths, map(len, values)), initial=self._strings
            ),
        )
        # The last of these addresses is the end of the text: the tail goes over it.
        view[count:end] = tail
        self._environ.value = self._shown

    def restore(self) -> None:
        """Point C at the process environment, whatever was done to vector and text."""
        self._text_view[:] = self._text
        self._vector_view[:] = self._pointers
        self._environ.value = self._vector


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
            return not (replace or _is_meta_variable(name))

        self._base = {n: v for n, v in self._process.items() if is_base(n)}
        libc = _open_libc()
        self._vectors = None if libc is None else _Vectors(*libc, is_base)
        self._has_data = self._find_data()
        self._reported: set[bytes] = set()
        self._layouts: dict[tuple[bytes, ...], _Layout] = {}
        self._latest = self._lay_out(())

    def enter(self, params: Mapping[bytes, bytes]) -> None:
        """Make the environment that of a request; from another request's, too.

        Args:
            params: names and values as they came; copied.

        Raises:
            MemoryError: there is no memory for a copy of the params; call ``leave``.
        """
        given = params if type(params) is dict else dict(params)
        names = (*given,)
        layout = self._latest
        if names != layout.all_names:
            kept = self._layouts.get(names)
            layout = kept or self._lay_out(names)
            self._latest = kept or self._latest
        base = self._base
        data = base | given
        values = [*given.values()]
        for index, name in layout.dropped:
            del values[index]
            if name in base:
                data[name] = base[name]
            else:
                del data[name]
        if b"\0" in b"".join(values):
            self.enter(self._without_nul(given))
            return
        self._put(data)
        if self._vectors is not None:
            self._vectors.show(layout, values)

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

    def _lay_out(self, names: tuple[bytes, ...]) -> _Layout:
        kept: list[bytes] = []
        dropped: list[tuple[int, bytes]] = []
        for index, name in enumerate(names):
            short = len(name) <= _MAX_CACHED_NAME
            objection = (_find_cached_objection if short else _find_objection)(name)
            if objection is None:
                kept.append(name)
            else:
                self._report(name, *objection)
                dropped.append((index, name))
        layout = _Layout(
            names,
            dropped[::-1],
            b"".join([name.replace(b"%", b"%%") + b"=%b\0" for name in kept]),
            [len(name) + 2 for name in kept],
            Struct(f"{len(kept) + 1}L").pack_into,
            kept,
            array("L") if self._vectors is None else self._vectors.tail(kept),
        )
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
