"""Learning from a teacher: a fine-tuned float model whose answers and inner states the student is to repeat.

    L = labels * L_task + logits * L_logits + hidden * sum_l MSE(H_l) + attention * sum_l MSE(A_l)

with H_l the hidden states of layer l (0: the embeddings) and A_l the attention scores Q K^T / sqrt(head size) before
the softmax, as TernaryBERT (Zhang et al., 2020) and KDLSQ-BERT (2021) have it, after TinyBERT (Jiao et al., 2019). Two
things differ: padding counts nowhere, neither in the sums nor in what they are divided by, and each row of a batch
counts the same, as in L_task; and L_logits is the cross entropy less the teacher's own entropy (Kullback-Leibler),
which has the same gradient and is 0 for a perfect student.
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
from q8core.training.config import TrainConfig
from q8core.training.identity import weights_digest
from q8core.training.loop import Loss
from q8core.training.losses import network_inputs, target_loss, task_loss
from q8core.training.model import TaskModel, find_source, load_for_task


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, visible: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) of softened logits (rows, classes), times temperature^2; the mean over rows.

    Source: Hinton et al. (2015); the factor keeps the gradients' size whatever the temperature.

    Args:
        student: logits (rows, classes).
        teacher: logits, likewise.
        temperature: what both are divided by.
        visible: True where a class exists, (rows, classes): a token of a padded row does not.
    """
    logs = [logits.float() / temperature for logits in (student, teacher)]
    if visible is not None:
        logs = [log.masked_fill(~visible, torch.finfo(log.dtype).min) for log in logs]
    ours, theirs = (log.log_softmax(dim=-1) for log in logs)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def visible_mse(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """Return the mean squared difference where something is visible, as the mean over the rows of each row's own.

    A mean over the rows of a batch is what processes that share it can add up.

    Args:
        student: (rows, ...).
        teacher: likewise.
        visible: bool, with as many dimensions; broadcasts against both. In each row something is True.
    """
    squares = (student.float() - teacher.float()).masked_fill(~visible, 0).square()
    each = squares[0].numel() // visible[0].numel()
    counted = visible.flatten(1).sum(dim=1) * each
    return (squares.flatten(1).sum(dim=1) / counted).mean()


def logits_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return how far the student's answers are from the teacher's.

    Soft cross entropy of classes, or of start and end positions (their mean), and the squared difference of a number.

    Args:
        student: logits (batch, outputs), or (batch, sequence, 2) of start and end.
        teacher: likewise.
        mask: attention_mask (batch, sequence), which says what positions exist.
        temperature: of the softmax.
    """
    if student.dim() == 3:
        pairs = zip(student.unbind(-1), teacher.unbind(-1), strict=True)
        start, end = (soft_cross_entropy(ours, theirs, temperature, mask != 0) for ours, theirs in pairs)
        return (start + end) / 2
    if student.shape[-1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    return soft_cross_entropy(student, teacher, temperature)


def attention_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return Q K^T / sqrt(D), (batch, heads, sequence, sequence), of outputs (batch, sequence, heads * D)."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])


@dataclass(frozen=True)
class Distillation:
    """The loss of a student on a batch, beside a teacher that never learns.

    Attributes:
        student: the network that is trained, float or prepared.
        teacher: that of a fine-tuned model of the same task; it is put in evaluation mode.
        config: the weights of the losses and the temperature.

    Raises:
        InputError: if the models' shapes do not fit the losses, or no loss comes from the teacher.
    """

    student: Network
    teacher: Network
    config: TrainConfig

    def __post_init__(self) -> None:
        config = self.config
        if not (config.distill_logits or config.distill_hidden or config.distill_attention):
            raise InputError("a teacher needs distill_logits, distill_hidden or distill_attention above 0; all are 0")
        if config.distill_hidden:
            self._check_equal("hidden", "layers", "hidden")
        if config.distill_attention:
            self._check_equal("attention", "layers", "heads")
        self.teacher.eval().requires_grad_(False)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, a scalar, of `model`: the student or what wraps it.

        Raises:
            InputError: if the student does not compute queries and keys one by one, which its scores are made of.
        """
        config, mask = self.config, batch["attention_mask"]
        inputs = network_inputs(batch)
        paths = self._paths()
        nn.Module.to(self.teacher, mask.device)  # moves once, where the student has gone to
        with torch.no_grad(), _recorded(self.teacher, paths) as theirs:
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

    def _paths(self) -> list[str]:
        paths = list(self._hidden_paths()) if self.config.distill_hidden else []
        if self.config.distill_attention:
            paths += [path for pair in self._attention_paths() for path in pair]
        return paths

    def _hidden_paths(self) -> tuple[str, ...]:
        return self.student.hidden_state_paths

    def _attention_paths(self) -> list[tuple[str, str]]:
        # Scores are made anew of queries and keys: an attention that is one call keeps none.
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
    """Return the loss of a run, and what its record and identity say about the teacher: nothing without one.

    Args:
        teacher: folder or hub id of a fine-tuned model, or None to learn from labels alone.
        student: the model that is trained.
        task: what both are for.
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
    """Say why a training that starts from `source` cannot have it as its teacher too; empty where it can."""
    return "" if find_source(source).head == task.kind else f"{source} was not fine-tuned for this task"


def _check_teacher(teacher: FloatSource, task: Task) -> None:
    """Refuse a teacher that reads its texts otherwise than the student.

    Raises:
        InputError: saying what differs.
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
    """Collect the outputs of the modules at `paths` for as long as the context lasts."""
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
