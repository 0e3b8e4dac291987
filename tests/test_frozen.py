"""Frozen: what a frozen dataclass does, for classes that a start cannot wait for."""

from __future__ import annotations

import copy
import pickle

import pytest

from fcgi_app.frozen import Frozen


class Point(Frozen):
    """One value that is needed, one with a default."""

    x: int
    y: int = 7


class Other(Frozen):
    """The same values, in another class."""

    x: int
    y: int = 7


def test_values_by_position_and_name() -> None:
    """Values are given either way, in the order of the annotations."""
    assert Point(1, 2) == Point(1, y=2) == Point(y=2, x=1)
    assert vars(Point(1)) == {"x": 1, "y": 7}
    assert list(vars(Point(y=2, x=1))) == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})],
)
def test_wrong_values(values: tuple[int, ...], named: dict[str, int]) -> None:
    """Too few, too many, twice the same, or one that there is not: a TypeError."""
    with pytest.raises(TypeError, match="Point "):
        Point(*values, **named)


def test_equality() -> None:
    """Equal are objects of one class with equal values, which hash alike."""
    assert Point(1) == Point(1, 7)
    assert len({Point(1), Point(1, 7), Point(2)}) == 2
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert Point(1) != (1, 7)


def test_cannot_be_changed() -> None:
    """Nothing is set or deleted, whether it is a value or not."""
    point = Point(1)
    with pytest.raises(AttributeError, match="x of Point"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="z of Point"):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="x of Point"):
        del point.x
    assert point == Point(1)


def test_repr_and_copies() -> None:
    """It shows its values, and can be copied and pickled."""
    assert repr(Point(1)) == "Point(x=1, y=7)"
    assert copy.deepcopy(Point(1)) == Point(1)
    assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
