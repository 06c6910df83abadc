"""Exact sums on CPUs whose int8 instructions saturate.

Without VNNI the kernels multiply with `vpmaddubsw`, which adds two u8 * s8 products in 16 bits and saturates:
2 * 255 * 127 does not fit. Each weight is therefore split into a sum of two in [-64, 64], side by side along the
inner dimension, and the activations are given twice: 2 * 255 * 64 = 32640 fits. This takes twice the memory and work of
the plain kernel, but gives the right answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q8core.engines.kernels.linear_kernel import LinearKernel, PackedLinear


@dataclass(frozen=True)
class SplitLinear:
    """A packed (out, 2 * in) matrix that is used with doubled activations."""

    halves: PackedLinear

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix."""
        return self.halves.nbytes

    def linear(self, x_q: Tensor) -> Tensor:
        """Return y (T, out) float32."""
        return self.halves.linear(_twice(x_q))

    def linear_add(self, x_q: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out)."""
        return self.halves.linear_add(_twice(x_q), residual)

    def linear_gelu_quantize(self, x_q: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return the carrier of quantize(gelu(y), scale, zero_point)."""
        return self.halves.linear_gelu_quantize(_twice(x_q), scale, zero_point, bits)


@dataclass(frozen=True)
class SplitKernel:
    """Wraps a kernel that saturates to make it exact."""

    inner: LinearKernel

    @property
    def name(self) -> str:
        """The inner kernel's name."""
        return self.inner.name

    @property
    def carrier_bytes(self) -> int:
        """Bytes of an activation, including its second copy."""
        return 2 * self.inner.carrier_bytes

    def quantize(self, x: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return the inner kernel's carrier."""
        return self.inner.quantize(x, scale, zero_point, bits)

    def pack(self, weight_i8: Tensor, r: Tensor, bias: Tensor | None, zero_point: int | None = None) -> SplitLinear:
        """Pack weight_i8 (out, in) as two addends side by side, (out, 2 * in)."""
        low = weight_i8 >> 1  # rounds down: -127 -> -64, 127 -> 63
        return SplitLinear(self.inner.pack(torch.cat([low, weight_i8 - low], dim=1), r, bias, zero_point))


def _twice(x_q: Tensor) -> Tensor:
    return torch.cat([x_q, x_q], dim=1)
