"""How the integers of a weight are stored: fewer bits lie side by side in bytes, and every code decodes to int8.

A weight (rows, columns) of 8 bits, or of 5 to 7, is stored as it is. With 4 or 3 bits two columns share a byte, with 2
bits four do, the first column in the lowest bits, each as two's complement; a row's last byte is filled up with zeros.
So each row begins at a byte, and whoever computes with int8 runs every width, exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array


def stored_bits(bits: int) -> int:
    """Return the bits that a code of `bits` takes in a file: 8, 4 or 2."""
    return 8 if bits > 4 else 4 if bits > 2 else 2


def stored_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """Return the shape of a stored weight: whole bytes in each row."""
    each = 8 // stored_bits(bits)
    return (*shape[:-1], -(-shape[-1] // each))


def encode(weight: NDArray[np.int8], bits: int) -> Array:
    """Return the codes of integers (rows, columns) int8: themselves, or uint8 (rows, bytes of a row)."""
    width = stored_bits(bits)
    if width == 8:
        return weight
    each = 8 // width
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % each)))
    parts = padded.view(np.uint8).reshape(rows, -1, each) & (2**width - 1)
    return np.ascontiguousarray(np.bitwise_or.reduce(parts << _shifts(width), axis=-1))


def decode(codes: Array, bits: int, columns: int) -> NDArray[np.int8]:
    """Return the integers (rows, columns) int8 of stored codes."""
    width = stored_bits(bits)
    if width == 8:
        return codes
    # up to the sign's place, and down again as a signed number
    raised = ((codes[..., None] >> _shifts(width)) << (8 - width)).view(np.int8)
    raised >>= 8 - width
    return np.ascontiguousarray(raised.reshape(len(codes), -1)[:, :columns])


def _shifts(width: int) -> NDArray[np.uint8]:
    """Return where in a byte its codes begin."""
    return np.arange(0, 8, width, dtype=np.uint8)
