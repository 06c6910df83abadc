"""A lower bound on the time of a model: the matrix products of its linear layers alone, on real tokens only.

There are no embeddings, attention, activations or normalisation: the time that an engine takes beyond this floor goes
into everything that is not a matrix product. Each layer has its own weights, as in a model.

In fp32 the products are oneDNN's, with prepacked weights. In int8 there are two floors, both of which write bytes:
oneDNN's products, and the native library's, computed in one team of threads, if this machine has that library. An
engine is compared with the faster floor of its precision, and one with weights of few bits with its own products.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from q8core.arrays import Array, address, empty
from q8core.bench.contender import FEW_BITS, Contender
from q8core.bench.contenders import load_named_engine
from q8core.checkpoint import Checkpoint
from q8core.engines import TokenBatch
from q8core.engines.kernels.onednn import ZERO_POINT, OnednnKernel, OnednnLinear
from q8core.engines.layers.linear import FloatLinear
from q8core.engines.loaders.native import NativeModel
from q8core.errors import EngineError
from q8core.native import load_library, structs
from q8core.quant import Plan

_FP32, _ONEDNN, _NATIVE = "floor-fp32", "floor-int8-onednn", "floor-int8-native"
FLOORS = ((_FP32,), (_ONEDNN, _NATIVE))
"""Names of the floors, indexed by whether they are int8."""
FEW_BITS_FLOORS = {name: (f"floor-{name}",) for name in FEW_BITS}
"""Engine of few bits -> its floor, the native one with the same weights."""


@dataclass(frozen=True)
class Product:
    """One matrix product of a model.

    Attributes:
        out: columns of its result.
        columns: columns of its input.
        first_rows: whether it is computed for each sequence's first token only.
    """

    out: int
    columns: int
    first_rows: bool = False


def products(plan: Plan) -> list[Product]:
    """Return the products of the encoder; if the head reads one token per sequence, so do those of the last layer."""
    spec, h, a = plan.spec, plan.spec.hidden, plan.spec.attention
    full = [Product(*size) for size in spec.linear_shapes]
    if plan.head.reads == "every":
        return full * spec.layers
    rest = [Product(out, columns, True) for out, columns in spec.linear_shapes[1:]]
    return [*full * (spec.layers - 1), Product(2 * a, h), Product(a, h, True), *rest]


def load_floors(checkpoint: Checkpoint, threads: int, *, int8: bool) -> dict[str, Contender]:
    """Load the floors of a precision, by name; the native one only if an engine could use that kernel.

    Args:
        checkpoint: the model.
        threads: CPU threads.
        int8: whether to load the int8 floors or the fp32 one.
    """
    if not int8:
        return {_FP32: OnednnFloor(checkpoint.float_plan, int8=False)}
    floors: dict[str, Contender] = {_ONEDNN: OnednnFloor(checkpoint.float_plan, int8=True)}
    with suppress(EngineError):  # no compiler, or a kernel that computes wrongly: then there is no native floor
        floors[_NATIVE] = _native_floor("int8-native", checkpoint, threads)
    return floors


def load_few_bits_floor(engine: str, checkpoint: Checkpoint, threads: int) -> dict[str, Contender]:
    """Load the floor of one of `FEW_BITS`, by name."""
    (name,) = FEW_BITS_FLOORS[engine]
    return {name: _native_floor(engine, checkpoint, threads)}


def _native_floor(engine: str, checkpoint: Checkpoint, threads: int) -> NativeFloor:
    model = load_named_engine(engine, checkpoint, threads).model
    assert isinstance(model, NativeModel)
    return NativeFloor(model)


class OnednnFloor:
    """The matrix products of a model by oneDNN, one after another, on constant inputs."""

    def __init__(self, plan: Plan, *, int8: bool) -> None:
        self._products = products(plan)
        self._dtype = torch.uint8 if int8 else torch.float32
        make = _int8_product if int8 else _fp32_product
        with torch.inference_mode():
            self._layers = [make(product) for product in self._products]

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Create inputs with the sizes of the batch."""
        inputs: dict[tuple[int, int], Tensor] = {}
        for product in self._products:
            size = (len(batch.lengths) if product.first_rows else batch.tokens, product.columns)
            inputs[size] = torch.ones(size, dtype=self._dtype)
        rows = [len(batch.lengths) if product.first_rows else batch.tokens for product in self._products]
        calls = [
            (layer, inputs[count, product.columns])
            for layer, product, count in zip(self._layers, self._products, rows, strict=True)
        ]

        def run() -> None:
            with torch.inference_mode():
                for layer, x in calls:
                    layer(x)

        return run


class NativeFloor:
    """The matrix products of a model by the native library, each on the output of the one before."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Allocate the memory that the products write and read."""
        library, model = load_library(), self._model
        what = structs.Batch(batch.tokens, len(batch.lengths))
        memory = empty(library.q8_products_bytes(model.packed.view, what), np.uint8)
        memory.fill(ZERO_POINT + 1)

        def run() -> Array:
            library.q8_products(model.variant[1], model.packed.view, what, address(memory), torch.get_num_threads())
            return memory

        return run


def _int8_product(product: Product) -> Callable[[Tensor], Tensor]:
    weight = torch.randint(-127, 128, (product.out, product.columns), dtype=torch.int8)
    packed: OnednnLinear = OnednnKernel().pack(weight, torch.full((product.out,), 1e-5), torch.zeros(product.out))

    def run(x: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise.default(
            x, 1.0, ZERO_POINT, packed.weight, packed.r, packed.zero_point, packed.bias,
            1.0, ZERO_POINT, torch.uint8, "none", [], "",
        )  # fmt: skip

    return run


def _fp32_product(product: Product) -> Callable[[Tensor], Tensor]:
    weight = torch.randn(product.out, product.columns) * 0.02
    return FloatLinear.pack(weight, torch.zeros(product.out))
