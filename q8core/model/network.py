"""The network of a model in float, read top to bottom: token ids -> hidden states -> logits.

Its modules have the paths of `q8core.model.sites`, so a parameter has the name of its tensor, and `set_submodule(path,
module)` replaces a site by a quantized version. Two more kinds of module can be replaced: ``layers.N.gelu``, which has
no tensors, and ``head.activation``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from q8core.model.attention import AttentionProducts, hidden_keys
from q8core.model.dropout import DropoutRates
from q8core.model.head import Activation, HeadSpec
from q8core.model.relative_position import buckets_by_distance
from q8core.model.spec import EncoderSpec

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
_NO_DROPOUT = DropoutRates()


class Network(nn.Module):
    """An encoder with the head of a task, or without one.

    It is the post-norm transformer encoder of BERT (Devlin et al., 2018) with the changes of its descendants: the row
    of the first position (RoBERTa, Liu et al., 2019), no token types (DistilBERT, Sanh et al., 2019), a projection
    after narrow tables (ELECTRA, Clark et al., 2020), a bias by relative position (MPNet, Song et al., 2020).

    Args:
        spec: the encoder.
        head: the head; None to return hidden states.
        dropout: the dropout rates.
    """

    def __init__(self, spec: EncoderSpec, head: HeadSpec | None = None, dropout: DropoutRates = _NO_DROPOUT) -> None:
        super().__init__()
        self.spec = spec
        width, rows = spec.table_columns, spec.first_position + spec.positions
        self.word_embeddings = nn.Embedding(spec.vocabulary, width, padding_idx=spec.pad_token)
        self.token_type_embeddings = nn.Embedding(spec.token_types, width) if spec.token_types else None
        self.position_embeddings = nn.Embedding(rows, width)
        self.embedding_norm = nn.LayerNorm(width, eps=spec.norm_epsilon)
        self.embedding_dropout = nn.Dropout(dropout.embeddings)
        self.embedding_projection = nn.Linear(width, spec.hidden) if spec.embedding else None
        self.relative_attention_bias = (
            nn.Embedding(spec.relative_buckets, spec.heads) if spec.relative_buckets else None
        )
        self.layers = nn.ModuleList(Layer(spec, dropout) for _ in range(spec.layers))
        self.head = Head(spec, head, dropout) if head else None

    @property
    def hidden_state_paths(self) -> tuple[str, ...]:
        """The modules whose outputs are the hidden states (batch, sequence, hidden): embeddings, then each layer."""
        embeddings = "embedding_dropout" if self.embedding_projection is None else "embedding_projection"
        return embeddings, *(f"layers.{layer}" for layer in range(self.spec.layers))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the logits: (batch, outputs) if the head reads the first token, else (batch, sequence, outputs).

        Without a head, the hidden states of the last layer (batch, sequence, hidden).

        Args:
            input_ids: (batch, sequence).
            attention_mask: (batch, sequence), 0 for padding; None if there is no padding.
            token_type_ids: (batch, sequence); None for all 0. A model without token types ignores it.

        Raises:
            InputError: if the mask has another number of dimensions.
        """
        x = self._embed(input_ids, token_type_ids)
        hidden, bias = hidden_keys(attention_mask), self._relative_bias(input_ids)
        for layer in self.layers:
            x = layer(x, hidden, bias)
        return x if self.head is None else self.head(x)

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        x = self.word_embeddings(input_ids)  # (batch, sequence, table columns)
        if self.token_type_embeddings is not None:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        first, length = self.spec.first_position, input_ids.shape[1]
        positions = torch.arange(first, first + length, device=input_ids.device)
        x = x + self.position_embeddings(positions.unsqueeze(0))
        x = self.embedding_dropout(self.embedding_norm(x))
        return x if self.embedding_projection is None else self.embedding_projection(x)

    def _relative_bias(self, input_ids: Tensor) -> Tensor | None:
        """Return the bias that all layers add to their scores, (1, heads, queries, keys)."""
        if self.relative_attention_bias is None:
            return None
        length, device = input_ids.shape[1], input_ids.device
        buckets = torch.tensor(buckets_by_distance(length, self.spec.relative_buckets), device=device)
        index = torch.arange(length, device=device)
        distance = index - index.unsqueeze(1)  # (queries, keys): index of the key less the query's
        rows = self.relative_attention_bias(buckets[distance + length - 1])
        return rows.permute(2, 0, 1).unsqueeze(0)


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and normalised.

    Args:
        spec: the encoder.
        dropout: what training drops.
    """

    def __init__(self, spec: EncoderSpec, dropout: DropoutRates) -> None:
        super().__init__()
        hidden, inner, attention, epsilon = spec.hidden, spec.inner, spec.attention, spec.norm_epsilon
        self.heads = spec.heads
        self.query = nn.Linear(hidden, attention)
        self.key = nn.Linear(hidden, attention)
        self.value = nn.Linear(hidden, attention)
        self.attention_products = AttentionProducts(dropout.attention)
        self.attention_output = nn.Linear(attention, hidden)
        self.attention_output_dropout = nn.Dropout(dropout.attention_output)
        self.attention_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.ffn_in = nn.Linear(hidden, inner)
        self.gelu = nn.GELU()
        self.ffn_out = nn.Linear(inner, hidden)
        self.ffn_output_dropout = nn.Dropout(dropout.ffn_output)
        self.ffn_norm = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, x: Tensor, hidden: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return the next hidden state (batch, sequence, hidden).

        Args:
            x: the hidden state (batch, sequence, hidden).
            hidden: True for masked keys, (batch, 1, 1, sequence).
            bias: added to the scores, (1, heads, sequence, sequence).
        """
        q, k, v = (self._by_head(linear(x)) for linear in (self.query, self.key, self.value))
        context = self.attention_products(q, k, v, hidden, bias)
        context = context.transpose(1, 2).flatten(2)  # (batch, heads, sequence, D) -> (batch, sequence, attention)
        x = self.attention_norm(self.attention_output_dropout(self.attention_output(context)) + x)
        inner = self.gelu(self.ffn_in(x))
        return self.ffn_norm(self.ffn_output_dropout(self.ffn_out(inner)) + x)

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, sequence, attention) -> (batch, heads, sequence, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Head(nn.Module):
    """A linear layer on the first or on every token, optionally after a dense layer with an activation.

    Args:
        spec: the encoder.
        head: which tokens it reads, its layers and outputs.
        dropout: what training drops.
    """

    def __init__(self, spec: EncoderSpec, head: HeadSpec, dropout: DropoutRates) -> None:
        super().__init__()
        self.reads = head.reads
        self.input_dropout = nn.Dropout(dropout.head_input)
        self.dense = nn.Linear(spec.hidden, spec.hidden) if head.dense else None
        self.activation = _ACTIVATIONS[head.dense]() if head.dense else None
        self.output_dropout = nn.Dropout(dropout.head_output)
        self.output = nn.Linear(spec.hidden, head.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, outputs) or (batch, sequence, outputs) for hidden states (batch, sequence, H)."""
        x = self.input_dropout(x[:, 0] if self.reads == "first" else x)
        if self.dense is not None and self.activation is not None:
            x = self.activation(self.dense(x))
        return self.output(self.output_dropout(x))
