"""The one definition of the integer arithmetic, shared by the training simulation, the conversion and torch's engines.

The part that loading needs without torch is also in `stored`; a test checks that both give the same bits.

A real number is `scale * q`: `scale` is float32, the zero point is 0 and q is an integer in [-127, 127]
(-128 is never produced, so the range is symmetric). An asymmetric input has a zero point z, from 0 to 254: q is then
in [-z, 255 - z], and q + z is an unsigned byte. The real number is still `scale * q`. Integers of fewer bits have
narrower limits (`integer_limits`) and nothing else of their own. A linear layer is

    acc_i32[m, n] = sum_k x_q[m, k] * w_q[n, k]                       exact
    y[m, n]       = float32(acc_i32) * r + float32(b_i32) * r         r = float32(scale_x * scale_w)

An input may be smoothed: before quantization, each input column k is divided by a factor c[k] > 0, and the weight's
column k is multiplied by it. So x_q has the step `scale_x * c[k]` in column k, w_q is `w * c` quantized, and the sums
and r are as above (SmoothQuant, Xiao et al., 2023).

Source: Q8BERT (Zafrir et al., 2019); three choices the paper leaves open are fixed here: ties round to even,
quantizing multiplies by the float32 reciprocal of the scale instead of dividing by the scale, and the bias is
added after the accumulator is scaled. `float32(acc + b) * r` differs from that by at most an ulp.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from q8core.errors import CalibrationError
from q8core.quant.ops.stored import BIAS_MAX, QMAX, integer_limits

_TINY = torch.finfo(torch.float32).tiny


def scale_from_threshold(threshold: Tensor, steps: int = QMAX) -> Tensor:
    """Return the float32 step `threshold / steps`, in the shape of `threshold`.

    A zero threshold (an all-zero tensor) gives scale 1.0: every value then quantizes to 0, exactly. So does a
    threshold whose step would be subnormal, because the reciprocal of such a step is not finite.

    Raises:
        CalibrationError: if a threshold is negative, infinite or NaN.
    """
    threshold = threshold.detach().to(torch.float32)
    low, high = _extremes(threshold)
    if not 0 <= low <= high < inf:
        usable = torch.isfinite(threshold) & (threshold >= 0)
        found = float(threshold[~usable].reshape(-1)[0])
        raise CalibrationError(f"a quantization threshold must be finite and not negative; found {found:g}")
    scale = threshold / steps
    return scale if low >= 2 * steps * _TINY else torch.where(scale < _TINY, 1.0, scale)


def asymmetric_grid(low: Tensor, high: Tensor, bits: int = 8) -> tuple[Tensor, int]:
    """Return the scale (1,) and the zero point of a grid of 2^bits values from `-low` to `high`, scalars of at least 0.

    The zero point is even, so that kernels can add it in the same addition that rounds: ties still round to even.
    As a result, one end of the range may lie up to one step outside the grid.

    Raises:
        CalibrationError: if `low` or `high` is negative, infinite or NaN.
    """
    most = 2**bits - 1
    scale = scale_from_threshold((low + high).reshape(1), most)
    return scale, min(2 * round(float(low / scale) / 2), most - 1)


def quantize(x: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
    """Return clamp(round_half_even(x * (1 / scale)), -127, 127) as float32 integers, in the shape of `x`.

    `scale` is float32 and broadcasts against `x` (see `per_row` for one scale per row). Computed in float32
    whatever the dtype of `x`. With a zero point, or fewer bits, the limits are `integer_limits`.
    """
    low, high = integer_limits(zero_point, bits)
    reciprocal = scale.reciprocal()
    q = x * reciprocal if x.dtype == torch.float32 else x.to(torch.float32).mul_(reciprocal)
    return q.round_().clamp_(low, high)


def quantize_i8(x: Tensor, scale: Tensor) -> Tensor:
    """Return `quantize(x, scale)` as int8.

    Raises:
        CalibrationError: if `x` holds an infinite or NaN value, which no integer represents.
    """
    if not bool(torch.isfinite(x).all()):
        raise CalibrationError(f"cannot quantize a tensor of shape {tuple(x.shape)} with infinite or NaN values")
    return quantize(x, scale).to(torch.int8)


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 real numbers `float32(q) * scale`; `scale` broadcasts against `q`."""
    return q.to(torch.float32) * scale


def per_row(scale: Tensor) -> Tensor:
    """Reshape a scale () | (1,) | (rows,) to (1, 1) | (rows, 1), to broadcast against a (rows, columns) weight."""
    return scale.reshape(-1, 1)


def input_steps(scale: Tensor, smoothing: Tensor | None) -> Tensor:
    """Return the float32 step of an input: `scale` (1,), or one per column, `scale * smoothing` (in,)."""
    return scale if smoothing is None else scale * smoothing


def rescale_factor(scale_x: Tensor, scale_w: Tensor) -> Tensor:
    """Return r = float32(scale_x * scale_w), the step of the accumulator: shape (1,) or (out,)."""
    return (scale_x.to(torch.float32) * scale_w.to(torch.float32)).reshape(-1)


def quantize_bias(bias: Tensor, scale_x: Tensor, scale_w: Tensor) -> Tensor:
    """Return the bias (out,) as int32 on the grid of the accumulator, clipped to +-(2**31 - 1).

    Rounded in float64, because float32 cannot represent 2**31 - 1. The grid is the float32 `rescale_factor`
    that the engine multiplies with.

    Raises:
        CalibrationError: if the bias is not finite, or the product of the scales is 0 or infinite in float32.
    """
    r = rescale_factor(scale_x, scale_w)
    low, high = _extremes(r)
    if not 0 < low <= high < inf:
        found = float(r[~(torch.isfinite(r) & (r > 0))][0])
        raise CalibrationError(f"input scale times weight scale must be a positive float32; found {found:g}")
    low, high = _extremes(bias.detach())
    if not -inf < low <= high < inf:
        raise CalibrationError(f"cannot quantize a bias of shape {tuple(bias.shape)} with infinite or NaN values")
    steps = bias.detach().to(torch.float64) / r.to(torch.float64)
    return steps.round_().clamp_(-BIAS_MAX, BIAS_MAX).to(torch.int32)


def dequantize_bias(bias_i32: Tensor, scale_x: Tensor, scale_w: Tensor) -> Tensor:
    """Return the float32 bias term that the engine adds: `float32(b_i32) * r`, shape (out,)."""
    return bias_i32.to(torch.float32) * rescale_factor(scale_x, scale_w)


def _extremes(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest element, which is enough to check all; both are NaN if any element is."""
    if x.numel() == 0:
        return 1.0, 1.0  # an empty tensor passes every check
    low, high = torch.aminmax(x)
    return float(low), float(high)


def row_scales(x: Tensor, steps: int = QMAX) -> Tensor:
    """Return the scale max|x| / steps of each row: (..., K) -> (..., 1) float32.

    One scale per token, never per batch: an answer must not depend on what it was batched with.
    """
    return scale_from_threshold(x.detach().abs().amax(dim=-1, keepdim=True), steps)
