"""The keys of a pool's configuration: how each is written in TOML and as text.

A key has one name everywhere: in the file, as an attribute of `PoolConfig` or
`ServiceConfig`, in upper case after ``FCGI_APP_START_`` in the environment. Functions
here raise ValueError with the reason alone; who calls knows where the value stood.
"""

from __future__ import annotations

import re
import resource
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from .pool import MANAGERS, Rlimit

__all__ = ["POOL_KEYS", "SERVICE_KEYS", "Key", "quote"]

_TRUE = frozenset(("1", "true", "yes", "on"))
_FALSE = frozenset(("0", "false", "no", "off"))
_UNLIMITED = "unlimited"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Key:
    """How the values of one key are read and written.

    Attributes:
        from_toml: a parsed TOML value → the value.
        from_words: words of the environment, or the values of a repeated option, → the
            value; None: the key takes one text.
        from_text: the one text → the value.
        to_toml: the value → TOML.
        merges: pairs, of which a later source adds to an earlier one.
    """

    from_toml: Callable[[Any], Any]
    from_text: Callable[[str], Any]
    to_toml: Callable[[Any], str]
    from_words: Callable[[Sequence[str]], Any] | None = None
    merges: bool = False


def _refuse(accepts: str) -> NoReturn:
    raise ValueError(f"must be {accepts}")


def quote(text: str) -> str:
    """Write a TOML basic string.

    Raises:
        ValueError: the text is not Unicode, which TOML has to be.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has bytes that are not UTF-8; TOML cannot say them") from None
    import json  # not for the memory of a supervisor

    # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---- one text -----------------------------------------------------------------


def _text(accepts: str = "a string") -> Key:
    def from_toml(value: Any) -> str:
        return value if isinstance(value, str) else _refuse(accepts)

    return Key(from_toml, str, quote)


def _number(kind: type[int] | type[float], accepts: str) -> Key:
    classes = int if kind is int else (int, float)

    def from_toml(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, classes):
            _refuse(accepts)
        try:
            return kind(value)
        except OverflowError:  # more digits than a float can have
            _refuse(accepts)

    def from_text(text: str) -> float:
        # int() and float() would take 1_000, and float() nan.
        if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)", text.strip()):
            try:
                return kind(text)
            except ValueError:  # 1.5 for a whole number, or 5000 digits
                pass
        _refuse(accepts)

    return Key(from_toml, from_text, repr)


def _size() -> Key:
    """Bytes: a number, or one with a letter for 1024, 1024², …."""
    accepts = 'a number of bytes, or a string such as "512M"'
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

    def from_text(text: str) -> int:
        found = re.fullmatch("([0-9]{1,19})([KMGT]?)", text.strip().upper())
        return int(found[1]) * units[found[2]] if found else _refuse(accepts)

    def from_toml(value: Any) -> int:
        if isinstance(value, str):
            return from_text(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return int(value) if whole else _refuse(accepts)

    return Key(from_toml, from_text, repr)


def _octal() -> Key:
    accepts = 'an octal number as a string, from "0" to "0777"'

    def parse(value: Any) -> int:
        # TOML's own 0o660 is not taken: who forgets the o gets other permissions.
        good = isinstance(value, str) and re.fullmatch("(0o)?[0-7]{1,4}", value)
        return int(value, 8) if good and int(value, 8) <= 0o777 else _refuse(accepts)

    return Key(parse, parse, lambda bits: f'"{bits:04o}"')


def _flag() -> Key:
    def from_toml(value: Any) -> bool:
        return value if isinstance(value, bool) else _refuse("true or false")

    def from_text(text: str) -> bool:
        word = text.strip().lower()
        return word in _TRUE if word in _TRUE | _FALSE else _refuse("1 or 0")

    return Key(from_toml, from_text, lambda on: str(on).lower())


# ---- several words ------------------------------------------------------------


def split_words(text: str) -> list[str]:
    """Split as a shell does, without running one."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {error}") from None


def _words(accepts: str, split: Callable[[str], list[str]]) -> Key:
    """Words; ``split`` is what a TOML string instead of an array means."""

    def from_toml(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return tuple(split(value))
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(value)
        _refuse(accepts)

    def to_toml(words: Sequence[str]) -> str:
        return f"[{', '.join(map(quote, words))}]"

    return Key(
        from_toml,
        lambda text: tuple(split_words(text)),
        to_toml,
        from_words=tuple,
    )


def _table(
    accepts: str,
    words_are: str,
    from_value: Callable[[str, Any], _T],
    from_word: Callable[[str, str], _T],
    to_item: Callable[[_T], tuple[str, str]],
) -> Key:
    """Build the key of a table whose items become a tuple, one ``_T`` for each."""

    def from_toml(value: Any) -> tuple[_T, ...]:
        if not isinstance(value, Mapping):
            _refuse(accepts)
        return tuple(from_value(name, each) for name, each in value.items())

    def from_words(words: Sequence[str]) -> tuple[_T, ...]:
        found = []
        for word in words:
            name, equals, text = word.partition("=")
            if not equals or not name:
                _refuse(words_are)
            found.append(from_word(name, text))
        return tuple(found)

    def to_toml(items: Sequence[_T]) -> str:
        pairs = [f"{quote(name)} = {text}" for name, text in map(to_item, items)]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"

    return Key(
        from_toml,
        lambda text: from_words(split_words(text)),
        to_toml,
        from_words=from_words,
        merges=True,
    )


def _env() -> Key:
    accepts = "a table of strings"

    def from_value(name: str, value: Any) -> tuple[str, str]:
        return (name, value) if isinstance(value, str) else _refuse(accepts)

    return _table(
        accepts,
        "NAME=VALUE",
        from_value,
        lambda name, text: (name, text),
        lambda pair: (pair[0], quote(pair[1])),
    )


def _rlimits() -> Key:
    accepts = f'a table of whole numbers, "{_UNLIMITED}" or [soft, hard]'
    words_are = f"NAME=NUMBER, NAME={_UNLIMITED} or NAME=SOFT:HARD"

    def limit(value: Any) -> int:
        if value == _UNLIMITED:
            return resource.RLIM_INFINITY
        # A negative number would be taken for RLIM_INFINITY, which is -1.
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            _refuse(accepts)
        return value

    def from_value(name: str, value: Any) -> Rlimit:
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2:
            _refuse(accepts)
        return Rlimit(name, limit(pair[0]), limit(pair[1]))

    def from_word(name: str, text: str) -> Rlimit:
        soft, colon, hard = text.partition(":")
        numbers = []
        for part in (soft, hard if colon else soft):
            if part != _UNLIMITED and not re.fullmatch("[0-9]{1,19}", part):
                _refuse(words_are)
            infinite = part == _UNLIMITED
            numbers.append(resource.RLIM_INFINITY if infinite else int(part))
        return Rlimit(name, *numbers)

    def to_item(each: Rlimit) -> tuple[str, str]:
        ends = (
            f'"{_UNLIMITED}"' if number == resource.RLIM_INFINITY else str(number)
            for number in (each.soft, each.hard)
        )
        return each.name, f"[{', '.join(ends)}]"

    return _table(accepts, words_are, from_value, from_word, to_item)


_SECONDS = "a number of seconds"

POOL_KEYS: dict[str, Key] = {
    "bind": _words("an address or an array of addresses", lambda text: [text]),
    "command": _words("an array of strings, or one string of words", split_words),
    "manager": _text("one of " + ", ".join(f'"{name}"' for name in MANAGERS)),
    "workers": _number(int, "a whole number"),
    "min_spare": _number(int, "a whole number"),
    "max_spare": _number(int, "a whole number"),
    "idle_timeout": _number(float, _SECONDS),
    "stop_timeout": _number(float, _SECONDS),
    "max_lifetime": _number(float, _SECONDS),
    "max_requests": _number(int, "a whole number"),
    "max_rss": _size(),
    "jitter": _number(float, "a number from 0 to 1"),
    "request_timeout": _number(float, _SECONDS),
    "slow_log": _number(float, _SECONDS),
    "status_path": _text(),
    "ping_path": _text(),
    "access_log": _text(),
    "access_format": _text(),
    "backlog": _number(int, "a whole number"),
    "socket_mode": _octal(),
    "socket_owner": _text(),
    "user": _text(),
    "group": _text(),
    "chroot": _text(),
    "chdir": _text(),
    "umask": _octal(),
    "env": _env(),
    "rlimits": _rlimits(),
}
"""What a pool has; the attributes of `PoolConfig` but for its name."""

SERVICE_KEYS: dict[str, Key] = {
    "daemon": _flag(),
    "pid_file": _text(),
    "log_file": _text(),
    "control": _text(),
    "status_listen": _text("an address"),
    "reload": _flag(),
    "touch_reload": _text(),
}
"""What the supervisor has; the attributes of `ServiceConfig` but for its pools."""
