"""The extension, which ``core.cdef`` describes."""

from typing import Any

ffi: Any
lib: Any
