"""A temporary folder with random weights, float and int8: what every contender is loaded from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

from q8core.bench.models import bench_config
from q8core.checkpoint.manifest import FLOAT_FILE, INT8_FILE
from q8core.engines.random_weights import RandomFloat, RandomInt8
from q8core.tasks.task import TaskKind


@contextmanager
def random_folder(model: str, task: TaskKind, **changes: int) -> Generator[Path]:
    """Write a random model of a named shape into a temporary folder that goes away afterwards.

    Args:
        model: one of `MODEL_NAMES`.
        task: which head it has.
        changes: to the fields of its config.

    Raises:
        InputError: if there is no such shape.
    """
    config = bench_config(model, **changes)
    with TemporaryDirectory(prefix="q8bert-bench-") as name:
        folder = Path(name)
        config.save_pretrained(folder)
        save_file(dict(RandomInt8(config, task)), folder / INT8_FILE, {"format": "pt"})
        save_file(dict(RandomFloat(config, task)), folder / FLOAT_FILE, {"format": "pt"})
        yield folder
