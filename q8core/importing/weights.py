"""The weights of a hub folder in any layout, gathered in one safetensors file under their original names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file

from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.checkpoint.tensors import TensorFile, give_ordinary_permissions
from q8core.documents import read_json, shown
from q8core.errors import CheckpointError
from q8core.importing.unpickle import unpickle

PICKLE = "pytorch_model.bin"
INDEX_ENDING = ".index.json"
LAYOUTS = (FLOAT_FILE, FLOAT_FILE + INDEX_ENDING, PICKLE, PICKLE + INDEX_ENDING)
"""Names of weights' files and indexes, the preferred first: safetensors before pickles, as in transformers."""
_OTHER_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".h5", ".msgpack", ".gguf", ".onnx", ".ot")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Weights:
    """The files with the weights of a folder.

    Attributes:
        folder: the model's folder.
        name: the name of the weights' file, or of the index of their shards.
        shards: file -> names of the tensors that the index expects in it; None if there is no index.
    """

    folder: Path
    name: str
    shards: Mapping[str, frozenset[str] | None]

    @property
    def pickled(self) -> bool:
        """Whether reading them could run code."""
        return self.name.startswith(PICKLE)

    @property
    def ready(self) -> bool:
        """Whether the weights already are one safetensors file."""
        return self.name == FLOAT_FILE

    def gather(self, target: Path) -> None:
        """Write all tensors to one safetensors file, with their original names and dtypes.

        Raises:
            CheckpointError: a file is damaged, has code, or has other tensors than the index says.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, expected in self.shards.items():
            part = self.folder / name
            if self.pickled:
                part = target.with_name(f"{name}.safetensors")
                unpickle(self.folder / name, part)
            file = TensorFile(part)
            _check_shard(self.folder / name, frozenset(file), expected)
            if len(self.shards) == 1 and self.pickled:
                part.rename(target)
                return
            tensors |= load_file(part)
            if self.pickled:
                part.unlink()
        save_file(tensors, target, {"format": "pt"})  # with torch, in whose types there is bfloat16
        give_ordinary_permissions(target)


def find_weights(folder: Path) -> Weights:
    """Find the weights of a model's folder.

    Raises:
        CheckpointError: there are no readable weights, or they are incomplete.
    """
    name = next((name for name in LAYOUTS if (folder / name).is_file()), None)
    if name is None:
        found = sorted(path.name for path in folder.iterdir() if path.name.endswith(_OTHER_ENDINGS))
        has = f"it has {', '.join(found)}" if found else "it has no other weights either"
        raise CheckpointError(
            f"{folder} has neither {FLOAT_FILE} nor {PICKLE}, nor the index of either in several files; {has}"
        )
    shards: Mapping[str, frozenset[str] | None] = {name: None}
    if name.endswith(INDEX_ENDING):
        shards = _read_index(folder, name)
    for shard in shards:
        with (folder / shard).open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise CheckpointError(f"{folder / shard} is a pointer of git-lfs, not the file; `git lfs pull` gets it")
    return Weights(folder, name, shards)


def _read_index(folder: Path, name: str) -> dict[str, frozenset[str]]:
    """Return each shard with the tensors that it must have.

    Raises:
        CheckpointError: the index is malformed, or the folder has more or fewer shards.
    """
    index: object = read_json(folder / name, CheckpointError)
    places: object = cast("dict[str, object]", index).get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / name} has no weight_map; an object of tensor and file is expected")
    shards: dict[str, set[str]] = {}
    for tensor, file in cast("dict[str, object]", places).items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{folder / name}: {tensor} is in {shown(file)}; a file beside the index is expected")
        shards.setdefault(file, set()).add(tensor)
    missing = sorted(file for file in shards if not (folder / file).is_file())
    if missing:
        raise CheckpointError(f"{folder / name} lists {', '.join(missing)}, which the folder does not have")
    single = Path(name.removesuffix(INDEX_ENDING))
    beside = {path.name for path in folder.glob(f"{single.stem}-*-of-*{single.suffix}")}
    if beside - shards.keys():
        raise CheckpointError(
            f"{folder} holds {', '.join(sorted(beside - shards.keys()))}, which {name} does not list; a folder must "
            "hold one model"
        )
    return {file: frozenset(tensors) for file, tensors in sorted(shards.items())}


def _check_shard(file: Path, found: frozenset[str], expected: frozenset[str] | None) -> None:
    """Refuse a shard that has other tensors than its index says."""
    if expected is None or found == expected:
        return
    missing, more = sorted(expected - found), sorted(found - expected)
    parts = [f"it lacks {', '.join(missing[:5])}"] if missing else []
    parts += [f"it holds {', '.join(more[:5])}"] if more else []
    raise CheckpointError(f"{file} does not hold what the index lists for it: {'; '.join(parts)}")
