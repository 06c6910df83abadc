"""The int8 kernels by name: how a checkpoint's tensors become a model that runs on this CPU.

`native` computes the whole forward pass in one call of our own library; `onednn` and `fbgemm` compute the linear layers
with torch's operators and everything between with torch. Each is proven on this CPU before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from q8core.engines.engine import Forward
from q8core.engines.kernels.fbgemm import FbgemmKernel
from q8core.engines.kernels.linear_kernel import LinearKernel
from q8core.engines.kernels.onednn import OnednnKernel
from q8core.engines.kernels.split import SplitKernel
from q8core.engines.loaders.int8 import load_int8
from q8core.engines.loaders.native import NativeLinear, load_native, refused
from q8core.engines.tensors.site_tensors import LinearTensors
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.native import load_library, variants
from q8core.quant.plan import Plan


class Int8Kernel(Protocol):
    """A proven way to run int8 checkpoints."""

    @property
    def name(self) -> str:
        """The name users choose it by."""
        ...

    @property
    def facts(self) -> dict[str, object]:
        """What `describe` says about it."""
        ...

    def refused(self, plan: Plan) -> str | None:
        """Return why it does not compute this plan, or None if it does."""
        ...

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Pack a checkpoint's tensors.

        Raises:
            CheckpointError: if a tensor is missing, does not fit, or is not part of the model.
            EngineError: if it does not compute this plan.
        """
        ...


@dataclass(frozen=True)
class Linearwise:
    """Layer by layer, the linear ones through one of torch's kernels."""

    linear: LinearKernel

    @property
    def name(self) -> str:
        """The linear kernel's name."""
        return self.linear.name

    @property
    def facts(self) -> dict[str, object]:
        """How the sums are kept exact, and torch's instruction set."""
        split = isinstance(self.linear, SplitKernel)
        return {
            "exactness": "split weights (this CPU saturates)" if split else "exact",
            "isa": torch.backends.cpu.get_cpu_capability(),
        }

    def refused(self, plan: Plan) -> str | None:
        """Every scheme is computed."""
        return None

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Pack a checkpoint's tensors."""
        model = load_int8(plan, source, self.linear)
        source.finish()
        return model


@dataclass(frozen=True)
class Native:
    """The whole forward pass in the native library."""

    variant: str

    @property
    def name(self) -> str:
        """The name users choose it by."""
        return "native"

    @property
    def facts(self) -> dict[str, object]:
        """The instruction set that the library uses."""
        return {"exactness": "exact", "isa": self.variant}

    def refused(self, plan: Plan) -> str | None:
        """Static schemes with requantized queries and keys are computed."""
        return refused(plan)

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Map a checkpoint's packed tensors, or pack them."""
        return load_native(plan, source, self.variant)


KERNEL_NAMES = ("native", "onednn", "fbgemm")

_LINEAR_KERNELS: dict[str, Callable[[], LinearKernel]] = {"fbgemm": FbgemmKernel, "onednn": OnednnKernel}


def proven_kernel(name: str, inner_sizes: Iterable[int]) -> Int8Kernel:
    """Return the kernel `name`, after checking its sums.

    Args:
        name: one of `KERNEL_NAMES`.
        inner_sizes: the K of the model's matrices, each of which is checked.

    Raises:
        EngineError: if the kernel is missing on this machine or computes something else.
    """
    sizes = sorted(set(inner_sizes))
    if name == "native":
        return proven_native(next(iter(variants())), sizes)
    return Linearwise(proven_linear_kernel(name, sizes))


def proven_native(variant: str, inner_sizes: Iterable[int]) -> Native:
    """Return the native kernel with a variant, after checking its sums.

    Raises:
        EngineError: if the variant computes something else than exact sums.
    """
    for size in inner_sizes:
        x, weight = extreme_operands(size)
        if not torch.equal(accumulate(variant, x, weight).long(), x @ weight.T):
            raise EngineError(f"the native kernel ({variant}) does not compute exact integer sums on this CPU")
    return Native(variant)


def accumulate(variant: str, x: Tensor, weight: Tensor, zero_point: int | None = None) -> Tensor:
    """Return the int32 sums (rows, out) of integers x (rows, K) and weight (out, K), as the library computes them."""
    (rows, size), out = x.shape, len(weight)
    one = torch.ones(1)
    layer = NativeLinear.pack(
        LinearTensors(
            weight.to(torch.int8), torch.zeros(out, dtype=torch.int32), one, input_scale=one, zero_point=zero_point
        )
    )
    depth = layer.view.kb
    blocks = torch.zeros(-(-rows // 16) * 16 + 16, depth * 64, dtype=torch.uint8)
    blocks[:rows, :size] = (x + (128 if zero_point is None else zero_point)).to(torch.uint8)
    # Blocks of 16 rows x 64 columns, one after the other, as in gemm.h.
    blocks = blocks.view(-1, 16, depth, 64).transpose(1, 2).contiguous()
    sums = torch.empty(rows, layer.view.np, dtype=torch.int32)
    load_library().q8_accumulate(variants()[variant], layer.view, blocks.data_ptr(), rows, sums.data_ptr())
    return sums[:, :out]


def proven_linear_kernel(name: str, inner_sizes: Iterable[int]) -> LinearKernel:
    """Return the linear kernel `name`, or its split form where the plain one saturates.

    Raises:
        EngineError: if the kernel is missing on this machine or computes something else.
    """
    kernel = _LINEAR_KERNELS[name]()
    sizes = tuple(inner_sizes)
    for candidate in (kernel, SplitKernel(kernel)):
        if all(_accumulates_exactly(candidate, size) for size in sizes):
            return candidate
    raise EngineError(f"the {name} kernel does not compute exact integer sums on this CPU; choose another kernel")


def extreme_operands(size: int) -> tuple[Tensor, Tensor]:
    """Return int64 activations (8, size) and weights (16, size) of +-127 that drive every partial sum to its limit."""
    column = torch.arange(size)
    ones = torch.ones(size, dtype=torch.int64)
    signs = [ones, -ones, 1 - 2 * (column % 2), 1 - 2 * (column // 2 % 2), 2 * (column < size // 2).long() - 1]
    x = torch.stack([*signs, *(-s for s in signs[2:])]) * 127
    return x, torch.cat([x, x.flip(1).flip(0)])


def _accumulates_exactly(kernel: LinearKernel, size: int) -> bool:
    """Compare with int64 sums, for one row and for several: operators choose their code by the row count."""
    x, weight = extreme_operands(size)
    packed = kernel.pack(weight.to(torch.int8), torch.ones(1), None)
    expected = (x @ weight.T).to(torch.float32)
    x_q = kernel.quantize(x.to(torch.float32), torch.ones(1))
    return bool(torch.equal(packed.linear(x_q), expected)) and all(
        torch.equal(packed.linear(x_q[row : row + 1]), expected[row : row + 1]) for row in range(len(x))
    )
