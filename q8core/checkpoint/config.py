"""``config.json`` of a BERT, checked: what the engines do not compute is refused before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import BertConfig

from q8core.errors import CheckpointError

CONFIG_FILE = "config.json"
SHORTEST_INPUT = 8
_MOST_LAYERS = 1000
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip


def read_config(folder: Path) -> BertConfig:
    """Read and check a model's config; names of labels become texts.

    Raises:
        CheckpointError: it is missing, no JSON, or describes a model that the engines do not compute.
    """
    file = folder / CONFIG_FILE
    try:
        raw: object = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}; a model is a folder with it and weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: a JSON object is expected, found {type(raw).__name__}")
    values = cast("dict[str, Any]", raw)
    _check_kind(file, values)
    if values.get("id2label") is not None:
        values = {**values, "id2label": _labels(file, values["id2label"])}
    try:
        config = BertConfig.from_dict(values)
    except Exception as error:  # transformers' validation raises many kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is not a BERT config: {reason}") from error
    _check_sizes(file, config)
    return config


def _check_kind(file: Path, values: Mapping[str, Any]) -> None:
    kind = values.get("model_type")
    if kind is None:
        raise CheckpointError(f'{file}: model_type is missing; for a BERT add "model_type": "bert"')
    if kind != "bert":
        raise CheckpointError(f"{file}: model_type is {kind!r}; only 'bert' is supported")
    wanted = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for name, allowed in {**wanted, "add_cross_attention": False}.items():
        if values.get(name, allowed) not in (allowed, None):
            raise CheckpointError(f"{file}: {name} is {values[name]!r}; only {allowed!r} is supported")
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
            raise CheckpointError(f"{file}: id2label[{key!r}] is {name!r}; a name is a text or a whole number")
        try:
            labels[int(key)] = str(name)
        except ValueError as error:
            raise CheckpointError(f"{file}: id2label has the key {key!r}; keys are 0, 1, ...") from error
    if sorted(labels) != list(range(len(names))):
        raise CheckpointError(f"{file}: id2label has the keys {', '.join(map(str, names))}; they must be 0, 1, ...")
    return dict(sorted(labels.items()))


def _check_sizes(file: Path, config: BertConfig) -> None:
    for name in _SIZES:
        size = getattr(config, name)
        if type(size) is not int or size < 1:
            raise CheckpointError(f"{file}: {name} is {size!r}; a whole number of at least 1 is expected")
    if config.num_hidden_layers > _MOST_LAYERS:
        raise CheckpointError(f"{file}: num_hidden_layers is {config.num_hidden_layers}; at most {_MOST_LAYERS}")
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{file}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    if config.max_position_embeddings < SHORTEST_INPUT:
        raise CheckpointError(
            f"{file}: max_position_embeddings is {config.max_position_embeddings}; at least {SHORTEST_INPUT}"
        )
    epsilon = config.layer_norm_eps
    if type(epsilon) not in (float, int) or not 0 < epsilon < math.inf:
        raise CheckpointError(f"{file}: layer_norm_eps is {epsilon!r}; a number above 0 is expected")
