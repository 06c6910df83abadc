"""The model shapes to benchmark."""

from __future__ import annotations

from typing import Any

from q8core.checkpoint.config import ModelConfig, parse_config
from q8core.engines.choice.random_weights import LABELS
from q8core.errors import InputError

_SIZES: dict[str, dict[str, int]] = {
    "bert-base": {},  # the family's defaults
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "minilm-l6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
MODEL_NAMES = tuple(_SIZES)


def bench_config(name: str, **changes: int) -> ModelConfig:
    """Return the config of a named shape, with some fields changed.

    Raises:
        InputError: if there is no such shape; lists the known ones.
    """
    if name not in _SIZES:
        raise InputError(f"model is {name!r}; allowed: {', '.join(MODEL_NAMES)}")
    values: dict[str, Any] = {"model_type": "bert", **_SIZES[name], "num_labels": LABELS, **changes}
    return parse_config(values, name)
