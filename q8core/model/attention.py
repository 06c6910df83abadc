"""The products of attention in float: from queries, keys and values to the context.

Compared with the textbook's form this saves two passes over the scores: the matrix product itself scales them, and the
mask is added in place. Under mixed precision everything of size queries * keys stays in bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q8core.errors import InputError


class AttentionProducts(nn.Module):
    """softmax(Q K^T / sqrt(D)) V of Vaswani et al. (2017); a module without parameters.

    Args:
        dropout: the dropout rate of the probabilities in training.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, hidden_keys: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Return the context (batch, heads, queries, D).

        Args:
            q: queries (batch, heads, queries, D).
            k: keys (batch, heads, keys, D).
            v: values (batch, heads, keys, D).
            hidden_keys: True for masked keys; broadcast against (batch, heads, queries, keys).
            bias: added to the scores; broadcast in the same way.
        """
        operands = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
        nothing = q.new_empty(1, 1, 1)  # not read: beta is 0
        scores = torch.baddbmm(nothing, *operands, beta=0, alpha=q.shape[-1] ** -0.5).unflatten(0, q.shape[:2])
        if bias is not None:
            scores.add_(bias)
        if hidden_keys is not None:
            # the lowest number, not -inf: a query with all keys masked gets the mean of all values instead of NaN
            scores.add_(hidden_keys.to(scores.dtype) * torch.finfo(scores.dtype).min)
        probabilities = F.dropout(F.softmax(scores, dim=-1), p=self.dropout, training=self.training)
        return torch.matmul(probabilities, v)

    def extra_repr(self) -> str:
        """Show the dropout rate."""
        return f"dropout={self.dropout}"


def hidden_keys(attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask of hidden keys, (batch, 1, 1, sequence); None if no key is hidden.

    Args:
        attention_mask: (batch, sequence), 0 for padding.

    Raises:
        InputError: if it has another number of dimensions.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise InputError(f"attention_mask must be (batch, sequence); found {tuple(attention_mask.shape)}")
    seen = attention_mask.to(torch.bool)
    # bucketed batches often have no padding, and a mask costs a pass over the scores in every layer
    return None if bool(seen.all()) else ~seen[:, None, None, :]
