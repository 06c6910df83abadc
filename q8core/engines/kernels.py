"""The int8 kernels by name, each proven on this CPU before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from q8core.engines.kernel import LinearKernel
from q8core.engines.kernel_fbgemm import FbgemmKernel
from q8core.engines.kernel_onednn import OnednnKernel
from q8core.engines.kernel_split import SplitKernel
from q8core.errors import EngineError

_KERNELS: dict[str, Callable[[], LinearKernel]] = {"fbgemm": FbgemmKernel, "onednn": OnednnKernel}
KERNEL_NAMES = tuple(_KERNELS)


def proven_kernel(name: str, inner_sizes: Iterable[int]) -> LinearKernel:
    """Return the kernel `name`, or its split form where the plain one saturates.

    Args:
        name: fbgemm or onednn.
        inner_sizes: the K of the model's matrices, each of which is checked.

    Raises:
        EngineError: if the kernel is missing on this machine or computes something else.
    """
    kernel = _KERNELS[name]()
    sizes = sorted(set(inner_sizes))
    for candidate in (kernel, SplitKernel(kernel)):
        if all(_accumulates_exactly(candidate, size) for size in sizes):
            return candidate
    raise EngineError(f"the {name} kernel does not compute exact integer sums on this CPU; choose another kernel")


def exactness(kernel: LinearKernel) -> str:
    """Say in a word how the kernel gets exact sums here."""
    return "split weights (this CPU saturates)" if isinstance(kernel, SplitKernel) else "exact"


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
