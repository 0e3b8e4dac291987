"""Modules that are loaded when they are used, whoever imports them before."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

__all__ = ["import_lazily"]


class _Lazy(ModuleType):
    """Stands for a module until somebody asks it for something.

    ``importlib.util.LazyLoader`` does not do: for it, ``import`` is a use.
    """

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = import_module(self.__name__)
        vars(self).update(vars(module))
        found: object = getattr(module, name)
        return found


def import_lazily(name: str) -> None:
    """Have a module loaded when it is used for the first time.

    Nothing happens if it has been imported already.
    """
    sys.modules.setdefault(name, _Lazy(name))
