"""An independent account of what an object keeps alive: the garbage collector's."""

from __future__ import annotations

import gc
from types import BuiltinFunctionType, FunctionType, ModuleType

import torch
from torch import Tensor


def reachable_tensors(root: object) -> list[Tensor]:
    seen: dict[int, object] = {}
    found: list[Tensor] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen or isinstance(node, (type, ModuleType, FunctionType, BuiltinFunctionType)):
            continue
        seen[id(node)] = node
        if isinstance(node, Tensor):
            found.append(node)
        else:
            stack.extend(gc.get_referents(node))
    return found


def storage_bytes(tensors: list[Tensor]) -> int:
    blocked = sum(int(torch.ops.mkldnn._nbytes(t)) for t in tensors if t.is_mkldnn)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_mkldnn}
    return blocked + sum(storages.values())
