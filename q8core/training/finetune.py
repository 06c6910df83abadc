"""Fine-tunes a float model: from a pretrained source to a folder in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from q8core.arrays import Array
from q8core.checkpoint.config import ModelConfig
from q8core.checkpoint.manifest import FLOAT_FILE, MANIFEST_FILE
from q8core.checkpoint.tensors import write_tensors
from q8core.engines import build_engine
from q8core.errors import InputError
from q8core.evaluate import evaluate_engine
from q8core.model.head import TaskKind
from q8core.quant.qat.convert import arrays
from q8core.quant.qat.prepare import master_weights
from q8core.tasks.task import Task
from q8core.tokenizer import copy_tokenizer
from q8core.training.config import TrainConfig
from q8core.training.distillation import training_loss
from q8core.training.identity import run_identity, weights_digest
from q8core.training.loop import Trainer
from q8core.training.model import TaskModel, model_folder
from q8core.training.width import load_to_train

RECORD_FILE = "training.json"


def finetune(
    source: str, task: Task, config: TrainConfig, output: Path, data: str, *, teacher: str | None = None
) -> dict[str, dict[str, float]]:
    """Train in float and save model, tokenizer and record; return the scores of the kept weights.

    An interrupted run resumes when called again with the same arguments.

    Args:
        source: the model to start from, a folder or hub id.
        task: data and metric.
        config: the hyperparameters.
        output: folder for the result.
        data: description of the data for the record.
        teacher: a fine-tuned model to learn from, a folder or hub id.

    Raises:
        InputError: the output is an int8 checkpoint, or has a run with other settings.
    """
    if (output / MANIFEST_FILE).is_file():
        raise InputError(f"{output} holds an int8 checkpoint, which fp32 training would spoil; choose another --output")
    torch.manual_seed(config.seed)  # for the new head's weights
    model = load_to_train(source, task, config)

    def score(module: nn.Module, limit: int | None) -> dict[str, float]:
        return evaluate_engine(build_engine(model.plan(), arrays(master_weights(module))), task, limit)

    loss, taught_by = training_loss(teacher, model, task, config)
    identity = {**run_identity(source, task, data, "fp32"), **taught_by}
    trainer = Trainer(model.network, task, score, config, output, identity, loss, pad_token=model.config.spec.pad_token)
    progress = trainer.run(task.train_features())
    if not trainer.processes.is_first:
        return {}
    engine = build_engine(model.plan(), arrays(master_weights(model.network)))
    scores = evaluate_engine(engine, task)
    save_float(model, Path(model_folder(source)), output)
    record: dict[str, Any] = {
        **identity,
        "config": config.to_dict(),
        "steps": progress.step,
        "kept_step": progress.best_step,
        "seconds": round(progress.seconds),
        "weights_sha256": weights_digest(str(output)),
        "scores": scores,
    }
    (output / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
    trainer.discard_state()
    return {"fp32": scores}


def save_float(model: TaskModel, tokenizer_folder: Path, output: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's files."""
    output.mkdir(parents=True, exist_ok=True)
    write_float(model.config, model.kind, arrays(master_weights(model.network)), output)
    model.config.save(output, model.kind)
    copy_tokenizer(tokenizer_folder, output)


def write_float(config: ModelConfig, kind: TaskKind, tensors: Mapping[str, Array], output: Path) -> None:
    """Write ``model.safetensors`` under the family's names, given float tensors by the names of sites."""
    names = config.file_names(kind)
    write_tensors(output / FLOAT_FILE, {names[name]: tensor for name, tensor in tensors.items()})
