"""A temporary checkpoint folder with random weights, int8 and float, from which every contender is loaded."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from q8core.bench.contender import FEW_BITS, SPLIT
from q8core.bench.models import bench_config
from q8core.cache import CACHE_VARIABLE
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.config import ModelConfig
from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.checkpoint.tensors import write_tensors
from q8core.checkpoint.writer import write_checkpoint
from q8core.engines.choice.random_weights import RandomFloat, RandomInt8
from q8core.model.head import TaskKind
from q8core.model.sites import LAYER_LINEARS
from q8core.quant import Plan, Scheme, preset


@contextmanager
def random_folder(model: str, task: TaskKind, **changes: int) -> Generator[Path]:
    """Write a random model of a named shape as a checkpoint into a temporary folder, which is removed afterwards.

    Meanwhile the cache folder of this process, and of those that it starts, is in there too: it starts empty, and the
    user's own is not filled with random weights.

    Args:
        model: one of `MODEL_NAMES`.
        task: the task of its head.
        changes: values of config fields to change.

    Raises:
        InputError: if there is no such shape.
    """
    config = bench_config(model, **changes)
    with TemporaryDirectory(prefix="q8bert-bench-") as name:
        folder = Path(name)
        write_random(folder, model, config, task)
        with _cache(folder / "cache"):
            yield folder


def write_random(folder: Path, name: str, config: ModelConfig, task: TaskKind) -> None:
    """Write a random checkpoint that can be opened like any other; its tokenizer is a dummy."""
    Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    _write_quantized(folder, name, config, task, preset("q8bert"), folder)
    # Written last, so that it is not hashed whenever the checkpoint is opened.
    floats, names = RandomFloat(Plan.of(config.spec, config.head(task))), config.file_names(task)
    write_tensors(folder / FLOAT_FILE, {names[name]: tensor for name, tensor in floats.items()})


def prepare_few_bits(engine: str, folder: Path) -> None:
    """Write the checkpoint of one of `FEW_BITS` into a random folder, under the engine's name."""
    opened = Checkpoint.open(folder)
    config, scheme = opened.config, _few_bits(engine)
    if engine == SPLIT:
        config = config.narrower(0.5)
    (folder / engine).mkdir(exist_ok=True)
    _write_quantized(folder / engine, opened.name, config, opened.task, scheme, folder)


def _few_bits(engine: str) -> Scheme:
    """Return the scheme of one of `FEW_BITS`."""
    if engine == SPLIT:
        return preset("binary-split")
    base = preset("q8bert")
    slots = dict(base.slots)
    for slot in LAYER_LINEARS:
        weight = slots[slot].weight
        assert weight is not None
        slots[slot] = replace(slots[slot], weight=replace(weight, bits=FEW_BITS[engine]))
    return replace(base, name=engine, slots=slots)


def _write_quantized(
    folder: Path, name: str, config: ModelConfig, task: TaskKind, scheme: Scheme, tokenizer_folder: Path
) -> None:
    write_checkpoint(
        folder,
        name=name,
        config=config,
        task=task,
        labels=config.labels if task == "classify" else (),
        max_length=config.spec.positions,
        scheme=scheme,
        tensors=RandomInt8(Plan.of(config.spec, config.head(task), scheme)),
        tokenizer_folder=tokenizer_folder,
    )


@contextmanager
def _cache(folder: Path) -> Generator[None]:
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before
