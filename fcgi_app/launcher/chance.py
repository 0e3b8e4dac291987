"""Chance, for delays and lifetimes that shall not be all the same."""

from __future__ import annotations

import os

__all__ = ["draw_chance"]

_BYTES = 6  # 48 bits, which a float holds exactly


def draw_chance() -> float:
    """Return a number from 0 up to, not including, 1; all are equally likely.

    As ``random.random``, whose module loads hashing into memory that a supervisor would
    hold for months.
    """
    return int.from_bytes(os.urandom(_BYTES), "big") / (1 << 8 * _BYTES)
