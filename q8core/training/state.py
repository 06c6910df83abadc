"""Resumable training state: one safetensors file and one JSON file, replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from q8core.errors import CheckpointError, InputError
from q8core.training.averaging import WeightAverage

STATE_FILE = "training_state.safetensors"
# JSON in the metadata of the tensors' file: both are replaced with one rename.
META_KEY = "q8bert_state"


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    seconds: float = 0.0


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    config: dict[str, Any],
    average: WeightAverage | None = None,
) -> None:
    """Write model, optimizer, average of the weights and progress; random numbers depend only on seed and step."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state().items()}
    meta = json.dumps({"progress": vars(progress), "config": config})
    temporary = folder / f"{STATE_FILE}.part"
    # clone(): safetensors refuses buffers that share memory (one observer for Q, K and V)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, temporary, {META_KEY: meta})
    os.replace(temporary, folder / STATE_FILE)


def load_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    average: WeightAverage | None = None,
) -> Progress | None:
    """Restore a run; return None if the folder has none.

    Raises:
        InputError: the stored run has other hyperparameters.
        CheckpointError: the stored state is damaged.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as handle:
            meta = json.loads((handle.metadata() or {})[META_KEY])
        tensors = load_file(file)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); delete it to start again") from error
    if meta["config"] != json.loads(json.dumps(config)):
        before, now = meta["config"], json.loads(json.dumps(config))
        changed = [k for k in {**now, **before} if before.get(k) != now.get(k)]
        raise InputError(
            f"{folder} holds an unfinished run with other settings ({', '.join(changed)}); "
            "repeat its command to go on, or choose another --output"
        )
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    _load_optimizer(optimizer, tensors)
    if average is not None:
        average.load({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    return Progress(**meta["progress"])


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
