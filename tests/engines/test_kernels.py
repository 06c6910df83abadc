"""The int8 kernels against integer arithmetic that cannot overflow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.engines.choice.int8_kernels import extreme_operands
from q8core.engines.choice.linearwise import proven_linear_kernel
from q8core.engines.kernels.fbgemm import FbgemmKernel
from q8core.engines.kernels.linear_kernel import LinearKernel
from q8core.engines.kernels.onednn import OnednnKernel
from q8core.engines.kernels.split import SplitKernel
from q8core.errors import EngineError
from q8core.quant.ops.arithmetic import quantize

ALL: list[LinearKernel] = [
    FbgemmKernel(),
    OnednnKernel(),
    SplitKernel(FbgemmKernel()),
    SplitKernel(OnednnKernel()),
]
IDS = ["fbgemm", "onednn", "split-fbgemm", "split-onednn"]
EACH_KERNEL = pytest.mark.parametrize("kernel", ALL, ids=IDS)
EACH_EXACT_KERNEL = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(
            kernel,
            id=name,
            marks=pytest.mark.skipif(
                not isinstance(kernel, SplitKernel) and isinstance(proven_linear_kernel(name, [384]), SplitKernel),
                reason=f"{name} saturates on this CPU (no VNNI); its split form, which stands for it, is tested",
            ),
        )
        for kernel, name in zip(ALL, IDS, strict=True)
    ],
)
ONE = torch.ones(1)


def operands(values: str, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 activations (rows, size) and weights (16, size)."""
    if values == "extreme":
        x, weight = (torch.from_numpy(each) for each in extreme_operands(size))
        return x[torch.arange(rows) % len(x)], weight
    generator = torch.Generator().manual_seed(size + rows)
    return (
        torch.randint(-127, 128, (rows, size), generator=generator),
        torch.randint(-127, 128, (16, size), generator=generator),
    )


@EACH_EXACT_KERNEL
@pytest.mark.parametrize("size", [384, 768, 1536, 3072])
@pytest.mark.parametrize("values", ["extreme", "random"])
def test_accumulators_equal_int64_sums(kernel: LinearKernel, size: int, values: str) -> None:
    """Bit for bit: float32(acc) for the exact integer acc, at the row counts where operators switch their code."""
    for rows in (1, 8, 33):
        x, weight = operands(values, rows, size)
        found = kernel.pack(weight.to(torch.int8), ONE, None).linear(kernel.quantize(x.float(), ONE))
        assert found.dtype == torch.float32
        assert torch.equal(found, (x @ weight.T).to(torch.float32))


@pytest.mark.parametrize("size", [384, 3072])
def test_extreme_operands_reach_the_largest_sum(size: int) -> None:
    x, weight = extreme_operands(size)
    sums = x @ weight.T
    assert int(sums.max()) == size * 127**2
    assert int(sums.min()) == -size * 127**2


def carried(kernel: LinearKernel, x_q: torch.Tensor) -> torch.Tensor:
    """The integers a carrier stands for."""
    return x_q.float() - 128 if x_q.dtype == torch.uint8 else x_q


@EACH_KERNEL
@settings(max_examples=100, deadline=None)
@given(
    numerator=st.integers(-600, 600),
    nudge=st.sampled_from([0.0, 1e-7, -1e-7, 3e-8]),
    exponent=st.integers(-12, 4),
    factor=st.floats(1.0, 2.0, width=32),
)
def test_quantizing_is_the_contract_ties_included(
    kernel: LinearKernel, numerator: int, nudge: float, exponent: int, factor: float
) -> None:
    """Half-integers in units of the scale are the ties, and beyond +-127 the clamp acts."""
    scale = torch.tensor([factor * 2.0**exponent])
    x = (torch.arange(16).float() / 2 + numerator / 2) * (1 + nudge) * scale
    x = x.reshape(2, 8)
    assert torch.equal(carried(kernel, kernel.quantize(x, scale)), quantize(x, scale))
    per_row = torch.stack([scale, scale * 3])
    assert torch.equal(carried(kernel, kernel.quantize(x, per_row)), quantize(x, per_row))


@EACH_EXACT_KERNEL
@pytest.mark.parametrize("channels", ["per_tensor", "per_channel"])
def test_a_layer_is_the_contracts_formula(kernel: LinearKernel, channels: str) -> None:
    """To the bit, for every kernel: choosing another one never changes an answer."""
    torch.manual_seed(1)
    x, weight = operands("random", 20, 96)
    r = torch.rand(1 if channels == "per_tensor" else 16) * 1e-4
    bias, residual = torch.randn(16), torch.randn(20, 16)
    y = (x @ weight.T).to(torch.float32) * r + bias
    packed = kernel.pack(weight.to(torch.int8), r, bias)
    x_q = kernel.quantize(x.float(), ONE)
    assert torch.equal(packed.linear(x_q), y)
    assert torch.equal(packed.linear_add(x_q, residual.clone()), y + residual)
    scale = torch.tensor([0.004])  # small enough that outputs reach both ends of the range
    found = carried(kernel, packed.linear_gelu_quantize(x_q, scale))
    assert torch.equal(found, quantize(F.gelu(y), scale))
    assert float(found.max()) == 127


@EACH_KERNEL
def test_negative_outputs_stop_at_minus_127(kernel: LinearKernel) -> None:
    """gelu never falls below -0.17, so only a tiny scale shows that -128 is never produced."""
    packed = kernel.pack(torch.full((16, 8), -1, dtype=torch.int8), torch.full((1,), 0.1), None)
    x_q = kernel.quantize(torch.ones(3, 8), ONE)
    found = carried(kernel, packed.linear_gelu_quantize(x_q, torch.tensor([1e-4])))
    assert found.unique().tolist() == [-127.0]


def test_an_unproven_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that loses the lowest bit of each sum is not used, split or not."""

    class Careless(OnednnKernel):
        def pack(self, weight_i8: torch.Tensor, r: torch.Tensor, bias: torch.Tensor | None) -> object:
            return super().pack(weight_i8.clamp(-126, 126), r, bias)

    monkeypatch.setattr("q8core.engines.choice.linearwise._LINEAR_KERNELS", {"onednn": Careless})
    monkeypatch.setattr(SplitKernel, "pack", lambda self, *args: self.inner.pack(args[0] * 0, *args[1:]))
    with pytest.raises(EngineError, match="onednn kernel does not compute exact integer sums"):
        proven_linear_kernel("onednn", [64])


def test_a_cpu_without_vnni_gets_split_weights() -> None:
    """With the instruction sets limited to AVX2 both kernels saturate; the proof notices and splits."""
    script = """
import torch
from q8core.engines.choice.int8_kernels import extreme_operands
from q8core.engines.choice.linearwise import Linearwise, proven_linear_kernel
x, weight = (torch.from_numpy(each) for each in extreme_operands(768))
for name in ("fbgemm", "onednn"):
    kernel = proven_linear_kernel(name, [768])
    packed = kernel.pack(weight.to(torch.int8), torch.ones(1), None)
    equal = torch.equal(packed.linear(kernel.quantize(x.float(), torch.ones(1))), (x @ weight.T).float())
    print(name, equal, Linearwise(kernel).facts["exactness"])
"""
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **limits}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "fbgemm True split weights (this CPU saturates)",
        "onednn True split weights (this CPU saturates)",
    ]
