"""The sizes of a BERT that the engines need, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from transformers import BertConfig

from q8core.errors import CheckpointError


@dataclass(frozen=True)
class ModelShape:
    """Sizes of an encoder; the names are those of `BertConfig`, shortened."""

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float

    @property
    def head_size(self) -> int:
        """Columns of one attention head."""
        return self.hidden // self.heads

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """The (out, in) of an encoder layer's matrices, with Q, K and V as one."""
        h, f = self.hidden, self.inner
        return (3 * h, h), (h, h), (f, h), (h, f)

    @classmethod
    def of(cls, config: BertConfig) -> ModelShape:
        """Read the sizes from a config.

        Raises:
            CheckpointError: if the config describes a BERT that the engines do not compute.
        """
        known = cast(Any, config)
        activation = known.hidden_act
        if activation != "gelu":
            raise CheckpointError(f"hidden_act is {activation!r}; the engines compute 'gelu'")
        positions = getattr(known, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise CheckpointError(f"position_embedding_type is {positions!r}; the engines compute 'absolute'")
        if known.is_decoder:
            raise CheckpointError("is_decoder is true; the engines compute encoders")
        if known.hidden_size % known.num_attention_heads:
            raise CheckpointError(
                f"hidden_size {known.hidden_size} is not a multiple of num_attention_heads {known.num_attention_heads}"
            )
        return cls(
            layers=known.num_hidden_layers,
            hidden=known.hidden_size,
            heads=known.num_attention_heads,
            inner=known.intermediate_size,
            vocabulary=known.vocab_size,
            positions=known.max_position_embeddings,
            token_types=known.type_vocab_size,
            norm_epsilon=known.layer_norm_eps,
        )
