"""The contenders: our engines and stock transformers, and how each is loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from q8core.bench.padding import pad
from q8core.checkpoint import Checkpoint
from q8core.engines import Engine, TokenBatch, load_engine
from q8core.engines.engine import EncoderEngine
from q8core.errors import EngineError
from q8core.model.head import TaskKind
from q8core.native import load_library

STOCK = "transformers"
ENGINES = ("fp32", "fp32-onednn", "int8-fbgemm", "int8-onednn", "int8-native")
CONTENDERS = (STOCK, *ENGINES)
"""Contenders that need no further packages; stock transformers in fp32 first."""


def missing_engines() -> dict[str, str]:
    """Return the contenders that this installation has no kernel for, and why."""
    try:
        load_library()
    except EngineError as error:
        return {"int8-native": str(error)}
    return {}


class Contender(Protocol):
    """Something that computes a model's output for packed sequences."""

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Convert a batch to the contender's layout, which is not timed, and return the function to time."""
        ...


class StockTransformers:
    """A Hugging Face model as users run it: fp32, SDPA attention, inference mode, padded."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch, with the mask that a tokenizer returns."""
        inputs = pad(batch)._asdict()

        def run() -> object:
            with torch.inference_mode():
                return self._model(**inputs)

        return run


class OurEngine:
    """One of our engines."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Use the batch as it is, packed."""
        return lambda: self._engine.infer(batch)


def stock_class(task: TaskKind) -> Any:
    """Return the Hugging Face class of a task."""
    return AutoModelForSequenceClassification if task == "classify" else AutoModelForQuestionAnswering


def stock_logits(output: Any) -> Tensor:
    """Return the logits in the output of a Hugging Face model: (batch, labels), or (batch, sequence, 2)."""
    if hasattr(output, "logits"):
        return output.logits
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def load_stock(folder: Path, task: TaskKind) -> Contender:
    """Load stock transformers from a folder with float weights."""
    return StockTransformers(stock_class(task).from_pretrained(folder))


def load_named_engine(name: str, checkpoint: Checkpoint, threads: int) -> EncoderEngine:
    """Load one of `ENGINES`, as serving does.

    Raises:
        EngineError: if its kernel cannot be used on this machine.
    """
    backend, _, kernel = name.partition("-")
    return load_engine(checkpoint, backend, kernel or "auto", threads)


def load_contender(name: str, checkpoint: Checkpoint, threads: int) -> Contender:
    """Load one of `CONTENDERS`.

    Raises:
        EngineError: if its kernel cannot be used on this machine.
    """
    if name == STOCK:
        return load_stock(checkpoint.path, checkpoint.task)
    return OurEngine(load_named_engine(name, checkpoint, threads))
