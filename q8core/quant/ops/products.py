"""The one definition of quantized attention products, shared by training simulation and engines.

Per head, with integer queries, keys and values in [-127, 127] and their static scales (`arithmetic.quantize`):

    s_ij = sum_d q_q[i, d] * k_q[j, d]                                   exact
    e_ij = exp(float32(s_ij - max_j s_ij) * f)                           f = float32(scale_q * scale_k / sqrt(D))
    p_ij = round_half_even(255 * e_ij)                                   in [0, 255]; 0 where key j is hidden
    y[i] = float32(sum_j p_ij * v_q[j]) * float32(scale_v / sum_j p_ij)  both sums exact

With an additive bias b_ij (float32; the relative attention bias of MPNet) the exponentials become

    x_ij = float32(float32(s_ij) * f) + b_ij                             each operation rounded to float32
    e_ij = exp(x_ij - max_j x_ij)

and the rest is as above. Without a bias the largest score is subtracted before scaling, in exact integers; a bias of
zeros gives the same except for float32's rounding of x.

The probabilities are quantized relative to the largest of their row, and normalised by the sum of the rounded values.
So each row of quantized probabilities sums to one, and a flat row over many keys keeps its resolution: on a fixed
grid of 1/255 for softmax's output, 1/384 would become 0 or 1/255. It also makes both products sums of integers, which
do not depend on the order of addition or on padding.

Float matrix products of integers are exact as long as the float type represents every sum exactly. Here they are used
as integer products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from q8core.quant.ops import stored
from q8core.quant.ops.stored import QMAX

PROBABILITY_MAX = 255
"""The quantized probability of a row's largest score. Probabilities are u8 with scale 1/255 and zero point 0."""


def score_factor(head_size: int, scale_q: Tensor, scale_k: Tensor) -> float:
    """Return f, the step of the integer scores in softmax's argument (Vaswani et al., 2017: 1 / sqrt(head size))."""
    return stored.score_factor(head_size, float(scale_q), float(scale_k))


def integer_scores(q_q: Tensor, k_q: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Return the scores (..., queries, keys) of q_q (..., queries, D) and k_q (..., keys, D), -inf where `hidden`.

    Exact float32 or float64 for float32 operands; bfloat16 operands (mixed precision in training) give bfloat16's
    rounded sums, as float32.
    """
    # times 2, because the difference of two scores must be exact too
    exact = _exact(q_q.dtype, 2 * QMAX * QMAX * q_q.shape[-1])
    scores = torch.matmul(q_q.to(exact), k_q.to(exact).transpose(-1, -2))
    scores = scores.to(torch.float32) if scores.dtype == torch.bfloat16 else scores
    return scores if hidden is None else scores.masked_fill_(hidden, -math.inf)


def exponentials(scores: Tensor, factor: float, bias: Tensor | None = None) -> Tensor:
    """Return e (..., queries, keys) float32 in [0, 1]; `scores` may be overwritten.

    The largest value of a row is 1; a row that sees no key is all 0.

    Args:
        scores: integers (..., queries, keys), -inf where a key is hidden.
        factor: the step of the scores in softmax's argument.
        bias: float32, added to the scaled scores; broadcasts against them.
    """
    if bias is None:
        return scores.sub_(_largest(scores)).to(torch.float32).mul_(factor).exp_()
    x = scores.to(torch.float32).mul_(factor).add_(bias)
    return x.sub_(_largest(x)).exp_()


def _largest(scores: Tensor) -> Tensor:
    """Return each row's maximum (..., queries, 1), finite even if a row is all -inf: subtracting it gives no NaN."""
    return scores.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)


def relative_bias(table: Tensor, queries: int, keys: int) -> Tensor:
    """Return b (heads, queries, keys) with b[h, i, j] = table[h, P - 1 + j - i].

    Args:
        table: float32 (heads, 2 P - 1): for each head, the bias of a key that is j - i = 1 - P, ..., P - 1 tokens after
            its query.
        queries: number of queries; they are the first positions of the sequence.
        keys: number of tokens in the sequence, at most P.
    """
    middle = table.shape[1] // 2
    # One window of the table per query, in reverse order of the queries.
    return table[:, middle + 1 - queries : middle + keys].unfold(1, keys, 1).flip(1)


def quantize_probabilities_(e: Tensor) -> Tensor:
    """Replace e in [0, 1] by its integers in [0, 255]."""
    return e.mul_(PROBABILITY_MAX).round_()


def probability_sums(p_q: Tensor) -> Tensor:
    """Return the sums (..., queries, 1) of integers p_q (..., queries, keys), float32; 1 for a row without keys."""
    return p_q.sum(dim=-1, keepdim=True, dtype=torch.float32).clamp_(min=1)


def weighted_sums(p_q: Tensor, v_q: Tensor) -> Tensor:
    """Return sum_j p_q[i, j] v_q[j] (..., queries, D) of p_q (..., queries, keys) and v_q (..., keys, D), as float32.

    Exact, except for bfloat16 operands and where float32 rounds sums beyond 2**24.
    """
    exact = _exact(p_q.dtype, PROBABILITY_MAX * QMAX * p_q.shape[-1])
    return torch.matmul(p_q.to(exact), v_q.to(exact)).to(torch.float32)


def _exact(dtype: torch.dtype, largest_sum: int) -> torch.dtype:
    """Return the float type whose products are exact; bfloat16, which training chooses, is kept."""
    if dtype == torch.bfloat16:
        return dtype
    return torch.float32 if largest_sum < 2**24 else torch.float64
