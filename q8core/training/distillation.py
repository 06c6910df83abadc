"""Distillation: learning the outputs and hidden states of a teacher, a fine-tuned float model.

    L = labels * L_task + logits * L_logits + hidden * sum_l MSE(H_l) + attention * sum_l MSE(A_l)
        + relations * L_relations

with H_l the hidden states of layer l (0: the embeddings) and A_l the attention scores Q K^T / sqrt(head size) before
the softmax, as in TernaryBERT (Zhang et al., 2020) and KDLSQ-BERT (2021), after TinyBERT (Jiao et al., 2019). There are
two differences. Padding is excluded from the sums and their divisors, and each row of a batch has the same weight, as
in L_task. L_logits is the cross entropy less the teacher's own entropy (Kullback-Leibler), which has the same gradient
and is 0 for a perfect student. L_relations is that of `q8core.training.relations`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q8core.checkpoint.float_source import FloatSource
from q8core.checkpoint.text_input import checked_tokenizer
from q8core.errors import InputError
from q8core.model.network import Network
from q8core.model.sites import layer_path
from q8core.tasks.task import Task
from q8core.training.config import DISTILL_WEIGHTS, TrainConfig
from q8core.training.identity import weights_digest
from q8core.training.loop import Loss
from q8core.training.losses import network_inputs, target_loss, task_loss
from q8core.training.model import TaskModel, find_source, load_for_task
from q8core.training.relations import check_heads, relation_loss, relation_paths


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, visible: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) of softened logits (rows, classes), times temperature^2; the mean over rows.

    Source: Hinton et al. (2015); the factor makes the gradients' size independent of the temperature.

    Args:
        student: logits (rows, classes).
        teacher: logits (rows, classes).
        temperature: divisor of both.
        visible: True where a class exists, (rows, classes); False for padding of a row of tokens.
    """
    logs = [logits.float() / temperature for logits in (student, teacher)]
    if visible is not None:
        logs = [log.masked_fill(~visible, torch.finfo(log.dtype).min) for log in logs]
    ours, theirs = (log.log_softmax(dim=-1) for log in logs)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def visible_mse(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """Return the mean over the rows of each row's mean squared difference at visible elements.

    Processes that share a batch can add up their means over rows.

    Args:
        student: (rows, ...).
        teacher: (rows, ...).
        visible: bool, with as many dimensions; broadcasts against both. Each row has at least one True.
    """
    squares = (student.float() - teacher.float()).masked_fill(~visible, 0).square()
    each = squares[0].numel() // visible[0].numel()
    counted = visible.flatten(1).sum(dim=1) * each
    return (squares.flatten(1).sum(dim=1) / counted).mean()


def logits_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return the loss between the student's and the teacher's outputs.

    This is the soft cross entropy for classes, its mean over start and end for positions, and the squared difference
    for a number.

    Args:
        student: logits (batch, outputs), or (batch, sequence, 2) for start and end.
        teacher: logits of the same shape.
        mask: attention_mask (batch, sequence), 0 for padding.
        temperature: temperature of the softmax.
    """
    if student.dim() == 3:
        pairs = zip(student.unbind(-1), teacher.unbind(-1), strict=True)
        start, end = (soft_cross_entropy(ours, theirs, temperature, mask != 0) for ours, theirs in pairs)
        return (start + end) / 2
    if student.shape[-1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    return soft_cross_entropy(student, teacher, temperature)


def attention_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return Q K^T / sqrt(D), (batch, heads, sequence, sequence), from outputs (batch, sequence, heads * D)."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])


@dataclass(frozen=True)
class Distillation:
    """The loss of a student on a batch, with a fixed teacher.

    Attributes:
        student: the network to train, float or prepared.
        teacher: the network of a fine-tuned model of the same task; it is put in evaluation mode.
        config: the weights of the losses and the temperature.

    Raises:
        InputError: if the models' shapes do not fit the losses, or no loss uses the teacher.
    """

    student: Network
    teacher: Network
    config: TrainConfig

    def __post_init__(self) -> None:
        config = self.config
        if not any(getattr(config, name) for name in DISTILL_WEIGHTS if name != "distill_labels"):
            raise InputError(
                "a teacher needs distill_logits, distill_hidden, distill_attention or distill_relations above 0; all "
                "are 0"
            )
        if config.distill_hidden:
            self._check_equal("hidden", "layers", "hidden")
        if config.distill_attention:
            self._check_equal("attention", "layers", "heads")
        if config.distill_relations:
            check_heads(self._relation_heads, self.student.spec, self.teacher.spec)
        elif config.relation_heads is not None:
            raise InputError(f"relation_heads is {config.relation_heads}, but distill_relations is 0")
        self.teacher.eval().requires_grad_(False)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, a scalar, of `model`, which is the student or a wrapper of it.

        Raises:
            InputError: if the student has no separate modules for queries and keys, from which scores are computed.
        """
        config, mask = self.config, batch["attention_mask"]
        inputs = network_inputs(batch)
        paths, taught = self._paths(self.student), self._paths(self.teacher)
        nn.Module.to(self.teacher, mask.device)  # moves only once, to the student's device
        with torch.no_grad(), _recorded(self.teacher, taught) as theirs:
            expected = self.teacher(**inputs)
        with _recorded(self.student, paths) as ours:
            found = model(**inputs)
        missing = [path for path in paths if path not in ours]
        if missing:
            raise InputError(f"the student never ran {missing[0]}, so distillation cannot compare its output")
        terms: list[Tensor] = []
        if config.distill_labels:
            terms.append(config.distill_labels * target_loss(found, batch))
        if config.distill_logits:
            terms.append(config.distill_logits * logits_loss(found, expected, mask, config.distill_temperature))
        if config.distill_hidden:
            terms.append(config.distill_hidden * self._hidden(ours, theirs, mask))
        if config.distill_attention:
            terms.append(config.distill_attention * self._attention(ours, theirs, mask))
        if config.distill_relations:
            terms.append(config.distill_relations * self._relations(ours, theirs, mask))
        return torch.stack(terms).sum()

    def _hidden(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        visible = (mask != 0).unsqueeze(-1)
        losses = [visible_mse(ours[path], theirs[path], visible) for path in self._hidden_paths()]
        return torch.stack(losses).sum()

    def _attention(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        seen = mask != 0
        visible = (seen.unsqueeze(-1) & seen.unsqueeze(-2)).unsqueeze(1)  # (batch, 1, queries, keys)
        heads = self.student.spec.heads
        losses: list[Tensor] = []
        for query, key in self._attention_paths():
            scores, wanted = (attention_scores(each[query], each[key], heads) for each in (ours, theirs))
            losses.append(visible_mse(scores, wanted, visible))
        return torch.stack(losses).sum()

    def _relations(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        student, teacher = (
            {slot: outputs[path] for slot, path in relation_paths(model.spec).items()}
            for model, outputs in ((self.student, ours), (self.teacher, theirs))
        )
        return relation_loss(student, teacher, mask, self._relation_heads)

    @property
    def _relation_heads(self) -> int:
        return self.config.relation_heads or self.student.spec.heads

    def _paths(self, model: Network) -> list[str]:
        paths = list(self._hidden_paths()) if self.config.distill_hidden else []
        if self.config.distill_attention:
            paths += [path for pair in self._attention_paths() for path in pair]
        if self.config.distill_relations:
            paths += relation_paths(model.spec).values()
        return list(dict.fromkeys(paths))

    def _hidden_paths(self) -> tuple[str, ...]:
        return self.student.hidden_state_paths

    def _attention_paths(self) -> list[tuple[str, str]]:
        # Scores are recomputed from queries and keys: a fused attention does not return them.
        layers = range(self.student.spec.layers)
        return [(layer_path(layer, "query"), layer_path(layer, "key")) for layer in layers]

    def _check_equal(self, what: str, *names: str) -> None:
        for name in names:
            ours, theirs = (getattr(model.spec, name) for model in (self.student, self.teacher))
            if ours != theirs:
                raise InputError(
                    f"the teacher's number of {name} is {theirs}, the student's {ours}: distill_{what} compares them "
                    f"one to one; set it to 0, or take a teacher of the student's shape"
                )


def training_loss(
    teacher: str | None, student: TaskModel, task: Task, config: TrainConfig
) -> tuple[Loss, dict[str, dict[str, str]]]:
    """Return the loss of a run, and the facts about the teacher for record and identity, empty without a teacher.

    Args:
        teacher: folder or hub id of a fine-tuned model, or None to learn only from labels.
        student: the model to train.
        task: the task of both.
        config: the weights of the losses.

    Raises:
        InputError: if the teacher cannot teach this student this task.
    """
    if teacher is None:
        return task_loss, {}
    found = find_source(teacher)
    found.require_head(task.kind)
    model = load_for_task(teacher, task)
    _check_teacher(found, task)
    identity = {"name": Path(teacher).name, "sha256": weights_digest(teacher)}
    return Distillation(student.network, model.network, config), {"teacher": identity}


def why_not_itself(source: str, task: Task) -> str:
    """Return why training from `source` cannot use it as the teacher too; empty if it can."""
    return "" if find_source(source).head == task.kind else f"{source} was not fine-tuned for this task"


def _check_teacher(teacher: FloatSource, task: Task) -> None:
    """Refuse a teacher that tokenizes texts differently from the student.

    Raises:
        InputError: says what differs.
    """
    name, positions = str(teacher.path), teacher.config.spec.positions
    if checked_tokenizer(teacher.path, teacher.config).get_vocab() != task.tokenizer.get_vocab():
        raise InputError(f"the teacher {name!r} has another vocabulary than the student: it would read other words")
    if positions < task.max_length:
        raise InputError(
            f"the teacher {name!r} reads {positions} tokens at most, and the task's max_length is {task.max_length}"
        )


@contextmanager
def _recorded(model: nn.Module, paths: Sequence[str]) -> Generator[dict[str, Tensor]]:
    """Collect the outputs of the modules at `paths` within the context."""
    outputs: dict[str, Tensor] = {}

    def keeper(path: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            outputs[path] = output

        return keep

    handles = [model.get_submodule(path).register_forward_hook(keeper(path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
