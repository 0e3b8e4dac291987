"""C's variable ``environ``: a vector of ours for the process, another for a request.

What lives here is memory, addresses, and how strings are laid out in it.
"""

from __future__ import annotations

from array import array
from functools import cache
from itertools import accumulate
from operator import add, ge
from struct import Struct

from ._log import log_warning
from .frozen import Frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from ctypes import CDLL, c_void_p

__all__ = ["Layout", "Repeat", "Vectors", "environ_cell", "open_libc"]

_SLOT = 128
"""Least number of bytes for a value and its NUL."""
_LONGEST_SLOT = 4096
"""Values from this length on, in bytes, get no place that is kept for the next one."""


def environ_cell(libc: CDLL) -> c_void_p:
    """Give libc's variable ``environ``; its value is the address of the vector."""
    from ctypes import c_void_p

    # macOS: a shared library must not name the variable (environ(7)).
    if hasattr(libc, "_NSGetEnviron"):
        libc._NSGetEnviron.restype = c_void_p
        return c_void_p.from_address(libc._NSGetEnviron())
    return c_void_p.in_dll(libc, "environ")


@cache
def open_libc() -> tuple[c_void_p, Callable[[int, int], int | None]] | None:
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
        return environ_cell(libc), calloc
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


class _Slots(Frozen):
    """Places for the values of a layout's params."""

    address: int
    """Where the memory begins that ``pointers`` point into."""
    size: int
    """Bytes of all of them, names included."""
    sizes: Sequence[int]
    """Bytes for each value and its NUL."""
    fill: Callable[..., None]
    """``pack_into`` for ``arguments``; fills up with NUL."""
    arguments: list[bytes]
    """``NAME=``, each followed by a place for its value."""
    pointers: array[int]
    """The whole vector: to the slots, to the base strings, and NULL."""


class Layout:
    """All that follows from the names of a request's params, in their order.

    Args:
        all_names: of each param.
        hidden: of those that stay out.
        vectors: those that it is for; None: C has none.

    Attributes:
        dropped: position and name of what stays out, last first.
        names: of each of the others.
        template: ``NAME=%b`` and NUL, for each of the others.
        lengths: of each of the others in C, in bytes, NUL included, without the value.
        pack: ``pack_into`` for one pointer more than there are others.
        tail: the end of the C vector: pointers to the base strings, and NULL.
        slots: made when they are first needed.
    """

    __slots__ = (
        "all_names",
        "dropped",
        "lengths",
        "names",
        "pack",
        "slots",
        "tail",
        "template",
    )

    def __init__(
        self,
        all_names: tuple[bytes, ...],
        hidden: Collection[bytes],
        vectors: Vectors | None,
    ) -> None:
        names = [name for name in all_names if name not in hidden]
        dropped = [(i, name) for i, name in enumerate(all_names) if name in hidden]
        self.all_names = all_names
        self.dropped: Sequence[tuple[int, bytes]] = dropped[::-1]
        self.names: Sequence[bytes] = names
        self.template = b"".join([n.replace(b"%", b"%%") + b"=%b\0" for n in names])
        self.lengths: Sequence[int] = [len(name) + 2 for name in names]
        self.pack: Callable[..., None] = Struct(f"{len(names) + 1}L").pack_into
        self.tail = array("L") if vectors is None else vectors.tail(names)
        self.slots: _Slots | None = None


class Repeat(Frozen):
    """What C sees of a request, to be shown again with other values of some params.

    The memory it goes to is never given to anything but requests, so this stays good
    when a greater request has got other memory meanwhile.
    """

    text: bytearray
    """All names and values, each of these with room to spare."""
    places: dict[bytes, tuple[int, int, int]]
    """Of each param that may change: where its value begins and the next param does,
    and how many bytes these are apart: the value and its NUL."""
    strings: memoryview
    """Where ``text`` goes."""
    pointers: array[int]
    shown: memoryview
    """Where ``pointers`` go."""
    vector: int
    """The address of ``shown``."""


class Vectors:
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

    def show(self, layout: Layout, values: Sequence[bytes]) -> bool:
        """Point C at a request with these values of the layout's names.

        Each value has a place with room to spare, so that the addresses stay the same
        from one request to the next.

        Returns:
            Whether it is so; False: there is none, or one is too long for that.
        """
        if not values:
            self._show_text(layout, values)
            return False
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
                return False
            slots = layout.slots = self._make_slots(layout, values)
        # A C library may have written into what getenv() gave it.
        self._text_view[:] = self._text
        arguments = slots.arguments.copy()  # which keeps no value
        arguments[1::2] = values
        slots.fill(self._strings_view, 0, *arguments)
        self._shown_view[: len(slots.pointers)] = slots.pointers
        self._environ.value = self._shown
        return True

    def make_repeat(self, layout: Layout, names: Collection[bytes]) -> Repeat:
        """Take down what C is shown now, of which ``names`` will have other values.

        To be called after ``show`` with this layout has returned True.
        """
        slots = layout.slots
        assert slots is not None
        places: dict[bytes, tuple[int, int, int]] = {}
        position = 0
        for name, size in zip(layout.names, slots.sizes, strict=True):
            start = position + len(name) + 1  # and "="
            position = start + size
            if name in names:
                places[name] = (start, position, size)
        strings = self._strings_view[: slots.size]
        return Repeat(
            bytearray(strings),
            places,
            strings,
            slots.pointers,
            self._shown_view[: len(slots.pointers)],
            self._shown,
        )

    def show_again(self, repeat: Repeat, values: Mapping[bytes, bytes]) -> bool:
        """Point C at a request with these values, of the names of ``repeat``.

        Returns:
            Whether it was done: False, a value is longer than its place.
        """
        text = repeat.text
        places = repeat.places
        for name, value in values.items():
            start, stop, size = places[name]
            if len(value) >= size:
                return False
            text[start:stop] = value.ljust(size, b"\0")
        # A C library may have written into what getenv() gave it.
        self._text_view[:] = self._text
        repeat.strings[:] = text
        repeat.shown[:] = repeat.pointers
        self._environ.value = repeat.vector
        return True

    def _make_slots(self, layout: Layout, values: Sequence[bytes]) -> _Slots:
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
            form.size,
            sizes,
            form.pack_into,
            arguments,
            array("L", pointers[:-1]) + layout.tail,
        )

    def _show_text(self, layout: Layout, values: Sequence[bytes]) -> None:
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
