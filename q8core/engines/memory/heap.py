"""Tells glibc where to allocate weights and activations: two kinds of memory that need opposite treatment.

Weights are allocated once and stay. On the heap, the memory that loading frees between them would remain as holes: for
BERT-base, a fifth of the int8 engine's resident size. In pages of their own they leave none.
Activations are allocated and freed in every layer. By default glibc returns such blocks to the system, which hands them
out again page by page, zeroed: this takes up to a third of a large batch's time. On the heap they are reused.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

# Parameter numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OWN_PAGES_FROM = 128 * 2**10
"""While loading: blocks of at least this size get pages of their own (glibc's initial value)."""
_HEAP_UP_TO = 32 * 2**20
"""Afterwards: blocks up to this size come from the heap (the most that glibc accepts)."""
_KEEP_FREE = 512 * 2**20
"""Afterwards: free heap up to this size is kept for the next batch."""


@contextmanager
def loading_weights() -> Generator[None]:
    """Allocate memory inside the block as weights, and afterwards as activations.

    These are settings of the whole process. Other C libraries (musl, macOS) are left alone.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_UP_TO)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_FREE)


def release_freed_memory() -> None:
    """Return the free blocks of the heap to the system, if the C library can."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc, with the argument types of the functions used here."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallopt.argtypes, libc.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    libc.malloc_trim.argtypes, libc.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return libc
