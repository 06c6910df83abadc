"""The ways to quantize a fine-tuned model without training, each scored on the dev set as it would run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from q8core.bench.peers.torch_dynamic import quantize_linears
from q8core.bench.stock import stock_class, stock_logits
from q8core.engines import build_engine
from q8core.evaluate import evaluate_engine
from q8core.quant import Scheme, preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.rules.ranges import CalibrationMethod
from q8core.reproduce.batch_dynamic import simulate_batch_dynamic
from q8core.tasks.task import ClassifyTask, Feature, Task
from q8core.training.batches import collate
from q8core.training.model import find_source, load_for_task, output_order
from q8core.training.qat import quantized_model
from q8core.training.score import logits_of

CALIBRATION_EXAMPLES = 512
# The original's default for evaluation.
_PAPER_BATCH = 8
_PLAIN_STATIC = replace(preset("static").smoothed(0), name="static-plain")
"""What range rules are compared with: one step for all columns of an input."""


@dataclass(frozen=True)
class Scored:
    """Scores on the dev set, how they were computed, and the files of weights that were written, by method."""

    scores: dict[str, float]
    how: str
    files: dict[str, Path] = field(default_factory=dict[str, Path])


Score = Callable[[str, Task, int], Scored]
"""(folder of a fine-tuned model, task, seed of the calibration) -> scores."""


@dataclass(frozen=True)
class Method:
    """A baseline: its title in tables, a sentence about it, and how it is scored."""

    title: str
    about: str
    score: Score


def _our_int8(scheme: Scheme, calibration: CalibrationMethod, source: str, task: Task, seed: int) -> Scored:
    model, _ = quantized_model(source, task, scheme, CALIBRATION_EXAMPLES, calibration, seed)
    engine = build_engine(model.plan(scheme), arrays(convert(model.network)))
    return Scored(evaluate_engine(engine, task), f"executed by the {engine.kernel} kernel")


def _paper_dynamic(source: str, task: Task, seed: int) -> Scored:
    model = simulate_batch_dynamic(load_for_task(source, task).network.eval())

    def pad(features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        batch = collate(features, task.kind, with_targets=False)
        return {name: F.pad(tensor, (0, task.max_length - tensor.shape[1])) for name, tensor in batch.items()}

    features = task.dev_features()
    order = list(range(len(features)))
    batches = [order[start : start + _PAPER_BATCH] for start in range(0, len(order), _PAPER_BATCH)]
    logits = logits_of(lambda batch: model(**batch), features, task.kind, batches, pad)
    return Scored(
        task.score(logits),
        f"simulated in float32, batches of {_PAPER_BATCH} padded to {task.max_length} tokens",
    )


def _torch_dynamic(source: str, task: Task, seed: int) -> Scored:
    model = quantize_linears(stock_class(task.kind).from_pretrained(source).eval())
    order = output_order(find_source(source), task.classes) if isinstance(task, ClassifyTask) else None

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = stock_logits(model(**batch))
        return logits if order is None else logits[:, list(order)]

    features = task.dev_features()
    alone = partial(collate, kind=task.kind, with_targets=False)
    logits = logits_of(forward, features, task.kind, [[i] for i in range(len(features))], alone)
    return Scored(task.score(logits), f"executed by torch's {torch.backends.quantized.engine} engine")


BASELINES: dict[str, Method] = {
    "dynamic": Method(
        "dynamic",
        "int8, weights per channel, activations scaled per token at run time, executed",
        partial(_our_int8, preset("dynamic"), "max"),
    ),
    "dynamic-paper": Method(
        "dynamic, as the paper (simulated)",
        "the original's DYNAMIC mode: symmetric, a scale per tensor and batch, queries and keys on the 8-bit grid; "
        f"simulated in float32 with batches of {_PAPER_BATCH} in file order, padded to the longest allowed input",
        _paper_dynamic,
    ),
    "dynamic-torch": Method(
        "dynamic, torch",
        "`torch.ao.quantization.quantize_dynamic` on stock transformers: asymmetric u8 activations, linear layers "
        "only, each input alone, so that no padding and no neighbour widens its ranges; executed",
        _torch_dynamic,
    ),
    "static-max": Method(
        "static, max",
        f"int8, weights per channel, ranges from {CALIBRATION_EXAMPLES} training examples: the largest magnitude, "
        "one step for all columns of an input; "
        "executed",
        partial(_our_int8, _PLAIN_STATIC, "max"),
    ),
    "static-percentile": Method(
        "static, percentile",
        "the same with ranges that cover 99.99 % of magnitudes; executed",
        partial(_our_int8, _PLAIN_STATIC, "percentile"),
    ),
    "static-mse": Method(
        "static, MSE",
        "the same with ranges of least squared error; executed",
        partial(_our_int8, _PLAIN_STATIC, "mse"),
    ),
}
"""The baselines by their names in results; each is scored on the fine-tuned model of every seed."""
