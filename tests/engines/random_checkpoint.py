"""A checkpoint with random int8 weights of any shape, and no golden answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BertConfig

from q8core.checkpoint import write_checkpoint
from q8core.engines.random_weights import RandomInt8
from q8core.quant import preset
from tests.service.tiny_checkpoints import make_tokenizer


def write_random(folder: Path, task: Any = "classify", **sizes: int) -> Path:
    """Write it; `sizes` are fields of the config."""
    make_tokenizer(folder)
    config = BertConfig(vocab_size=2000, max_position_embeddings=128, num_labels=2, **sizes)
    write_checkpoint(
        folder,
        name="random",
        config=config,
        task=task,
        labels=("no", "yes") if task == "classify" else (),
        max_length=64,
        scheme=preset("q8bert"),
        tensors=RandomInt8(config, task),
        tokenizer_folder=folder,
    )
    return folder
