"""os.environ during a request: the same to whoever uses it, on either backend."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgi_app import _backend
from fcgi_app.codec.params import build_params
from fcgi_app.environ import EnvironSwap

if _backend.BACKEND == "native":
    from fcgi_app.lazyenviron import LazyEnvironSwap

pytestmark = pytest.mark.usefixtures("native_backend")

LIBC = ctypes.CDLL(None)
LIBC.getenv.restype = ctypes.c_char_p

NAMES = ["A", "B", "HTTP_X", "QUERY_STRING", "KEPT", "HIDDEN", "PATH", "HTTP_PROXY"]
NAME = st.sampled_from(NAMES)
VALUE = st.sampled_from(["", "1", "ä", "\udce9", "x" * 200])

# Each takes the environment, a name and a value, and gives something to compare.
OPERATIONS: dict[str, Callable[[Any, str, str], object]] = {
    "look": lambda e, n, v: e[n],
    "look-bytes": lambda e, n, v: os.environb[n.encode()],
    "get": lambda e, n, v: e.get(n, v),
    "getenv": lambda e, n, v: os.getenv(n),
    "in": lambda e, n, v: n in e,
    "in-bytes": lambda e, n, v: n.encode() in os.environb,
    "set": lambda e, n, v: e.__setitem__(n, v),
    "set-bytes": lambda e, n, v: os.environb.__setitem__(n.encode(), os.fsencode(v)),
    "delete": lambda e, n, v: e.__delitem__(n),
    "pop": lambda e, n, v: e.pop(n, v),
    "popitem": lambda e, n, v: e.popitem(),
    "setdefault": lambda e, n, v: e.setdefault(n, v),
    "update": lambda e, n, v: e.update({n: v, "NEW": v}),
    "ior": lambda e, n, v: e.__ior__({n: v}) is e,
    "or": lambda e, n, v: [*(e | {n: v}).items()],
    "ror": lambda e, n, v: [*({n: v} | e).items()],
    "clear": lambda e, n, v: e.clear(),
    "copy": lambda e, n, v: [*e.copy().items()],
    "deep-copy": lambda e, n, v: [*copy.deepcopy(dict(e)).items()],
    "list": lambda e, n, v: [*e],
    "reversed-keys": lambda e, n, v: [*reversed([*e.keys()])],
    "items": lambda e, n, v: [*e.items()],
    "values": lambda e, n, v: [*e.values()],
    "sorted-bytes": lambda e, n, v: sorted(os.environb.items()),
    "length": lambda e, n, v: len(e),
    "truth": lambda e, n, v: bool(e),
    "equal": lambda e, n, v: (e == dict(e), e == {n: v}),
    "repr": lambda e, n, v: repr(e),
    "dict": lambda e, n, v: [*dict(e).items()],
    "unpacked": lambda e, n, v: [*{**e}.items()],
    "unset": lambda e, n, v: os.unsetenv(n),
    "putenv": lambda e, n, v: os.putenv(n, v),
    "bad-name": lambda e, n, v: e["a\0b"],
    "bad-type": lambda e, n, v: e[1],
    "bad-value": lambda e, n, v: e.__setitem__(n, 1),
    "collect": lambda e, n, v: gc.isenabled(),
}
STEPS = st.lists(st.tuples(st.sampled_from([*OPERATIONS]), NAME, VALUE), max_size=8)
PARAMS = st.lists(
    st.tuples(
        st.sampled_from([name.encode() for name in NAMES] + [b"", b"A=B", b"A\0"]),
        st.sampled_from([b"", b"1", b"\xe9", b"a\0b", b"x" * 300]),
    ),
    max_size=8,
)


def outcome(function: Callable[[], object]) -> object:
    try:
        return function()
    except (KeyError, TypeError, ValueError, OSError) as error:
        return type(error), str(error)


def seen_by_c() -> list[bytes | None]:
    return [LIBC.getenv(name.encode()) for name in NAMES]


@pytest.fixture(scope="module", autouse=True)
def _small_environment() -> Iterator[None]:
    """Few variables, so that what differs can be read."""
    before = dict(os.environb)
    data: Any = os.environ
    kept = data._data
    data._data = os.environb._data = {}  # type: ignore[attr-defined]
    for name in [*before]:
        os.unsetenv(name)
    os.environ.update({"KEPT": "process", "HIDDEN": "process", "PATH": "/bin"})
    os.environ["HTTP_X"] = "of the process"
    yield
    for name in [*os.environb]:
        os.unsetenv(name)
    data._data = os.environb._data = kept  # type: ignore[attr-defined]
    for name, value in before.items():
        os.putenv(name, value)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.tuples(PARAMS, STEPS), min_size=1, max_size=3), st.booleans())
def test_any_use(
    requests: list[tuple[list[tuple[bytes, bytes]], list[tuple[str, str, str]]]],
    replace: bool,
) -> None:
    """Whatever is done to os.environ, it gives the same, in the same order, and C sees
    the same."""
    found = []
    for make in (EnvironSwap, LazyEnvironSwap):
        swap = make(replace=replace)
        results: list[object] = []
        for pairs, steps in requests:
            if isinstance(swap, LazyEnvironSwap):
                swap.enter_list(build_params(pairs))
            else:
                swap.enter(dict(pairs))
            results.append(seen_by_c())
            for what, name, value in steps:
                do = OPERATIONS[what]
                results.append((what, outcome(lambda: do(os.environ, name, value))))  # noqa: B023
                results.append(seen_by_c())
            swap.leave()
            results.append(([*os.environ.items()], seen_by_c()))
        found.append(results)
    assert found[1] == found[0]


def test_names_of_a_dict_are_all_there() -> None:
    """Each method of dict that sees the content decodes all of it first, or needs not."""
    from fcgi_app.lazyenviron import LazyData

    harmless = """
        __class__ __class_getitem__ __delattr__ __dir__ __doc__ __format__ __ge__ __gt__
        __getattribute__ __getitem__ __getstate__ __hash__ __init__ __init_subclass__
        __le__ __lt__ __new__ __reduce__ __reduce_ex__ __setattr__ __setitem__ __sizeof__
        __str__ __subclasshook__ fromkeys update
    """
    mine = {
        name for name in vars(dict) if getattr(LazyData, name) != getattr(dict, name)
    }
    left = {*dir(dict)} - mine - {*harmless.split()}
    assert not left, sys.version


@given(
    st.lists(st.text(max_size=70) | st.integers() | st.binary(max_size=3), max_size=9)
)
def test_names_are_remembered(names: list[object]) -> None:
    """A name is encoded as without us, and refused as without us; few are kept."""
    from fcgi_app.lazyenviron import _MOST_NAMES, _Names, _quicken

    environ: Any = os.environ
    _quicken(environ)  # which is done only once
    known: Any = environ.encodekey.__self__
    assert isinstance(known, _Names)
    for name in names:
        expected = outcome(lambda name=name: known._encode(name))  # type: ignore[misc]
        for _ in range(2):
            assert outcome(lambda name=name: environ.encodekey(name)) == expected  # type: ignore[misc]
    with pytest.raises(TypeError):
        environ.encodekey([])
    for number in range(2 * _MOST_NAMES):
        assert environ.encodekey(f"N{number}") == b"N%d" % number
    assert len(known) == _MOST_NAMES
    known.clear()
