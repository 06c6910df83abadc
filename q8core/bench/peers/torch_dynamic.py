"""torch's own dynamic quantization: stock transformers with its linear layers replaced."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from q8core.bench.contenders import Contender, StockTransformers, stock_class
from q8core.tasks.task import TaskKind


def load(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Load the float model and quantize it; torch's thread count is the process's."""
    model = stock_class(task).from_pretrained(folder).eval()
    quantization: Any = torch.ao.quantization
    with warnings.catch_warnings():
        # Deprecated in favour of a package of its own, but what people have.
        warnings.simplefilter("ignore")
        return StockTransformers(quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8))
