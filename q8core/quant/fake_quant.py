"""Straight-through simulation of the integer arithmetic, as autograd functions.

The forward pass computes on integer-valued floats, exactly what the integer engine computes (in float32 as long
as an accumulator stays below 2**24; in bfloat16 the operands are exact, products and sums are not). The backward
pass is the straight-through estimator: the gradient of the float linear with the dequantized operands, identity
through every rounding and clamping, clamped elements included (Q8BERT; harmless at 8 bits).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from q8core.quant.arithmetic import per_row, quantize, rescale_factor

_BLOCK = 2**17
"""Elements that a step-by-step computation takes at a time: 512 KiB of float32, the size of a core's cache."""


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
    ) -> Tensor:
        ctx.save_for_backward(x_q, w_q, scale_x, scale_w)
        ctx.dtypes = (x.dtype, weight.dtype, bias.dtype)
        y = F.linear(x_q, w_q)  # (..., out), integers: exact in float32 below 2**24
        if scale_x.numel() == 1:
            _rescale_(y, rescale_factor(scale_x, scale_w), bias_hat)
            return y
        # one scale per token: (..., 1) * (out,)
        return y.to(torch.float32).mul_(scale_x).mul_(scale_w.reshape(-1)).add_(bias_hat).to(x_q.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the name ctx
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_q, w_q, scale_x, scale_w = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        grad_y = grads[0].to(w_q.dtype)
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            # Scaling the small weight instead of the gradient saves two passes over the activations.
            w_hat = (w_q * per_row(scale_w)).to(w_q.dtype)
            grad_x = grad_y.matmul(w_hat).to(x_dtype)
        rows = grad_y.reshape(-1, grad_y.shape[-1])
        if ctx.needs_input_grad[1]:
            x_hat = x_q if scale_x.numel() == 1 else (x_q * scale_x).to(x_q.dtype)
            grad_w = rows.t().mm(x_hat.reshape(-1, x_hat.shape[-1])).to(w_dtype)
            grad_w = grad_w.mul_(scale_x.reshape(())) if scale_x.numel() == 1 else grad_w
        if ctx.needs_input_grad[2]:
            grad_b = rows.sum(0, dtype=torch.float32).to(b_dtype)
        return grad_x, grad_w, grad_b, None, None, None, None, None


class _FakeQuantize(Function):
    """x_hat = quantize(x) * scale; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return quantize(x, scale).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def quantize_to(x: Tensor, scale: Tensor, dtype: torch.dtype, zero_point: int | None = None) -> Tensor:
    """Return `quantize(x, scale, zero_point)` in a dtype that holds it exactly; `scale` has one element or one per row.

    Large tensors go block by block, so that the steps of one block meet in the cache: about half the time.
    """
    if x.numel() <= _BLOCK or scale.numel() != 1 or not x.is_contiguous():
        return quantize(x, scale, zero_point).to(dtype)
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    for source, target in zip(_blocks(x), _blocks(q), strict=True):
        target.copy_(quantize(source, scale, zero_point))
    return q


def _rescale_(acc: Tensor, r: Tensor, bias_hat: Tensor) -> None:
    """Replace accumulators (..., out) by float32(acc) * r + bias_hat, in place and rounded to their dtype."""
    for block in _blocks(acc):
        if block.dtype == torch.float32:
            block.mul_(r).add_(bias_hat)
        else:
            block.copy_(block.to(torch.float32).mul_(r).add_(bias_hat))


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Return views of whole rows of a contiguous `x` (..., K), about `_BLOCK` elements each."""
    rows = x.view(-1, x.shape[-1])
    return rows.split(max(1, _BLOCK // x.shape[-1]))


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
) -> Tensor:
    """Return the quantized linear layer's output (..., out) in the dtype of `x_q`.

    `x` (..., in), `weight` (out, in) and `bias` (out,) only receive the gradients; the values come from the
    integer-valued `x_q` and `w_q`, their scales (`scale_x` one element or one per row (..., 1); `scale_w` one
    element or (out,)) and `bias_hat` (out,), the bias as deployed.
    """
    y = _QuantizedLinear.apply(x, weight, bias, x_q, w_q, scale_x, scale_w, bias_hat)
    assert isinstance(y, Tensor)
    return y


def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """Return `x` on its 8-bit grid, in its own shape and dtype; the gradient is the identity."""
    x_hat = _FakeQuantize.apply(x, scale)
    assert isinstance(x_hat, Tensor)
    return x_hat
