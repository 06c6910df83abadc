"""Open a checkpoint folder and trust nothing in it until it is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import BertConfig

from q8core.checkpoint.layout import check_float_layout, check_int8_layout
from q8core.checkpoint.manifest import (
    CLASS_OF_TASK,
    FLOAT_FILE,
    INT8_FILE,
    MANIFEST_FILE,
    GoldenExample,
    Manifest,
    verify_files,
)
from q8core.checkpoint.tensors import TensorFile
from q8core.errors import CheckpointError
from q8core.quant import Scheme, dequantized_tensors
from q8core.tasks.examples import is_regression
from q8core.tasks.task import TaskKind
from q8core.tokenizer import load_tokenizer

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TASK_OF_CLASS: dict[str, TaskKind] = {name: task for task, name in CLASS_OF_TASK.items()}


class Checkpoint:
    """A verified checkpoint folder: an int8 one (with ``q8bert.json``), or a float Hugging Face folder.

    Use :meth:`open`. Tensors are read from the mapped files when an engine asks for them.
    """

    def __init__(
        self,
        path: Path,
        config: BertConfig,
        task: TaskKind,
        labels: tuple[str, ...],
        max_length: int,
        manifest: Manifest | None,
    ) -> None:
        self.path = path
        self.config = config
        self.task: TaskKind = task
        self.labels = labels
        self.max_length = max_length
        self.manifest = manifest
        self.scheme = Scheme.from_dict(manifest.scheme) if manifest else None

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a folder after checking hashes, names, shapes and types, and int8 tensors' values.

        Raises:
            CheckpointError: with the reason and, where there is one, the way out.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder; a checkpoint is a folder with config.json and weights")
        manifest = None
        if (path / MANIFEST_FILE).is_file():
            manifest = Manifest.read(path)
            for name in (INT8_FILE, "config.json", "tokenizer.json"):
                if name not in manifest.files:
                    raise CheckpointError(f"{path / MANIFEST_FILE} does not list {name}")
            verify_files(path, manifest.files)
        config, raw = _read_config(path)
        if manifest:
            task, labels, max_length = manifest.task, manifest.labels, manifest.max_length
        else:
            task, labels, max_length = _float_facts(path, config, raw)
        _check_facts(path, config, task, labels, max_length)
        checkpoint = cls(path, config, task, labels, max_length, manifest)
        checkpoint._check_tensors()
        return checkpoint

    @property
    def name(self) -> str:
        """The manifest's name, or the folder's."""
        return self.manifest.name if self.manifest else self.path.name

    @property
    def problem_type(self) -> str | None:
        """What a classification head was trained for, in Hugging Face's words, such as ``regression``."""
        return cast(str | None, self.config.problem_type)

    @property
    def golden(self) -> tuple[GoldenExample, ...]:
        """Inputs with known logits; none for a plain Hugging Face folder."""
        return self.manifest.golden if self.manifest else ()

    @property
    def int8_sha256(self) -> str | None:
        """The verified digest of the quantized tensors' file; None for a float checkpoint."""
        return str(self.manifest.files[INT8_FILE]["sha256"]) if self.manifest else None

    @cached_property
    def _int8(self) -> TensorFile:
        return TensorFile(self.path / INT8_FILE)

    def int8_tensors(self) -> Mapping[str, torch.Tensor]:
        """The quantized tensors, read on access.

        Raises:
            CheckpointError: this is a float checkpoint.
        """
        if self.manifest is None:
            raise CheckpointError(
                f"{self.path} holds a float model only; make an int8 checkpoint of it with "
                f"`q8bert quantize --model {self.path} ...`, or train one with `q8bert train`"
            )
        return self._int8

    def float_tensors(self) -> tuple[Mapping[str, torch.Tensor], bool]:
        """The float tensors under Hugging Face's names, and whether they are dequantized int8 weights.

        Those of a file are checked as they are read, since int8 alone never reads them: a CheckpointError names the
        first with NaN or infinite values.
        """
        if (self.path / FLOAT_FILE).is_file():
            return TensorFile(self.path / FLOAT_FILE, finite=True), False
        return dequantized_tensors(self.int8_tensors()), True

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without padding and truncation."""
        return load_tokenizer(self.path)

    def _check_tensors(self) -> None:
        labels = len(self.labels)
        if self.scheme:
            check_int8_layout(self._int8, self.config, self.task, labels, self.scheme)
            _check_values(self._int8)
        if (self.path / FLOAT_FILE).is_file():
            check_float_layout(TensorFile(self.path / FLOAT_FILE), self.config, self.task, labels)


def _read_config(path: Path) -> tuple[BertConfig, dict[str, Any]]:
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(raw, dict) or raw.get("model_type") != "bert":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise CheckpointError(f"{file}: model_type is {kind!r}; only 'bert' is supported")
    if raw.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{file}: hidden_act is {raw['hidden_act']!r}; only 'gelu' is supported")
    try:
        return BertConfig.from_dict(raw), raw
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a BERT config: {error}") from error


def _float_facts(path: Path, config: BertConfig, raw: dict[str, Any]) -> tuple[TaskKind, tuple[str, ...], int]:
    """Task, labels and length of a plain Hugging Face folder."""
    if not (path / FLOAT_FILE).is_file():
        pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLE_ENDINGS)
        if pickles:
            raise CheckpointError(
                f"{path} holds only pickled weights ({', '.join(pickles)}), which can run code when loaded and are "
                "refused; save them as safetensors (model.save_pretrained(folder) of a current transformers)"
            )
        raise CheckpointError(f"{path} holds neither {MANIFEST_FILE} with {INT8_FILE} nor {FLOAT_FILE}")
    classes = [name for name in raw.get("architectures") or [] if name in _TASK_OF_CLASS]
    if not classes:
        raise CheckpointError(
            f"{path}: architectures is {raw.get('architectures')}; a fine-tuned model is needed: "
            + ", ".join(_TASK_OF_CLASS)
        )
    task = _TASK_OF_CLASS[classes[0]]
    names = cast(dict[int, str], config.id2label) if task == "classify" else {}
    labels = tuple(names[i] for i in sorted(names))
    return task, labels, min(384 if task == "qa" else 128, config.max_position_embeddings)


def _check_facts(path: Path, config: BertConfig, task: TaskKind, labels: tuple[str, ...], max_length: int) -> None:
    if task == "classify" and is_regression(labels):
        kind = config.problem_type
        if kind != "regression":
            raise CheckpointError(
                f"{path}: there is one label, {labels[0]!r}, and problem_type in config.json is {kind!r}; a classifier "
                "needs at least 2 labels, a model that predicts a number the problem_type 'regression'"
            )
    elif task == "classify" and (not labels or len(set(labels)) != len(labels)):
        raise CheckpointError(f"{path}: labels are {labels}; a classifier needs at least 2 different ones")
    if not 8 <= max_length <= config.max_position_embeddings:
        raise CheckpointError(
            f"{path}: max_length is {max_length}; allowed: 8 to {config.max_position_embeddings} (the position table)"
        )


def _check_values(file: TensorFile) -> None:
    """Finite floats, positive scales, and no -128, which the symmetric scheme never produces."""
    for name in file:
        if file.dtype(name) == "F32" and not bool(torch.isfinite(file[name]).all()):
            raise CheckpointError(f"{file.path}: {name} holds NaN or infinite values")
        if name.endswith("_scale") and not bool((file[name] > 0).all()):
            raise CheckpointError(f"{file.path}: {name} holds a scale that is not positive")
        if file.dtype(name) == "I8" and int(file[name].min()) < -127:
            raise CheckpointError(f"{file.path}: {name} holds -128, outside the symmetric range -127..127")
