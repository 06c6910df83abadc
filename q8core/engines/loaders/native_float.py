"""The float32 forward pass as one call into the native library.

The packed weights are in one block of memory, in the order of use: while one is multiplied, the next is being loaded
into the cache. All variants of the library give the same bits.
"""

from __future__ import annotations

import numpy as np

from q8core.arrays import address, empty
from q8core.engines.engine import score_scale
from q8core.engines.loaders.native import Loader, NativeModel, padded
from q8core.engines.memory.packed_file import PackedModel, PrivateStore, Store
from q8core.engines.memory.residence import Residence
from q8core.engines.tensors.site_tensors import own, take_linear, take_table
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.model.sites import EMBEDDING_PROJECTION, HEAD_DENSE, HEAD_OUTPUT, layer_path
from q8core.native import load_library, structs, variants
from q8core.quant.plan import Plan

_LANES = 16
_LINEARS = {
    "query": "query",
    "key": "key",
    "value": "value",
    "output": "attention_output",
    "inner": "ffn_in",
    "outer": "ffn_out",
}
"""Fields of the library's layer -> slots."""


def float_variants() -> dict[str, int]:
    """Return the variants with a float32 forward pass that this CPU can run, best first, as name -> address.

    Raises:
        EngineError: if there is no library, or no such variant.
    """
    library = load_library()
    found = {name: address for name, address in variants().items() if library.q8_has_float(address)}
    if not found:
        raise EngineError("the native kernel computes float32 on x86 CPUs with AVX2 and FMA; this CPU is none")
    return found


def load_native_float(plan: Plan, source: TensorSource, variant: str | None = None) -> NativeModel:
    """Pack the float tensors of a model, one after the other.

    Args:
        plan: the model's plan, all in float.
        source: the model's tensors.
        variant: amx, avx512_vnni, avx_vnni or avx2; None for the best that this CPU runs.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
        EngineError: if the library is missing or cannot run here.
    """
    usable = float_variants()
    name = variant or next(iter(usable))
    if name not in usable:
        raise EngineError(f"the variant {name!r} cannot run here; usable: {', '.join(usable)}")
    store, spec = PrivateStore(), plan.spec
    loader = _FloatLoader(source, plan, store, usable[name])
    view = structs.FloatModel(spec.hidden, spec.heads, spec.inner, spec.layers, spec.attention, spec.norm_epsilon)
    view.score_scale, view.head_reads_first = score_scale(spec), plan.head.reads == "first"
    loader.embeddings(view)
    layers = (structs.FloatLayer * spec.layers)(*(loader.float_layer(number) for number in range(spec.layers)))
    view.layer = layers
    if plan.head.dense:
        view.head_activation = structs.ACTIVATIONS[plan.head.dense]
        view.head_dense = loader.float_linear(HEAD_DENSE)
    view.head = loader.float_linear(HEAD_OUTPUT)
    functions = ("q8_float_workspace_bytes", "q8_forward_float")
    packed = PackedModel(view, tuple(store.tensors), Residence(False, "float32 weights are packed by each process"))
    return NativeModel(spec, plan.head.outputs, (name, usable[name]), packed, functions)


class _FloatLoader(Loader):
    """Takes float tensors from a source and packs them into one block."""

    def __init__(self, source: TensorSource, plan: Plan, store: Store, variant: int) -> None:
        super().__init__(source, plan, store, variant)
        self._free = empty((_packed_rows(plan), _LANES), np.float32)
        load_library().q8_prefer_large_pages(address(self._free), self._free.nbytes)
        self.keep(self._free)

    def table(self, path: str, first: int = 0) -> structs.Table:
        """Load an embedding table from its row `first` on."""
        rows = take_table(self.source, self.plan.sites[path]).behind(first).rows
        return structs.Table(None, self.keep(own(rows)), None, 0)

    def projection(self) -> structs.FloatLinear:
        """Load the projection from the tables' width to the hidden size."""
        return self.float_linear(EMBEDDING_PROJECTION)

    def float_linear(self, path: str) -> structs.FloatLinear:
        """Load a linear layer and pack it after the previous one."""
        tensors = take_linear(self.source, self.plan.sites[path])
        weight, (out, columns) = np.ascontiguousarray(tensors.weight), tensors.weight.shape
        packed, self._free = np.split(self._free, [_vectors(out) * columns])
        load_library().q8_pack_float(address(weight), out, columns, address(packed))
        bias = padded(tensors.bias, _vectors(out) * _LANES)
        return structs.FloatLinear(address(packed), self.keep(bias), out, columns)

    def float_layer(self, number: int) -> structs.FloatLayer:
        """Load an encoder layer."""
        layer = structs.FloatLayer()
        for name, slot in _LINEARS.items():
            setattr(layer, name, self.float_linear(layer_path(number, slot)))
        layer.output_norm = self.norm(layer_path(number, "attention_norm"))
        layer.final_norm = self.norm(layer_path(number, "ffn_norm"))
        return layer


def _vectors(out: int) -> int:
    return -(-out // _LANES)


def _packed_rows(plan: Plan) -> int:
    """Return how many rows of 16 numbers all packed weights take."""
    linears = [site.site.shape for site in plan.sites.values() if site.site.kind == "linear"]
    return sum(_vectors(out) * columns for out, columns in linears)
