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
    "BF16": np.uint16,  # no type of NumPy's: its bits, which are the upper half of a float32's
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

    safetensors itself makes its files private, which would shut out a service under another user.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@dataclass(frozen=True)
class _Entry:
    """A tensor in a file: safetensors' name of its dtype, its shape, and the byte at which it begins."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


class TensorFile(Mapping[str, Array]):
    """The tensors of one safetensors file by name, read when asked for; those in bfloat16 become float32, exactly.

    Each access reads the tensor anew: whoever packs weights one by one holds no second copy. It is read, not mapped:
    pages of a mapped file that were touched would stay resident.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors; on access, it was changed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np"):  # checks the whole header, and that the file is as long as that says
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
        """Shape of a tensor without reading it."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Safetensors' name of the dtype (``I8``, ``I32``, ``F32``) without reading the tensor."""
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
    """Return the float32 numbers whose upper halves are given, uint16."""
    whole = halves.astype(np.uint32)
    whole <<= 16
    return whole.view(np.float32)


class RenamedTensors(Mapping[str, Array]):
    """Some tensors of a file by other names, read when asked for."""

    def __init__(self, file: TensorFile, stored: Mapping[str, str]) -> None:
        self.file = file
        self.stored = stored
        """The name of each tensor -> the file's."""

    def __getitem__(self, name: str) -> Array:
        return self.file[self.stored[name]]

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor to find out
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
