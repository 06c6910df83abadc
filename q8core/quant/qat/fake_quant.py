"""Straight-through simulation of the integer arithmetic, as autograd functions.

The forward pass computes on integer-valued floats, exactly what the integer engine computes (in float32 as long
as an accumulator stays below 2**24; in bfloat16 the operands are exact, products and sums are not). The backward
pass is the straight-through estimator: the gradient of the float linear with the dequantized operands, identity
through every rounding and clamping, clamped elements included (Q8BERT; harmless at 8 bits). Where a quantizer is to
pass on less, or to learn its step, its float operand goes through `gated` first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from q8core.quant.ops.arithmetic import per_row, rescale_factor
from q8core.quant.ops.passes import column_sums, on_grid, rescale_, scaled


class _QuantizedLinear(Function):
    """y = (x_q . w_q) * scale_x * scale_w + bias, with straight-through gradients to x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        x_q: Tensor,
        w_q: Tensor,
        scale_x: Tensor,
        scale_w: Tensor,
        bias_hat: Tensor,
        smoothing: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x_q, w_q, scale_x, scale_w, smoothing)
        ctx.dtypes = (x.dtype, weight.dtype, bias.dtype)
        y = F.linear(x_q, w_q)  # (..., out), integers: exact in float32 below 2**24
        if scale_x.numel() == 1:
            rescale_(y, rescale_factor(scale_x, scale_w), bias_hat)
            return y
        # one scale per token: (..., 1) * (out,)
        return y.to(torch.float32).mul_(scale_x).mul_(scale_w.reshape(-1)).add_(bias_hat).to(x_q.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the name ctx
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_q, w_q, scale_x, scale_w, smoothing = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        grad_y = grads[0].to(w_q.dtype)
        # one matrix, not a batch of them: a transposed gradient would be multiplied one matrix at a time
        rows = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            # Scaling the small weight instead of the gradient saves two passes over the activations.
            w_hat = scaled(w_q, per_row(scale_w), w_q.dtype)
            w_hat = w_hat if smoothing is None else w_hat.div_(smoothing)
            grad_x = rows.mm(w_hat).view(x_q.shape).to(x_dtype)
        if ctx.needs_input_grad[1]:
            per_tensor = scale_x.numel() == 1
            x_hat = x_q if per_tensor else (x_q * scale_x).to(x_q.dtype)
            grad_w = rows.t().mm(x_hat.reshape(-1, x_hat.shape[-1]))
            grad_w = scaled(grad_w, scale_x, w_dtype) if per_tensor else grad_w.to(w_dtype)
            grad_w = grad_w if smoothing is None else grad_w.mul_(smoothing)
        if ctx.needs_input_grad[2]:
            grad_b = column_sums(rows).to(b_dtype)
        return grad_x, grad_w, grad_b, None, None, None, None, None, None


class _StraightThrough(Function):
    """The value of one tensor and the gradient of another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_hat: Tensor) -> Tensor:
        return x_hat.view_as(x_hat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gated(Function):
    """x itself; the gradient of its quantized copy s clamp(round(x / s)) goes on to x and to ln s.

    With v = x / s, and every rounding a constant distance, the copy's derivative by s is round(v) - v inside the limits
    and the limit outside; by x it is 1, and if masked 0 where round(v) is outside (LSQ, Esser et al., 2020, where v is
    outside). Half of GELU's outputs lie less than half a step below a grid that begins at 0: they are rounded, not
    clamped, and keep their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_step: Tensor | None, steps: Tensor, low: Tensor, high: Tensor, masked: bool
    ) -> Tensor:
        ctx.save_for_backward(x, steps, low, high)
        ctx.masked, ctx.shape = masked, None if log_step is None else log_step.shape
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the name ctx
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, steps, low, high = ctx.saved_tensors
        grad = grads[0]
        v = x.to(torch.float32) * steps.reciprocal()
        rounded = v.round()
        q = rounded.clamp(low, high)
        grad_x = grad * (rounded == q) if ctx.masked else grad
        grad_log = None
        if ctx.shape is not None and ctx.needs_input_grad[1]:
            # q - v inside, and q outside
            by_step = q.sub_(v.mul_(v.clamp(low, high) == v)).mul_(grad)
            sums = by_step.sum() if ctx.shape.numel() == 1 else by_step.sum(dim=-1)
            grad_log = (sums * steps.squeeze()).reshape(ctx.shape)
        return grad_x, grad_log, None, None, None, None


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    x_q: Tensor,
    w_q: Tensor,
    scale_x: Tensor,
    scale_w: Tensor,
    bias_hat: Tensor,
    smoothing: Tensor | None = None,
) -> Tensor:
    """Return the quantized linear layer's output (..., out) in the dtype of `x_q`.

    `x` (..., in), `weight` (out, in) and `bias` (out,) only receive the gradients; the values come from the
    integer-valued `x_q` and `w_q`, their scales (`scale_x` one element or one per row (..., 1); `scale_w` one
    element or (out,)) and `bias_hat` (out,), the bias as deployed. With `smoothing` (in,), `x_q` and `w_q` are of
    `x / smoothing` and `weight * smoothing`.
    """
    y = _QuantizedLinear.apply(x, weight, bias, x_q, w_q, scale_x, scale_w, bias_hat, smoothing)
    assert isinstance(y, Tensor)
    return y


def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """Return `x` on its 8-bit grid, in its own shape and dtype; the gradient is the identity."""
    return straight_through(x, on_grid(x, scale))


def straight_through(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return `x_hat`, whose gradient goes on to `x`, which has the same shape and dtype."""
    found = _StraightThrough.apply(x, x_hat)
    assert isinstance(found, Tensor)
    return found


def gated(x: Tensor, log_step: Tensor | None, *, steps: Tensor, limits: tuple[Tensor, Tensor], masked: bool) -> Tensor:
    """Return `x`, whose gradient, that of its quantized copy, goes on as it should.

    Args:
        x: (..., K), what is quantized.
        log_step: logarithms of steps that are learned, one element or, of a matrix, one for each row (rows,); or None.
        steps: float32, the steps, as many as logarithms if they are learned; broadcasts against `x`.
        limits: float32, the smallest and the largest integer; they broadcast against `x`.
        masked: whether values outside the limits get no gradient.
    """
    found = _Gated.apply(x, log_step, steps, *limits, masked)
    assert isinstance(found, Tensor)
    return found
