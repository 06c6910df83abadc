"""The sizes of an encoder, and how it differs from other families: everything that engines and training need."""

from __future__ import annotations

from dataclasses import dataclass

from q8core.model.relative_position import buckets_by_distance


@dataclass(frozen=True)
class EncoderSpec:
    """A post-norm transformer encoder (Devlin et al., 2018) of one of the supported families.

    Attributes:
        layers: encoder layers.
        hidden: columns of the hidden state.
        heads: attention heads of a layer.
        inner: columns of the feed-forward state.
        vocabulary: rows of the table of words.
        positions: tokens of the longest sequence.
        token_types: rows of the table of token types; 0 if the family has none.
        norm_epsilon: added to the variance in layer norms.
        first_position: row of the position table for a sequence's first token. RoBERTa and MPNet count from 2.
        embedding: columns of the tables, if a projection maps them to `hidden` (ELECTRA); None if they are equal.
        relative_buckets: rows of the table of relative attention biases, which all layers share (MPNet); 0 for none.
        pad_token: the padding id, whose row is never trained; None if there is none.
        own_head_size: columns of an attention head where all heads together have other than `hidden` ones, such as in a
            model whose heads were cut; None where they have as many.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float
    first_position: int = 0
    embedding: int | None = None
    relative_buckets: int = 0
    pad_token: int | None = 0
    own_head_size: int | None = None

    @property
    def head_size(self) -> int:
        """Columns of one attention head."""
        return self.own_head_size or self.hidden // self.heads

    @property
    def attention(self) -> int:
        """Columns of queries, keys, values and contexts: those of all heads."""
        return self.heads * self.head_size

    @property
    def table_columns(self) -> int:
        """Columns of the embedding tables and of the norm after them."""
        return self.embedding or self.hidden

    @property
    def relative_buckets_by_distance(self) -> tuple[int, ...]:
        """The bucket of each distance of a key from a query, from 1 - positions to positions - 1."""
        return buckets_by_distance(self.positions, self.relative_buckets)

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """The (out, in) of an encoder layer's matrices, with queries, keys and values as one matrix."""
        h, a, f = self.hidden, self.attention, self.inner
        return (3 * a, h), (h, a), (f, h), (h, f)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a token in the matrices of all layers."""
        return self.layers * sum(out * columns for out, columns in self.linear_shapes)
