"""A model computed layer by layer with torch's operators: arrays come in and go out, tensors are between."""

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
"""What may follow a head's dense layer; the first two overwrite its outputs."""


@dataclass(frozen=True)
class Model:
    """A model computed layer by layer.

    Attributes:
        spec: its encoder.
        embeddings: tokens -> hidden state.
        layers: the encoder. Where the head reads first tokens, the last layer's query is a linear of its own.
        dense: the head's first layer (hidden) -> (hidden), None where there is none.
        head: its last, (hidden) -> (outputs).
        state_bytes: those of one value of the inner feed-forward state.
        reads: the head reads the "first" token of each sequence, or "every" token.
        activation: what follows the dense layer; None for nothing.
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
        # Both are settings of the calling thread, and any thread may call.
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            return self._logits(batch).numpy()

    def _logits(self, batch: TokenBatch) -> Tensor:
        runs, hidden = batch.runs(), self.embeddings(batch)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, runs)
        # Where only the first tokens reach the head, the last layer computes nothing else after its attention.
        hidden = self.layers[-1](hidden, runs, torch.from_numpy(batch.first_rows()) if self.reads == "first" else None)
        if self.dense is not None:
            hidden = self.dense(hidden)
            hidden = hidden if self.activation is None else _ACTIVATE[self.activation](hidden)
        return self.head(hidden)

    def footprint(self) -> tuple[int, int]:
        """Return the resident bytes of (matrices and tables, all other tensors)."""
        return footprint(self)

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of activations of `tokens` tokens, at their peak in a layer."""
        spec = self.spec
        length = min(tokens, spec.positions)
        scores = max(layer.products.workspace_bytes(tokens, length, spec.heads) for layer in self.layers)
        attention = 4 * (1 + 3 + 1) * spec.hidden  # residual, q k v, context
        feed_forward = 4 * 2 * spec.hidden + self.state_bytes * spec.inner
        return max(tokens * attention + scores, tokens * feed_forward)
