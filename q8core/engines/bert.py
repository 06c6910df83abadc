"""The engine: a BERT with a classification or question-answering head, over packed tokens."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from q8core.engines.encoder import Embeddings, EncoderLayer
from q8core.engines.footprint import footprint
from q8core.engines.linear import Linear
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Backend, EngineMemory
from q8core.engines.residence import PACKED_BY_TORCH, Residence
from q8core.errors import InputError
from q8core.model.head import HeadSpec
from q8core.model.spec import EncoderSpec


class Forward(Protocol):
    """A loaded model that can run."""

    @property
    def spec(self) -> EncoderSpec:
        """Its encoder."""
        ...

    @property
    def residence(self) -> Residence:
        """Where its weights are."""
        ...

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, labels) for classify, (T, 2) for qa."""
        ...

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of activations for the largest batch so far, of `tokens` tokens, at their peak."""
        ...


@dataclass(frozen=True)
class Model:
    """A model computed layer by layer: `pooler` is None for question answering.

    `state_bytes` are those of one value of the inner feed-forward state.
    """

    spec: EncoderSpec
    embeddings: Embeddings
    layers: tuple[EncoderLayer, ...]
    pooler: Linear | None
    head: Linear
    state_bytes: int = 4

    @property
    def residence(self) -> Residence:
        """Where the weights are: oneDNN and fbgemm allocate their own layouts, which no other process can use."""
        return PACKED_BY_TORCH

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, labels) with a pooler, else (T, 2)."""
        runs, hidden = batch.runs(), self.embeddings(batch)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, runs)
        if self.pooler is None:
            return self.head(self.layers[-1](hidden, runs))
        # Only the first tokens reach the head, so the last layer computes nothing else after its attention.
        return self.head(self.pooler(self.layers[-1](hidden, runs, batch.first_rows())).tanh_())

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of activations of `tokens` tokens, at their peak in a layer."""
        spec = self.spec
        length = min(tokens, spec.positions)
        scores = max(layer.products.workspace_bytes(tokens, length, spec.heads) for layer in self.layers)
        attention = 4 * (1 + 3 + 1) * spec.hidden  # residual, q k v, context
        feed_forward = 4 * 2 * spec.hidden + self.state_bytes * spec.inner
        return max(tokens * attention + scores, tokens * feed_forward)


@dataclass
class BertEngine:
    """A loaded model; satisfies the `Engine` protocol.

    Attributes:
        facts: what `describe` adds to the shapes.
    """

    head: HeadSpec
    backend: Backend
    kernel: str
    model: Forward
    threads: int | None = None
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    _most_tokens: int = 0

    def infer(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, labels) for classify, (T, 2) for qa.

        Raises:
            InputError: if an id is outside its table or a sequence is longer than the position table.
        """
        self._check(batch)
        # Both are settings of the calling thread, and any thread may call.
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            logits = self.model.logits(batch)
        self._most_tokens = max(self._most_tokens, batch.tokens)
        return logits

    def warmup(self) -> None:
        """Run a short and a long sequence, and a mixed batch."""
        for wanted in ((8,), (128,), (5, 32, 64)):
            lengths = tuple(min(length, self.model.spec.positions) for length in wanted)
            zeros = torch.zeros(sum(lengths), dtype=torch.int64)
            self.infer(TokenBatch(zeros, zeros, lengths))

    def memory(self) -> EngineMemory:
        """Return the resident bytes; the workspace is computed from the largest batch so far."""
        weights, scales = footprint(self.model)
        return EngineMemory(weights, scales, self.model.workspace_bytes(self._most_tokens))

    def describe(self) -> dict[str, object]:
        """Return kernel, instruction set, shapes, threads and what loading found out."""
        spec = self.model.spec
        return {
            "reads": self.head.reads,
            "outputs": self.head.outputs,
            "backend": self.backend,
            "kernel": self.kernel,
            "isa": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "threads": self.threads or torch.get_num_threads(),
            "layers": spec.layers,
            "hidden": spec.hidden,
            "heads": spec.heads,
            "inner": spec.inner,
            "vocabulary": spec.vocabulary,
            "positions": spec.positions,
            **self.model.residence.facts(),
            **self.facts,
        }

    def _check(self, batch: TokenBatch) -> None:
        spec = self.model.spec
        longest = max(batch.lengths)
        if longest > spec.positions:
            raise InputError(f"a sequence has {longest} tokens; this model takes at most {spec.positions}")
        for name, ids, size in (
            ("input_ids", batch.input_ids, spec.vocabulary),
            ("token_type_ids", batch.token_type_ids, spec.token_types),
        ):
            low, high = (int(bound) for bound in torch.aminmax(ids))
            if low < 0 or high >= size:
                bad = low if low < 0 else high
                raise InputError(f"{name} holds {bad}; allowed: 0 to {size - 1}")


def score_scale(spec: EncoderSpec) -> float:
    """Return 1 / sqrt(head size), the factor of Q K^T (Vaswani et al., 2017)."""
    return 1.0 / math.sqrt(spec.head_size)
