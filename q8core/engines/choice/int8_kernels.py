"""The int8 kernels by name: how a checkpoint's tensors become a model that runs on this CPU.

`native` computes the whole forward pass in one call of our own library; `onednn` and `fbgemm` compute the linear layers
with torch's operators and the rest with torch, which is imported only for them. Each is proven on this CPU before it is
used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import address, copied, empty
from q8core.engines.engine import Forward
from q8core.engines.loaders.native import load_native, refused
from q8core.engines.loaders.native_linear import NativeLinear
from q8core.engines.tensors.site_tensors import LinearTensors
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.native import load_library, variants
from q8core.quant.bits import packed_bits
from q8core.quant.codes import Codebook, is_packed
from q8core.quant.plan import Plan
from q8core.quant.quantizer import Grid


class Int8Kernel(Protocol):
    """A proven way to run int8 checkpoints."""

    @property
    def name(self) -> str:
        """The name users choose it by."""
        ...

    @property
    def preferred(self) -> bool:
        """Whether no other kernel needs to be timed beside it."""
        ...

    @property
    def facts(self) -> dict[str, object]:
        """The kernel's part of `describe`."""
        ...

    def refused(self, plan: Plan) -> str | None:
        """Return why the kernel does not compute this plan, or None if it does."""
        ...

    def bits_note(self, plan: Plan) -> str | None:
        """Return which of the plan's weights take more bits in memory than in the checkpoint, or None if none do."""
        ...

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Pack a checkpoint's tensors.

        Raises:
            CheckpointError: if a tensor is missing, does not fit, or is not part of the model.
            EngineError: if the kernel does not compute this plan.
        """
        ...


@dataclass(frozen=True)
class Native:
    """The whole forward pass in the native library."""

    variant: str

    @property
    def name(self) -> str:
        """The name users choose it by."""
        return "native"

    @property
    def preferred(self) -> bool:
        """Whether the variant is written for vector instructions; `autoselect` says why that is enough."""
        return self.variant != "portable"

    @property
    def facts(self) -> dict[str, object]:
        """The instruction set that the library uses."""
        return {"exactness": "exact", "isa": self.variant}

    def refused(self, plan: Plan) -> str | None:
        """Return None if the library computes this plan, else why not; also if sums of its packed weights are wrong."""
        return refused(plan) or next(filter(None, (_wrong_sums(self.variant, *each) for each in _packed(plan))), None)

    def bits_note(self, plan: Plan) -> str | None:
        """Return a note on linear weights of 3 bits: unpacking those of 4 takes no more time."""
        return "linear weights of 3 bits, held as 4" if 3 in packed_bits(plan, "linear") else None

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Map a checkpoint's packed tensors, or pack them."""
        return load_native(plan, source, self.variant)


KERNEL_NAMES = ("native", "onednn", "fbgemm")


def proven_kernel(name: str, inner_sizes: Iterable[int]) -> Int8Kernel:
    """Return the kernel `name`, after checking its sums.

    Args:
        name: one of `KERNEL_NAMES`.
        inner_sizes: the inner dimensions K of the model's matrices; each is checked.

    Raises:
        EngineError: if the kernel is missing on this machine or its sums are wrong.
    """
    sizes = sorted(set(inner_sizes))
    if name == "native":
        return proven_native(next(iter(variants())), sizes)
    from q8core.engines.choice.linearwise import Linearwise, proven_linear_kernel

    return Linearwise(proven_linear_kernel(name, sizes))


def proven_native(variant: str, inner_sizes: Iterable[int]) -> Native:
    """Return the native kernel with the given variant, after checking its sums.

    Raises:
        EngineError: if the variant's sums are not exact.
    """
    for size in inner_sizes:
        wrong = _wrong_sums(variant, size)
        if wrong:
            raise EngineError(wrong)
    return Native(variant)


def _packed(plan: Plan) -> set[tuple[int, int, Grid]]:
    """Return inner size, bits and grid of all linear weights that stay packed; most plans have none to prove."""
    linears = [(each.site.shape[-1], each.weight) for each in plan.sites.values() if each.site.kind == "linear"]
    return {(size, weight.bits, weight.grid) for size, weight in linears if weight and is_packed(weight.bits)}


def _wrong_sums(variant: str, size: int, bits: int = 8, grid: Grid = "symmetric") -> str | None:
    """Return None if the sums of extreme operands over `size` inputs are exact, else a sentence."""
    x, weight = extreme_operands(size)
    book = Codebook.of(bits, grid) if is_packed(bits) else None
    if book is not None:
        weight = np.where(weight > 0, int(book.levels.max()), int(book.levels.min()))
    if np.array_equal(accumulate(variant, x, weight, None, book), x @ weight.T):
        return None
    return f"the native kernel ({variant}) does not compute exact integer sums on this CPU"


def accumulate(
    variant: str,
    x: NDArray[np.int64],
    weight: NDArray[np.int64],
    zero_point: int | None = None,
    book: Codebook | None = None,
) -> NDArray[np.int32]:
    """Return the sums (rows, out) of integers x (rows, K) and weight (out, K), as the library computes them.

    Args:
        variant: the library's.
        x: integers from minus the zero point to 255 less it.
        weight: from -127 to 127; with `book`, integers that it has codes for.
        zero_point: that of the activations; None for 128.
        book: the codes as which the library keeps the weight; None for int8.
    """
    (rows, size), out = x.shape, len(weight)
    one = np.ones(1, np.float32)
    tensors = LinearTensors(
        weight.astype(np.int8), np.zeros(out, np.int32), one, one, zero_point=zero_point, codebook=book
    )
    layer = NativeLinear.pack(tensors, variants()[variant])
    depth = layer.view.kb
    padded = np.zeros((-(-rows // 16) * 16 + 16, depth * 64), np.uint8)
    padded[:rows, :size] = x + (128 if zero_point is None else zero_point)
    # Blocks of 16 rows x 64 columns, one after the other, as in gemm.h.
    blocks = copied(padded.reshape(-1, 16, depth, 64).swapaxes(1, 2))
    sums = empty((rows, layer.view.np), np.int32)
    load_library().q8_accumulate(variants()[variant], layer.view, address(blocks), rows, address(sums))
    return sums[:, :out]


def extreme_operands(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return activations (8, size) and weights (16, size) of +-127 that drive every partial sum to its limit."""
    column = np.arange(size)
    ones = np.ones(size, np.int64)
    signs = [ones, -ones, 1 - 2 * (column % 2), 1 - 2 * (column // 2 % 2), 2 * (column < size // 2) - 1]
    x = np.stack([*signs, *(-s for s in signs[2:])]) * 127
    return x, np.concatenate([x, x[::-1, ::-1]])
