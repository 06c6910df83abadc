"""The float32 forward pass as one call into the native library.

The packed weights are in one block of memory, in the order in which they are used: while one is multiplied, the next
is on its way into the cache. Every variant of the library gives the same bits as the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from q8core.checkpoint.layout import head_path
from q8core.engines.bert import score_scale
from q8core.engines.linear_tensors import own
from q8core.engines.native import Loader, NativeModel
from q8core.engines.packed_file import PackedModel, PrivateStore, Store
from q8core.engines.residence import Residence
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.errors import EngineError
from q8core.native import load_library, structs, variants
from q8core.tasks.task import TaskKind

_LANES = 16
_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "inner": "intermediate.dense",
    "outer": "output.dense",
}


def float_variants() -> dict[str, int]:
    """Return the variants with a float32 forward pass that this CPU can run, best first: name -> address.

    Raises:
        EngineError: if there is no library, or no such variant.
    """
    library = load_library()
    found = {name: address for name, address in variants().items() if library.q8_has_float(address)}
    if not found:
        raise EngineError("the native kernel computes float32 on x86 CPUs with AVX2 and FMA; this CPU is none")
    return found


def load_native_float(
    shape: ModelShape, task: TaskKind, source: TensorSource, labels: int, variant: str | None = None
) -> NativeModel:
    """Pack the float tensors of a model, one after the other.

    Args:
        shape: the model's sizes.
        task: its task.
        source: its tensors.
        labels: outputs of the head.
        variant: amx, avx512_vnni or avx2; None for the best that this CPU runs.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
        EngineError: if the library is missing or cannot run here.
    """
    usable = float_variants()
    name = variant or next(iter(usable))
    if name not in usable:
        raise EngineError(f"the variant {name!r} cannot run here; usable: {', '.join(usable)}")
    store = PrivateStore()
    loader = _FloatLoader(source, shape, store, _packed_rows(shape, task, labels))
    view = structs.FloatModel(shape.hidden, shape.heads, shape.inner, shape.layers, shape.norm_epsilon)
    view.score_scale, view.classify = score_scale(shape), task == "classify"
    view.words = loader.table("word_embeddings", shape.vocabulary)
    view.positions = loader.table("position_embeddings", shape.positions)
    view.types = loader.table("token_type_embeddings", shape.token_types)
    view.embedding_norm = loader.norm("bert.embeddings.LayerNorm")
    layers = (structs.FloatLayer * shape.layers)(*(loader.float_layer(number) for number in range(shape.layers)))
    view.layer = layers
    if task == "classify":
        view.pooler = loader.float_linear("bert.pooler.dense", shape.hidden, shape.hidden)
    view.head = loader.float_linear(head_path(task), labels, shape.hidden)
    functions = ("q8_float_workspace_bytes", "q8_forward_float")
    packed = PackedModel(view, tuple(store.tensors), Residence(False, "float32 weights are packed by each process"))
    return NativeModel(shape, labels, (name, usable[name]), packed, functions)


class _FloatLoader(Loader):
    """Takes float tensors from a source and packs them into one block."""

    def __init__(self, source: TensorSource, shape: ModelShape, store: Store, rows: int) -> None:
        super().__init__(source, shape, store)
        self._free = torch.empty(rows, _LANES)
        load_library().q8_prefer_large_pages(self._free.data_ptr(), self._free.nbytes)
        self.keep(self._free)

    def table(self, name: str, rows: int) -> structs.Table:
        """Load an embedding table."""
        weight = own(self.source.take_float(f"bert.embeddings.{name}.weight", (rows, self.shape.hidden)))
        return structs.Table(None, self.keep(weight), None, 0)

    def float_linear(self, path: str, out: int, columns: int) -> structs.FloatLinear:
        """Load a linear layer and pack it behind the last one."""
        weight = self.source.take_float(f"{path}.weight", (out, columns)).contiguous()
        bias = F.pad(self.source.take_float(f"{path}.bias", (out,)), (0, -out % _LANES))
        packed, self._free = self._free.tensor_split([_vectors(out) * columns])
        load_library().q8_pack_float(weight.data_ptr(), out, columns, packed.data_ptr())
        return structs.FloatLinear(packed.data_ptr(), self.keep(own(bias)), out, columns)

    def float_layer(self, number: int) -> structs.FloatLayer:
        """Load an encoder layer."""
        path, h, f = f"bert.encoder.layer.{number}", self.shape.hidden, self.shape.inner
        layer = structs.FloatLayer()
        for name, leaf in _LINEARS.items():
            out, columns = {"inner": (f, h), "outer": (h, f)}.get(name, (h, h))
            setattr(layer, name, self.float_linear(f"{path}.{leaf}", out, columns))
        layer.output_norm = self.norm(f"{path}.attention.output.LayerNorm")
        layer.final_norm = self.norm(f"{path}.output.LayerNorm")
        return layer


def _vectors(out: int) -> int:
    return -(-out // _LANES)


def _packed_rows(shape: ModelShape, task: TaskKind, labels: int) -> int:
    """Return the lines of 16 numbers that all packed weights take."""
    h, f = shape.hidden, shape.inner
    layer = 4 * _vectors(h) * h + _vectors(f) * h + _vectors(h) * f
    return shape.layers * layer + (_vectors(h) * h if task == "classify" else 0) + _vectors(labels) * h
