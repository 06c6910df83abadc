"""The engine: an encoder with a head, over packed tokens."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.engines.layers.encoder import Embeddings, EncoderLayer
from q8core.engines.layers.linear import Linear
from q8core.engines.memory.footprint import footprint
from q8core.engines.memory.residence import PACKED_BY_TORCH, Residence
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Backend, EngineMemory
from q8core.errors import InputError
from q8core.model.head import Activation, HeadSpec, Reads
from q8core.model.spec import EncoderSpec

_ACTIVATE: dict[Activation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_, "gelu": F.gelu}
"""What may follow a head's dense layer; the first two overwrite its outputs."""


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

    @property
    def reads(self) -> Reads:
        """Which tokens its head reads."""
        ...

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, outputs) where the head reads first tokens, else (T, outputs)."""
        ...

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of activations for the largest batch so far, of `tokens` tokens, at their peak."""
        ...


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

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, outputs) where the head reads first tokens, else (T, outputs)."""
        runs, hidden = batch.runs(), self.embeddings(batch)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, runs)
        # Where only the first tokens reach the head, the last layer computes nothing else after its attention.
        hidden = self.layers[-1](hidden, runs, batch.first_rows() if self.reads == "first" else None)
        if self.dense is not None:
            hidden = self.dense(hidden)
            hidden = hidden if self.activation is None else _ACTIVATE[self.activation](hidden)
        return self.head(hidden)

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of activations of `tokens` tokens, at their peak in a layer."""
        spec = self.spec
        length = min(tokens, spec.positions)
        scores = max(layer.products.workspace_bytes(tokens, length, spec.heads) for layer in self.layers)
        attention = 4 * (1 + 3 + 1) * spec.hidden  # residual, q k v, context
        feed_forward = 4 * 2 * spec.hidden + self.state_bytes * spec.inner
        return max(tokens * attention + scores, tokens * feed_forward)


@dataclass
class EncoderEngine:
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

    @property
    def reads(self) -> Reads:
        """Which tokens the head reads: the "first" of each sequence, or "every" one."""
        return self.head.reads

    def infer(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, outputs) where the head reads first tokens, else (T, outputs).

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
            # Where there are no token types, those of a tokenizer are not read.
            ("token_type_ids", batch.token_type_ids, spec.token_types or None),
        ):
            if size is None:
                continue
            low, high = (int(bound) for bound in torch.aminmax(ids))
            if low < 0 or high >= size:
                bad = low if low < 0 else high
                raise InputError(f"{name} holds {bad}; allowed: 0 to {size - 1}")


def score_scale(spec: EncoderSpec) -> float:
    """Return 1 / sqrt(head size), the factor of Q K^T (Vaswani et al., 2017)."""
    return 1.0 / math.sqrt(spec.head_size)
