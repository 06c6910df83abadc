"""Exports the random float model to ONNX, for ONNX Runtime and OpenVINO."""

from __future__ import annotations

from pathlib import Path

import torch

from q8core.bench.peers import ONNX_FILE
from q8core.bench.stock import stock_class, stock_inputs
from q8core.bench.workloads import random_batch
from q8core.model.head import TaskKind


def export_onnx(folder: Path, task: TaskKind) -> Path:
    """Export the float model of a folder to an ONNX file beside it, unless it exists, and return the file.

    Inputs are those of `Padded`, of any batch size and length; outputs are logits, or start and end logits.
    """
    file = folder / ONNX_FILE
    if file.is_file():
        return file
    # The exporter fails on the masks of transformers' SDPA attention.
    model = stock_class(task).from_pretrained(folder, attn_implementation="eager").eval()
    example = stock_inputs(random_batch((7, 11, 5), int(model.config.vocab_size)))
    any_size = torch.export.Dim.DYNAMIC
    with torch.inference_mode():
        torch.onnx.export(
            model,
            (),
            str(file),
            kwargs=example,
            dynamo=True,
            input_names=list(example),
            dynamic_shapes={name: {0: any_size, 1: any_size} for name in example},
        )
    return file
