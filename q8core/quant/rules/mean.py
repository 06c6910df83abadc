"""Weights of one bit: their signs, times the mean of their magnitudes (Rastegari et al., 2016; BinaryBERT, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from q8core.quant.ops.arithmetic import scale_from_threshold

_LEAST = 2.0**-20
"""One bit has no zero: zeros become this, little beside any weight, and a step that still holds usual biases."""


def mean_scale(weight: Tensor) -> Tensor:
    """Return mean|w| of each row of a weight (rows, columns), float32 (rows,), but at least 2^-20.

    Raises:
        CalibrationError: if a value is infinite or NaN.
    """
    return scale_from_threshold(weight.abs().mean(dim=1).clamp(min=_LEAST), 1)


def signs(weight: Tensor) -> Tensor:
    """Return 1 where the weight is at least 0, also where it is -0.0, and -1 elsewhere, float32 in its shape."""
    return torch.where(weight >= 0, 1.0, -1.0)
