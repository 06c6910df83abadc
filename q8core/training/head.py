"""The head of a fine-tuned source: Hugging Face's classes, and its outputs in a task's order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import BertForQuestionAnswering, BertForSequenceClassification

from q8core.tasks.task import TaskKind

BertModel = BertForSequenceClassification | BertForQuestionAnswering
HEAD_CLASSES: dict[TaskKind, type[BertForSequenceClassification] | type[BertForQuestionAnswering]] = {
    "classify": BertForSequenceClassification,
    "qa": BertForQuestionAnswering,
}


def put_in_order(model: BertModel, order: Sequence[int]) -> None:
    """Exchange the outputs of a loaded classifier.

    Args:
        model: changed in place.
        order: for each output, the index of the present one that it becomes.
    """
    if not isinstance(model, BertForSequenceClassification) or list(order) == list(range(len(order))):
        return
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[list(order)].clone())
