"""The integers and scales of a site's weight, read from its tensors in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array
from q8core.errors import CheckpointError
from q8core.quant.codes import MOST_OF_HALVES, Codebook, is_packed
from q8core.quant.plan import SitePlan

Take = Callable[[str], Array]
"""Returns a tensor of the site by the last part of its name, such as "weight"."""


def codebook(site: SitePlan, take: Take) -> Codebook | None:
    """Return what the codes of a site's weight mean, with zero points for all rows; None if it is int8.

    Raises:
        CheckpointError: if the stored levels or zero points are not those of the site's grid.
    """
    weight = site.weight
    if weight is None or not is_packed(weight.bits):
        return None
    book, stored = Codebook.of(weight.bits, weight.grid), take("weight_levels")
    if weight.grid == "split":
        return _of_halves(site, stored)
    if not np.array_equal(stored, book.levels):
        raise CheckpointError(
            f"{site.path}.weight_levels are {stored.tolist()}; those of {weight.bits} bits, {weight.grid}, are "
            f"{book.levels.tolist()}"
        )
    if weight.grid == "symmetric":
        return book
    zero_points = take("weight_zero_point")
    most = int(book.levels.max())
    if int(zero_points.min()) < 0 or int(zero_points.max()) > most:
        raise CheckpointError(f"{site.path}.weight_zero_point holds a number outside 0 to {most}")
    return Codebook(book.levels, np.repeat(zero_points, site.site.shape[0] // len(zero_points)))


def _of_halves(site: SitePlan, stored: NDArray[np.int8]) -> Codebook:
    other, largest = (int(level) for level in stored[2:])
    fits = 1 <= largest <= MOST_OF_HALVES and abs(other) <= largest
    if not fits or stored.tolist() != [-largest, -other, other, largest]:
        raise CheckpointError(
            f"{site.path}.weight_levels are {stored.tolist()}; those of a split weight are -a, -b, b and a, with a "
            f"from 1 to {MOST_OF_HALVES} and b from -a to a"
        )
    return Codebook.of_halves(largest, other)


def integers(site: SitePlan, take: Take) -> NDArray[np.int8]:
    """Return the integers (rows, columns) of a site's weight; raises what `codebook` raises."""
    stored, book = take("weight"), codebook(site, take)
    return stored if book is None else book.decode(stored, site.site.shape[-1])


def check_integers(site: SitePlan, take: Take) -> None:
    """Refuse integers outside a symmetric grid, such as -128, which no quantizer makes.

    Raises:
        CheckpointError: names the integer; also what `codebook` raises.
    """
    weight, found = site.weight, integers(site, take)
    if weight is None or weight.grid != "symmetric":  # all codes of other grids mean something
        return
    low, high = int(found.min()), int(found.max())
    if low < -weight.largest or high > weight.largest:
        worst = low if low < -weight.largest else high
        raise CheckpointError(
            f"{site.path}.weight holds {worst}, outside the symmetric range -{weight.largest}..{weight.largest} of "
            f"{weight.bits} bits"
        )


def each_row(values: Array, rows: int) -> Array:
    """Return one value for each row, from one for each group of rows; a single one stays as it is."""
    return values if len(values) in (1, rows) else np.repeat(values, rows // len(values))
