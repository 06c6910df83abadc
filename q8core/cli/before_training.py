"""Preparations of every command that trains."""

from __future__ import annotations

import typer


def prepare_training(quantized: bool) -> None:
    """Configure the allocator, and log if training will be slower than it could be.

    Args:
        quantized: whether the command trains with quantization.
    """
    import torch

    from q8core.quant.ops import passes
    from q8core.training.allocator import keep_freed_memory

    keep_freed_memory()
    if quantized and not passes.available() and not torch.cuda.is_available():
        typer.echo(
            "note: the native library is not there (it is compiled by g++ when q8bert is installed), so training with "
            "quantization takes torch's slower passes",
            err=True,
        )
