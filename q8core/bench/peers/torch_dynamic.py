"""torch's own dynamic quantization: stock transformers with its linear layers replaced."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from q8core.bench.contender import Contender
from q8core.bench.stock import StockTransformers, stock_class
from q8core.model.head import TaskKind


def load(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Load the float model and quantize it; torch's thread count is set for the whole process."""
    return StockTransformers(quantize_linears(stock_class(task).from_pretrained(folder).eval()))


def quantize_linears(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, with torch's dynamically quantized linear layers."""
    quantization: Any = torch.ao.quantization
    with warnings.catch_warnings():
        # Deprecated in favour of torchao, but what users of torch have.
        warnings.simplefilter("ignore")
        return quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
