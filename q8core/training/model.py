"""Pretrained and fine-tuned BERTs as starting points: a source's tensors in Hugging Face's model with a task's head."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging as hf_logging

from q8core.checkpoint.float_source import FloatSource, open_source
from q8core.checkpoint.text_input import check_pairs
from q8core.errors import InputError
from q8core.say_once import warn_once
from q8core.tasks.examples import MULTI_LABEL, is_regression
from q8core.tasks.labels import Classes, differing
from q8core.tasks.task import ClassifyTask, Task, TaskKind
from q8core.training.attention import ATTENTION
from q8core.training.head import HEAD_CLASSES, BertModel, put_in_order

log = logging.getLogger(__name__)


def find_source(source: str) -> FloatSource:
    """Open a folder or hub id; all that reads a float model does so here or by the function behind it.

    Raises:
        InputError: there is no such folder, nor can it be had from the hub.
        CheckpointError: as :func:`q8core.checkpoint.float_source.open_source`.
    """
    return open_source(model_folder(source))


def load_for_task(source: str, task: Task, dropout: float = 0.0) -> BertModel:
    """Load a BERT for a task, with its head; raises as :func:`load_bert`, and where the model cannot take its texts."""
    found = find_source(source)
    check_inputs(found, task)
    classes = task.classes if isinstance(task, ClassifyTask) else Classes(())
    return _load(found, task.kind, classes, dropout)


def load_bert(source: str, kind: TaskKind, labels: tuple[str, ...] = (), dropout: float = 0.0) -> BertModel:
    """Load a BERT with a task's head, in float32; a head is made new only where the source declares none.

    A head for the same classes in another order is put into that of `labels`.

    Args:
        source: a folder in Hugging Face's layout (safetensors) or a hub id.
        kind: which head.
        labels: class names, for classification; a single one makes a regression, with the mean squared error as loss;
            none: those of the source.
        dropout: for hidden states and attention.

    Raises:
        InputError: not there, or with a head for other labels.
        CheckpointError: its files are damaged, incomplete or not supported.
    """
    return _load(find_source(source), kind, Classes(labels), dropout)


def check_inputs(source: FloatSource, task: Task) -> None:
    """Refuse a model that cannot take what a task's data holds, or answers with other labels.

    Raises:
        InputError: saying what it lacks.
    """
    if task.has_pairs:
        check_pairs(source.path, source.config)
    if isinstance(task, ClassifyTask):
        output_order(source, task.classes)


def check_trainable(source: FloatSource, kind: TaskKind) -> None:
    """Refuse a head that cannot be trained with one label a text.

    Raises:
        InputError: it is one for several labels at once.
    """
    if kind == "classify" and source.several_labels:
        raise InputError(
            f"{source.path} gives a text several labels (problem_type is {MULTI_LABEL!r}): training that is not "
            "supported yet; it can be served, and quantized and scored on data with one label a text"
        )


def _load(source: FloatSource, kind: TaskKind, classes: Classes, dropout: float) -> BertModel:
    labels = classes.names
    order = output_order(source, classes) if kind == "classify" and labels else None
    config = deepcopy(source.config)
    changes: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "classify" and labels:
        changes["id2label"] = dict(enumerate(labels))
        changes["label2id"] = {label: i for i, label in enumerate(labels)}
        if is_regression(labels):
            changes["problem_type"] = "regression"
        elif config.problem_type == "regression":  # what the source was made for, not this task
            changes["problem_type"] = "single_label_classification"
    for name, value in changes.items():
        setattr(config, name, value)
    if source.head not in (None, kind):
        warn_once(log, "%s: the head of %s is not used", source.path, " ".join(source.config.architectures or []))
    model_class = HEAD_CLASSES[kind]
    tensors = dict(source.tensors(kind))
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # a new head is expected, not worth a table of warnings
    hf_logging.disable_progress_bar()
    try:
        # in bf16 training on CPUs that attention is faster than torch's fused one, at every length up to 384
        loading: Any = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    finally:
        hf_logging.set_verbosity(level)
    model, report = cast("tuple[BertModel, dict[str, Any]]", loading)
    new = set(model.state_dict()) - set(tensors)
    assert set(report["missing_keys"]) == new  # the source has been checked
    assert not report["unexpected_keys"]
    if order is not None:
        put_in_order(model, order)
    return model


def output_order(source: FloatSource, classes: Classes) -> tuple[int, ...] | None:
    """Return for each class the index of the source's output that means it; None where it has no such head.

    Raises:
        InputError: its head has other labels.
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
    """The folder of a local model, or the snapshot of a hub id (for its tokenizer files)."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        raise InputError(f"{source!r} is neither a folder nor reachable on the hub: {error}") from error
