"""Lazy, checked access to the tensors of a safetensors file, as NumPy arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from q8core.arrays import Array
from q8core.errors import CheckpointError

_DTYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # NumPy has no such type: read its bits, the upper half of a float32
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_HEADER_LENGTH = 8


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a safetensors file with the permissions of any other new file."""
    save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, path, {"format": "pt"})
    give_ordinary_permissions(path)


def give_ordinary_permissions(path: Path) -> None:
    """Give a file that safetensors wrote the permissions that the umask gives to new files.

    safetensors makes its files private, so a service that runs as another user could not read them.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@dataclass(frozen=True)
class _Entry:
    """A tensor in a file: its dtype in safetensors' notation, its shape, and its byte offset."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


class TensorFile(Mapping[str, Array]):
    """The tensors of one safetensors file by name, read on access; bfloat16 tensors become float32, exactly.

    Each access reads the tensor again, so packing weights one by one needs no second copy of the model. The file is
    read, not mapped, because touched pages of a mapped file would stay resident.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors; on access, the file has changed since.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np"):  # checks the whole header, and the file's length against it
                pass
            self._entries = _entries(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} is {entry.dtype}; allowed: {', '.join(_DTYPES)}")
        dtype, count = _DTYPES[entry.dtype], prod(entry.shape)
        try:
            found = np.fromfile(self.path, dtype, count, offset=entry.begin)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        if len(found) != count:
            raise CheckpointError(f"{self.path} has become shorter since it was opened")
        return (_widened(found) if entry.dtype == "BF16" else found).reshape(entry.shape)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor to find out
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype in safetensors' notation (``I8``, ``I32``, ``F32``) without reading the tensor."""
        return self._entries[name].dtype


def _entries(path: Path) -> dict[str, _Entry]:
    """Return the tensors that a file's header lists, once safetensors has checked it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH), "little")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    first = _HEADER_LENGTH + length
    return {
        name: _Entry(about["dtype"], tuple(about["shape"]), first + about["data_offsets"][0])
        for name, about in sorted(header.items())
    }


def _widened(halves: Array) -> Array:
    """Return the float32 numbers whose upper halves are `halves` (uint16); the lower halves are 0."""
    whole = halves.astype(np.uint32)
    whole <<= 16
    return whole.view(np.float32)


class RenamedTensors(Mapping[str, Array]):
    """Some tensors of a file under other names, read on access."""

    def __init__(self, file: TensorFile, stored: Mapping[str, str]) -> None:
        self.file = file
        self.stored = stored
        """Each tensor's name -> its name in the file."""

    def __getitem__(self, name: str) -> Array:
        return self.file[self.stored[name]]

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor to find out
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
