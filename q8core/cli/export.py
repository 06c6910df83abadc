"""``q8bert export``: a checkpoint in the format of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder with a static int8 model.")],
    onnx: Annotated[Path, typer.Option(help="File to write: pip install 'q8bert[export]' first.")],
) -> None:
    """Write a QDQ ONNX model with the checkpoint's int8 weights and scales, which onnxruntime runs in integers."""
    from q8core.checkpoint import Checkpoint
    from q8core.export.onnx_model import export_onnx

    opened = Checkpoint.open(checkpoint)
    size = export_onnx(opened, onnx)
    typer.echo(f"{onnx}: {size / 2**20:.1f} MiB, task {opened.task}; its tokenizer is {opened.path / 'tokenizer.json'}")
