"""Straight-through simulation of the quantized attention products, as an autograd function.

The forward pass computes what `quant/ops/products.py` defines and the integer engine executes: bit for bit in
float32; in bfloat16 the operands are exact, products and sums are not. The backward pass treats every rounding as the
identity, at the values of the forward pass. For a loss L, with r = 255 e before and p after rounding, n = sum_j p_j,
the largest score a constant, and v = scale_v * v_q,

    dL/dr_j = (dL/dy . v_j - dL/dy . y) / n        dL/dx_j = dL/dr_j * r_j        dL/ds_j = dL/dx_j * f

which without rounding is the gradient of softmax attention. x is softmax's argument: a bias added to the scaled scores
has the gradient dL/dx, summed over the dimensions that it was broadcast along. Dropout acts on the normalised
probabilities, as in Hugging Face's BERT: the sum n counts dropped keys too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from q8core.quant.ops.passes import to_grid
from q8core.quant.ops.products import (
    PROBABILITY_MAX,
    exponentials,
    integer_scores,
    probability_sums,
    quantize_probabilities_,
    score_factor,
    weighted_sums,
)
from q8core.quant.qat.context import compute_dtype


class ProductScales(NamedTuple):
    """The static scales of query, key and value, (1,) each."""

    query: Tensor
    key: Tensor
    value: Tensor


class _QuantizedAttention(Function):
    """Quantized softmax(Q K^T) V, with straight-through gradients to q, k and v."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scales: ProductScales,
        hidden: Tensor | None,
        dropout: float,
        bias: Tensor | None,
    ) -> Tensor:
        dtype = compute_dtype()
        q_q, k_q, v_q = (to_grid(x, scale, dtype) for x, scale in zip((q, k, v), scales, strict=True))
        factor = score_factor(q.shape[-1], scales.query, scales.key)
        e = exponentials(integer_scores(q_q, k_q, hidden), factor, bias)
        saved_e = e.to(dtype) if dtype != e.dtype else e.clone()
        p_q = quantize_probabilities_(e)
        sums = probability_sums(p_q)
        keep = None
        if dropout:
            keep = torch.empty_like(p_q, dtype=torch.bool).bernoulli_(1 - dropout)
            p_q.mul_(keep)
        step = scales.value / sums
        if dropout:
            step = step / (1 - dropout)
        y = weighted_sums(p_q.to(dtype), v_q).mul_(step).to(dtype)
        ctx.save_for_backward(q_q, k_q, v_q, saved_e, p_q.to(torch.uint8), keep, sums, step, y)
        ctx.scales, ctx.factor, ctx.dtypes = scales, factor, (q.dtype, k.dtype, v.dtype)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the name ctx
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        q_q, k_q, v_q, e, p_q, keep, sums, step, y = ctx.saved_tensors
        dtype, scales = v_q.dtype, ctx.scales
        grad_y = grads[0].to(torch.float32)
        grad_acc = (grad_y * step).to(dtype)  # to the integer sums, (..., queries, D)
        grad_v = p_q.to(dtype).transpose(-1, -2).matmul(grad_acc).to(torch.float32).div_(scales.value)
        grad_r = grad_acc.matmul(v_q.transpose(-1, -2)).to(torch.float32)  # (..., queries, keys)
        if keep is not None:
            grad_r.mul_(keep)
        grad_r.sub_((grad_y * y).sum(dim=-1, keepdim=True).div_(sums))
        # Factors of a whole matrix are applied later, to the smaller results.
        grad_r.mul_(e)
        grad_bias = None
        if ctx.bias is not None and ctx.needs_input_grad[6]:
            shape, bias_dtype = ctx.bias
            grad_bias = grad_r.sum_to_size(shape).mul(PROBABILITY_MAX).to(bias_dtype)
        grad_s = grad_r.to(dtype)
        whole = PROBABILITY_MAX * ctx.factor
        grad_q = grad_s.matmul(k_q).to(torch.float32).mul_(whole).div_(scales.query)
        grad_k = grad_s.transpose(-1, -2).matmul(q_q).to(torch.float32).mul_(whole).div_(scales.key)
        grad_q, grad_k, grad_v = (g.to(t) for g, t in zip((grad_q, grad_k, grad_v), ctx.dtypes, strict=True))
        return grad_q, grad_k, grad_v, None, None, None, grad_bias


def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: ProductScales,
    hidden: Tensor | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the context (..., queries, D) of q (..., queries, D), k and v (..., keys, D).

    Args:
        q: queries on their 8-bit grid, as `fake_quantize` returns them.
        k: keys, likewise.
        v: values, likewise.
        scales: the steps of the three grids.
        hidden: True where a query must not see a key, broadcast against (..., queries, keys). A query that sees no
            key gets 0.
        dropout: share of the probabilities that is dropped at random.
        bias: float32, added to the scaled scores; broadcasts against (..., queries, keys). It gets a gradient too.
    """
    y = _QuantizedAttention.apply(q, k, v, scales, hidden, dropout, bias)
    assert isinstance(y, Tensor)
    return y
