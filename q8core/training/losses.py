"""The loss of a task on logits: cross entropy of classes or positions, or the squared error of a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The arguments of a network, in order; the other entries of a batch are targets."""


def network_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a batch that are keyword arguments of a network."""
    return {name: batch[name] for name in INPUTS if name in batch}


def task_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss, a scalar, of a network on a batch with targets (see `collate`)."""
    return target_loss(model(**network_inputs(batch)), batch)


def target_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of logits against a batch's targets.

    For classes it is the cross entropy of (batch, classes) and `labels`, int64; for a number the mean squared error of
    (batch, 1) and `labels`, float; for answers the mean of the cross entropies of start and end, given
    (batch, sequence, 2) and `start_positions`, `end_positions` (Devlin et al., 2018).
    """
    if "labels" not in batch:
        return span_loss(logits, batch["start_positions"], batch["end_positions"])
    labels = batch["labels"]
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(), labels.squeeze())
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def span_loss(logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the mean cross entropy of starts and ends; positions beyond the last token are ignored."""
    length = logits.shape[1]
    starts, ends = (each.squeeze(-1).contiguous() for each in logits.split(1, dim=-1))
    pairs = ((starts, start.clamp(0, length)), (ends, end.clamp(0, length)))
    first, last = (F.cross_entropy(found, wanted, ignore_index=length) for found, wanted in pairs)
    return (first + last) / 2
