"""Counting the memory behind the arrays of a loaded model."""

from __future__ import annotations

from collections.abc import Iterable

from q8core.arrays import Array, address


def footprint(arrays: Iterable[Array]) -> tuple[int, int]:
    """Return the bytes of (matrices and tables, all other arrays); an array that is there twice counts once."""
    weights = scales = 0
    for array in {address(each): each for each in arrays}.values():
        if array.ndim >= 2:
            weights += array.nbytes
        else:
            scales += array.nbytes
    return weights, scales
