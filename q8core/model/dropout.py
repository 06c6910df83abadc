"""Where training drops, and how much of it: families differ in the places alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DropoutPlace = Literal["embeddings", "attention", "attention_output", "ffn_output", "head_input", "head_output"]
ENCODER_PLACES: tuple[DropoutPlace, ...] = ("embeddings", "attention", "attention_output", "ffn_output")
"""Where BERT's encoder drops (Devlin et al., 2018)."""


@dataclass(frozen=True)
class DropoutRates:
    """The share that training drops at each place. A rate of 0 draws no random numbers.

    Attributes:
        embeddings: of the normalised embeddings.
        attention: of the attention probabilities.
        attention_output: of what attention adds to the hidden state.
        ffn_output: of what the feed-forward network adds to it.
        head_input: of the hidden states that the head reads.
        head_output: of what the last linear reads, where a dense layer comes before it.
    """

    embeddings: float = 0.0
    attention: float = 0.0
    attention_output: float = 0.0
    ffn_output: float = 0.0
    head_input: float = 0.0
    head_output: float = 0.0

    @classmethod
    def alike(cls, places: Iterable[DropoutPlace], rate: float) -> DropoutRates:
        """Return one rate at all of `places` and 0 elsewhere."""
        return cls(**dict.fromkeys(places, rate))
