"""Replaying a checkpoint's golden inputs: does this engine, on this CPU, still give the recorded answers?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q8core.checkpoint import Checkpoint
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Engine
from q8core.errors import EngineError

DEFAULT_TOLERANCE = 0.1
"""Largest accepted distance of all logits from the recorded ones, as a share of those (root mean squares). Kernels and
CPUs add up attention or a norm in different orders, which now and then moves an activation by one step of its grid,
and from there on others: a few hundredths in the one example it happens in. A wrong kernel or tensor is off by about
as much as the logits are large."""


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
        EngineError: if a logit is not finite, has another shape, or all are off by more than `tolerance`.
    """
    golden = [example for example in checkpoint.golden if example.logits.get(engine.backend) is not None]
    if not golden:
        return SelfTestResult(0, 0.0, True)
    where = f"{checkpoint.path}: the golden inputs on {engine.backend} ({engine.kernel})"
    batch = TokenBatch.pack([(example.input_ids, example.token_type_ids) for example in golden])
    found = batch.split(engine.infer(batch), engine.reads)
    expected = [torch.as_tensor(example.logits[engine.backend], dtype=torch.float32) for example in golden]
    for ours, recorded in zip(found, expected, strict=True):
        if ours.shape != recorded.shape:
            raise EngineError(f"{where} give logits {tuple(ours.shape)}; recorded are {tuple(recorded.shape)}")
    differences = torch.cat([(a - b).reshape(-1) for a, b in zip(found, expected, strict=True)])
    size = torch.cat([each.reshape(-1) for each in expected]).norm()
    distance = float(differences.norm() / size)
    if not distance <= tolerance:  # NaN fails this too
        raise EngineError(
            f"{where} give logits that are off by {distance:.2%}, allowed: {tolerance:.0%}; "
            "this CPU or this release of torch computes something else: choose another kernel"
        )
    equal = all(torch.equal(_decision(a), _decision(b)) for a, b in zip(found, expected, strict=True))
    return SelfTestResult(len(golden), float(differences.abs().max()), equal)


def _decision(logits: Tensor) -> Tensor:
    """Return the label of logits (C,), or the start and end of logits (length, 2)."""
    return logits.argmax(dim=-1 if logits.dim() == 1 else 0)
