"""Objects of named values that never change: what dataclasses are, without their load.

``dataclasses`` loads ``inspect`` and ``ast``, which costs every start 7 ms and a
mebibyte, and each class some tenths of a millisecond more.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, NoReturn

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """Tell type checkers alone what the class does."""
        return lambda made: made


__all__ = ["Frozen"]


@dataclass_transform(frozen_default=True)
class Frozen:
    """Base of a class whose annotations are the names of an object's values, in order.

    As with ``dataclasses.dataclass(frozen=True)``, values are given by position or by
    name, a value in the class is the default, objects are equal if they are of one
    class and their values are equal, and changing one is an AttributeError. `vars`
    has the values by name.
    """

    _names: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        cls._names = (*cls.__annotations__,)
        cls._defaults = {n: v for n, v in vars(cls).items() if n in cls._names}

    def __init__(self, *values: object, **named: object) -> None:
        names = self._names
        given = {**dict(zip(names, values, strict=False)), **named}
        if len(given) < len(values) + len(named) or not given.keys() <= {*names}:
            raise TypeError(f"{type(self).__name__} has the values {', '.join(names)}")
        for name in names:
            if name not in given and name not in self._defaults:
                raise TypeError(f"{type(self).__name__} needs a value of {name}")
            value = given[name] if name in given else self._defaults[name]
            object.__setattr__(self, name, value)

    def _key(self) -> tuple[object, ...]:
        """Return what is compared."""
        return tuple([getattr(self, name) for name in self._names])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        values = ", ".join([f"{n}={getattr(self, n)!r}" for n in self._names])
        return f"{type(self).__name__}({values})"

    if not TYPE_CHECKING:  # who would then believe that any attribute can be set

        def __setattr__(self, name: str, value: object) -> NoReturn:
            raise AttributeError(f"{name} of {type(self).__name__} cannot be changed")

        def __delattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"{name} of {type(self).__name__} cannot be deleted")
