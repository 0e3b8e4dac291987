"""The format strings of printf(3), for arguments that are Python's.

What C takes from the type of a variable comes from the argument here, so length
modifiers say little: ``hh`` and ``h`` cut a number down as in C, the others only
tell how wide a negative number is where ``%u``, ``%o`` or ``%x`` shows it. Not
there: ``%n`` (nothing to store through), ``%a`` and ``%1$d``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["encode", "format_c"]

_DIRECTIVE = re.compile(
    rb"%(?P<flags>[-+ #0']*)(?P<width>\*|\d*)(?:\.(?P<precision>\*|-?\d*))?"
    rb"(?P<length>hh|h|ll|l|q|L|j|z|t)?(?P<kind>.)",
    re.DOTALL,
)
_BITS = {b"hh": 8, b"h": 16, None: 32}
_SIGNED = frozenset(b"di")
_UNSIGNED = frozenset(b"uoxX")
_REAL = frozenset(b"fFeEgG")


def encode(text: str | bytes) -> bytes:
    """Return the bytes of ``text``: UTF-8 with surrogateescape; bytes as they are."""
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    return bytes(memoryview(text))  # which refuses a number


def format_c(template: str | bytes, arguments: Sequence[Any]) -> bytes:
    """Format ``arguments`` as printf(3) does; surplus ones are ignored, as in C.

    Raises:
        ValueError: a directive is unknown or cut off; names it.
        TypeError: an argument is missing or is not of its directive's kind.
    """
    values = iter(arguments)
    source = encode(template)
    parts: list[bytes] = []
    done = 0
    while (start := source.find(b"%", done)) >= 0:
        parts.append(source[done:start])
        found = _DIRECTIVE.match(source, start)
        if found is None:
            raise ValueError(f"format {template!r} ends inside of a directive")
        parts.append(_directive(found, values))
        done = found.end()
    parts.append(source[done:])
    return b"".join(parts)


def _directive(found: re.Match[bytes], values: Iterator[Any]) -> bytes:
    kind = found["kind"]
    if kind == b"%":
        return b"%"
    flags, width = found["flags"], _number(found, "width", values)
    if width is not None and width < 0:  # as C: a negative width is the flag "-"
        flags, width = flags + b"-", -width
    precision = _number(found, "precision", values)
    if precision is not None and precision < 0:
        precision = None
    value = _next(found, values)
    try:
        text, zeros = _convert(kind[0], flags, precision, found["length"], value)
    except (TypeError, ValueError, OverflowError) as reason:
        raise type(reason)(f"{_name(found)} with {value!r}: {reason}") from None
    if b"-" in flags:
        return text.ljust(width or 0)
    if b"0" in flags and zeros is not None:
        missing = max((width or 0) - len(text), 0)
        return text[:zeros] + b"0" * missing + text[zeros:]
    return text.rjust(width or 0)


def _name(found: re.Match[bytes]) -> str:
    return found[0].decode("utf-8", "backslashreplace")


def _next(found: re.Match[bytes], values: Iterator[Any]) -> Any:
    for value in values:
        return value
    raise TypeError(f"{_name(found)}: not enough arguments for the format string")


def _number(found: re.Match[bytes], which: str, values: Iterator[Any]) -> int | None:
    """Return a width or a precision; ``*`` takes it from the arguments."""
    text = found[which]
    if text is None or (not text and which == "width"):
        return None
    if text != b"*":
        return int(text or b"0")
    value = _next(found, values)
    if not isinstance(value, int):
        raise TypeError(f"{_name(found)}: {which} is {value!r} and must be an int")
    return value


def _convert(
    kind: int, flags: bytes, precision: int | None, length: bytes | None, value: Any
) -> tuple[bytes, int | None]:
    """Return the text, and where zeros of the flag ``0`` go; None: nowhere."""
    if kind in _SIGNED or kind in _UNSIGNED:
        text, zeros = _integer(kind, flags, precision, length, value)
        return text, zeros if precision is None else None
    if kind in _REAL:
        return _real(kind, flags, precision, value)
    if kind == ord("c"):
        return _character(value), None
    if kind == ord("s"):
        text = b"(null)" if value is None else _text(value)
        return text[:precision], None
    if kind == ord("p"):
        number = 0 if value is None else value if isinstance(value, int) else id(value)
        return (b"0x%x" % number if number else b"(nil)"), None
    raise ValueError("no such conversion")


def _text(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return encode(str(value))


def _character(value: Any) -> bytes:
    if isinstance(value, int):
        return bytes((value & 0xFF,))
    text = _text(value)
    if len(text) != 1:
        raise TypeError("must be a number or one byte")
    return text


def _integer(
    kind: int, flags: bytes, precision: int | None, length: bytes | None, value: Any
) -> tuple[bytes, int]:
    number = _to_width(int(value), kind, length)
    base = {ord("o"): b"%o", ord("x"): b"%x", ord("X"): b"%X"}.get(kind, b"%d")
    digits = base % abs(number)
    if precision is not None:
        digits = digits.rjust(precision, b"0") if number or precision else b""
    sign = b""
    if number < 0:
        sign = b"-"
    elif kind in _SIGNED:
        sign = b"+" if b"+" in flags else b" " if b" " in flags else b""
    elif b"#" in flags:
        if kind == ord("o"):
            digits = digits if digits.startswith(b"0") else b"0" + digits
        elif kind != ord("u") and number:
            sign = b"0" + bytes((kind,))
    return sign + digits, len(sign)


def _to_width(number: int, kind: int, length: bytes | None) -> int:
    """Cut ``number`` down to what the C type would hold, where that shows."""
    bits = _BITS.get(length, 64)
    if kind in _UNSIGNED:
        return number & ((1 << bits) - 1) if number < 0 or bits < 32 else number
    if bits < 32:
        half = 1 << (bits - 1)
        return (number + half) % (2 * half) - half
    return number


def _real(
    kind: int, flags: bytes, precision: int | None, value: Any
) -> tuple[bytes, int | None]:
    number = float(value)
    given = b"".join(bytes((flag,)) for flag in b"+ #" if flag in flags)
    exact = b"" if precision is None else b".%d" % precision
    text = b"%" + given + exact + bytes((kind,))
    text = text % number
    if not math.isfinite(number):
        return text, None
    return text, 1 if text[:1] in b"+- " else 0
