"""Giving back what loading freed."""

from __future__ import annotations

import ctypes
import sys


def release_freed_memory() -> bool:
    """Return freed blocks inside the heap to the system; returns whether the C library could.

    Packing leaves holes between the tensors that stay: for BERT-base a fifth of the int8 engine's resident size,
    which glibc would keep. Other C libraries (musl, macOS) are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return trim(0) == 1
