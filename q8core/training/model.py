"""Loads pretrained and fine-tuned models for training: a source's tensors in a network with a task's head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import nn

from q8core.checkpoint.config import REGRESSION, ModelConfig
from q8core.checkpoint.float_source import FloatSource, open_source
from q8core.checkpoint.text_input import check_pairs
from q8core.errors import InputError
from q8core.model.head import TaskKind
from q8core.model.network import Network
from q8core.model.sites import HEAD_OUTPUT
from q8core.model.weights import load_network
from q8core.quant import Plan, Scheme
from q8core.say_once import warn_once
from q8core.tasks.examples import MULTI_LABEL, is_regression
from q8core.tasks.labels import Classes, differing
from q8core.tasks.task import ClassifyTask, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskModel:
    """A network with the head of a task.

    Attributes:
        network: float, or prepared.
        config: its config.json, with the task's labels.
        kind: the task.
    """

    network: Network
    config: ModelConfig
    kind: TaskKind

    def plan(self, scheme: Scheme | None = None) -> Plan:
        """Return the model's plan; without a scheme it is all float."""
        return Plan.of(self.config.spec, self.config.head(self.kind), scheme)


def find_source(source: str) -> FloatSource:
    """Open a folder or hub id; all code reads float models through this function or the one that it calls.

    Raises:
        InputError: there is no such folder, and it cannot be fetched from the hub.
        CheckpointError: as in :func:`q8core.checkpoint.float_source.open_source`.
    """
    return open_source(model_folder(source))


def load_for_task(source: str, task: Task, dropout: float = 0.0) -> TaskModel:
    """Load a model for a task; raises as :func:`load_model`, and if the model cannot take the task's texts."""
    found = find_source(source)
    check_inputs(found, task)
    classes = task.classes if isinstance(task, ClassifyTask) else Classes(())
    return _load(found, task.kind, classes, dropout)


def load_model(source: str, kind: TaskKind, labels: tuple[str, ...] = (), dropout: float = 0.0) -> TaskModel:
    """Load a model with a task's head, in float32; a new head is made only if the source declares none.

    A head for the same classes in another order is reordered to that of `labels`.

    Args:
        source: a folder in Hugging Face's layout (safetensors) or a hub id.
        kind: the kind of head.
        labels: class names, for classification; a single one means regression, with the mean squared error as loss;
            empty: those of the source.
        dropout: the rate at all dropout points of the family.

    Raises:
        InputError: the source does not exist, or has a head for other labels.
        CheckpointError: its files are damaged, incomplete or not supported.
    """
    return _load(find_source(source), kind, Classes(labels), dropout)


def check_inputs(source: FloatSource, task: Task) -> None:
    """Refuse a model that cannot take a task's inputs, or has other labels.

    Raises:
        InputError: says what does not fit.
    """
    if task.has_pairs:
        check_pairs(source.path, task.tokenizer, source.config.spec.token_types)
    if isinstance(task, ClassifyTask):
        output_order(source, task.classes)


def check_trainable(source: FloatSource, kind: TaskKind) -> None:
    """Refuse a head that cannot be trained with one label per text.

    Raises:
        InputError: it is a multi-label head.
    """
    if kind == "classify" and source.several_labels:
        raise InputError(
            f"{source.path} gives a text several labels (problem_type is {MULTI_LABEL!r}): training that is not "
            "supported yet; it can be served, and quantized and scored on data with one label a text"
        )


def _load(source: FloatSource, kind: TaskKind, classes: Classes, dropout: float) -> TaskModel:
    labels = classes.names
    order = output_order(source, classes) if kind == "classify" and labels else None
    config = _for_labels(source.config, labels) if kind == "classify" and labels else source.config
    if source.head not in (None, kind):
        warn_once(log, "%s: the head of %s is not used", source.path, " ".join(config.architectures))
    network = load_network(
        config.spec,
        config.head(kind),
        {name: torch.from_numpy(array) for name, array in source.tensors(kind).items()},
        config.family.dropout_rates(kind, dropout),
        new_head_std=config.initializer_range,
    )
    if order is not None:
        put_in_order(network, order)
    return TaskModel(network, config, kind)


def _for_labels(config: ModelConfig, labels: tuple[str, ...]) -> ModelConfig:
    """Return the config of a classifier with these labels, independent of the source's."""
    config = config.with_labels(labels)
    if is_regression(labels):
        return config.changed(problem_type=REGRESSION)
    regression = config.problem_type == REGRESSION
    return config.changed(problem_type="single_label_classification") if regression else config


def put_in_order(network: Network, order: Sequence[int]) -> None:
    """Reorder the outputs of a loaded classifier.

    Args:
        network: the network, changed in place.
        order: for each new output the index of the old one.
    """
    output = network.get_submodule(HEAD_OUTPUT)
    assert isinstance(output, nn.Linear)
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.copy_(parameter[list(order)].clone())


def output_order(source: FloatSource, classes: Classes) -> tuple[int, ...] | None:
    """Return for each class the index of the source's matching output; None if the source has no such head.

    Raises:
        InputError: the source's head has other labels.
    """
    if source.head != "classify":
        return None
    if is_regression(classes.names) and is_regression(source.labels):
        return None
    order = classes.order_among(source.labels)
    if order is not None:
        return order
    if len(source.labels) != len(classes.names):
        raise InputError(
            f"{source.path} has a head with {len(source.labels)} outputs, this task needs {len(classes.names)}; "
            "start from the pretrained model that it was made from"
        )
    raise InputError(f"{source.path}: {differing(source.labels, classes.names)}")


def model_folder(source: str) -> Path:
    """Return the folder of a local model, or the snapshot of a hub id (for its tokenizer files)."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # the hub client raises many kinds, all of which mean that it cannot be fetched
        raise InputError(f"{source!r} is neither a folder nor reachable on the hub: {error}") from error
