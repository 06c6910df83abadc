"""int8 linears computed by fbgemm. The only file that touches torch's deprecated quantized dtypes.

The operator quantizes float activations itself, but clamps to -128 and adds the zero point before it rounds. So it
gets floats that already hold the quantized integers (see `linear_kernel`), with a scale of 1: its own rounding then
changes nothing. It would also fuse adding the bias and scaling into one rounding. The bias is added afterwards instead,
so that both kernels give the same bits and the choice of a kernel never changes an answer.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.errors import EngineError
from q8core.quant.ops.arithmetic import quantize

ZERO_POINT = 128
"""The zero point of symmetric activations."""
# fbgemm keeps weights in tiles of 32 columns and groups of 4 rows (x86 with AVX-512; 16 or less elsewhere).
_TILE_OUT, _TILE_IN = 32, 4


@dataclass(frozen=True)
class FbgemmLinear:
    """A weight (out, in) in fbgemm's tiles. `packed` also holds factors and column sums."""

    packed: Any
    bias: Tensor | None
    nbytes: int
    zero_point: int = ZERO_POINT

    def linear(self, x_q: Tensor) -> Tensor:
        """Return y (T, out) float32 for floats x_q (T, in) that hold integers."""
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        y = multiply(x_q, 1.0, self.zero_point, self.packed)
        return y if self.bias is None else y.add_(self.bias)

    def linear_add(self, x_q: Tensor, residual: Tensor) -> Tensor:
        """Return y + residual (T, out)."""
        return self.linear(x_q).add_(residual)

    def linear_gelu_quantize(self, x_q: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return quantize(gelu(y), scale, zero_point) (T, out) as floats that hold integers."""
        return quantize(F.gelu(self.linear(x_q)), scale, zero_point, bits)


class FbgemmKernel:
    """The kernel `fbgemm`.

    Raises:
        EngineError: if this build of torch has no fbgemm (it is for x86).
    """

    name = "fbgemm"
    carrier_bytes = 4

    def __init__(self) -> None:
        engine = torch.backends.quantized.engine
        if engine not in ("x86", "fbgemm"):
            raise EngineError(f"torch.backends.quantized.engine is {engine!r}; the fbgemm kernel needs x86 or fbgemm")

    def quantize(self, x: Tensor, scale: Tensor, zero_point: int | None = None, bits: int = 8) -> Tensor:
        """Return x on the grid of `scale` as floats that hold integers."""
        return quantize(x, scale, zero_point, bits)

    def pack(self, weight_i8: Tensor, r: Tensor, bias: Tensor | None, zero_point: int | None = None) -> FbgemmLinear:
        """Copy weight_i8 (out, in) into fbgemm's layout."""
        out, columns = weight_i8.shape
        # Through torch.ops, C++ would print the deprecation warning, where no filter applies.
        make: Any = torch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*quantized tensor creation functions.*deprecated")
            if r.numel() == 1:
                weight = make._make_per_tensor_quantized_tensor(weight_i8.contiguous(), float(r), 0)
            else:
                zero_points = torch.zeros(out, dtype=torch.int64)
                weight = make._make_per_channel_quantized_tensor(
                    weight_i8.contiguous(), r.to(torch.float64), zero_points, 0
                )
        packed = torch.ops.quantized.linear_prepack(weight, None)
        tiles = math.ceil(out / _TILE_OUT) * _TILE_OUT * math.ceil(columns / _TILE_IN) * _TILE_IN
        nbytes = tiles + 4 * out + 8 * r.numel()  # plus column sums, factors and zero points
        return FbgemmLinear(packed, bias, nbytes, ZERO_POINT if zero_point is None else zero_point)
