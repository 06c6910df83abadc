"""Quantization-aware training and post-training quantization, which make the same kind of checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from q8core.documents import read_json
from q8core.engines import build_engine
from q8core.errors import CheckpointError, InputError
from q8core.evaluate import evaluate_engine
from q8core.quant import Scheme, find_scheme, preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, learned_steps, master_weights, prepare, quantized_layers
from q8core.quant.rules.ranges import CalibrationMethod
from q8core.tasks.task import Task
from q8core.training.batches import calibration_batches
from q8core.training.config import TrainConfig
from q8core.training.distillation import training_loss
from q8core.training.finetune import RECORD_FILE
from q8core.training.identity import dev_identity, run_identity, weights_digest
from q8core.training.loop import ParameterRules, Trainer
from q8core.training.model import TaskModel, find_source, load_for_task, model_folder
from q8core.training.publish import Origin, publish
from q8core.training.sample import sample
from q8core.training.sensitivity.choose import choose_bits, discard_samples
from q8core.training.width import load_to_train

STARTING_EXAMPLES = 512
"""Training examples on which inputs are calibrated before training starts, where the scheme needs it."""

STEP_RATE = 5e-3
"""The highest learning rate of learned steps: they are logarithms, so a step changes by half a percent an update."""


def train_quantized(
    source: str,
    task: Task,
    config: TrainConfig,
    scheme_name: str,
    output: Path,
    data: str,
    keep_float: bool,
    *,
    baselines: Mapping[str, dict[str, float]] | None = None,
    teacher: str | None = None,
) -> dict[str, dict[str, float]]:
    """Train with quantization from a pretrained or fine-tuned source to an int8 checkpoint; return scores by name.

    ``int8`` is the score of the finished checkpoint on the int8 engine; a fine-tuned source adds ``fp32`` and
    ``dynamic``, its own scores in float and quantized without training. Known scores of the source can be passed as
    ``baselines``, and are not computed again. `teacher` is a fine-tuned float model to learn from.

    An interrupted run resumes when called again with the same arguments.

    Raises:
        CheckpointError: the scheme leaves its bits to the model, and the source was not fine-tuned for the task.
        InputError: the scheme needs no training, or chooses bits on a model that `config.width` cuts.
    """
    scheme, chosen = choose_bits(_scheme_to_train(scheme_name, config), source, task, output)
    torch.manual_seed(config.seed)
    model = load_to_train(source, task, config)
    prepared = prepare(model.network, model.plan(scheme))
    if model.plan(scheme).starts_calibrated:
        features = sample(task, STARTING_EXAMPLES, config.seed).train_features()
        calibrate(prepared, calibration_batches(features, task.kind, model.config.spec.pad_token))

    def score(module: nn.Module, limit: int | None) -> dict[str, float]:
        # what is compared is what will run: mixed precision would round other activations to other steps of their grids
        return evaluate_engine(build_engine(model.plan(scheme), arrays(convert(module))), task, limit)

    loss, taught_by = training_loss(teacher, model, task, config)
    identity = {**run_identity(source, task, data, scheme.name), **taught_by}
    rules = {"scheme": scheme.to_dict()}
    pad_token = model.config.spec.pad_token
    trainer = Trainer(
        prepared, task, score, config, output, {**identity, **rules}, loss,
        pad_token=pad_token, rules=parameter_rules(prepared),
    )  # fmt: skip
    progress = trainer.run(task.train_features())
    if not trainer.processes.is_first:
        return {}
    record: dict[str, Any] = {
        **identity,
        **chosen,
        "method": "quantization-aware training",
        "config": config.to_dict(),
        "steps": progress.step,
        "kept_step": progress.best_step,
        "base_record": base_record(source),
    }
    if baselines is None:
        baselines = baseline_scores(source, task, ("fp32", "dynamic"))
    origin = Origin(output.name, model_folder(source), record, baselines)
    scores = publish(model, scheme, task, origin, output, keep_float)
    trainer.discard_state()
    discard_samples(output)
    return scores


def _scheme_to_train(name: str, config: TrainConfig) -> Scheme:
    """Return the scheme of that name; refuse one that needs no training, or chooses bits on a model that is cut."""
    scheme = find_scheme(name)
    if not scheme.needs_ranges:
        raise InputError(f"scheme {name!r} needs no training; use `q8bert quantize --scheme {name}`")
    if scheme.average_bits is not None and config.width < 1:
        raise InputError(
            f"scheme {name!r} chooses bits on the model that training starts from, which --width {config.width:g} "
            "cuts: train with --width first, then from the result with this scheme"
        )
    return scheme


def parameter_rules(prepared: nn.Module) -> ParameterRules:
    """Return how a prepared network's steps and its weights of one and two bits are trained.

    Decay would pull weights of three values towards the border, below which they are 0, and signs towards their change.
    """
    linears, tables = quantized_layers(prepared)
    few = [path for path, layer in (linears | tables).items() if layer.weight_quantizer.bits <= 2]
    steps = dict.fromkeys(learned_steps(prepared), STEP_RATE)
    return ParameterRules(steps, frozenset(f"{path}.weight" for path in few))


def quantize_trained(
    source: str,
    task: Task,
    scheme_name: str,
    output: Path,
    data: str,
    keep_float: bool,
    *,
    calibration_examples: int = 512,
    method: CalibrationMethod = "max",
    seed: int = 42,
) -> dict[str, dict[str, float]]:
    """Quantize a fine-tuned model without training: ``dynamic``, or ``static`` schemes with calibration.

    Calibration reads only training examples: the dev set stays unseen.

    Raises:
        CheckpointError: the source was not fine-tuned for this kind of task.
        InputError: the source has other labels.
    """
    find_source(source).require_head(task.kind)
    scheme = find_scheme(scheme_name)
    prepared, facts = quantized_model(source, task, scheme, calibration_examples, method, seed)
    record = {**run_identity(source, task, data, scheme.name), "method": "post-training quantization"}
    record |= {"base_record": base_record(source), **facts}
    origin = Origin(output.name, model_folder(source), record, baseline_scores(source, task, ("fp32",)))
    return publish(prepared, scheme, task, origin, output, keep_float)


def quantized_model(
    source: str, task: Task, scheme: Scheme, calibration_examples: int, method: CalibrationMethod, seed: int
) -> tuple[TaskModel, dict[str, Any]]:
    """Return a fine-tuned source prepared for a scheme without training, and the record of its calibration."""
    model = load_for_task(source, task)
    prepared = prepare(model.network, model.plan(scheme)).eval()
    if not scheme.needs_ranges:
        return model, {}
    chosen = sample(task, calibration_examples, seed)
    features = chosen.train_features()
    calibrate(prepared, calibration_batches(features, task.kind, model.config.spec.pad_token), method=method)
    facts = {"examples": len(features), "method": method, "seed": seed, "cut": chosen.cut.counts["training"]}
    return model, {"calibration": facts}


def baseline_scores(source: str, task: Task, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return scores of a fine-tuned source on our engines, ``fp32`` or ``dynamic`` int8; none without a head.

    A source made by `q8bert train` has its fp32 score in its record. If weights, dev examples and the longest input are
    still the same, it is not computed again.
    """
    if find_source(source).head != task.kind:
        return {}
    scores: dict[str, dict[str, float]] = {}
    record = base_record(source)
    scored = {"weights_sha256": weights_digest(source), **dev_identity(task)}
    known = all(record.get(key) == value for key, value in scored.items())
    for name in names:
        if name == "fp32" and known and "scores" in record:
            scores[name] = record["scores"]
            continue
        model = load_for_task(source, task)
        if name == "fp32":
            engine = build_engine(model.plan(), arrays(master_weights(model.network)))
        else:
            plan = model.plan(preset(name))
            engine = build_engine(plan, arrays(convert(prepare(model.network.eval(), plan))))
        scores[name] = evaluate_engine(engine, task)
    return scores


def base_record(source: str) -> dict[str, Any]:
    """Return the record of the fp32 run that made the source, empty if there is none."""
    file = Path(source) / RECORD_FILE
    if not file.is_file():
        return {}
    record = read_json(file, CheckpointError)
    if not isinstance(record, dict):
        raise CheckpointError(f"{file} holds no record of a training run: expected a JSON object")
    return cast("dict[str, Any]", record)
