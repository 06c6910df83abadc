"""A model computed layer by layer with torch's operators: takes and returns arrays, uses tensors inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.arrays import Logits
from q8core.engines.layers.encoder import Embeddings, EncoderLayer
from q8core.engines.layers.footprint import footprint
from q8core.engines.layers.linear import Linear
from q8core.engines.memory.residence import PACKED_BY_TORCH, Residence
from q8core.engines.packing import TokenBatch
from q8core.model.head import Activation, Reads
from q8core.model.spec import EncoderSpec

_ACTIVATE: dict[Activation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_, "gelu": F.gelu}
"""Activations after a head's dense layer; the first two overwrite its outputs."""


@dataclass(frozen=True)
class Model:
    """A model computed layer by layer.

    Attributes:
        spec: the encoder's sizes.
        embeddings: tokens -> hidden state.
        layers: the encoder. If the head reads first tokens, the last layer's query is a separate linear.
        dense: the head's first layer (hidden) -> (hidden), or None.
        head: the head's last layer (hidden) -> (outputs).
        state_bytes: bytes of one value of the inner feed-forward state.
        reads: the head reads the "first" token of each sequence, or "every" token.
        activation: the activation after the dense layer, or None.
    """

    spec: EncoderSpec
    embeddings: Embeddings
    layers: tuple[EncoderLayer, ...]
    dense: Linear | None
    head: Linear
    state_bytes: int = 4
    reads: Reads = "every"
    activation: Activation | None = None

    @property
    def residence(self) -> Residence:
        """Where the weights are: oneDNN and fbgemm allocate their own layouts, which no other process can use."""
        return PACKED_BY_TORCH

    @property
    def own_threads(self) -> int:
        """Torch's setting."""
        return torch.get_num_threads()

    def logits(self, batch: TokenBatch, threads: int | None = None) -> Logits:
        """Return logits: (B, outputs) where the head reads first tokens, else (T, outputs)."""
        # Both settings are per thread, and any thread may call this.
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            return self._logits(batch).numpy()

    def _logits(self, batch: TokenBatch) -> Tensor:
        runs, hidden = batch.runs(), self.embeddings(batch)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, runs)
        # If only first tokens reach the head, the last layer computes only their rows after its keys and values.
        hidden = self.layers[-1](hidden, runs, torch.from_numpy(batch.first_rows()) if self.reads == "first" else None)
        if self.dense is not None:
            hidden = self.dense(hidden)
            hidden = hidden if self.activation is None else _ACTIVATE[self.activation](hidden)
        return self.head(hidden)

    def footprint(self) -> tuple[int, int]:
        """Return the resident bytes of (matrices and tables, all other tensors)."""
        return footprint(self)

    def workspace_bytes(self, tokens: int) -> int:
        """Return the peak bytes, within a layer, of the activations of `tokens` tokens."""
        spec = self.spec
        length = min(tokens, spec.positions)
        scores = max(layer.products.workspace_bytes(tokens, length, spec.heads) for layer in self.layers)
        attention = 4 * (spec.hidden + (3 + 1) * spec.attention)  # residual; q k v, context
        feed_forward = 4 * 2 * spec.hidden + self.state_bytes * spec.inner
        return max(tokens * attention + scores, tokens * feed_forward)
