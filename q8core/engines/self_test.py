"""Replaying a checkpoint's golden inputs: does this engine, on this CPU, still give the recorded answers?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from q8core.checkpoint import Checkpoint
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Engine
from q8core.errors import EngineError

DEFAULT_TOLERANCE = 0.25
"""Largest accepted difference of a logit. On the CPU that made the checkpoint every kernel gives the same bits. Another
CPU adds up attention or a norm in another order, which now and then moves an activation by one step of its grid; a
wrong kernel or tensor is off by whole units."""


@dataclass(frozen=True)
class SelfTestResult:
    """What replaying found.

    Attributes:
        examples: golden inputs with a reference for this backend; 0 for a plain Hugging Face folder.
        max_abs_diff: largest difference of a logit from its reference.
        labels_equal: whether every decision (label, or start and end of the span) is the recorded one.
    """

    examples: int
    max_abs_diff: float
    labels_equal: bool


def self_test(engine: Engine, checkpoint: Checkpoint, tolerance: float = DEFAULT_TOLERANCE) -> SelfTestResult:
    """Run the golden inputs as one batch and compare with the recorded logits.

    Raises:
        EngineError: if a logit is not finite, has another shape, or is off by more than `tolerance`.
    """
    golden = [example for example in checkpoint.golden if example.logits.get(engine.backend) is not None]
    if not golden:
        return SelfTestResult(0, 0.0, True)
    batch = TokenBatch.pack([(example.input_ids, example.token_type_ids) for example in golden])
    largest, labels_equal = 0.0, True
    for place, (example, logits) in enumerate(zip(golden, batch.split(engine.infer(batch)), strict=True)):
        expected = torch.as_tensor(example.logits[engine.backend], dtype=torch.float32)
        where = f"{checkpoint.path}: golden input {place} on {engine.backend} ({engine.kernel})"
        if expected.shape != logits.shape:
            raise EngineError(f"{where} gives logits {tuple(logits.shape)}; recorded are {tuple(expected.shape)}")
        difference = float((logits - expected).abs().max())
        if not difference <= tolerance:  # NaN fails this too
            raise EngineError(
                f"{where} is off by {difference:.4g}, allowed: {tolerance:g}; "
                "this CPU or this release of torch computes something else: choose another kernel"
            )
        largest = max(largest, difference)
        labels_equal &= torch.equal(logits.argmax(dim=-1 if logits.dim() == 1 else 0),
                                    expected.argmax(dim=-1 if expected.dim() == 1 else 0))  # fmt: skip
    return SelfTestResult(len(golden), largest, labels_equal)
