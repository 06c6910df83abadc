"""Smoothing makes an input easier to quantize, by moving large magnitudes from its columns into the weight's.

A few columns of an input are often much larger than the others, and one scale for all leaves few steps to the rest.
Dividing each column by its own factor, and multiplying the weight's column by the same factor, changes no product and
evens the columns out (SmoothQuant, Xiao et al., 2023). Here the factors stay part of the input's quantizer instead of
being folded into the layer norm before it: a residual reads that norm's output too, and the FFN's second linear reads
the output of a GELU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-5
"""Share of the largest column; smaller columns count as this large, so that no factor is 0 or infinite."""


def smoothing_factors(magnitudes: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return c (in,), float32: max|x|^strength / max|w|^(1 - strength) per column, scaled to geometric mean 1.

    Args:
        magnitudes: (in,), the largest magnitude of each column of the input, on calibration data.
        weights: (out, in) of every layer that reads this input.
        strength: 0 to 1, alpha of SmoothQuant: how much of the difficulty goes into the weights.
    """
    columns = torch.stack([weight.detach().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    factors = strength * _log(magnitudes) - (1 - strength) * _log(columns)
    return (factors - factors.mean()).exp().to(torch.float32)


def _log(magnitudes: Tensor) -> Tensor:
    """Return the logarithms, float64; all 0 if all magnitudes are 0."""
    top = float(magnitudes.max())
    return (
        torch.zeros_like(magnitudes, dtype=torch.float64) if top == 0 else magnitudes.double().clamp(top * _LEAST).log()
    )
