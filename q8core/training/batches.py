"""Length-bucketed batches: random order for learning, little padding for speed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from q8core.model.head import TaskKind
from q8core.tasks.task import Feature

# Texts are sorted by length within groups of this many batches: enough to make padding rare, few enough that batches
# stay random.
BUCKET_BATCHES = 64
CALIBRATION_BATCH = 16


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the indices of one epoch's batches; depends only on the arguments, so that a run can resume."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    run = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), run):
        bucket = sorted(order[start : start + run], key=lambda i: lengths[i])
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    rng.shuffle(batches)
    return batches


def collate(
    features: Sequence[Feature], kind: TaskKind, with_targets: bool = True, pad_token: int | None = 0
) -> dict[str, torch.Tensor]:
    """Return a batch padded to the longest feature: a network's arguments, each ``(batch, longest)``, and the targets.

    Args:
        features: the inputs.
        kind: the task, which decides the targets.
        with_targets: whether to add the targets.
        pad_token: the model's (`EncoderSpec.pad_token`).
    """
    longest = max(len(feature) for feature in features)
    ids = torch.full((len(features), longest), pad_token or 0, dtype=torch.long)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, feature in enumerate(features):
        ids[row, : len(feature)] = torch.from_numpy(feature.input_ids)
        types[row, : len(feature)] = torch.from_numpy(feature.token_type_ids)
        mask[row, : len(feature)] = 1
    batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    if with_targets and kind == "classify":
        # class indices become an integer tensor, scores a float one, as their losses expect
        batch["labels"] = torch.tensor([feature.target[0] for feature in features])
    elif with_targets:
        batch["start_positions"] = torch.tensor([feature.target[0] for feature in features])
        batch["end_positions"] = torch.tensor([feature.target[1] for feature in features])
    return batch


def calibration_batches(
    features: Sequence[Feature], kind: TaskKind, pad_token: int | None
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the features in batches of 16 of about the same length, without targets."""
    ordered = sorted(features, key=len)
    for start in range(0, len(ordered), CALIBRATION_BATCH):
        yield collate(ordered[start : start + CALIBRATION_BATCH], kind, with_targets=False, pad_token=pad_token)
