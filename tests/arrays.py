"""Between torch's tensors, in which tests compute what they compare with, and the arrays of engines and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from q8core.arrays import Array
from q8core.engines import TokenBatch


def batch_of(ids: Tensor, types: Tensor, lengths: tuple[int, ...]) -> TokenBatch:
    return TokenBatch(ids.numpy(), types.numpy(), lengths)


def infer(engine: Any, batch: TokenBatch) -> Tensor:
    """The logits of an engine."""
    return torch.from_numpy(engine.infer(batch))


def as_tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
