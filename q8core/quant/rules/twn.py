"""Weights of three values -s, 0 and s, by the rule of ternary weight networks (Li et al., 2016; TernaryBERT).

Magnitudes above 0.7 times their mean become s, the mean of just these magnitudes. This is not rounding: the border
need not be s / 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from q8core.quant.ops.arithmetic import scale_from_threshold

_SHARE = 0.7


class TernaryGrid(NamedTuple):
    """Step and border of each row, float32 (rows,): what is larger than the border in magnitude becomes the step."""

    scale: Tensor
    border: Tensor


def ternary_grid(weight: Tensor) -> TernaryGrid:
    """Return the grid of each row of a weight (rows, columns); a row of zeros has the step 1.

    Raises:
        CalibrationError: if a value is infinite or NaN.
    """
    magnitudes = weight.abs()
    border = _SHARE * magnitudes.mean(dim=1)
    kept = (magnitudes > border.unsqueeze(1)).to(torch.float32)  # sums of booleans are slow
    means = magnitudes.mul_(kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
    return TernaryGrid(scale_from_threshold(means, 1), border)


def ternary(weight: Tensor, border: Tensor) -> Tensor:
    """Return -1, 0 or 1 for each value of a weight (rows, columns); `border` is (1,) or (rows,)."""
    return torch.where(weight.abs() > border.reshape(-1, 1), weight.sign(), 0.0)
