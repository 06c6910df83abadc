"""int8 linears through oneDNN: u8 activations with zero point 128, s8 weights, GELU or the residual in the same pass.

Signed activations would be the natural choice, but their kernel is about a thousand times slower on CPUs without
signed dot products. With r as weight scale and an activation scale of 1, the result is the contract's to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO_POINT = 128
# Adding 1.5 * 2**23 to a small float32 rounds it half to even and leaves the integer in the low mantissa bits; with
# 128 on top the lowest byte is q + 128. One addition replaces a rounding, an addition and a slow float-to-byte cast.
_ROUND_TO_LOW_BYTE = 1.5 * 2**23 + ZERO_POINT


def to_u8(x: Tensor, scale: Tensor) -> Tensor:
    """Return clamp(round_half_even(x * (1 / scale)), -127, 127) + 128 as uint8, in the shape of x."""
    return _round_to_u8(torch.mul(x, scale.reciprocal()))


def _round_to_u8(x: Tensor) -> Tensor:
    """Return clamp(round_half_even(x), -127, 127) + 128 as uint8; x is overwritten."""
    return x.clamp_(-127, 127).add_(_ROUND_TO_LOW_BYTE).view(torch.int32).to(torch.uint8)


@dataclass(frozen=True)
class OnednnLinear:
    """A weight (out, in) in oneDNN's blocked layout."""

    weight: Tensor
    r: Tensor
    zero_point: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix, with the compensation for the zero point."""
        return int(torch.ops.mkldnn._nbytes(self.weight))

    def linear(self, x_q: Tensor) -> Tensor:
        """Return y (T, out) float32."""
        return self._run(x_q, "none", "")

    def linear_add(self, x_q: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual, computed into `residual`."""
        return torch.ops.onednn.qlinear_pointwise.binary(
            x_q, 1.0, ZERO_POINT, self.weight, self.r, self.zero_point, residual, self.bias,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip

    def linear_gelu_quantize(self, x_q: Tensor, scale: Tensor) -> Tensor:
        """Return quantize(gelu(y), scale) + 128 as uint8 (T, out)."""
        # The operator could also write bytes, but rounds from a product it never stores: now and then (one value in
        # a hundred thousand) the other way than training did. Its fused GELU gives the bits of torch's.
        return _round_to_u8(self._run(x_q, "gelu", "none").mul_(scale.reciprocal()))

    def _run(self, x_q: Tensor, post_op: str, algorithm: str) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise.default(
            x_q, 1.0, ZERO_POINT, self.weight, self.r, self.zero_point, self.bias,
            1.0, 0, torch.float32, post_op, [], algorithm,
        )  # fmt: skip


class OnednnKernel:
    """The kernel `onednn`."""

    name = "onednn"
    carrier_bytes = 1

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return x on the grid of `scale`, plus 128, as uint8."""
        return to_u8(x, scale)

    def pack(self, weight_i8: Tensor, r: Tensor, bias: Tensor | None) -> OnednnLinear:
        """Copy weight_i8 (out, in) into oneDNN's layout."""
        packed = torch.ops.onednn.qlinear_prepack(weight_i8.contiguous(), None)
        return OnednnLinear(packed, r.contiguous(), torch.zeros(1, dtype=torch.int32), bias)
