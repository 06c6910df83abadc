"""How the integers of a weight are stored: those of 5 to 8 bits as int8, those of fewer bits as packed codes.

A code of b bits stands for one of 2^b levels, small integers that a tensor beside the codes lists. A symmetric grid
has the levels -2^(b-1) to 2^(b-1) - 1, of which it does not use the first; with one bit it has -1 and 1. An asymmetric
one has 0 to 2^b - 1, from which the row's zero point is taken. A split one has those of two signs, -a, -b, b and a: the
higher bit of a code is the sign of the first half. Codes follow each other from the lowest bit of a row's
first byte on, and the last byte is padded with zeros: every row starts on a byte boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from q8core.quant.quantizer import Grid

MOST_PACKED_BITS = 4
"""Integers of more bits take a byte each."""


MOST_OF_HALVES = 16
"""The largest level of a split weight. With larger ones AVX2 could not add up products in 16 bits, and would take up to
1.35 times as long."""


def is_packed(bits: int) -> bool:
    """Return whether integers of so many bits are stored as codes."""
    return bits <= MOST_PACKED_BITS


def stored_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """Return the shape of a stored weight: each row takes whole bytes."""
    width = bits if is_packed(bits) else 8
    return (*shape[:-1], -(-shape[-1] * width // 8))


@dataclass(frozen=True)
class Codebook:
    """What the codes of a weight mean: the integer of a code c in row r is `levels[c] - zero_points[r]`.

    Attributes:
        levels: int8 (2^bits,).
        zero_points: int8 (rows,), or None where all are 0.
    """

    levels: NDArray[np.int8]
    zero_points: NDArray[np.int8] | None = None

    @classmethod
    def of(cls, bits: int, grid: Grid) -> Codebook:
        """Return the codebook of a grid, without zero points; of a split one, with the largest levels it may have."""
        if grid == "split":
            return cls.of_halves(MOST_OF_HALVES, 0)
        first = 0 if grid == "asymmetric" else -(2 ** (bits - 1))
        levels = np.arange(first, first + 2**bits, dtype=np.int8)
        return cls(np.array([-1, 1], np.int8) if bits == 1 and grid == "symmetric" else levels)

    @classmethod
    def of_halves(cls, largest: int, other: int) -> Codebook:
        """Return the codebook of split weights.

        Args:
            largest: the level of two positive signs.
            other: that of a positive first half and a negative second one.
        """
        return cls(np.array([-largest, -other, other, largest], np.int8))

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return len(self.levels).bit_length() - 1

    def encode(self, weight: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Return the codes (rows, row bytes) of integers (rows, columns), each of which must be one of the levels."""
        code_of = np.zeros(256, np.uint8)
        code_of[self.levels.view(np.uint8)] = np.arange(len(self.levels))
        zeros = 0 if self.zero_points is None else self.zero_points[:, None]
        return _packed(code_of[(weight + zeros).astype(np.int8).view(np.uint8)], self.bits)

    def decode(self, codes: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
        """Return the integers (rows, columns) that codes (rows, row bytes) stand for."""
        found = self.levels[_unpacked(codes, self.bits, columns)]
        return found if self.zero_points is None else found - self.zero_points[:, None]


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Join codes (rows, columns), several to a byte: (rows, row bytes)."""
    size, shifts = _group(bits)
    rows, columns = codes.shape
    parts = np.pad(codes, ((0, 0), (0, -columns % len(shifts)))).reshape(rows, -1, len(shifts)).astype(shifts.dtype)
    groups = np.bitwise_or.reduce(parts << shifts, axis=-1)
    if size == 1:
        return groups
    found = np.stack([groups >> 8 * place for place in range(size)], axis=-1).astype(np.uint8)
    return np.ascontiguousarray(found.reshape(rows, -1)[:, : stored_shape(codes.shape, bits)[1]])


def _unpacked(codes: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """Return the codes (rows, columns) that bytes (rows, row bytes) hold."""
    size, shifts = _group(bits)
    groups = codes
    if size > 1:
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % size))).reshape(len(codes), -1, size)
        places = 8 * np.arange(size, dtype=shifts.dtype)
        groups = np.bitwise_or.reduce(padded.astype(shifts.dtype) << places, axis=-1)
    parts = (groups[..., None] >> shifts & (2**bits - 1)).astype(np.uint8)
    return np.ascontiguousarray(parts.reshape(len(codes), -1)[:, :columns])


def _group(bits: int) -> tuple[int, NDArray[np.unsignedinteger]]:
    """Return the least bytes that hold whole codes, and the bit offset of each code in them."""
    size = 3 if bits == 3 else 1
    return size, np.arange(0, 8 * size, bits, dtype=np.uint8 if size == 1 else np.uint32)
