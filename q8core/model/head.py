"""The head of a model: what it reads of the encoder's hidden state, and what it computes of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["classify", "qa"]
"""The tasks: classes or a score of a text or a pair, and the answer's place in a context."""

Activation = Literal["tanh", "relu", "gelu"]
Reads = Literal["first", "every"]


@dataclass(frozen=True)
class HeadSpec:
    """A linear layer on some hidden states, perhaps behind a dense one with an activation.

    Attributes:
        reads: the "first" token of each sequence, or "every" token.
        outputs: columns of the logits.
        dense: the activation behind a layer (hidden) -> (hidden) that comes first; None where there is no such layer.
    """

    reads: Reads
    outputs: int
    dense: Activation | None = None
