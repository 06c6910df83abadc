"""A float model in Hugging Face's layout: the only entry point for training, quantizing, evaluating and serving one.

The config decides what a source must hold: always the encoder, and the head that `architectures` declares. Names,
shapes and dtypes are checked when the source is opened, values when they are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from q8core.checkpoint.config import ModelConfig, read_config
from q8core.checkpoint.float_names import read_names, shown_names
from q8core.checkpoint.manifest import FLOAT_FILE, INT8_FILE
from q8core.checkpoint.tensors import RenamedTensors, TensorFile
from q8core.errors import CheckpointError
from q8core.model.head import TaskKind
from q8core.model.sites import HEAD_DENSE, HEAD_OUTPUT, float_shapes
from q8core.say_once import warn_once
from q8core.tasks.examples import MULTI_LABEL, is_regression

log = logging.getLogger(__name__)

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FLOATS = ("F32", "F16", "BF16", "F64")
Shape = tuple[int, ...]


class FloatTensors(RenamedTensors):
    """A model's float tensors by the names of sites, each read, checked and converted to float32 on access.

    Raises:
        CheckpointError: on access, if a value is NaN or infinite.
    """

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused
            tensor = super().__getitem__(name).astype(np.float32, copy=False)
        if not bool(np.isfinite(tensor).all()):
            raise CheckpointError(f"{self.file.path}: {self.stored[name]} holds NaN or infinite values")
        return tensor


@dataclass(frozen=True)
class FloatSource:
    """A float model whose tensors fit its config; use :func:`open_source`.

    Attributes:
        path: the model's folder.
        config: the model's config.
        head: the task of the declared head; None for a pretrained encoder or another class.
        labels: names of a classifier's outputs by index, whatever the head.
        file: the weights.
        stored: each tensor's site name -> its name in the file.
    """

    path: Path
    config: ModelConfig
    head: TaskKind | None
    labels: tuple[str, ...]
    file: TensorFile
    stored: Mapping[str, str]

    def tensors(self, kind: TaskKind) -> FloatTensors:
        """Return the tensors for a model with the head of `kind`, except those that will be newly initialized."""
        wanted = float_shapes(self.config.spec, self.config.head(kind))
        names = {name: self.stored[name] for name in wanted if name in self.stored}
        if self.head != kind:
            new = [HEAD_OUTPUT] if self._has_pooler(kind) else [HEAD_OUTPUT, HEAD_DENSE]
            names = {name: found for name, found in names.items() if name.rpartition(".")[0] not in new}
        return FloatTensors(self.file, names)

    def _has_pooler(self, kind: TaskKind) -> bool:
        """Return whether the dense layer of a task's head is the encoder's own, which pretraining has trained."""
        dense = self.config.family.heads[kind].dense
        return dense is not None and dense.startswith(f"{self.config.family.prefix}.")

    @property
    def several_labels(self) -> bool:
        """Whether the model is a classifier that gives a text several labels at once."""
        return self.head == "classify" and self.config.problem_type == MULTI_LABEL

    def check_values(self) -> None:
        """Read all tensors once; raise a CheckpointError that names the first with NaN or infinite values."""
        for tensor in FloatTensors(self.file, self.stored).values():
            del tensor

    def require_head(self, kind: TaskKind | None = None) -> TaskKind:
        """Return the task of the model's head.

        Args:
            kind: the required task; None for any.

        Raises:
            CheckpointError: the model was not fine-tuned, or was fine-tuned for another task.
        """
        if self.head is None or kind not in (None, self.head):
            heads = self.config.family.heads
            needed = " or ".join(names.architecture for names in heads.values())
            needed = needed if kind is None else heads[kind].architecture
            raise CheckpointError(
                f"{self.path} was not fine-tuned for this task: architectures in config.json is "
                f"{_named(self.config)}, needed is {needed}; fine-tune it first (`q8bert train --scheme fp32`)"
            )
        return self.head


def open_source(folder: Path) -> FloatSource:
    """Open a float model's folder and check that its tensors are those that its config declares.

    Differences in names that can be undone exactly are undone and logged: see :mod:`q8core.checkpoint.float_names`.

    Raises:
        CheckpointError: a file is missing or damaged, the config describes a model that is not supported, or tensors
            are missing, unknown, or of another shape or dtype; names them.
    """
    config = read_config(folder)
    file = TensorFile(_weights_file(folder))
    names = read_names(file, config.family, str(file.path))
    head = _declared_head(folder, config)
    stored = _checked(file, config, head, names.stored)
    for change in names.changes:
        warn_once(log, "%s: %s", file.path, change)
    odd = sorted({file.dtype(name) for name in stored.values()} - {"F32"})
    if odd:
        warn_once(log, "%s: weights in %s are read as float32", file.path, ", ".join(odd))
    if head == "classify":
        _check_labels(folder, config, config.labels)
    return FloatSource(folder, config, head, config.labels, file, stored)


def _check_labels(folder: Path, config: ModelConfig, labels: tuple[str, ...]) -> None:
    """Refuse a classifier whose labels are not distinct, or whose output has no known meaning."""
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
        CheckpointError: there is none, or another file in the folder shows that it is not the whole model.
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
            f"{folder} holds its weights in several files ({FLOAT_FILE}.index.json); `q8bert import {folder} --output "
            "DIR` makes one of them"
        )
    pickles = sorted(name for name in files if name.endswith(PICKLE_ENDINGS))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when loaded and are "
            f"refused; `q8bert import {folder} --output DIR` makes safetensors of them without running it"
        )
    if INT8_FILE in files:
        raise CheckpointError(f"{folder} holds int8 weights only; {FLOAT_FILE} with the float weights is needed")
    others = sorted(name for name in files if name.endswith(".safetensors"))
    found = f"; it has {', '.join(others)}" if others else ""
    raise CheckpointError(f"{folder} has no {FLOAT_FILE}{found}")


def _declared_head(folder: Path, config: ModelConfig) -> TaskKind | None:
    kinds = config.family.kinds
    declared = sorted({name for name in config.architectures if name in kinds})
    if len(declared) > 1:
        raise CheckpointError(f"{folder}: architectures names {' and '.join(declared)}; a model has one head")
    return kinds[declared[0]] if declared else None


def _named(config: ModelConfig) -> str:
    """Return a config's architectures, for a message."""
    return str(list(config.architectures) or None)


def _checked(file: TensorFile, config: ModelConfig, head: TaskKind | None, stored: Mapping[str, str]) -> dict[str, str]:
    """Return site name -> file name of the declared model's tensors, with the encoder's pooler whatever the head.

    Raises:
        CheckpointError: if one is missing, unknown, or of another shape or dtype.
    """
    tensors = _tensors(config, head)
    pooler = {name for name, (site, _) in tensors.items() if head != "classify" and site.startswith(HEAD_DENSE)}
    if head is None:
        _refuse_undeclared_head(file, config, stored)
    other = tuple(config.family.other_heads[name] for name in config.architectures if name in config.family.other_heads)
    missing = [name for name in tensors if name not in stored and name not in pooler]
    extra = [found for name, found in stored.items() if name not in tensors and not name.startswith(other)]
    if missing or extra:
        raise CheckpointError(f"{file.path} does not fit its config.json: {_difference(missing, extra)}")
    for name, (site, shape) in tensors.items():
        if name in stored:
            labels = len(config.labels) if site.startswith(HEAD_OUTPUT) and head == "classify" else None
            _check_tensor(file, stored[name], shape, labels)
    return {site: stored[name] for name, (site, _) in tensors.items() if name in stored}


def _tensors(config: ModelConfig, head: TaskKind | None) -> dict[str, tuple[str, Shape]]:
    """Return family name -> (site name, shape) of every tensor of a model.

    The dense layer of a classifier's head is included if it is the encoder's own pooler, whatever head is declared.
    """
    family, spec = config.family, config.spec
    prefix, found = f"{family.prefix}.", dict[str, tuple[str, Shape]]()
    for kind in (head, "classify"):
        modules = family.site_modules(spec, kind)
        for site, shape in float_shapes(spec, config.head(kind) if kind else None).items():
            path, _, leaf = site.rpartition(".")
            if kind == head or modules[path].startswith(prefix):
                found[f"{modules[path]}.{leaf}"] = site, shape
    return found


def _refuse_undeclared_head(file: TensorFile, config: ModelConfig, stored: Mapping[str, str]) -> None:
    """Refuse a trained head that the config does not declare, because training would replace it."""
    if any(name in config.family.other_heads for name in config.architectures):
        return
    for names in config.family.heads.values():
        if any(tensor.startswith(f"{names.output}.") for tensor in stored):
            raise CheckpointError(
                f"{file.path} holds a head ({names.output}), but architectures in config.json is "
                f"{_named(config)}; for a {names.architecture} set it to [{names.architecture!r}]"
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
