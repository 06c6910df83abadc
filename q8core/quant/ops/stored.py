"""Computations with stored integers and scales in NumPy: grid limits, accumulator steps, real numbers.

`arithmetic` defines what the integers mean and computes the same with torch, bit for bit. In both, a result too large
for float32 becomes infinite without a warning: a checkpoint with such scales fails its self-test.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array

QMAX = 127
"""Largest magnitude of a quantized weight or activation."""

U8_MAX = 255
"""Largest unsigned byte: an asymmetric activation's integer plus its zero point."""

BIAS_MAX = 2**31 - 1
"""Largest magnitude of a quantized bias."""


def integer_limits(zero_point: int | None, bits: int = 8) -> tuple[int, int]:
    """Return the smallest and the largest integer of a grid of so many bits: symmetric, or with a zero point."""
    if zero_point is None:
        largest = max(1, 2 ** (bits - 1) - 1)
        return -largest, largest
    return -zero_point, 2**bits - 1 - zero_point


def rescale_factor(scale_x: Array, scale_w: Array) -> NDArray[np.float32]:
    """Return r = float32(scale_x * scale_w), the step of the accumulator: shape (1,) or (out,)."""
    with np.errstate(over="ignore"):
        return (scale_x.astype(np.float32, copy=False) * scale_w.astype(np.float32, copy=False)).reshape(-1)


def dequantize(q: Array, scale: Array) -> NDArray[np.float32]:
    """Return the real numbers `float32(q) * scale`; `scale` broadcasts against `q`."""
    real = q.astype(np.float32)
    with np.errstate(over="ignore"):
        real *= scale
    return real


def dequantize_bias(bias_i32: Array, scale_x: Array, scale_w: Array) -> NDArray[np.float32]:
    """Return the bias term that the engine adds: `float32(b_i32) * r`, shape (out,)."""
    return dequantize(bias_i32, rescale_factor(scale_x, scale_w))


def score_factor(head_size: int, scale_q: float, scale_k: float) -> float:
    """Return f, the step of the integer scores in softmax's argument (Vaswani et al., 2017: 1 / sqrt(head size))."""
    return 1.0 / math.sqrt(head_size) * (scale_q * scale_k)
