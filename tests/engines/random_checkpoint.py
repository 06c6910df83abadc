"""The benchmark's random checkpoint, in sizes that tests like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8core.bench import folder as bench
from q8core.bench.models import bench_config


def write_random(folder: Path, task: Any = "classify", **sizes: int) -> Path:
    """Write it; `sizes` are fields of the config."""
    config = bench_config("bert-base", vocab_size=2000, max_position_embeddings=128, **sizes)
    folder.mkdir()
    bench.write_random(folder, "random", config, task)
    return folder
