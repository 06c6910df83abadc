"""Writes a prepared, trained or calibrated model as a checkpoint with golden answers and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from q8core.arrays import Logits
from q8core.checkpoint import GoldenExample, write_checkpoint
from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.engines import Engine, TokenBatch, build_engine
from q8core.evaluate import evaluate_engine
from q8core.quant import Scheme
from q8core.quant.dequantized import DequantizedTensors
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import master_weights
from q8core.tasks.task import Feature, Scorable
from q8core.training.finetune import write_float
from q8core.training.model import TaskModel

GOLDEN_COUNT = 8
# Golden logits are stored as text in the manifest, which short inputs keep small.
GOLDEN_MAX_TOKENS = 128
# A classifier with thousands of labels gets fewer inputs, for the same reason.
GOLDEN_NUMBERS = 50_000


@dataclass(frozen=True)
class Origin:
    """The origin of a checkpoint, for its card."""

    name: str
    folder: Path
    """Folder with the base model's tokenizer."""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    baselines: Mapping[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Scores of the source model, to show beside the checkpoint's own."""


def publish(
    prepared: TaskModel, scheme: Scheme, task: Scorable, origin: Origin, output: Path, keep_float: bool
) -> dict[str, dict[str, float]]:
    """Convert, run the dev set on the int8 engine, and write the folder; return baselines and int8 scores.

    Args:
        prepared: the model after training or calibration.
        scheme: the scheme of ``prepared``.
        task: dev set and labels.
        origin: name, tokenizer and record for the card.
        output: the checkpoint folder.
        keep_float: whether to store the float weights too, which the fp32 backend then uses.
    """
    tensors, plan = arrays(convert(prepared.network)), prepared.plan(scheme)
    floats = arrays(master_weights(prepared.network)) if keep_float else DequantizedTensors(plan, tensors)
    int8 = build_engine(plan, tensors)
    fp32 = build_engine(prepared.plan(), floats)
    golden = golden_examples({"int8": int8, "fp32": fp32}, task.dev_features())
    scores = {**origin.baselines, "int8": evaluate_engine(int8, task)}
    output.mkdir(parents=True, exist_ok=True)
    if keep_float:
        write_float(prepared.config, prepared.kind, floats, output)
    else:
        (output / FLOAT_FILE).unlink(missing_ok=True)
    write_checkpoint(
        output,
        name=origin.name,
        config=prepared.config,
        task=task.kind,
        labels=task.labels,
        max_length=task.max_length,
        scheme=scheme,
        tensors=tensors,
        tokenizer_folder=origin.folder,
        golden=golden,
        training={**origin.training, "cut": dict(task.cut.counts)},
        scores={"metric": task.metric, **scores},
    )
    return scores


def golden_examples(engines: Mapping[str, Engine], features: list[Feature]) -> list[GoldenExample]:
    """Choose inputs of different lengths up to 128 tokens, and record each engine's logits."""
    short = sorted((f for f in features if len(f) <= GOLDEN_MAX_TOKENS), key=len) or sorted(features, key=len)[:1]
    step = max(1, len(short) // GOLDEN_COUNT)
    examples: list[GoldenExample] = []
    numbers = 0
    for feature in short[::step][:GOLDEN_COUNT]:
        if numbers >= GOLDEN_NUMBERS:
            break
        ids, types = feature.input_ids.tolist(), feature.token_type_ids.tolist()
        found = {name: _one(engine, ids, types) for name, engine in engines.items()}
        numbers += sum(logits.size for logits in found.values())
        examples.append(GoldenExample(ids, types, {name: _rounded(logits) for name, logits in found.items()}))
    return examples


def _one(engine: Engine, ids: list[int], types: list[int]) -> Logits:
    logits = engine.infer(TokenBatch.pack([(ids, types)]))
    return logits[0] if engine.head.reads == "first" else logits


def _rounded(logits: Logits) -> list[Any]:
    # six decimals: finer than differences between kernels, shorter than float32 in full
    return (np.rint(logits.astype(np.float64) * 1e6) / 1e6).tolist()
