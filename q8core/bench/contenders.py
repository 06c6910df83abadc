"""The engines that are compared: ours, and stock transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.engines import Engine, TokenBatch, build_engine
from q8core.engines.random_weights import RandomFloat, RandomInt8
from q8core.errors import InputError
from q8core.tasks.task import TaskKind

STOCK = "transformers"
CONTENDERS = (STOCK, "fp32", "int8-fbgemm", "int8-onednn", "int8-native")
"""Stock transformers in fp32 first: all ratios are to it."""


class Contender(Protocol):
    """Something that computes logits for packed sequences of one length."""

    def __call__(self, batch: TokenBatch) -> object:
        """Compute the logits of a batch."""
        ...


class StockTransformers:
    """A Hugging Face model as its users run it: fp32, SDPA attention, inference mode."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    def __call__(self, batch: TokenBatch) -> object:
        """Compute the logits of a batch of equal lengths, with the mask a tokenizer gives."""
        shape = (len(batch.lengths), batch.lengths[0])
        with torch.inference_mode():
            return self._model(
                input_ids=batch.input_ids.view(shape),
                token_type_ids=batch.token_type_ids.view(shape),
                attention_mask=torch.ones(shape, dtype=torch.int64),
            )


class OurEngine:
    """One of our engines."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Compute the logits of a batch."""
        return self._engine.infer(batch)


def check_contenders(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the known names in their order, all for none.

    Raises:
        InputError: naming the unknown one and the known.
    """
    for name in names:
        if name not in CONTENDERS:
            raise InputError(f"engine is {name!r}; allowed: {', '.join(CONTENDERS)}")
    return tuple(name for name in CONTENDERS if name in names or not names)


def stock_class(task: TaskKind) -> Any:
    """Return the Hugging Face class of a task."""
    return BertForSequenceClassification if task == "classify" else BertForQuestionAnswering


def build_contender(name: str, config: BertConfig, task: TaskKind, threads: int) -> Contender:
    """Build a contender with random weights.

    Raises:
        EngineError: if its kernel cannot be used on this machine.
    """
    if name == STOCK:
        return StockTransformers(stock_class(task)(config))
    backend, _, kernel = name.partition("-")
    makers: dict[str, Callable[[BertConfig, TaskKind], Mapping[str, Tensor]]] = {
        "fp32": RandomFloat,
        "int8": RandomInt8,
    }
    return OurEngine(build_engine(config, task, makers[backend](config, task), backend, kernel or "auto", threads))
