"""What comes again in the PARAMS of one request after the other, parsed only once.

A web server sends most params of a request as it sent them in the last one: the
document root, its own name and address, what a browser accepts. Those bytes are
compared instead of parsed, which costs a fifth.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from struct import error as _struct_error

from ..codec.params import LONG, MAX_LENGTH, parse_param_map, parse_spans
from ..frozen import Frozen

__all__ = ["Pattern", "RecurringParams", "Varied"]

Varied = tuple[object, Mapping[bytes, bytes]]
"""A pattern, and the params that are not in it, with their values in one request. The
names of these are the same for each request with this (very) pattern."""

_ALWAYS_VARY = frozenset((b"HTTP_COOKIE", b"HTTP_AUTHORIZATION"))
"""Whatever they are: nothing secret is to be kept for longer than its request."""
_NEVER_VARIES = b"FCGI_ROLE"
"""Its place in the params is taken by the role that was really asked for."""
_LONGEST = 8192
"""Greatest length of a PARAMS stream that is learnt from, in bytes; nginx's and a
browser's have 1,100. Nothing is kept of a client that sends more."""
_LONGEST_PATIENCE = 1024


class Pattern(Frozen):
    """What the PARAMS of many requests have in common: all but the values of a few."""

    steps: tuple[tuple[bytes, int, bytes, int], ...]
    """For each param that varies: the bytes in front of it, with the length of its
    name (one byte), and how many these are; then its name, and how long that is."""
    tail: bytes
    """What follows the last of them."""
    common: dict[bytes, bytes]
    """All params in wire order; empty where they vary."""

    def match(self, content: bytes) -> dict[bytes, bytes] | None:
        """Return the params that vary; None: ``content`` is not of this pattern.

        A name-value list can be read in one way only: the same bytes, up to the end
        of a pair, mean the same pairs.
        """
        varied: dict[bytes, bytes] = {}
        position = 0
        try:
            for lead, lead_length, name, name_length in self.steps:
                if not content.startswith(lead, position):
                    return None
                position += lead_length
                length = content[position]
                start = position + 1
                if length > 127:
                    length = LONG.unpack_from(content, position)[0] & MAX_LENGTH
                    start = position + 4
                stop = start + name_length
                if content[start:stop] != name:
                    return None
                position = stop + length
                varied[name] = content[stop:position]
        except (IndexError, _struct_error):  # the lengths themselves are cut short
            return None
        # Of a value that is cut short, position is behind the end.
        if position + len(self.tail) != len(content) or not content.endswith(self.tail):
            return None
        return varied


def find_pattern(content: bytes, varying: Collection[bytes]) -> Pattern | None:
    """Make the pattern of a complete list in which the params ``varying`` do so.

    None: there is none that would be worth it, or safe.
    """
    steps: list[tuple[bytes, int, bytes, int]] = []
    common: dict[bytes, bytes] = {}
    done = 0  # what is behind the last param that varies
    spans = parse_spans(content)
    for begin, start, middle, end in spans:
        name = content[start:middle]
        if name not in varying:
            common[name] = content[middle:end]
            continue
        if len(name) > 127:
            return None
        common[name] = b""
        lead = content[done : begin + 1]
        steps.append((lead, len(lead), name, len(name)))
        done = end
    if len(common) < len(spans) or 2 * len(steps) > len(spans):
        return None  # a name comes twice; or to parse is as quick
    return Pattern((*steps,), content[done:], common)


class RecurringParams:
    """Parses PARAMS as ``parse_param_map`` does, faster what is like the last ones.

    It learns one pattern, from two lists with the same names in the same order. It
    learns ever more seldom, so that lists without much in common cost hardly more.
    Threads may use it side by side: at worst it learns something later.
    """

    __slots__ = ("_before", "_hits", "_misses", "_patience", "_pattern")

    def __init__(self) -> None:
        self._pattern: Pattern | None = None
        # Of the list to compare the next one with: a hash of each value, by name.
        self._before: dict[bytes, int] | None = None
        self._hits = 0  # both since it learnt last
        self._misses = 0
        self._patience = 1  # misses until it learns again

    def parse(self, content: bytes) -> tuple[dict[bytes, bytes], Varied | None]:
        """Parse a complete name-value list; of a repeated name, the last counts.

        Returns:
            The params in wire order, which the caller owns; and how they vary from
            what is usual, None if they are not of the usual kind.

        Raises:
            RemoteProtocolError: a length or a string runs past the end.
        """
        pattern = self._pattern
        if pattern is not None:
            values = pattern.match(content)
            if values is not None:
                self._hits += 1
                params = pattern.common.copy()
                params.update(values)
                return params, (pattern, values)
        params = parse_param_map(content)
        self._misses += 1
        if self._misses >= self._patience and len(content) <= _LONGEST:
            self._learn(content, params)
        return params, None

    def _learn(self, content: bytes, params: dict[bytes, bytes]) -> None:
        hashes = {name: hash(value) for name, value in params.items()}
        before, self._before = self._before, None
        if before is None:
            self._before = hashes
            return
        names = [*params]
        old = self._pattern
        known = old is not None and [*old.common] == names
        if [*before] == names and (known or self._hits <= self._misses):
            varying = {name for name in names if hashes[name] != before[name]}
            varying |= _ALWAYS_VARY
            if old is not None and known:
                varying.update(name for _, _, name, _ in old.steps)
                varying |= {n for n, v in old.common.items() if params[n] != v}
            if _NEVER_VARIES not in varying:
                self._pattern = find_pattern(content, varying)
        self._hits = self._misses = 0
        self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
