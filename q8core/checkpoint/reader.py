"""Opens checkpoint folders; nothing in them is trusted until it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from q8core.arrays import Array
from q8core.checkpoint.config import REGRESSION, SHORTEST_INPUT, ModelConfig, read_config
from q8core.checkpoint.float_source import FloatSource, open_source
from q8core.checkpoint.layout import check_layout
from q8core.checkpoint.manifest import (
    FLOAT_FILE,
    INT8_FILE,
    MANIFEST_FILE,
    GoldenExample,
    Manifest,
    verify_files,
)
from q8core.checkpoint.tensors import RenamedTensors, TensorFile
from q8core.checkpoint.text_input import check_pairs, checked_tokenizer, own_length
from q8core.errors import CheckpointError, SchemeError
from q8core.model.head import HeadSpec, TaskKind
from q8core.model.spec import EncoderSpec
from q8core.quant import Scheme
from q8core.quant.bits import Bits, bits_of
from q8core.quant.dequantized import DequantizedTensors
from q8core.quant.plan import Plan
from q8core.quant.weights import check_integers
from q8core.tasks.examples import is_regression


class Checkpoint:
    """A verified checkpoint folder: an int8 one (with ``q8bert.json``), or a float Hugging Face folder.

    Use :meth:`open`. Tensors are read from the mapped files when an engine asks for them.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        task: TaskKind,
        labels: tuple[str, ...],
        max_length: int,
        manifest: Manifest | None,
        source: FloatSource | None,
    ) -> None:
        self.path = path
        self.config = config
        self.task: TaskKind = task
        self.labels = labels
        self.max_length = max_length
        self.manifest = manifest
        self._source = source
        self.scheme = _scheme(path, manifest, config) if manifest else None

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a folder after checking hashes, names, shapes and types, and int8 tensors' values.

        Raises:
            CheckpointError: with the reason and, if there is one, the remedy.
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
        return cls._of_manifest(path, manifest) if manifest else cls._of_source(open_source(path))

    @classmethod
    def _of_manifest(cls, path: Path, manifest: Manifest) -> Checkpoint:
        source = open_source(path) if (path / FLOAT_FILE).is_file() else None
        config = read_config(path) if source is None else source.config
        _check_facts(path, config, manifest.task, manifest.labels, manifest.max_length)
        if source is not None and source.head != manifest.task:
            raise CheckpointError(f"{path}: architectures is {list(config.architectures)}, the task {manifest.task}")
        _check_family(path, config, manifest)
        checkpoint = cls(path, config, manifest.task, manifest.labels, manifest.max_length, manifest, source)
        checkpoint._check_quantized()
        return checkpoint

    @classmethod
    def _of_source(cls, source: FloatSource) -> Checkpoint:
        path, config, task = source.path, source.config, source.require_head()
        labels = source.labels if task == "classify" else ()
        length = own_length(path, config)
        return cls(path, config, task, labels, length, None, source)

    @property
    def name(self) -> str:
        """The manifest's name, or the folder's."""
        return self.manifest.name if self.manifest else self.path.name

    @property
    def problem_type(self) -> str | None:
        """What a classification head was trained for, in Hugging Face's words, such as ``regression``."""
        return self.config.problem_type

    @cached_property
    def plan(self) -> Plan:
        """The quantized model's plan.

        Raises:
            CheckpointError: this is a float checkpoint, or the manifest's plan contradicts the config.
        """
        if self.manifest is None:
            raise CheckpointError(
                f"{self.path} holds a float model only; make an int8 checkpoint of it with "
                f"`q8bert quantize --model {self.path} ...`, or train one with `q8bert train`"
            )
        return _plan(self.path, self.config, self.manifest, self.scheme)

    @property
    def float_plan(self) -> Plan:
        """The float model's plan."""
        return Plan.of(self.config.spec, self.config.head(self.task))

    @property
    def bits(self) -> Bits:
        """The bits of the quantized model, or of the float one where there is no other."""
        return bits_of(self.plan if self.manifest else self.float_plan)

    @property
    def golden(self) -> tuple[GoldenExample, ...]:
        """Inputs with known logits; none for a plain Hugging Face folder."""
        return self.manifest.golden if self.manifest else ()

    @property
    def quantized_sha256(self) -> str | None:
        """The verified digest of the quantized tensors' file; None for a float checkpoint."""
        return str(self.manifest.files[INT8_FILE]["sha256"]) if self.manifest else None

    @cached_property
    def _quantized(self) -> TensorFile:
        return TensorFile(self.path / INT8_FILE)

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Each quantized tensor's site name -> its name in the file; empty unless they differ (format 1)."""
        if self.manifest is None or self.manifest.format_version != 1:
            return {}
        modules = self.config.family.site_modules(self.config.spec, self.task)
        paths = [(name, *name.rsplit(".", 1)) for name in self.plan.tensors]
        return {name: f"{modules[path]}.{leaf}" for name, path, leaf in paths}

    def quantized_tensors(self) -> Mapping[str, Array]:
        """Return the quantized tensors by the names of sites, read on access.

        Raises:
            CheckpointError: this is a float checkpoint.
        """
        plan = self.plan
        return RenamedTensors(self._quantized, {name: self._names.get(name, name) for name in plan.tensors})

    def float_tensors(self) -> tuple[Mapping[str, Array], bool]:
        """Return the float tensors by the names of sites, and whether they are dequantized weights.

        Tensors of a float file are checked when they are read, because int8 never reads them: a CheckpointError names
        the first with NaN or infinite values.
        """
        if self._source is not None:
            return self._source.tensors(self.task), False
        return DequantizedTensors(self.plan, self.quantized_tensors()), True

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, without padding and truncation.

        Raises:
            CheckpointError: it is missing, damaged, or has tokens that the model does not know.
        """
        return checked_tokenizer(self.path, self.config)

    def check_pairs(self, tokenizer: Tokenizer, has_pairs: bool = True) -> None:
        """Raise InputError if there are pairs of texts but the model or its tokenizer does not support pairs."""
        if has_pairs:
            check_pairs(self.path, tokenizer, self.config.spec.token_types)

    def _check_quantized(self) -> None:
        check_layout(self._quantized, self._names, self.plan)
        _check_values(self._quantized)
        _check_integers(self._quantized, self._names, self.plan)


def _scheme(path: Path, manifest: Manifest, config: ModelConfig) -> Scheme:
    try:
        head = config.head(manifest.task)
        return Scheme.from_dict(manifest.plan.scheme, config.spec.layers, head_dense=head.dense is not None)
    except SchemeError as error:
        raise CheckpointError(f"{path / MANIFEST_FILE}: {error}") from error


def _plan(path: Path, config: ModelConfig, manifest: Manifest, scheme: Scheme | None) -> Plan:
    try:
        plan = Plan.of(config.spec, config.head(manifest.task), scheme)
    except SchemeError as error:
        raise CheckpointError(f"{path / MANIFEST_FILE}: {error}") from error
    record = manifest.plan
    for what, said, is_so in (("encoder", record.encoder, plan.spec), ("head", record.head, plan.head)):
        if said is not None and {**_defaults(is_so), **said} != asdict(is_so):
            raise CheckpointError(
                f"{path / MANIFEST_FILE}: plan.{what} is {said}, but config.json describes {asdict(is_so)}"
            )
    return plan


def _defaults(spec: EncoderSpec | HeadSpec) -> dict[str, Any]:
    """Return what holds for fields that did not exist yet when a manifest was written."""
    return {each.name: each.default for each in fields(spec) if each.default is not MISSING}


def _check_family(path: Path, config: ModelConfig, manifest: Manifest) -> None:
    if manifest.family != config.family.model_type:
        raise CheckpointError(
            f"{path / MANIFEST_FILE}: family is {manifest.family!r}, but model_type in config.json is "
            f"{config.family.model_type!r}"
        )
    if manifest.task == "classify" and manifest.labels != config.labels:
        raise CheckpointError(
            f"{path / MANIFEST_FILE}: labels are {_some(manifest.labels)}, but id2label in config.json says "
            f"{_some(config.labels)}"
        )


def _check_facts(path: Path, config: ModelConfig, task: TaskKind, labels: tuple[str, ...], max_length: int) -> None:
    if task == "classify" and is_regression(labels) and config.problem_type != REGRESSION:
        raise CheckpointError(
            f"{path}: there is one label, {labels[0]!r}, and problem_type in config.json is {config.problem_type!r}; a "
            "classifier needs at least 2 labels, a model that predicts a number the problem_type 'regression'"
        )
    if task == "classify" and (not labels or len(set(labels)) != len(labels)):
        raise CheckpointError(f"{path}: labels are {labels}; a classifier needs at least 2 different ones")
    if not SHORTEST_INPUT <= max_length <= config.spec.positions:
        raise CheckpointError(
            f"{path}: max_length is {max_length}; allowed: {SHORTEST_INPUT} to {config.spec.positions} "
            "(the position table)"
        )


def _some(labels: tuple[str, ...]) -> str:
    return f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''} ({len(labels)})"


def _check_integers(file: TensorFile, names: Mapping[str, str], plan: Plan) -> None:
    for site in plan.sites.values():
        if site.weight is None:
            continue
        tensors = {name.rpartition(".")[2]: names.get(name, name) for name in site.tensors}
        try:
            check_integers(site, lambda leaf, stored=tensors: file[stored[leaf]])
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error}") from None


def _check_values(file: TensorFile) -> None:
    """Check that floats are finite and scales positive."""
    for name in file:
        if file.dtype(name) == "F32" and not bool(np.isfinite(file[name]).all()):
            raise CheckpointError(f"{file.path}: {name} holds NaN or infinite values")
        if name.endswith("_scale") and not bool((file[name] > 0).all()):
            raise CheckpointError(f"{file.path}: {name} holds a scale that is not positive")
