#!/usr/bin/env python3
"""Answer with about as many bytes as the address asks for: /size.py/20000.

The bytes are those of libfcgi's size example, to compare servers and libraries.
"""

from __future__ import annotations

import os
import sys

from fcgi_app import accept

DEFAULT = 500
LARGEST = 1 << 30  # 1 GiB is plenty for a test
DIGITS = b"12345679890" * 7 + b"123"  # 80 of them, in libfcgi's own order


def wanted(path_info: str) -> int | None:
    """Return the size in bytes that ``/N`` names, None if it names none."""
    digits = path_info.removeprefix("/") or "0"
    # Not isdigit() alone: it also takes the digits of other scripts and "²".
    # The length keeps int() away from numbers that take long to convert.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        return None
    size = int(digits) or DEFAULT
    return size if size <= LARGEST else None


def refuse() -> None:
    print("Status: 400 Bad Request", end="\r\n")
    print("Content-Type: text/plain; charset=utf-8", end="\r\n\r\n")
    print(f"Bad size: use a number up to {LARGEST}, such as /20000")


def dump(size: int) -> None:
    print("Content-Type: text/plain; charset=utf-8", end="\r\n\r\n")
    print(f"Dumping {size:6} Bytes ...")
    lines = (size - 26) // 80
    # Bytes need no encoding; print() and the buffer below it keep their order.
    sys.stdout.buffer.writelines(b"%4d:%s\n" % (i, DIGITS) for i in range(lines))


while accept():
    size = wanted(os.environ.get("PATH_INFO", ""))
    if size is None:
        refuse()
    else:
        dump(size)
