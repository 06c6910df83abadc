"""Counts the memory of a loaded model's arrays."""

from __future__ import annotations

from collections.abc import Iterable

from q8core.arrays import Array, address


def footprint(arrays: Iterable[Array]) -> tuple[int, int]:
    """Return the bytes of (matrices and tables, all other arrays); an array that occurs twice counts once."""
    weights = scales = 0
    for array in {address(each): each for each in arrays}.values():
        if array.ndim >= 2:
            weights += array.nbytes
        else:
            scales += array.nbytes
    return weights, scales
