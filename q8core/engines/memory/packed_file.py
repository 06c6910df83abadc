"""One flat file with all that the native library reads of a model, mapped by every process that runs the model.

    magic | sections, each aligned to 64 bytes | description (JSON) | its length (8 bytes) | sha256 (32 bytes)

The description holds the key, the offset of each section, and the library's structures with file offsets as pointers.
The digest covers everything before it and is checked at each load, on the same mapped pages that are used afterwards:
weights that a disk or another program has altered would silently give wrong answers.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from q8core.arrays import Array, address
from q8core.cache import Key, cached_path, code_digest, distrust, mark_used, new_file, tell_unusable
from q8core.engines.memory.residence import Residence
from q8core.engines.tensors.site_tensors import own
from q8core.native import load_library, structs
from q8core.quant.plan import Plan

_MAGIC = b"q8bert packed weights\n"
_ALIGNMENT = 64
_LENGTH, _DIGEST = 8, 32


class Store(Protocol):
    """Stores the arrays that structures point to."""

    def keep(self, array: Array) -> int:
        """Store an array that owns its memory, in C order; return its address or offset."""
        ...

    def keep_copy(self, view: Array) -> int:
        """Store the content of an array that may be a view; return its address or offset."""
        ...


Pack = Callable[[Store], structs.Model]
"""Packs a model into a store, and returns the structure that points into it."""


@dataclass(frozen=True)
class PackedModel:
    """A model in the library's layout.

    Attributes:
        view: the structure that points into `tensors`.
        tensors: all arrays that are read.
        residence: where they are.
    """

    view: structs.Model | structs.FloatModel
    tensors: tuple[Array, ...]
    residence: Residence


class PrivateStore:
    """Keeps arrays in this process's own memory."""

    def __init__(self) -> None:
        self.tensors: list[Array] = []

    def keep(self, array: Array) -> int:
        """Keep an array; return its address."""
        self.tensors.append(array)
        return address(array)

    def keep_copy(self, view: Array) -> int:
        """Keep a copy; return its address."""
        return self.keep(own(view))


class FileStore:
    """Writes arrays to a file, one after the other, so that memory never holds a second copy of the model."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0
        self._sections: list[tuple[int, str, tuple[int, ...]]] = []
        self._append(_MAGIC)

    def keep(self, array: Array) -> int:
        """Write an array; return its offset in the file."""
        self._append(bytes(-self._size % _ALIGNMENT))
        offset = self._size
        self._sections.append((offset, str(array.dtype), array.shape))
        self._append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return offset

    def keep_copy(self, view: Array) -> int:
        """Write an array; return its offset in the file."""
        return self.keep(view)

    def finish(self, key: Key, view: structs.Model) -> None:
        """Write the description and the digest, which end the file."""
        layers = ctypes.string_at(view.layer, ctypes.sizeof(structs.Layer) * view.layers)
        model = structs.Model.from_buffer_copy(view)
        model.layer = None  # it holds an address of this process
        description = {"key": key, "sections": self._sections, "model": bytes(model).hex(), "layers": layers.hex()}
        text = json.dumps(description).encode()
        self._append(text)
        self._append(len(text).to_bytes(_LENGTH, "little"))
        self._file.write(self._digest.digest())

    def _append(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)


def packed_key(sha256: str, plan: Plan, variant: str) -> Key:
    """Return everything that a packed model depends on: the tensors' file, the plan, the code and who reads it."""
    return {
        "sha256": sha256,
        "spec": asdict(plan.spec),
        "head": asdict(plan.head),
        "scheme": plan.scheme.to_dict() if plan.scheme else None,
        "library": load_library().q8_digest().decode(),
        "code": code_digest(),
        "machine": platform.machine(),
        "variant": variant,
    }


def place(key: Key | None, pack: Pack) -> PackedModel:
    """Map the packed model of `key` from the cache, where the first load writes it; without a key, pack it privately.

    If the cache cannot be used, the model is packed into private memory too, and `residence` says why.
    """
    if key is None:
        return _private(pack, "not from a checkpoint's file")
    try:
        path = cached_path("model", key, "packed")
        found, origin = _open(path, key), "packed by an earlier load"
        if found is None:
            with new_file(path) as file:
                store = FileStore(file)
                store.finish(key, pack(store))
            found, origin = _open(path, key), "packed by this load"
        if found is None:
            raise OSError("a file does not stay as it was written")
    except OSError as error:
        return _private(pack, f"the cache is unusable: {tell_unusable(error)}")
    mark_used(path)
    return PackedModel(*found, Residence(True, f"mapped from {path.name} in the cache folder, {origin}"))


def _private(pack: Pack, why: str) -> PackedModel:
    store = PrivateStore()
    view = pack(store)
    return PackedModel(view, tuple(store.tensors), Residence(False, why))


def _open(path: Path, key: Key) -> tuple[structs.Model, tuple[Array, ...]] | None:
    """Map a file and check it; return None if it is missing or invalid."""
    try:
        with path.open("rb") as file:
            # Copy on write: no process can change another's weights. Files are replaced, never modified.
            size = os.fstat(file.fileno()).st_size
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
    except FileNotFoundError:
        return None
    description = _checked(mapping)
    if description is None:
        distrust(path, "truncated, altered or foreign: its digest does not match")
        return None
    if description["key"] != key:
        distrust(path, "made for another key")
        return None
    return _pointed(description, cast(mmap.mmap, mapping))


def _checked(mapping: mmap.mmap | bytes) -> dict[str, Any] | None:
    """Return the description of a complete file whose digest matches, else None."""
    end = len(mapping) - _DIGEST
    if end < len(_MAGIC) + _LENGTH or mapping[: len(_MAGIC)] != _MAGIC:
        return None
    if hashlib.sha256(memoryview(mapping)[:end]).digest() != mapping[end:]:
        return None
    length = int.from_bytes(mapping[end - _LENGTH : end], "little")
    return json.loads(mapping[end - _LENGTH - length : end - _LENGTH])


def _pointed(description: dict[str, Any], mapping: mmap.mmap) -> tuple[structs.Model, tuple[Array, ...]]:
    """Return the structures, which point into the mapping, and the arrays that keep it alive."""
    sections: Sequence[tuple[int, str, list[int]]] = description["sections"]
    tensors = tuple(
        np.frombuffer(mapping, dtype, count=prod(shape), offset=at).reshape(shape) for at, dtype, shape in sections
    )
    base = address(tensors[0]) - sections[0][0]
    view = structs.Model.from_buffer_copy(bytes.fromhex(description["model"]))
    layers = (structs.Layer * view.layers).from_buffer_copy(bytes.fromhex(description["layers"]))
    for structure in (view, *layers):
        _add_to_pointers(structure, base)
    view.layer = layers
    return view, tensors


def _add_to_pointers(structure: ctypes.Structure, base: int) -> None:
    """Convert offsets to addresses, in a structure and in nested ones; null stays null."""
    for name, kind, *_ in structure._fields_:
        value = getattr(structure, name)
        if kind is ctypes.c_void_p and value:
            setattr(structure, name, value + base)
        elif isinstance(value, ctypes.Structure):
            _add_to_pointers(value, base)
