"""The step with the least squared difference between a weight and its quantized copy, on a symmetric grid.

With the integers q held fixed, the best step is sum(w q) / sum(q^2), and with the step held fixed the best integers are
w / step, rounded. Taking turns never increases the error, so it ends at a step that no small change improves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from q8core.quant.ops.arithmetic import scale_from_threshold
from q8core.quant.ops.passes import row_magnitudes

_STARTS = 24
"""Steps to start from, each 2^(-1/4) times the one before, from that of max|w| on: turns alone stay near their own."""
_TURNS = 10


def mse_scale(weight: Tensor, largest: int) -> Tensor:
    """Return the step of each row, float32 (rows,); that of a row of zeros is 1.

    But for rounding, the error of a row is never larger than with the step max|w| / largest, which is the first start.

    Args:
        weight: float32 (rows, columns).
        largest: the largest integer of the grid; -largest is the smallest.

    Raises:
        CalibrationError: if a value is infinite or NaN.
    """
    start = best = scale_from_threshold(row_magnitudes(weight), largest)
    least = squared_errors(weight, best, largest)
    for number in range(1, _STARTS):
        scale = start * 2 ** (-number / 4)
        error = squared_errors(weight, scale, largest)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    for _ in range(_TURNS):
        best = mse_turn(weight, best, largest)
    return best


def mse_turn(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Return the best steps (rows,) for the integers that the steps `scale` (rows,) give; all-zero rows keep theirs."""
    q = _integers(weight, scale, largest)
    products, squares = (weight * q).sum(dim=1), q.square_().sum(dim=1)
    found = products / squares.clamp(min=1)
    return torch.where(found > 0, found, scale)


def squared_errors(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Return the summed squared differences (rows,) between a weight (rows, columns) and its copy with these steps."""
    return _integers(weight, scale, largest).mul_(scale.unsqueeze(1)).sub_(weight).square_().sum(dim=1)


def _integers(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    return (weight * scale.reciprocal().unsqueeze(1)).round_().clamp_(-largest, largest)
