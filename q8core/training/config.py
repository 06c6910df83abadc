"""The hyperparameters of a training run: a frozen record that goes into the checkpoint's manifest."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from q8core.errors import InputError

Precision = Literal["fp32", "bf16"]
DISTILL_WEIGHTS = ("distill_labels", "distill_logits", "distill_hidden", "distill_attention", "distill_relations")


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of one run."""

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises from 0; then it falls linearly to 0."""
    grad_clip: float = 1.0
    average: float = 0.0
    """Share of all steps over which weights are averaged; the average is evaluated and kept. 0: no averaging."""
    dropout: float = 0.0
    """Off by default: it costs a third of a step on CPUs, and small encoders underfit SQuAD rather than overfit."""
    width: float = 1.0
    """Share of the attention heads and feed-forward neurons that are kept, before training: the most important ones."""
    seed: int = 42
    precision: Literal[Precision, "auto"] = "fp32"
    """What a step multiplies in; "auto" becomes what this machine computes fastest."""
    max_steps: int | None = None
    evals: int = 4
    """Number of evaluations, evenly spaced, the last one after the last step; the best weights are kept."""
    eval_examples: int | None = None
    """Dev examples in these evaluations; None for all. The finished model is always scored on all."""
    distill_labels: float = 0.0
    """With a teacher: weight of the task's own loss. The weights of all losses are those of TernaryBERT."""
    distill_logits: float = 1.0
    distill_hidden: float = 1.0
    distill_attention: float = 1.0
    distill_relations: float = 0.0
    """Weight of the relations between tokens in the last layer, for which the teacher may have another shape."""
    relation_heads: int | None = None
    """Heads of these relations; None for the student's attention heads."""
    distill_temperature: float = 1.0
    """Divisor of both models' logits before the softmax."""

    def __post_init__(self) -> None:
        """Settle the precision, and refuse values that cannot train.

        Raises:
            InputError: names the value and what is allowed.
        """
        if self.precision == "auto":
            object.__setattr__(self, "precision", best_precision())
        checks = {
            "epochs": 0 < self.epochs < math.inf,
            "batch_size": self.batch_size >= 1,
            "learning_rate": 0 < self.learning_rate < 1,
            "weight_decay": 0 <= self.weight_decay < 1,
            "warmup": 0 <= self.warmup < 1,
            "dropout": 0 <= self.dropout < 1,
            "grad_clip": self.grad_clip > 0,
            "width": 0 < self.width <= 1,
            "average": 0 <= self.average <= 1,
            "max_steps": self.max_steps is None or self.max_steps >= 1,
            "evals": self.evals >= 1,
            "eval_examples": self.eval_examples is None or self.eval_examples >= 1,
            "relation_heads": self.relation_heads is None or self.relation_heads >= 1,
            "distill_temperature": 0 < self.distill_temperature < math.inf,
            **{name: 0 <= getattr(self, name) < math.inf for name in DISTILL_WEIGHTS},
        }
        for name, fine in checks.items():
            if not fine:
                raise InputError(f"{name} is {getattr(self, name)}, out of its range")

    def changed(self, **changes: Any) -> TrainConfig:
        """Return the hyperparameters with all changes that are not None.

        Raises:
            InputError: a change is out of its range.
        """
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def best_precision() -> Precision:
    """Return ``bf16`` if the GPU, or without one the CPU, multiplies bfloat16 in hardware, else ``fp32``."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # oneDNN also emulates bf16 on plain AVX-512, which is slower than fp32
    flags = torch.cpu.get_capabilities()
    return "bf16" if flags.get("avx512_bf16") or flags.get("amx_bf16") else "fp32"
