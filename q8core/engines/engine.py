"""The engine: an encoder with a head, over packed tokens."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from q8core.arrays import Logits
from q8core.engines.memory.residence import Residence
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Backend, EngineMemory
from q8core.errors import InputError
from q8core.model.head import HeadSpec, Reads
from q8core.model.spec import EncoderSpec


class Forward(Protocol):
    """A loaded model that can run."""

    @property
    def spec(self) -> EncoderSpec:
        """The model's encoder."""
        ...

    @property
    def residence(self) -> Residence:
        """Where the model's weights are."""
        ...

    @property
    def reads(self) -> Reads:
        """Which tokens the model's head reads."""
        ...

    @property
    def own_threads(self) -> int:
        """CPU threads that it uses at most by default."""
        ...

    def logits(self, batch: TokenBatch, threads: int | None = None) -> Logits:
        """Return logits: (B, outputs) where the head reads first tokens, else (T, outputs).

        Args:
            batch: a batch that the engine has checked.
            threads: the most CPU threads to use, whatever the calling thread; None for `own_threads`.
        """
        ...

    def footprint(self) -> tuple[int, int]:
        """Return the resident bytes of (matrices and tables, everything else that was loaded)."""
        ...

    def workspace_bytes(self, tokens: int) -> int:
        """Return the peak bytes of activations for the largest batch so far, of `tokens` tokens."""
        ...


@dataclass
class EncoderEngine:
    """A loaded model; satisfies the `Engine` protocol.

    Attributes:
        facts: what `describe` adds to the shapes, such as the kernel's instruction set.
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

    def infer(self, batch: TokenBatch) -> Logits:
        """Return float32 logits: (B, outputs) where the head reads first tokens, else (T, outputs).

        Raises:
            InputError: if an id is outside its table or a sequence is longer than the position table.
        """
        self._check(batch)
        logits = self.model.logits(batch, self.threads)
        self._most_tokens = max(self._most_tokens, batch.tokens)
        return logits

    def warmup(self) -> None:
        """Run a short and a long sequence, and a mixed batch."""
        for wanted in ((8,), (128,), (5, 32, 64)):
            lengths = tuple(min(length, self.model.spec.positions) for length in wanted)
            zeros = np.zeros(sum(lengths), np.int64)
            self.infer(TokenBatch(zeros, zeros, lengths))

    def memory(self) -> EngineMemory:
        """Return the resident bytes; the workspace is computed from the largest batch so far."""
        weights, scales = self.model.footprint()
        return EngineMemory(weights, scales, self.model.workspace_bytes(self._most_tokens))

    def describe(self) -> dict[str, object]:
        """Return kernel, instruction set, shapes, the most threads and the facts collected while loading."""
        spec = self.model.spec
        return {
            "reads": self.head.reads,
            "outputs": self.head.outputs,
            "backend": self.backend,
            "kernel": self.kernel,
            "machine": platform.machine(),
            "threads": self.threads or self.model.own_threads,
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
            # Without token types in the model, the tokenizer's are ignored.
            ("token_type_ids", batch.token_type_ids, spec.token_types or None),
        ):
            if size is None:
                continue
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= size:
                bad = low if low < 0 else high
                raise InputError(f"{name} holds {bad}; allowed: 0 to {size - 1}")


def score_scale(spec: EncoderSpec) -> float:
    """Return 1 / sqrt(head size), the factor of Q K^T (Vaswani et al., 2017)."""
    return 1.0 / math.sqrt(spec.head_size)
