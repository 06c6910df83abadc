"""How the integers of a weight are stored: with few bits several share a byte, and all codes decode to int8.

A weight (rows, columns) of 5 to 8 bits is stored as int8. With 4 or 3 bits two columns share a byte, with 2 bits four
do, the first column in the lowest bits, each in two's complement; the last byte of a row is padded with zeros. So every
row starts on a byte boundary, and int8 kernels run every bit width, exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array


def stored_bits(bits: int) -> int:
    """Return how many bits an integer of `bits` bits takes in a file: 8, 4 or 2."""
    return 8 if bits > 4 else 4 if bits > 2 else 2


def stored_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """Return the shape of a stored weight: each row takes whole bytes."""
    each = 8 // stored_bits(bits)
    return (*shape[:-1], -(-shape[-1] // each))


def encode(weight: NDArray[np.int8], bits: int) -> Array:
    """Return the codes of int8 integers (rows, columns): unchanged for 5 to 8 bits, else uint8 (rows, row bytes)."""
    width = stored_bits(bits)
    if width == 8:
        return weight
    each = 8 // width
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % each)))
    parts = padded.view(np.uint8).reshape(rows, -1, each) & (2**width - 1)
    return np.ascontiguousarray(np.bitwise_or.reduce(parts << _shifts(width), axis=-1))


def decode(codes: Array, bits: int, columns: int) -> NDArray[np.int8]:
    """Return the int8 integers (rows, columns) that stored codes stand for."""
    width = stored_bits(bits)
    if width == 8:
        return codes
    # shift left until the code's sign bit is bit 7, then right as a signed number
    raised = ((codes[..., None] >> _shifts(width)) << (8 - width)).view(np.int8)
    raised >>= 8 - width
    return np.ascontiguousarray(raised.reshape(len(codes), -1)[:, :columns])


def _shifts(width: int) -> NDArray[np.uint8]:
    """Return the bit offset of each code in a byte."""
    return np.arange(0, 8, width, dtype=np.uint8)
