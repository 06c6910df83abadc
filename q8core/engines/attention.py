"""Attention over packed sequences: each sequence attends to itself only, and to no padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.engines.packing import Run


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, runs: Sequence[Run], heads: int, scale: float, *, first_only: bool = False
) -> Tensor:
    """Return softmax(scale * Q K^T) V of every sequence.

    k and v are (T, H), q is (T, H), or (B, H) with `first_only`, where just the first token of each sequence asks.
    The result has the shape of q. Sequences of different lengths never share a call; equal neighbours do, which
    leaves each sequence's result as it is alone, because a call computes every (sequence, head) on its own.
    """
    head_size = q.shape[1] // heads
    pieces: list[Tensor] = []
    for token, first, count, length in runs:
        rows = slice(token, token + count * length)
        asking = 1 if first_only else length
        q_rows = slice(first, first + count) if first_only else rows
        context = F.scaled_dot_product_attention(
            _by_head(q[q_rows], count, asking, heads, head_size),
            _by_head(k[rows], count, length, heads, head_size),
            _by_head(v[rows], count, length, heads, head_size),
            scale=scale,
        )
        pieces.append(context.transpose(1, 2).reshape(count * asking, heads * head_size))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _by_head(x: Tensor, count: int, length: int, heads: int, head_size: int) -> Tensor:
    """View (count * length, H) as (count, heads, length, head_size), without a copy."""
    return x.view(count, length, heads, head_size).transpose(1, 2)
