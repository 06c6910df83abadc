"""The head of a model: which hidden states it reads, and its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["classify", "qa"]
"""The tasks: classes or a score for a text or a pair, and the span of an answer in a context."""

Activation = Literal["tanh", "relu", "gelu"]
Reads = Literal["first", "every"]


@dataclass(frozen=True)
class HeadSpec:
    """A linear layer on some hidden states, optionally after a dense layer with an activation.

    Attributes:
        reads: the "first" token of each sequence, or "every" token.
        outputs: columns of the logits.
        dense: the activation after a first layer (hidden) -> (hidden); None if there is no such layer.
    """

    reads: Reads
    outputs: int
    dense: Activation | None = None
