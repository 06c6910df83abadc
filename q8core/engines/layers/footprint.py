"""Counts the memory that a model of torch's layers really holds: every tensor and packed matrix that it references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import cast

import torch
from torch import Tensor

from q8core.engines.kernels.fbgemm import FbgemmLinear


def footprint(model: object) -> tuple[int, int]:
    """Return the bytes of (matrices and tables, all other tensors) that the dataclass tree `model` references.

    A tensor that several parts share counts once.
    """
    weights = scales = 0
    for part in _parts(model, set()):
        if isinstance(part, Tensor):
            nbytes = tensor_bytes(part)
            if part.dim() >= 2:
                weights += nbytes
            else:
                scales += nbytes
        else:
            weights += part.nbytes
    return weights, scales


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's storage, also for oneDNN's layout."""
    if tensor.is_mkldnn:
        return int(torch.ops.mkldnn._nbytes(tensor))
    return tensor.untyped_storage().nbytes()


def _parts(node: object, seen: set[int]) -> Iterator[Tensor | FbgemmLinear]:
    key = node.untyped_storage().data_ptr() if isinstance(node, Tensor) and not node.is_mkldnn else id(node)
    if key in seen:
        return
    seen.add(key)
    if isinstance(node, FbgemmLinear):
        yield node
        yield from _parts(node.bias, seen)
    elif isinstance(node, Tensor):
        yield node
    elif isinstance(node, tuple):
        for item in cast("tuple[object, ...]", node):
            yield from _parts(item, seen)
    elif is_dataclass(node):
        for each in fields(node):
            yield from _parts(getattr(node, each.name), seen)
