"""Stock transformers as a contender."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from q8core.bench.contender import Contender
from q8core.bench.padding import pad
from q8core.checkpoint.config import read_config
from q8core.engines import TokenBatch
from q8core.model.head import TaskKind


class StockTransformers:
    """A Hugging Face model as users run it: fp32, SDPA attention, inference mode, padded."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch, with the mask that a tokenizer returns."""
        inputs = stock_inputs(batch)

        def run() -> object:
            with torch.inference_mode():
                return self._model(**inputs)

        return run


def stock_class(task: TaskKind) -> Any:
    """Return the Hugging Face class of a task."""
    return AutoModelForSequenceClassification if task == "classify" else AutoModelForQuestionAnswering


def stock_inputs(batch: TokenBatch) -> dict[str, Tensor]:
    """Return a padded batch as keyword arguments of a Hugging Face model, each int64 (B, longest)."""
    return {name: torch.from_numpy(array) for name, array in pad(batch)._asdict().items()}


def stock_logits(output: Any) -> Tensor:
    """Return the logits in the output of a Hugging Face model: (batch, labels), or (batch, sequence, 2)."""
    if hasattr(output, "logits"):
        return output.logits
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def load_stock(folder: Path, task: TaskKind) -> Contender:
    """Load stock transformers from a folder with float weights.

    Raises:
        CheckpointError: transformers does not compute this model.
    """
    read_config(folder).check_others_read_it(folder)
    return StockTransformers(stock_class(task).from_pretrained(folder))
