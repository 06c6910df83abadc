"""The int8 kernels made of torch's operators, one call per linear layer; proven on this CPU before use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from q8core.engines.choice.int8_kernels import extreme_operands
from q8core.engines.engine import Forward
from q8core.engines.kernels.fbgemm import FbgemmKernel
from q8core.engines.kernels.linear_kernel import LinearKernel
from q8core.engines.kernels.onednn import OnednnKernel
from q8core.engines.kernels.split import SplitKernel
from q8core.engines.loaders.int8 import load_int8
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.quant.bits import packed_bits
from q8core.quant.plan import Plan

_LINEAR_KERNELS: dict[str, Callable[[], LinearKernel]] = {"fbgemm": FbgemmKernel, "onednn": OnednnKernel}


@dataclass(frozen=True)
class Linearwise:
    """Runs a model layer by layer, with one of torch's kernels for the linear layers."""

    linear: LinearKernel

    @property
    def name(self) -> str:
        """The linear kernel's name."""
        return self.linear.name

    @property
    def preferred(self) -> bool:
        """False: which of torch's kernels is faster depends on the CPU."""
        return False

    @property
    def facts(self) -> dict[str, object]:
        """How the sums are kept exact, and torch's instruction set."""
        split = isinstance(self.linear, SplitKernel)
        return {
            "exactness": "split weights (this CPU saturates)" if split else "exact",
            "isa": torch.backends.cpu.get_cpu_capability(),
        }

    def refused(self, plan: Plan) -> str | None:
        """Return None: every scheme is computed."""
        return None

    def bits_note(self, plan: Plan) -> str | None:
        """Return a note on packed weights: torch's operators take a byte for each."""
        found = " and ".join(str(bits) for bits in packed_bits(plan, "linear", "table"))
        return f"weights of {found} bits, held as int8" if found else None

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Pack a checkpoint's tensors."""
        with torch.inference_mode():
            model = load_int8(plan, source, self.linear)
        source.finish()
        return model


def proven_linear_kernel(name: str, inner_sizes: Iterable[int]) -> LinearKernel:
    """Return the linear kernel `name`, or its split form where the plain one saturates.

    Raises:
        EngineError: if the kernel is missing on this machine or its sums are wrong.
    """
    kernel = _LINEAR_KERNELS[name]()
    sizes = tuple(inner_sizes)
    for candidate in (kernel, SplitKernel(kernel)):
        if all(_accumulates_exactly(candidate, size) for size in sizes):
            return candidate
    raise EngineError(f"the {name} kernel does not compute exact integer sums on this CPU; choose another kernel")


def _accumulates_exactly(kernel: LinearKernel, size: int) -> bool:
    """Return whether sums equal int64 sums, for one row and for several: the row count decides an operator's code."""
    x, weight = (torch.from_numpy(each) for each in extreme_operands(size))
    packed = kernel.pack(weight.to(torch.int8), torch.ones(1), None)
    expected = (x @ weight.T).to(torch.float32)
    x_q = kernel.quantize(x.to(torch.float32), torch.ones(1))
    return bool(torch.equal(packed.linear(x_q), expected)) and all(
        torch.equal(packed.linear(x_q[row : row + 1]), expected[row : row + 1]) for row in range(len(x))
    )
