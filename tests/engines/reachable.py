"""An independent account of what an object keeps alive: the garbage collector's."""

from __future__ import annotations

import gc
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor

from q8core.arrays import Array


def reachable_tensors(root: object) -> list[Tensor | Array]:
    """Torch's tensors, and NumPy's arrays."""
    seen: dict[int, object] = {}
    found: list[Tensor | Array] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen or isinstance(node, (type, ModuleType, FunctionType, BuiltinFunctionType)):
            continue
        seen[id(node)] = node
        if isinstance(node, (Tensor, np.ndarray)):
            found.append(node)
        else:
            stack.extend(gc.get_referents(node))
    return found


def storage_bytes(found: list[Tensor | Array]) -> int:
    tensors = [t for t in found if isinstance(t, Tensor)]
    blocks: dict[int, int] = {}
    for array in found:
        if not isinstance(array, Tensor):
            owner = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            assert owner.nbytes - array.nbytes < 64, "a view keeps more than it shows, and than alignment takes"
            blocks[array.ctypes.data] = array.nbytes
    blocked = sum(int(torch.ops.mkldnn._nbytes(t)) for t in tensors if t.is_mkldnn)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_mkldnn}
    return blocked + sum(storages.values()) + sum(blocks.values())
