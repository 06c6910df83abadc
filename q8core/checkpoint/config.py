"""``config.json`` of a BERT, checked: what the engines do not compute is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import BertConfig

from q8core.documents import read_json, shown
from q8core.errors import CheckpointError

CONFIG_FILE = "config.json"
SHORTEST_INPUT = 8
# name -> the largest value that is looked at: a larger one is no model, and would be computed with for hours
_LARGEST = {
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**31 - 1,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**31 - 1,
    "intermediate_size": 2**31 - 1,
    "max_position_embeddings": 2**31 - 1,
    "type_vocab_size": 2**31 - 1,
    "num_labels": 1_000_000,
}


def read_config(folder: Path) -> BertConfig:
    """Read and check a model's config; names of labels become texts.

    Raises:
        CheckpointError: it is missing, no JSON, or describes a model that the engines do not compute.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}; a model is a folder with it and weights")
    raw: object = read_json(file, CheckpointError)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {shown(raw)}; a JSON object is expected")
    values = cast("dict[str, Any]", raw)
    _check_kind(file, values)
    _check_sizes(file, values)
    if values.get("id2label") is not None:
        values = {**values, "id2label": _labels(file, values["id2label"])}
    try:
        config = BertConfig.from_dict(values)
    except Exception as error:  # transformers' validation raises many kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is not a BERT config: {reason}") from error
    _check_shape(file, config)
    return config


def _check_kind(file: Path, values: Mapping[str, Any]) -> None:
    kind = values.get("model_type")
    if kind is None:
        raise CheckpointError(f'{file}: model_type is missing; for a BERT add "model_type": "bert"')
    if kind != "bert":
        raise CheckpointError(f"{file}: model_type is {shown(kind)}; only 'bert' is supported")
    wanted = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for name, allowed in {**wanted, "add_cross_attention": False}.items():
        if values.get(name, allowed) not in (allowed, None):
            raise CheckpointError(f"{file}: {name} is {shown(values[name])}; only {shown(allowed)} is supported")
    for name, what in (("quantization_config", "quantized already"), ("pruned_heads", "pruned")):
        if values.get(name):
            raise CheckpointError(f"{file}: the model is {what} ({name} is set), which is not supported")


def _labels(file: Path, names: object) -> dict[int, str]:
    """Return index -> name; scripts that read integer labels write names that are numbers."""
    if not isinstance(names, dict):
        raise CheckpointError(f"{file}: id2label is {type(names).__name__}; an object of index and name is expected")
    labels: dict[int, str] = {}
    for key, name in cast("dict[Any, Any]", names).items():
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise CheckpointError(f"{file}: id2label[{key!r}] is {shown(name)}; a name is a text or a whole number")
        try:
            labels[int(key)] = str(name)
        except ValueError as error:
            raise CheckpointError(f"{file}: id2label has the key {key!r}; keys are 0, 1, ...") from error
    if sorted(labels) != list(range(len(names))):
        raise CheckpointError(
            f"{file}: id2label has the keys {', '.join(map(str, sorted(labels)[:20]))}; they must be 0, 1, ..."
        )
    return dict(sorted(labels.items()))


def _check_sizes(file: Path, values: Mapping[str, Any]) -> None:
    """Check what a file says; what it leaves out has transformers' defaults."""
    for name, largest in _LARGEST.items():
        size = values.get(name, 1)
        if name == "num_labels" and size is None:
            continue
        if type(size) is not int or not 1 <= size <= largest:
            raise CheckpointError(f"{file}: {name} is {shown(size)}; allowed: a whole number from 1 to {largest}")
    epsilon = values.get("layer_norm_eps", 1e-12)
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise CheckpointError(f"{file}: layer_norm_eps is {shown(epsilon)}; allowed: a number between 0 and 1")
    classes = values.get("architectures")
    if classes is not None and not _is_texts(classes):
        raise CheckpointError(f"{file}: architectures is {shown(classes)}; allowed: a list of class names")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast("list[object]", value))


def _check_shape(file: Path, config: BertConfig) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{file}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    if config.max_position_embeddings < SHORTEST_INPUT:
        raise CheckpointError(
            f"{file}: max_position_embeddings is {config.max_position_embeddings}; at least {SHORTEST_INPUT}"
        )
