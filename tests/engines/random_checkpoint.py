"""The benchmark's random checkpoint, in sizes that tests like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BertConfig

from q8core.bench import folder as bench
from q8core.engines.random_weights import LABELS


def write_random(folder: Path, task: Any = "classify", **sizes: int) -> Path:
    """Write it; `sizes` are fields of the config."""
    config = BertConfig(vocab_size=2000, max_position_embeddings=128, num_labels=LABELS, **sizes)
    folder.mkdir()
    bench.write_random(folder, "random", config, task)
    return folder
