"""NumPy arrays that native code reads: where they are, and memory for them that begins at a cache line."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

Logits = NDArray[np.float32]
"""What an engine gives: (outputs) of each sequence, or of each token."""

_LINE = 64
"""Bytes of a cache line, and of the widest vector: NumPy itself aligns to 16."""


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array of whatever was there, in C order, from a multiple of 64 bytes on."""
    wanted, sizes = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    nbytes = prod(sizes) * wanted.itemsize
    block = np.empty(nbytes + _LINE - 1, np.uint8)
    start = -address(block) % _LINE
    return block[start : start + nbytes].view(wanted).reshape(sizes)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array as `empty`, of zeros."""
    made = empty(shape, dtype)
    made.fill(0)
    return made


def copied(array: Array) -> Array:
    """Return a copy as `empty`: memory of its own, in C order."""
    made = empty(array.shape, array.dtype)
    made[...] = array
    return made


def address(array: Array) -> int:
    """Return where an array's first element is."""
    return array.__array_interface__["data"][0]
