"""The interface of an int8 linear kernel, and what it must compute.

A kernel turns float activations into its own carrier (bytes, or floats that hold integers) of integers in [-127, 127],
or with a zero point z in [-z, 255 - z], of 4 bits in narrower limits, and computes, with an exact int32 accumulator,

    y[m, n] = float32(sum_k x_q[m, k] * w_i8[n, k]) * r[n] + bias[n]
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class PackedLinear(Protocol):
    """One weight matrix in the layout that its kernel reads, with its factors and bias."""

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix."""
        ...

    def linear(self, x_q: Tensor) -> Tensor:
        """Return y (T, out) float32 for a carrier x_q (T, in)."""
        ...

    def linear_add(self, x_q: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out); `residual` may be overwritten."""
        ...

    def linear_gelu_quantize(self, x_q: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return the carrier of quantize(gelu(y), scale, zero_point), for the next linear; scale as in `quantize`."""
        ...


class LinearKernel(Protocol):
    """A way to multiply int8 matrices."""

    @property
    def name(self) -> str:
        """The name users choose it by."""
        ...

    @property
    def carrier_bytes(self) -> int:
        """Bytes of one quantized activation in the carrier."""
        ...

    def quantize(self, x: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Turn x (T, in) into the carrier of its quantized values; scale is (1,), (in,) or (T, 1)."""
        ...

    def pack(self, weight_i8: Tensor, r: Tensor, bias: Tensor | None, zero_point: int | None = None) -> PackedLinear:
        """Pack weight_i8 (out, in) with r, (1,) or (out,), and a float32 bias (out,) or none.

        `zero_point` is that of the activations, None if they are symmetric.
        The packed matrix is a copy: `weight_i8` can be dropped afterwards.
        """
        ...
