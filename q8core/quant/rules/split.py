"""Weights that are sums of two halves, of each of which the sign counts: ternary weight splitting (BinaryBERT, 2021).

w = w1 + w2 becomes m1 * sign(w1) + m2 * sign(w2), with m1 and m2 the means of |w1| and |w2|, the scales of two binary
weights. Halves are chosen so that at first this is what TWN's rule makes of w. Both halves get the gradient of w, and
so the same updates: their difference never changes, and w with that difference says as much as both halves. A step of
the halves is two of w.

Executed, both matrices are one: its four levels are on one grid of integers. Where the means differ by less than half a
step, as they do at first and hardly otherwise in practice, it has three.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from q8core.quant.codes import MOST_OF_HALVES
from q8core.quant.ops.arithmetic import scale_from_threshold
from q8core.quant.rules.mean import signs
from q8core.quant.rules.twn import ternary, ternary_grid

_FINEST = MOST_OF_HALVES
"""Steps of the grid for m1 + m2. The difference of the means is off by at most half a step, in training as well."""
_LEAST = 2.0**-20
"""As for a weight of one bit: halves of zeros become this."""
_LARGEST_SHARE = 0.9
"""Beyond it the halves of a weight that is not 0 would be of a few of its values alone."""


class Levels(NamedTuple):
    """Integers: of two signs that agree, and of a positive first half beside a negative second one."""

    largest: int
    other: int


class SplitGrid(NamedTuple):
    """The steps, float32 (scopes,), and the levels of all rows."""

    scale: Tensor
    levels: Levels


def split(rows: Tensor) -> Tensor:
    """Return w1 - w2 for the weights of each scope (scopes, values), float64; w1 + w2 = w.

    With T the ternary weights of step alpha, NZ those that are not 0 and Z the others: w1 = a w and w2 = (1 - a) w in
    NZ; in Z, w1 = w + b and w2 = -b where w > 0, else w1 = b and w2 = w - b. b = (alpha n - sum |w|) / (2 |Z|) and
    a = 1/2 - sum_Z w / (2 sum_NZ |w|) make the means of |w1| and |w2| alpha / 2 each, and so the sum of both halves'
    signs times these means T. Where sum_Z w outweighs sum_NZ |w|, which no usual weight's does, no halves do that.
    """
    zero = ternary(rows, ternary_grid(rows).border) == 0
    w = rows.double()
    magnitudes = w.abs()
    total, count = magnitudes.sum(dim=1, keepdim=True), zero.sum(dim=1, keepdim=True)
    kept = (magnitudes * ~zero).sum(dim=1, keepdim=True)
    alpha = kept / (w.shape[1] - count).clamp(min=1)
    b = ((alpha * w.shape[1] - total) / (2 * count.clamp(min=1))).clamp(min=_LEAST)
    share = (-(w * zero).sum(dim=1, keepdim=True) / kept.clamp(min=_LEAST)).clamp(-_LARGEST_SHARE, _LARGEST_SHARE)
    return torch.where(zero, magnitudes + 2 * b, share * w)


def split_grid(rows: Tensor, difference: Tensor) -> SplitGrid:
    """Return the grid of weights (scopes, values) with these differences of their halves, in the same shape.

    The levels are those of all scopes, by the share of m1 in the sum of the means over the scopes.

    Raises:
        CalibrationError: if a value is infinite or NaN.
    """
    first, second = (half.abs().mean(dim=1).clamp(min=_LEAST) for half in _halves(rows, difference))
    scale = scale_from_threshold(first + second, 1)
    other = round(_FINEST * float((first - second).sum() / (first + second).sum()))
    unit = gcd(_FINEST, other)
    return SplitGrid(scale * (unit / _FINEST), Levels(_FINEST // unit, other // unit))


def split_integers(weight: Tensor, difference: Tensor, levels: Levels) -> Tensor:
    """Return the level of each weight (rows, columns), float32."""
    first, second = (signs(half) for half in _halves(weight, difference))
    return ((levels.largest + levels.other) * first + (levels.largest - levels.other) * second) / 2


def _halves(weight: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    return (weight + difference) / 2, (weight - difference) / 2
