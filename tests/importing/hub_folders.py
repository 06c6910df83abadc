"""Model folders as hubs have them, made of a tiny one that was saved today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def copied(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def pickled(source: Path, folder: Path, *, zipped: bool = True, tensors: Mapping[str, Any] | None = None) -> Path:
    """The same model with pytorch_model.bin alone."""
    copied(source, folder)
    (folder / WEIGHTS).unlink()
    values = dict(load_file(source / WEIGHTS) if tensors is None else tensors)
    torch.save(values, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return folder


def sharded(source: Path, folder: Path, *, pickles: bool = False) -> Path:
    """The same model in three files with an index."""
    copied(source, folder)
    tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    stem, ending = ("pytorch_model", "bin") if pickles else ("model", "safetensors")
    places: dict[str, str] = {}
    for number in range(3):
        file = f"{stem}-{number + 1:05}-of-00003.{ending}"
        part = {name: tensor for i, (name, tensor) in enumerate(tensors.items()) if i % 3 == number}
        places |= dict.fromkeys(part, file)
        if pickles:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
    write_index(folder, f"{stem}.{ending}.index.json", places)
    return folder


def write_index(folder: Path, name: str, places: Mapping[str, object]) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def change_json(file: Path, **changes: object) -> None:
    """Set values; None takes one out."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({name: value for name, value in {**values, **changes}.items() if value is not None}))
