"""The least time that a model's linear layers can take: their matrix products alone, on real tokens only.

No embeddings, attention, activation or normalisation between the layers: what an engine takes beyond this is everything
that is not a matrix product. Each layer has its own weights, as in a model.

In fp32 the products are oneDNN's, the weights laid out beforehand. In int8 there are two floors, both of which write
bytes: oneDNN's products, and the native library's, all in one team of threads, where this machine has that library. An
engine is compared with the faster one of its precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from q8core.bench.contenders import Contender, load_named_engine
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


@dataclass(frozen=True)
class Product:
    """One matrix product of a model.

    Attributes:
        out: columns of its result.
        columns: columns of its input.
        first_rows: it is computed for each sequence's first token only.
    """

    out: int
    columns: int
    first_rows: bool = False


def products(plan: Plan) -> list[Product]:
    """Return the products of the encoder; those of the last layer are of one token per sequence where the head is."""
    spec, h = plan.spec, plan.spec.hidden
    full = [Product(*size) for size in spec.linear_shapes]
    if plan.head.reads == "every":
        return full * spec.layers
    rest = [Product(out, columns, True) for out, columns in spec.linear_shapes[1:]]
    return [*full * (spec.layers - 1), Product(2 * h, h), Product(h, h, True), *rest]


def load_floors(checkpoint: Checkpoint, threads: int, *, int8: bool) -> dict[str, Contender]:
    """Load the floors of a precision, by name; the native one only where an engine could use that kernel.

    Args:
        checkpoint: the model.
        threads: CPU threads.
        int8: which precision.
    """
    if not int8:
        return {_FP32: OnednnFloor(checkpoint.float_plan, int8=False)}
    floors: dict[str, Contender] = {_ONEDNN: OnednnFloor(checkpoint.float_plan, int8=True)}
    try:
        model = load_named_engine("int8-native", checkpoint, threads).model
    except EngineError:  # there was no compiler, or it computes something else: then nothing is compared with it
        return floors
    assert isinstance(model, NativeModel)
    return {**floors, _NATIVE: NativeFloor(model)}


class OnednnFloor:
    """The matrix products of a model, one after the other, on inputs that stay as they are."""

    def __init__(self, plan: Plan, *, int8: bool) -> None:
        self._products = products(plan)
        self._dtype = torch.uint8 if int8 else torch.float32
        make = _int8_product if int8 else _fp32_product
        with torch.inference_mode():
            self._layers = [make(product) for product in self._products]

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Make inputs of the sizes of the batch."""
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
    """The matrix products of a model by the native library, each on what the one before wrote."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Make the memory that the products write and read."""
        library, model = load_library(), self._model
        what = structs.Batch(batch.tokens, len(batch.lengths))
        memory = torch.full((library.q8_products_bytes(model.packed.view, what),), ZERO_POINT + 1, dtype=torch.uint8)

        def run() -> Tensor:
            library.q8_products(model.variant[1], model.packed.view, what, memory.data_ptr(), torch.get_num_threads())
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
