"""Smoothing: what makes an input easy to quantize is moved from its columns into those of the weight.

A few columns of an input are often much larger than the others, and one scale for all leaves few steps to the rest.
Dividing each column by a number of its own, and multiplying the weight's column by the same, changes no product and
evens them out (SmoothQuant, Xiao et al., 2023). Here the numbers stay part of the input's quantizer instead of going
into the layer norm before it: a residual reads that norm's output too, and before the FFN's second linear stands a
GELU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-5
"""Of the largest column: smaller ones count as this large, so that no number is 0 or infinite."""


def smoothing_factors(magnitudes: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return c (in,), float32: max|x|^strength / max|w|^(1 - strength) of each column, 1 in the geometric mean.

    Args:
        magnitudes: (in,), the largest magnitude of each column of the input, on calibration data.
        weights: (out, in) of every layer that reads this input.
        strength: 0 to 1, alpha of SmoothQuant: how much of the difficulty goes into the weights.
    """
    columns = torch.stack([weight.detach().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    factors = strength * _log(magnitudes) - (1 - strength) * _log(columns)
    return (factors - factors.mean()).exp().to(torch.float32)


def _log(magnitudes: Tensor) -> Tensor:
    """Return the logarithms, float64; all 0 where there is nothing but zeros."""
    top = float(magnitudes.max())
    return (
        torch.zeros_like(magnitudes, dtype=torch.float64) if top == 0 else magnitudes.double().clamp(top * _LEAST).log()
    )
