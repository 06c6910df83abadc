"""Lazy, checked access to the tensors of a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from q8core.errors import CheckpointError


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file with the permissions of any other new file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    give_ordinary_permissions(path)


def give_ordinary_permissions(path: Path) -> None:
    """Give a file that safetensors wrote the permissions that the umask gives to new files.

    safetensors itself makes its files private, which would shut out a service under another user.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


class TensorFile(Mapping[str, torch.Tensor]):
    """The tensors of one safetensors file by name, read when asked for.

    Each access reads the tensor anew from the mapped file: whoever packs weights one by one holds
    no second copy.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, "pt")
            self._names: tuple[str, ...] = tuple(self._file.keys())
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        # Pages that were read stay resident while their mapping lives: a mapping for each tensor gives them back.
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name).clone()

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor to find out
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Safetensors' name of the dtype (``I8``, ``I32``, ``F32``) without reading the tensor."""
        return str(self._file.get_slice(name).get_dtype())


class RenamedTensors(Mapping[str, torch.Tensor]):
    """Some tensors of a file by other names, read when asked for."""

    def __init__(self, file: TensorFile, stored: Mapping[str, str]) -> None:
        self.file = file
        self.stored = stored
        """The name of each tensor -> the file's."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.file[self.stored[name]]

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor to find out
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
