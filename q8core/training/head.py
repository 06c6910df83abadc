"""The head of a fine-tuned source: whether there is one, and how its classes lie to the task's."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import AutoConfig, BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.checkpoint.manifest import CLASS_OF_TASK
from q8core.errors import InputError
from q8core.tasks.examples import is_regression
from q8core.tasks.task import Task, TaskKind

BertModel = BertForSequenceClassification | BertForQuestionAnswering
HEAD_CLASSES: dict[TaskKind, type[BertForSequenceClassification] | type[BertForQuestionAnswering]] = {
    "classify": BertForSequenceClassification,
    "qa": BertForQuestionAnswering,
}


def has_head(source: str, kind: TaskKind) -> bool:
    """Whether the source, a folder or hub id, was fine-tuned for this kind of task."""
    config = AutoConfig.from_pretrained(source)
    return CLASS_OF_TASK[kind] in (config.architectures or [])


def model_labels(source: str) -> tuple[str, ...]:
    """Class names of a fine-tuned classifier, by index."""
    return _labels(BertConfig.from_pretrained(source))


def foreign_labels(source: str, task: Task) -> tuple[str, ...]:
    """The labels of a fine-tuned model where they are not the task's; in any order and case they are.

    Generic ones (``LABEL_0``, ...) may stand for as many others, in the task's order.
    """
    if task.kind != "classify" or is_regression(task.labels):
        return ()
    labels = model_labels(source)
    generic = len(labels) == len(task.labels) and all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
    return () if generic or class_order(labels, task.labels) else labels


def require_head(source: str, kind: TaskKind) -> None:
    """Refuse a model that was not fine-tuned for this kind of task.

    Raises:
        InputError: it has no such head.
    """
    if not has_head(source, kind):
        raise InputError(
            f"{source!r} was not fine-tuned for this task: it has no head of a {CLASS_OF_TASK[kind]}; "
            "fine-tune it first (`q8bert train --scheme fp32`)"
        )


def check_quantizable(source: str, task: Task) -> None:
    """Refuse what cannot be quantized without training: a model that does not know the task.

    Raises:
        InputError: it has no head for the task, or one for other labels.
    """
    require_head(source, task.kind)
    labels = foreign_labels(source, task)
    if labels:
        raise InputError(f"{source!r} answers {', '.join(labels)}; the data has {', '.join(task.labels)}")


def check_outputs(source: str, config: BertConfig, outputs: int) -> None:
    """Refuse a classifier whose head has another size.

    Raises:
        InputError: it has not as many outputs as the task needs.
    """
    fine_tuned = CLASS_OF_TASK["classify"] in (config.architectures or [])
    if fine_tuned and config.num_labels != outputs:
        raise InputError(
            f"{source!r} has a head with {config.num_labels} outputs, this task needs {outputs}; "
            "start from the pretrained model that it was made from"
        )


def put_in_order(model: BertModel, config: BertConfig, labels: Sequence[str]) -> None:
    """Exchange the outputs of a loaded classifier so that each class stands where the task has it.

    Args:
        model: changed in place.
        config: of the source, with its own labels.
        labels: the task's; where they are other classes, nothing is changed.
    """
    order = class_order(_labels(config), labels)
    if not order or not isinstance(model, BertForSequenceClassification):
        return
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())


def class_order(source: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where each wanted label stands among the source's, whatever its case; empty if they are not the same labels."""
    ours, theirs = ([label.casefold() for label in labels] for labels in (wanted, source))
    same = sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours)
    return [theirs.index(label) for label in ours] if same else []


def _labels(config: BertConfig) -> tuple[str, ...]:
    names = config.id2label or {}
    return tuple(str(name) for _, name in sorted((int(index), name) for index, name in names.items()))
