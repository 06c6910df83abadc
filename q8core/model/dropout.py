"""Dropout: the points of a model where it applies, in which families differ, and its rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DropoutPlace = Literal["embeddings", "attention", "attention_output", "ffn_output", "head_input", "head_output"]
ENCODER_PLACES: tuple[DropoutPlace, ...] = ("embeddings", "attention", "attention_output", "ffn_output")
"""The dropout of BERT's encoder (Devlin et al., 2018)."""


@dataclass(frozen=True)
class DropoutRates:
    """The rate at each point. A rate of 0 draws no random numbers.

    Attributes:
        embeddings: on the normalised embeddings.
        attention: on the attention probabilities.
        attention_output: on the output of attention, before the residual sum.
        ffn_output: on the output of the feed-forward network, before the residual sum.
        head_input: on the hidden states that the head reads.
        head_output: on the input of the last linear, if a dense layer comes before it.
    """

    embeddings: float = 0.0
    attention: float = 0.0
    attention_output: float = 0.0
    ffn_output: float = 0.0
    head_input: float = 0.0
    head_output: float = 0.0

    @classmethod
    def alike(cls, places: Iterable[DropoutPlace], rate: float) -> DropoutRates:
        """Return the same rate at all of `places`, and 0 elsewhere."""
        return cls(**dict.fromkeys(places, rate))
