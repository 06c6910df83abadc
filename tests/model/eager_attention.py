"""The oracle's attention: Hugging Face's eager one with fewer passes over the scores, as an interface of its own.

The matrix product scales them, so that neither they nor their gradient are multiplied again, and under mixed precision
a mask leaves them in bfloat16. Scores and probabilities are those of Vaswani et al. (2017).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

ATTENTION = "q8bert"
"""What transformers calls it: `attn_implementation`."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the context (batch, queries, heads, D) and the probabilities (batch, heads, queries, keys).

    Args:
        module: whose `training` says whether to drop.
        query: (batch, heads, queries, D).
        key: (batch, heads, keys, D).
        value: likewise.
        attention_mask: added to the scores, broadcast against (batch, heads, queries, keys).
        scaling: of the scores; by default 1 / sqrt(D).
        dropout: share of the probabilities that is dropped.
        kwargs: what else transformers passes to any attention.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k = query.flatten(0, 1), key.flatten(0, 1)
    nothing = q.new_empty(1, 1, 1)
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale).unflatten(0, query.shape[:2])
    if attention_mask is not None:
        scores.add_(attention_mask.to(scores.dtype))
    probabilities = F.dropout(F.softmax(scores, dim=-1), p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
