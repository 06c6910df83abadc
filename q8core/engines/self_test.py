"""Replays a checkpoint's golden inputs, to check that this engine on this CPU still gives the recorded answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from q8core.checkpoint import Checkpoint
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Engine
from q8core.errors import EngineError

DEFAULT_TOLERANCE = 0.1
"""Largest accepted distance of all logits from the recorded ones, relative to the recorded ones (root mean squares).
Kernels and CPUs add up attention or a norm in different orders. Occasionally this moves an activation by one step of
its grid, and then others after it: a difference of a few hundredths in that one example. With a wrong kernel or tensor
the difference is about as large as the logits."""


@dataclass(frozen=True)
class SelfTestResult:
    """The result of replaying golden inputs.

    Attributes:
        examples: golden inputs with a reference for this backend; 0 for a plain Hugging Face folder.
        max_abs_diff: largest difference of a logit from its reference.
        labels_equal: whether every decision (label, or start and end of the span) equals the recorded one.
    """

    examples: int
    max_abs_diff: float
    labels_equal: bool


def self_test(engine: Engine, checkpoint: Checkpoint, tolerance: float = DEFAULT_TOLERANCE) -> SelfTestResult:
    """Run the golden inputs as one batch and compare with the recorded logits.

    Raises:
        EngineError: if a logit is not finite, has another shape, or the logits are off by more than `tolerance` in all.
    """
    golden = [example for example in checkpoint.golden if example.logits.get(engine.backend) is not None]
    if not golden:
        return SelfTestResult(0, 0.0, True)
    where = f"{checkpoint.path}: the golden inputs on {engine.backend} ({engine.kernel})"
    batch = TokenBatch.pack([(example.input_ids, example.token_type_ids) for example in golden])
    found = batch.split(engine.infer(batch), engine.reads)
    expected = [np.asarray(example.logits[engine.backend], np.float32) for example in golden]
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise EngineError(f"{where} give logits {ours.shape}; recorded are {theirs.shape}")
    recorded = np.concatenate([each.ravel() for each in expected])
    with np.errstate(all="ignore"):  # infinite values and NaN are refused below
        differences = np.concatenate([each.ravel() for each in found]) - recorded
        distance = float(np.linalg.norm(np.float64(differences)) / np.linalg.norm(np.float64(recorded)))
    if not distance <= tolerance:  # NaN fails this too
        raise EngineError(
            f"{where} give logits that are off by {distance:.2%}, allowed: {tolerance:.0%}; "
            "this CPU or this release of torch computes something else: choose another kernel"
        )
    equal = all(np.array_equal(_decision(a), _decision(b)) for a, b in zip(found, expected, strict=True))
    return SelfTestResult(len(golden), float(np.abs(differences).max()), equal)


def _decision(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the label of logits (C,), or the start and end of logits (length, 2)."""
    return np.asarray(logits.argmax(axis=0))
