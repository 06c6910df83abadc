"""Score a checkpoint as it would be served: packed tokens through an engine, then the task's metric."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from q8core.arrays import Logits
from q8core.engines import Engine, TokenBatch
from q8core.tasks.batching import sorted_batches
from q8core.tasks.task import Feature, Scorable

# Tokens per batch: enough rows to keep the matrix kernels busy.
BATCH_TOKENS = 2048


def engine_logits(engine: Engine, features: Sequence[Feature], batch_tokens: int = BATCH_TOKENS) -> list[Logits]:
    """Return one tensor per feature: ``(labels,)`` for classification, ``(length, 2)`` for QA."""
    result: list[Logits | None] = [None] * len(features)
    batches = sorted_batches([len(feature) for feature in features], batch_tokens)
    for indices in tqdm(batches, desc=f"scoring {engine.backend}", unit="batch", leave=False, disable=None):
        batch = TokenBatch.pack(
            [(features[i].input_ids.tolist(), features[i].token_type_ids.tolist()) for i in indices]
        )
        rows = batch.split(engine.infer(batch), engine.reads)
        for i, row in zip(indices, rows, strict=True):
            result[i] = row
    return [row for row in result if row is not None]


def evaluate_engine(engine: Engine, task: Scorable, limit: int | None = None) -> dict[str, float]:
    """Return the scores of an engine on the task's dev set, or on its first ``limit`` examples."""
    return task.score(engine_logits(engine, task.dev_features(limit)))
