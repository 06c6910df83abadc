"""Bits for each matrix under an average: by the loss that its error costs, or by the eigenvalues of its layer.

With the trace t_i of a matrix' block of the Hessian, its number of weights n_i and the squared error E_i of its b bits,
the loss grows by about |t_i| / n_i * E_i(b) / 2 (HAWQ-V2, Dong et al., 2020, with the half of Taylor's series).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from q8core.errors import InputError
from q8core.quant.schemes.scheme import CHOSEN_BITS

BITS = CHOSEN_BITS
"""The bits that a matrix can get."""


@dataclass(frozen=True)
class Matrix:
    """A matrix to be quantized.

    Attributes:
        path: its site.
        size: its number of weights.
        trace: trace of its block of the Hessian.
        errors: bits -> squared error of the whole matrix.
    """

    path: str
    size: int
    trace: float
    errors: Mapping[int, float]

    @property
    def curvature(self) -> float:
        """The magnitude of the mean second derivative by a weight.

        Labels can make it negative. As in Q-BERT's |mean| that counts as sensitive: an error is no gain to rely on.
        """
        return abs(self.trace) / self.size

    def cost(self, bits: int) -> float:
        """Return by how much these bits increase the loss, in second order."""
        return self.curvature * self.errors[bits] / 2


def average_bits(matrices: Sequence[Matrix], bits: Mapping[str, int]) -> float:
    """Return the bits of a weight, averaged over all weights."""
    return sum(matrix.size * bits[matrix.path] for matrix in matrices) / sum(matrix.size for matrix in matrices)


def total_cost(matrices: Sequence[Matrix], bits: Mapping[str, int]) -> float:
    """Return by how much the bits of all matrices increase the loss."""
    return sum(matrix.cost(bits[matrix.path]) for matrix in matrices)


def by_budget(matrices: Sequence[Matrix], average: float, *, reverse: bool = False) -> dict[str, int]:
    """Return bits that keep the cost low and average at most `average` over all weights.

    Greedy: all begin with the fewest bits; the step that gains most for each bit it takes is made while one fits.

    Args:
        matrices: the matrices.
        average: bits of a weight on average.
        reverse: as a control, give the matrix of largest curvature the smallest one, and so on.

    Raises:
        InputError: if the average is below the fewest or above the most bits.
    """
    _check_average(average, BITS[0])
    if reverse:
        matrices = _mirrored(matrices)
    left = math.floor(average * sum(matrix.size for matrix in matrices)) - BITS[0] * sum(m.size for m in matrices)
    bits = {matrix.path: BITS[0] for matrix in matrices}
    while True:
        steps = [
            ((matrix.cost(bits[matrix.path]) - matrix.cost(more)) / extra, extra, matrix.path, more)
            for matrix in matrices
            for more in BITS
            if 0 < (extra := matrix.size * (more - bits[matrix.path])) <= left
        ]
        gain, extra, path, more = max(steps, key=lambda step: step[0], default=(0.0, 0, "", 0))
        if gain <= 0:
            return bits
        bits[path], left = more, left - extra


def by_rank(
    matrices: Sequence[Matrix], layer_of: Mapping[str, int], omegas: Sequence[float], average: float, *, reverse: bool
) -> dict[str, int]:
    """Return two numbers of bits: the higher for all matrices of the half of the layers with the largest omega.

    Of an odd number of layers the smaller half gets them. The two numbers are those of `BITS` whose average is the
    largest within the budget.

    Args:
        matrices: the matrices; all layers have as many weights.
        layer_of: path -> its layer.
        omegas: for each layer its sensitivity.
        average: bits of a weight on average.
        reverse: as a control, give the higher bits to the other layers.

    Raises:
        InputError: if there are fewer than two layers, or no two numbers of bits fit the average.
    """
    layers = len(omegas)
    if layers < 2:
        raise InputError(f"the model has {layers} layer, and rank divides layers into halves; use budget")
    upper = layers // 2
    means = {(few, many): (few * (layers - upper) + many * upper) / layers for few, many in combinations(BITS, 2)}
    _check_average(average, min(means.values()))
    few, many = max((pair for pair in means if means[pair] <= average), key=lambda pair: means[pair])
    order = sorted(range(layers), key=lambda layer: omegas[layer], reverse=not reverse)
    chosen = set(order[:upper])
    return {matrix.path: many if layer_of[matrix.path] in chosen else few for matrix in matrices}


def uniform(matrices: Sequence[Matrix], average: float) -> dict[str, int]:
    """Return the most bits within the average, the same for all matrices."""
    return {matrix.path: max(bits for bits in BITS if bits <= average) for matrix in matrices}


def _mirrored(matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices with each other's curvatures: the largest for that with the smallest, and so on."""
    order = sorted(matrices, key=lambda matrix: matrix.curvature)
    given = {one.path: other.curvature for one, other in zip(order, reversed(order), strict=True)}
    return [replace(matrix, trace=given[matrix.path] * matrix.size) for matrix in matrices]


def _check_average(average: float, least: float) -> None:
    if not least <= average <= BITS[-1]:
        raise InputError(f"--average-bits is {average:g}; allowed: {least:g} to {BITS[-1]}")
