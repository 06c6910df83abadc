"""A model's ``config.json``, checked: models that the engines cannot compute are refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from q8core.documents import read_json, shown
from q8core.errors import CheckpointError
from q8core.model.families import FAMILIES, Family
from q8core.model.head import HeadSpec, TaskKind
from q8core.model.sites import float_shapes
from q8core.model.spec import EncoderSpec
from q8core.tasks.examples import MULTI_LABEL

CONFIG_FILE = "config.json"
HEAD_SIZE = "head_dim"
"""The columns of an attention head, as newer families of transformers call them; its BERT classes have no such key."""
SHORTEST_INPUT = 8
REGRESSION = "regression"
_PROBLEM_TYPES = (REGRESSION, "single_label_classification", MULTI_LABEL)
# larger values describe no real model, and would take hours to compute with
_LARGEST, _MOST_LAYERS, _MOST_LABELS = 2**31 - 1, 10_000, 1_000_000


@dataclass(frozen=True)
class ModelConfig:
    """The content of a config.json.

    Attributes:
        family: the model's family.
        spec: the encoder.
        labels: names of a classifier's outputs by index.
        values: all values, as they are in the file.
    """

    family: Family
    spec: EncoderSpec
    labels: tuple[str, ...]
    values: Mapping[str, Any]

    @property
    def problem_type(self) -> str | None:
        """What a classification head was trained for, in Hugging Face's words, such as ``regression``."""
        return cast("str | None", self.values.get("problem_type"))

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes of transformers that the file names."""
        return tuple(cast("Sequence[str]", self.values.get("architectures") or ()))

    @property
    def initializer_range(self) -> float:
        """The standard deviation of a new head's weights."""
        return float(self.values.get("initializer_range") or self.family.defaults["initializer_range"])

    def file_names(self, kind: TaskKind) -> dict[str, str]:
        """Return site name -> name in the family's files, for each float tensor of a model with a task's head."""
        modules = self.family.site_modules(self.spec, kind)
        names = [name.rpartition(".") for name in float_shapes(self.spec, self.head(kind))]
        return {f"{path}.{leaf}": f"{modules[path]}.{leaf}" for path, _, leaf in names}

    def head(self, kind: TaskKind) -> HeadSpec:
        """Return the head of a task: a classifier has an output for each label."""
        return self.family.head(kind, len(self.labels))

    def check_others_read_it(self, where: Path) -> None:
        """Refuse a model that transformers' class of its family would build with heads of another size.

        Raises:
            CheckpointError: says how many columns the heads have.
        """
        spec = self.spec
        if spec.own_head_size is not None:
            raise CheckpointError(
                f"{where}: {spec.heads} attention heads have {spec.head_size} columns each ({HEAD_SIZE}), together "
                f"{spec.attention}, and the hidden state has {spec.hidden}; transformers' {self.family.model_type} "
                "models always have equal numbers, so only q8bert computes this one"
            )

    def changed(self, **values: Any) -> ModelConfig:
        """Return a config with some values changed, which must not be sizes."""
        return replace(self, values={**self.values, **values})

    def narrower(self, share: float) -> ModelConfig:
        """Return a config with this share of the attention heads and feed-forward neurons, at least one of each.

        Heads keep their size. It is the same config if that is all of them.
        """
        spec = self.spec
        heads, inner = (max(1, round(count * share)) for count in (spec.heads, spec.inner))
        if (heads, inner) == (spec.heads, spec.inner):
            return self
        names = {self.family.heads_key: heads, self.family.inner_key: inner, HEAD_SIZE: self.spec.head_size}
        return parse_config({**self.values, **names}, "the narrower model")

    def with_labels(self, labels: Sequence[str]) -> ModelConfig:
        """Return a classifier's config with other labels."""
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        # a num_labels that some script wrote for the old labels would contradict them
        kept = {name: value for name, value in self.values.items() if name != "num_labels"}
        return replace(self, labels=tuple(labels), values={**kept, **names})

    def save(self, folder: Path, kind: TaskKind) -> None:
        """Write the config.json of a float32 model with a task's head; transformers can read it too."""
        values = {name: value for name, value in self.values.items() if name != "torch_dtype"}
        values |= {
            "model_type": self.family.model_type,
            "architectures": [self.family.heads[kind].architecture],
            "dtype": "float32",
        }
        text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> ModelConfig:
    """Read and check a model's config; label names become strings.

    Raises:
        CheckpointError: it is missing, is not JSON, or describes a model that the engines cannot compute.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}; a model is a folder with it and weights")
    raw: object = read_json(file, CheckpointError)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {shown(raw)}; a JSON object is expected")
    return parse_config(cast("dict[str, Any]", raw), str(file))


def parse_config(values: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the config that values describe.

    Args:
        values: the values of a config.json.
        where: its name in error messages.

    Raises:
        CheckpointError: they describe a model that the engines cannot compute.
    """
    family = _family(where, values.get("model_type"))
    _check_fixed(where, values, family)
    given = {name: value for name, value in values.items() if not (value is None and name in family.fixed)}
    _check_sizes(where, given, family)
    try:
        spec = family.spec({**family.defaults, **given})
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    spec = _with_head_size(where, spec, given.get(HEAD_SIZE))
    _check_spec(where, spec)
    labels = _labels(where, values)
    return ModelConfig(family, spec, labels, {**given, "id2label": dict(enumerate(labels))})


def _family(where: str, model_type: object) -> Family:
    if model_type is None:
        raise CheckpointError(f'{where}: model_type is missing; for a BERT add "model_type": "bert"')
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise CheckpointError(f"{where}: model_type is {shown(model_type)}; supported: {supported}")
    return FAMILIES[model_type]


def _check_fixed(where: str, values: Mapping[str, Any], family: Family) -> None:
    for name, allowed in family.fixed.items():
        if values.get(name, allowed) not in (allowed, None):
            raise CheckpointError(f"{where}: {name} is {shown(values[name])}; only {shown(allowed)} is supported")
    for name, what in (("quantization_config", "quantized already"), ("pruned_heads", "pruned")):
        if values.get(name):
            raise CheckpointError(f"{where}: the model is {what} ({name} is set), which is not supported")


def _check_sizes(where: str, values: Mapping[str, Any], family: Family) -> None:
    """Check the values that a file gives; missing ones get the family's defaults."""
    for name in (*family.sizes, "num_labels"):
        largest = _MOST_LABELS if name == "num_labels" else _LARGEST
        size = values.get(name, 1)
        if name == "num_labels" and size is None:
            continue
        if type(size) is not int or not 1 <= size <= largest:
            raise CheckpointError(f"{where}: {name} is {shown(size)}; allowed: a whole number from 1 to {largest}")
    epsilon = values.get("layer_norm_eps", 1e-12)
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise CheckpointError(f"{where}: layer_norm_eps is {shown(epsilon)}; allowed: a number between 0 and 1")
    padding = values.get("pad_token_id")
    if padding is not None and (type(padding) is not int or not 0 <= padding <= _LARGEST):
        raise CheckpointError(f"{where}: pad_token_id is {shown(padding)}; allowed: a whole number of at least 0")
    spread = values.get("initializer_range")
    if spread is not None and (type(spread) not in (int, float) or not 0 <= spread < 1):
        raise CheckpointError(f"{where}: initializer_range is {shown(spread)}; allowed: a number from 0 to 1")
    classes = values.get("architectures")
    if classes is not None and not _is_texts(classes):
        raise CheckpointError(f"{where}: architectures is {shown(classes)}; allowed: a list of class names")
    problem = values.get("problem_type")
    if problem not in (None, *_PROBLEM_TYPES):
        raise CheckpointError(f"{where}: problem_type is {shown(problem)}; allowed: {', '.join(_PROBLEM_TYPES)}")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast("list[object]", value))


def _with_head_size(where: str, spec: EncoderSpec, columns: object) -> EncoderSpec:
    """Return the encoder with heads of so many columns; None where all heads together have those of the hidden state.

    Raises:
        CheckpointError: the number is none, or there is none and the hidden state cannot be divided among the heads.
    """
    if columns is None:
        if spec.hidden % spec.heads:
            raise CheckpointError(
                f"{where}: the hidden size, {spec.hidden}, is not a multiple of the {spec.heads} attention heads, and "
                f"there is no {HEAD_SIZE}, which says how many columns a head has"
            )
        return spec
    if type(columns) is not int or not 1 <= columns <= _LARGEST // spec.heads:
        raise CheckpointError(
            f"{where}: {HEAD_SIZE} is {shown(columns)}; allowed: a whole number from 1 to {_LARGEST // spec.heads}"
        )
    return spec if columns * spec.heads == spec.hidden else replace(spec, own_head_size=columns)


def _check_spec(where: str, spec: EncoderSpec) -> None:
    if spec.layers > _MOST_LAYERS:
        raise CheckpointError(f"{where}: the model has {spec.layers} layers; allowed: 1 to {_MOST_LAYERS}")
    if spec.pad_token is not None and spec.pad_token >= spec.vocabulary:
        raise CheckpointError(
            f"{where}: pad_token_id is {spec.pad_token}, beyond the {spec.vocabulary} rows of the table of words"
        )
    if spec.positions < SHORTEST_INPUT:
        raise CheckpointError(f"{where}: the model reads {spec.positions} tokens; at least {SHORTEST_INPUT} are needed")


def _labels(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the label names by index; transformers' default names if the file has none."""
    names = values.get("id2label")
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(values.get("num_labels") or 2))
    if not isinstance(names, dict):
        raise CheckpointError(f"{where}: id2label is {type(names).__name__}; an object of index and name is expected")
    labels: dict[int, str] = {}
    for key, name in cast("dict[Any, Any]", names).items():
        # scripts that read integer labels write numbers as names
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise CheckpointError(f"{where}: id2label[{key!r}] is {shown(name)}; a name is a text or a whole number")
        try:
            labels[int(key)] = str(name)
        except ValueError as error:
            raise CheckpointError(f"{where}: id2label has the key {key!r}; keys are 0, 1, ...") from error
    if sorted(labels) != list(range(len(names))):
        raise CheckpointError(
            f"{where}: id2label has the keys {', '.join(map(str, sorted(labels)[:20]))}; they must be 0, 1, ..."
        )
    return tuple(labels[index] for index in range(len(labels)))
