"""The three kinds of linear layers in an engine: static int8, dynamic int8, and float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from q8core.engines.kernels.linear_kernel import LinearKernel, PackedLinear
from q8core.quant.ops.arithmetic import row_scales


class Linear(Protocol):
    """A linear layer (in) -> (out) on float32 rows."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return y (T, out) for x (T, in)."""
        ...

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out); `residual` may be overwritten."""
        ...


class ActivatingLinear(Linear, Protocol):
    """A linear layer that can apply GELU to its output."""

    def with_gelu(self, x: Tensor) -> Tensor:
        """Return gelu(y) (T, out)."""
        ...


@dataclass(frozen=True)
class FloatLinear:
    """A float32 layer on a weight (out, in) that oneDNN has laid out for its own kernels."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor) -> FloatLinear:
        """Copy weight (out, in) into oneDNN's layout; the original can be dropped."""
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return y (T, out)."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")

    def with_gelu(self, x: Tensor) -> Tensor:
        """Return gelu(y) (T, out), with the error function, as in BERT."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "gelu", [], "none")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out)."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


@dataclass(frozen=True)
class StaticLinear:
    """An int8 layer whose input's steps and, if asymmetric, zero point were fixed in training or calibration.

    Attributes:
        kernel: the kernel that multiplies.
        packed: the weight.
        input_steps: the input's step (1,), or with smoothing its steps (in,).
        zero_point: the zero point of an asymmetric input; None for a symmetric one.
        bits: bits of the input's integers.
    """

    kernel: LinearKernel
    packed: PackedLinear
    input_steps: Tensor
    zero_point: int | None = None
    bits: int = 8

    def quantize(self, x: Tensor) -> Tensor:
        """Return x (T, in) as the kernel's carrier."""
        return self.kernel.quantize(x, self.input_steps, self.zero_point, self.bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Return y (T, out)."""
        return self.packed.linear(self.quantize(x))

    def with_gelu(self, x: Tensor) -> Tensor:
        """Return gelu(y) (T, out)."""
        return torch.nn.functional.gelu(self(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out)."""
        return self.packed.linear_add(self.quantize(x), residual)


@dataclass(frozen=True)
class DynamicLinear:
    """An int8 layer that scales each row (token) of its input by that row's largest magnitude."""

    kernel: LinearKernel
    packed: PackedLinear
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return y (T, out)."""
        scale = row_scales(x)  # (T, 1)
        return self.packed.linear(self.kernel.quantize(x, scale)).mul_(scale).add_(self.bias)

    def with_gelu(self, x: Tensor) -> Tensor:
        """Return gelu(y) (T, out)."""
        return torch.nn.functional.gelu(self(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out)."""
        return self(x).add_(residual)
