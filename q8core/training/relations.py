"""Distillation of relations: how alike the last layer's queries and keys, and its values, are between tokens.

    A = softmax(Q K^T / sqrt(d))    R = softmax(V V^T / sqrt(d))    L = mean of KL(A_T || A_S) + KL(R_T || R_S)

over visible keys, and the mean over the rows of visible queries and over relation heads, as in MiniLM (Wang et al.,
2020). Relations have as many rows and columns as there are tokens, so teacher and student may differ in width, heads
and number of layers: both divide their columns into the same number of relation heads (MiniLMv2, Wang et al., 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.errors import InputError
from q8core.model.sites import PROJECTIONS, layer_path
from q8core.model.spec import EncoderSpec

_PAIRS = (("query", "key"), ("value", "value"))


def relation_paths(spec: EncoderSpec) -> dict[str, str]:
    """Return the paths of the last layer's query, key and value, by slot."""
    return {slot: layer_path(spec.layers - 1, slot) for slot in PROJECTIONS}


def check_heads(heads: int, student: EncoderSpec, teacher: EncoderSpec) -> None:
    """Refuse a number of relation heads that does not divide the columns of both models.

    Raises:
        InputError: names the model and its columns.
    """
    for name, spec in (("student", student), ("teacher", teacher)):
        if spec.attention % heads:
            raise InputError(
                f"relation_heads is {heads}, which does not divide the {spec.attention} columns of the {name}'s "
                "queries, keys and values"
            )


def relation_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor, heads: int) -> Tensor:
    """Return the loss, a scalar; each row of the batch has the same weight.

    Args:
        student: slot -> output of the last layer's query, key and value, (batch, sequence, columns).
        teacher: likewise, with columns of its own.
        mask: attention_mask (batch, sequence), 0 for padding; each row has at least one visible token.
        heads: number of relation heads.
    """
    visible = mask != 0
    total = mask.new_zeros((), dtype=torch.float32)
    for one, other in _PAIRS:
        ours, theirs = (_relations(each[one], each[other], visible, heads) for each in (student, teacher))
        each_row = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)  # (batch, heads, queries)
        counted = each_row.masked_fill(~visible[:, None], 0).sum(dim=(1, 2)) / (heads * visible.sum(dim=1))
        total = total + counted.mean()
    return total


def _relations(one: Tensor, other: Tensor, visible: Tensor, heads: int) -> Tensor:
    """Return the logarithms of relations, (batch, heads, queries, keys); a hidden key's is the lowest number."""
    a, b = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (one, other))
    scores = torch.matmul(a, b.transpose(-1, -2)).float() * a.shape[-1] ** -0.5
    return scores.masked_fill(~visible[:, None, None], torch.finfo(scores.dtype).min).log_softmax(dim=-1)
