"""A float BERT in Hugging Face's layout as a source: the one way in for training, quantizing, evaluating and serving.

What a source must hold follows from its config: the encoder always, and the head that `architectures` declares. All of
it is checked by names, shapes and dtypes when the source is opened, and values when they are read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import BertConfig

from q8core.checkpoint.config import read_config
from q8core.checkpoint.float_names import read_names, shown_names
from q8core.checkpoint.layout import Shape, float_shapes, head_path, pooler_shapes
from q8core.checkpoint.manifest import CLASS_OF_TASK, FLOAT_FILE, INT8_FILE
from q8core.checkpoint.tensors import TensorFile
from q8core.errors import CheckpointError
from q8core.say_once import warn_once
from q8core.tasks.examples import MULTI_LABEL, is_regression
from q8core.tasks.task import TaskKind

log = logging.getLogger(__name__)

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FLOATS = ("F32", "F16", "BF16", "F64")
_TASK_OF_CLASS: dict[str, TaskKind] = {name: task for task, name in CLASS_OF_TASK.items()}
_OTHER_HEADS = {"BertForTokenClassification": "classifier.", "BertForMultipleChoice": "classifier."}
"""Classes that no task uses, and the names of their heads' tensors."""


class FloatTensors(Mapping[str, Tensor]):
    """A model's float tensors by its own names, each read, checked and made float32 when it is asked for.

    Args:
        file: where they are.
        stored: the model's name -> the file's.

    Raises:
        CheckpointError: on access, where a value is NaN or infinite.
    """

    def __init__(self, file: TensorFile, stored: Mapping[str, str]) -> None:
        self._file = file
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._file[self._stored[name]].to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self._file.path}: {self._stored[name]} holds NaN or infinite values")
        return tensor

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor to find out
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


@dataclass(frozen=True)
class FloatSource:
    """A float model whose tensors fit its config; use :func:`open_source`.

    Attributes:
        path: its folder.
        config: its config.
        head: the task of the head that it declares, None for a pretrained encoder or another class.
        labels: names of a classifier's outputs by index, whatever the head.
        file: the weights.
        stored: the model's name of each tensor -> the file's.
    """

    path: Path
    config: BertConfig
    head: TaskKind | None
    labels: tuple[str, ...]
    file: TensorFile
    stored: Mapping[str, str]

    def tensors(self, kind: TaskKind) -> FloatTensors:
        """Return what it holds of a model with the head of `kind`: all of it, or all but what is made new."""
        new = () if self.head == kind else (f"{head_path(kind)}.",)
        wanted = float_shapes(self.config, kind, len(self.labels))
        names = {name: self.stored[name] for name in wanted if name in self.stored and not name.startswith(new)}
        return FloatTensors(self.file, names)

    @property
    def several_labels(self) -> bool:
        """Whether it is a classifier that gives a text several labels at once."""
        return self.head == "classify" and self.config.problem_type == MULTI_LABEL

    def check_values(self) -> None:
        """Read all tensors once; a CheckpointError names the first with NaN or infinite values."""
        for tensor in FloatTensors(self.file, self.stored).values():
            del tensor

    def require_head(self, kind: TaskKind | None = None) -> TaskKind:
        """Return the task of its head.

        Args:
            kind: the task that is needed; None for any.

        Raises:
            CheckpointError: it was not fine-tuned, or for another task.
        """
        if self.head is None or kind not in (None, self.head):
            needed = " or ".join(CLASS_OF_TASK.values()) if kind is None else CLASS_OF_TASK[kind]
            raise CheckpointError(
                f"{self.path} was not fine-tuned for this task: architectures in config.json is "
                f"{self.config.architectures}, needed is {needed}; fine-tune it first (`q8bert train --scheme fp32`)"
            )
        return self.head


def open_source(folder: Path) -> FloatSource:
    """Open a float model's folder and check that its tensors are those that its config declares.

    What can be undone exactly is undone, and the log says so: see :mod:`q8core.checkpoint.float_names`.

    Raises:
        CheckpointError: a file is missing or damaged, the config describes a model that is not supported, or tensors
            are missing, unknown, or of another shape or dtype; with their names.
    """
    config = read_config(folder)
    file = TensorFile(_weights_file(folder))
    names = read_names(file, str(file.path))
    head = _declared_head(folder, config)
    stored = _checked(file, config, head, names.stored)
    for change in names.changes:
        warn_once(log, "%s: %s", file.path, change)
    odd = sorted({file.dtype(name) for name in stored.values()} - {"F32"})
    if odd:
        warn_once(log, "%s: weights in %s are read as float32", file.path, ", ".join(odd))
    by_index = cast("dict[int, str]", config.id2label or {})
    labels = tuple(by_index[i] for i in range(len(by_index)))
    if head == "classify":
        _check_labels(folder, config, labels)
    return FloatSource(folder, config, head, labels, file, stored)


def _check_labels(folder: Path, config: BertConfig, labels: tuple[str, ...]) -> None:
    """Refuse a classifier whose answers would have no names of their own, or no known meaning."""
    if is_regression(labels) and config.problem_type != "regression":
        raise CheckpointError(
            f"{folder}: the model has one output, {labels[0]!r}, and problem_type in config.json is "
            f"{config.problem_type!r}. That of a cross-encoder (reranker) is a score, which is not supported yet; a "
            "model that predicts a number is, with problem_type 'regression'; a classifier needs at least 2 labels"
        )
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise CheckpointError(
            f"{folder}: id2label in config.json names {twice!r} {labels.count(twice)} times; a classifier needs at "
            "least 2 different labels, each once"
        )


def _weights_file(folder: Path) -> Path:
    """Return the safetensors file of a folder.

    Raises:
        CheckpointError: there is none, or something beside it says that it is not the whole model.
    """
    files = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in files:
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), which is not supported; merge it into its base model "
            "first (PEFT: `model.merge_and_unload().save_pretrained(folder)`)"
        )
    if FLOAT_FILE in files:
        return folder / FLOAT_FILE
    if f"{FLOAT_FILE}.index.json" in files:
        raise CheckpointError(
            f"{folder} holds its weights in several files ({FLOAT_FILE}.index.json); save them in one: "
            "model.save_pretrained(folder, max_shard_size='50GB')"
        )
    pickles = sorted(name for name in files if name.endswith(PICKLE_ENDINGS))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when loaded and are "
            "refused; save them as safetensors (model.save_pretrained(folder) of a current transformers)"
        )
    if INT8_FILE in files:
        raise CheckpointError(f"{folder} holds int8 weights only; {FLOAT_FILE} with the float weights is needed")
    others = sorted(name for name in files if name.endswith(".safetensors"))
    found = f"; it has {', '.join(others)}" if others else ""
    raise CheckpointError(f"{folder} has no {FLOAT_FILE}{found}")


def _declared_head(folder: Path, config: BertConfig) -> TaskKind | None:
    declared = sorted({name for name in config.architectures or [] if name in _TASK_OF_CLASS})
    if len(declared) > 1:
        raise CheckpointError(f"{folder}: architectures names {' and '.join(declared)}; a model has one head")
    return _TASK_OF_CLASS[declared[0]] if declared else None


def _checked(file: TensorFile, config: BertConfig, head: TaskKind | None, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the tensors that belong to the model that the config declares: the pooler too, which only one head needs.

    Raises:
        CheckpointError: if one is missing, unknown, or of another shape or dtype.
    """
    outputs = len(config.id2label or {})
    shapes = float_shapes(config, head or "classify", outputs) | pooler_shapes(config)
    if head is None:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{head_path('classify')}.")}
        _refuse_undeclared_head(file, config, stored)
    needed = shapes if head == "classify" else shapes.keys() - pooler_shapes(config).keys()
    other = tuple(_OTHER_HEADS[name] for name in config.architectures or [] if name in _OTHER_HEADS)
    missing = [name for name in shapes if name in needed and name not in stored]
    extra = [found for name, found in stored.items() if name not in shapes and not name.startswith(other)]
    if missing or extra:
        raise CheckpointError(f"{file.path} does not fit its config.json: {_difference(missing, extra)}")
    for name, shape in shapes.items():
        if name in stored:
            _check_tensor(file, stored[name], shape, outputs if name.startswith("classifier.") else None)
    return {name: stored[name] for name in shapes if name in stored}


def _refuse_undeclared_head(file: TensorFile, config: BertConfig, stored: Mapping[str, str]) -> None:
    """Refuse a trained head that training would replace, because the config does not say that it is there."""
    if any(name in _OTHER_HEADS for name in config.architectures or []):
        return
    for kind, name in CLASS_OF_TASK.items():
        if any(tensor.startswith(f"{head_path(kind)}.") for tensor in stored):
            raise CheckpointError(
                f"{file.path} holds a head ({head_path(kind)}), but architectures in config.json is "
                f"{config.architectures}; for a {name} set it to [{name!r}]"
            )


def _difference(missing: Sequence[str], extra: Sequence[str]) -> str:
    parts = [f"it lacks {shown_names(missing)}"] if missing else []
    parts += [f"it holds {shown_names(extra)}, which the model does not have"] if extra else []
    return "; ".join(parts)


def _check_tensor(file: TensorFile, name: str, shape: Shape, labels: int | None) -> None:
    found, dtype = file.shape(name), file.dtype(name)
    if dtype not in _FLOATS:
        raise CheckpointError(f"{file.path}: {name} is {dtype}; allowed: {', '.join(_FLOATS)}")
    if found == shape:
        return
    reason = "" if labels is None else f", which names {labels} labels in id2label"
    raise CheckpointError(f"{file.path}: {name} has shape {found}, config.json needs {shape}{reason}")
