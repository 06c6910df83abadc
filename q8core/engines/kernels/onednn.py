"""int8 linears computed by oneDNN: u8 activations with a zero point, s8 weights, GELU or the residual in the same pass.

Signed activations would be the natural choice, but their kernel is about a thousand times slower on CPUs without
signed dot products. With r as weight scale and an activation scale of 1, the result equals that of
`linear_kernel` bit for bit, as long as the sum of the unsigned bytes' products stays below 2**24: oneDNN converts it to
float before it subtracts the zero point's share. Only rows of weights with nearly all the same sign exceed that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q8core.quant.ops.arithmetic import integer_limits

ZERO_POINT = 128
"""The zero point of symmetric activations, whose integers are signed."""
# Adding 1.5 * 2**23 to a small float32 rounds it half to even and leaves the integer in the low mantissa bits; with an
# even number z added too, the lowest byte is q + z. One addition replaces a rounding, an addition and a slow cast.
_ROUND_TO_LOW_BYTE = 1.5 * 2**23


def to_u8(x: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
    """Return quantize(x, scale, zero_point, bits), plus the zero point (or 128), as uint8, in the shape of x."""
    return _round_to_u8(torch.mul(x, scale.reciprocal()), zero_point, bits)


def _round_to_u8(x: Tensor, zero_point: int | None, bits: int) -> Tensor:
    """Return round_half_even(x) within its limits, plus the zero point, as uint8; x is overwritten."""
    added = _ROUND_TO_LOW_BYTE + (ZERO_POINT if zero_point is None else zero_point)
    return x.clamp_(*integer_limits(zero_point, bits)).add_(added).view(torch.int32).to(torch.uint8)


@dataclass(frozen=True)
class OnednnLinear:
    """A weight (out, in) in oneDNN's blocked layout, with its own zero point, 0, and that of the activations."""

    weight: Tensor
    r: Tensor
    zero_point: Tensor
    bias: Tensor | None
    input_zero_point: int = ZERO_POINT

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
            x_q, 1.0, self.input_zero_point, self.weight, self.r, self.zero_point, residual, self.bias,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip

    def linear_gelu_quantize(self, x_q: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return quantize(gelu(y), scale, zero_point), plus the zero point, as uint8 (T, out)."""
        # The operator could also write bytes, but it rounds a product that it never stores: occasionally (one value in
        # a hundred thousand) differently from training. Its fused GELU gives the same bits as torch's.
        return _round_to_u8(self._run(x_q, "gelu", "none").mul_(scale.reciprocal()), zero_point, bits)

    def _run(self, x_q: Tensor, post_op: str, algorithm: str) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise.default(
            x_q, 1.0, self.input_zero_point, self.weight, self.r, self.zero_point, self.bias,
            1.0, 0, torch.float32, post_op, [], algorithm,
        )  # fmt: skip


class OnednnKernel:
    """The kernel `onednn`."""

    name = "onednn"
    carrier_bytes = 1

    def quantize(self, x: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return x on the grid of `scale`, plus the zero point, as uint8."""
        return to_u8(x, scale, zero_point, bits)

    def pack(self, weight_i8: Tensor, r: Tensor, bias: Tensor | None, zero_point: int | None = None) -> OnednnLinear:
        """Copy weight_i8 (out, in) into oneDNN's layout."""
        packed = torch.ops.onednn.qlinear_prepack(weight_i8.contiguous(), None)
        zero = torch.zeros(1, dtype=torch.int32)
        return OnednnLinear(packed, r.contiguous(), zero, bias, ZERO_POINT if zero_point is None else zero_point)
