"""The training steps to compare: ours, and stock transformers' in fp32 and under bf16 autocast.

A step is forward, backward, clipping, update and clearing of the gradients of a classifier, without dropout: our
recipes train quantized models without it, and it would cost stock transformers a third of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from q8core.bench.contender import STOCK, Contender
from q8core.bench.stock import stock_class, stock_inputs
from q8core.engines import TokenBatch
from q8core.engines.choice.random_weights import LABELS
from q8core.quant import preset
from q8core.quant.qat.prepare import prepare
from q8core.training.config import TrainConfig, best_precision
from q8core.training.loop import make_optimizer
from q8core.training.losses import task_loss
from q8core.training.model import load_model
from q8core.training.step import training_step

AUTOCAST = "transformers-bf16"
QAT, FLOAT = "q8bert-qat", "q8bert-float"
STEPS = (STOCK, AUTOCAST, FLOAT, QAT)
"""Stock transformers in fp32 and in bf16 mixed precision, `q8bert train --scheme fp32` and `--scheme q8bert`."""


class OurStep:
    """A step of `q8bert train` with its defaults."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._config = model.train(), TrainConfig(precision=best_precision())
        self._optimizer = make_optimizer(model, self._config)

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch and draw its labels."""
        inputs = labelled(batch)
        return lambda: training_step(lambda: task_loss(self._model, inputs), self._optimizer, self._config)


class StockStep:
    """A step as users of transformers and torch write it, with the defaults of both."""

    def __init__(self, model: nn.Module, *, autocast: bool) -> None:
        self._model, self._autocast, config = model.train(), autocast, TrainConfig()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        self._clip = config.grad_clip

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch and draw its labels."""
        inputs = labelled(batch)

        def run() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                loss: Tensor = self._model(**inputs).loss
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
            self._optimizer.step()
            self._optimizer.zero_grad()
            return loss.item()

        return run


def labelled(batch: TokenBatch) -> dict[str, Tensor]:
    """Return a batch padded, with random labels, the same each time: keyword arguments of Hugging Face's classifier."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(LABELS, (len(batch.lengths),), generator=generator)
    return {**stock_inputs(batch), "labels": labels}


def load_step(name: str, folder: Path) -> Contender:
    """Load one of `STEPS` from a folder with the float weights of a classifier."""
    if name in (STOCK, AUTOCAST):
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model: Any = stock_class("classify").from_pretrained(folder, **no_dropout)
        return StockStep(model, autocast=name == AUTOCAST)
    ours = load_model(str(folder), "classify", dropout=0.0)
    return OurStep(prepare(ours.network, ours.plan(preset("q8bert"))) if name == QAT else ours.network)
