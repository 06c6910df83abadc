"""Logits of a network on token features, in batches sorted by length for little padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from q8core.arrays import Logits
from q8core.model.head import TaskKind
from q8core.model.network import Network
from q8core.tasks.batching import sorted_batches
from q8core.tasks.task import Feature
from q8core.training.batches import collate
from q8core.training.config import Precision

EVAL_TOKENS = 4096


Pad = Callable[[Sequence[Feature]], dict[str, torch.Tensor]]


def model_logits(
    model: Network, features: Sequence[Feature], kind: TaskKind, precision: Precision = "fp32"
) -> list[Logits]:
    """Return one tensor per feature: ``(labels,)`` for classification, ``(length, 2)`` for QA."""
    batches = sorted_batches([len(feature) for feature in features], EVAL_TOKENS)
    device = next(model.parameters()).device

    def pad(chosen: Sequence[Feature]) -> dict[str, torch.Tensor]:
        batch = collate(chosen, kind, with_targets=False, pad_token=model.spec.pad_token)
        return {name: value.to(device) for name, value in batch.items()}

    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return logits_of(lambda batch: model(**batch), features, kind, batches, pad)


def logits_of(
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    features: Sequence[Feature],
    kind: TaskKind,
    batches: Sequence[Sequence[int]],
    pad: Pad,
) -> list[Logits]:
    """Return the same as `model_logits`, for any function that computes a batch.

    Args:
        forward: batch -> logits, (batch, labels) or (batch, longest, 2).
        features: the inputs.
        kind: the task.
        batches: the indices of the features of each batch.
        pad: makes a batch of tensors from features.
    """
    result: list[Logits | None] = [None] * len(features)
    with torch.inference_mode():
        for indices in tqdm(batches, desc="scoring", unit="batch", leave=False, disable=None):
            logits = forward(pad([features[i] for i in indices])).float().cpu()
            rows = list(logits)
            if kind == "qa":
                rows = [row[: len(features[i])].clone() for row, i in zip(rows, indices, strict=True)]
            for i, row in zip(indices, rows, strict=True):
                result[i] = row.numpy()
    return [row for row in result if row is not None]
