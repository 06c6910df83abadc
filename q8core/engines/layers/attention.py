"""Attention over packed sequences: each sequence attends only to itself, and there is no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.engines.packing import Run
from q8core.quant.ops.products import (
    exponentials,
    integer_scores,
    probability_sums,
    quantize_probabilities_,
    relative_bias,
    weighted_sums,
)

_SCORES = 2**20
"""Number of scores that quantized products compute at a time (4 MiB), unless a single sequence has more."""


class Products(Protocol):
    """The two matrix products of attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the context (B, heads, queries, D) of q (B, heads, queries, D), k and v (B, heads, keys, D)."""
        ...

    def workspace_bytes(self, tokens: int, length: int, heads: int) -> int:
        """Return the peak bytes between the products, for `tokens` tokens in sequences of at most `length`."""
        ...


@dataclass(frozen=True)
class FloatProducts:
    """softmax(factor * Q K^T + bias) V in float32; q and k may be on any grid.

    Attributes:
        factor: the factor of the scores.
        bias: (heads, 2 P - 1), see `relative_bias`; None for none. All layers share it.
    """

    factor: float
    bias: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the context."""
        bias = None if self.bias is None else relative_bias(self.bias, q.shape[2], k.shape[2]).unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.factor)

    def workspace_bytes(self, tokens: int, length: int, heads: int) -> int:
        """Return the bytes of the biases: the matrix of probabilities is never stored as a whole."""
        return _bias_bytes(self.bias, length)


@dataclass(frozen=True)
class QuantizedProducts:
    """Both products on integers, as `q8core.quant.ops.products` defines them: q, k and v hold integers in [-127, 127].

    The sums come from float matrix products, which are exact on these integers; torch has no batched product of u8 and
    int8 on CPUs. No sum depends on the order of addition, so neither do the probabilities.

    Attributes:
        factor: the step of the integer scores in softmax's argument.
        value_scale: (1,), the step of the values.
        bias: (heads, 2 P - 1), see `relative_bias`; None for none. All layers share it.
    """

    factor: float
    value_scale: Tensor
    bias: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the context, computed for a few sequences at a time."""
        bias = None if self.bias is None else relative_bias(self.bias, q.shape[2], k.shape[2])
        group = max(1, _SCORES // (q.shape[1] * q.shape[2] * k.shape[2]))
        parts = zip(q.split(group), k.split(group), v.split(group), strict=True)
        contexts = [self._context(*part, bias) for part in parts]
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts)

    def workspace_bytes(self, tokens: int, length: int, heads: int) -> int:
        """Return the bytes of the scores, which become the probabilities, and of the biases."""
        scores = 4 * heads * min(tokens * length, max(_SCORES // heads, length * length))
        return scores + _bias_bytes(self.bias, length)

    def _context(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        p_q = quantize_probabilities_(exponentials(integer_scores(q, k), self.factor, bias))
        return weighted_sums(p_q, v).mul_(self.value_scale / probability_sums(p_q))


def _bias_bytes(table: Tensor | None, length: int) -> int:
    return 0 if table is None else 4 * len(table) * length * length


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, runs: Sequence[Run], heads: int, products: Products, *, first_only: bool = False
) -> Tensor:
    """Return the context of every sequence.

    k and v are (T, H). q is (T, H), or (B, H) with `first_only`, where only the first token of each sequence is a
    query. The result has the shape of q. Adjacent sequences of equal length share a call, others do not. Sharing does
    not change a sequence's result, because a call computes every (sequence, head) independently.
    """
    head_size = q.shape[1] // heads
    pieces: list[Tensor] = []
    for token, first, count, length in runs:
        rows = slice(token, token + count * length)
        asking = 1 if first_only else length
        q_rows = slice(first, first + count) if first_only else rows
        context = products(
            _by_head(q[q_rows], count, asking, heads, head_size),
            _by_head(k[rows], count, length, heads, head_size),
            _by_head(v[rows], count, length, heads, head_size),
        )
        pieces.append(context.transpose(1, 2).reshape(count * asking, heads * head_size))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _by_head(x: Tensor, count: int, length: int, heads: int, head_size: int) -> Tensor:
    """View (count * length, H) as (count, heads, length, head_size), without a copy."""
    return x.view(count, length, heads, head_size).transpose(1, 2)
