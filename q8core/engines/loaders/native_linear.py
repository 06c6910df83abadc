"""A linear layer in the native library's layout: int8 weights or packed codes of fewer bits, and all beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array, address, copied, zeros
from q8core.engines.tensors.site_tensors import LinearTensors
from q8core.errors import EngineError
from q8core.native import load_library, structs
from q8core.quant.codes import Codebook
from q8core.quant.ops.stored import dequantize_bias, integer_limits, rescale_factor

LANES, DEPTH = 16, 64
"""Floats of a vector, and inputs of a block, that the library reads as a whole."""
_PANEL, _LEVELS = 32, 16
_SIGNED = 128
"""The zero point of symmetric activations."""
_ROUND = 1.5 * 2**23
"""Adding this to a small float32 rounds it and leaves the integer in the lowest bits."""


@dataclass(frozen=True)
class NativeCodes:
    """What the codes of a linear layer mean, in the library's layout.

    Attributes:
        bits: those of a code in memory: 4, 2 or 1.
        levels: int8 (16,), those of a codebook again and again.
        zero_points: int8, one for each output and zeros in the padding; None where all are 0.
    """

    bits: int
    levels: NDArray[np.int8]
    zero_points: NDArray[np.int8] | None

    @classmethod
    def of(cls, book: Codebook, rows: int) -> NativeCodes:
        """Lay out a codebook for so many outputs with padding. Codes of 3 bits take 4, which cost no more time."""
        points = None
        if book.zero_points is not None:
            points = zeros(rows, np.int8)
            points[: len(book.zero_points)] = book.zero_points
        return cls(4 if book.bits == 3 else book.bits, copied(np.resize(book.levels, _LEVELS)), points)

    def fields(self) -> tuple[int, int, int | None]:
        """Return the bits, and the addresses of levels and zero points."""
        return self.bits, address(self.levels), None if self.zero_points is None else address(self.zero_points)


@dataclass(frozen=True)
class NativeLinear:
    """A layer of int8 weights, or weights of fewer bits, in the library's layout.

    Attributes:
        weight: uint8 (out rounded up to 32, row bytes): a row of in, rounded up to 64, weights of 8, 4, 2 or 1 bits.
        order: uint8, in which order `weight` holds its inputs, see order.h; None if in their own.
        comp: int32 (rows of `weight`): where the sums begin, which removes the activations' zero point from them.
        r, bias: float32, one value for each row of `weight`; `r` lacks the scales of a dynamic layer's tokens.
        inverse: float32, 1 / step of each input, zeros in the padding; one vector longer than a row has weights.
            None in a dynamic layer.
        codes: what the codes mean that `weight` holds; None if it is int8.
        view: the structure with pointers to them.
    """

    weight: NDArray[np.uint8]
    order: NDArray[np.uint8] | None
    comp: NDArray[np.int32]
    r: NDArray[np.float32]
    bias: NDArray[np.float32]
    inverse: NDArray[np.float32] | None
    codes: NativeCodes | None
    view: structs.Linear

    @classmethod
    def pack(cls, tensors: LinearTensors[Array], variant: int) -> NativeLinear:
        """Copy a layer into the layout that the variant at this address reads.

        Raises:
            EngineError: if the layer is in float, or a weight is none of its levels.
        """
        if tensors.weight_scale is None:
            raise EngineError(f"the native kernel computes int8 layers; found a {tensors.kind} one")
        out, columns = tensors.weight.shape
        rows, depth = rounded_up(out, _PANEL), rounded_up(columns, DEPTH)
        codes = None if tensors.codebook is None else NativeCodes.of(tensors.codebook, rows)
        bits, levels, points = (8, None, None) if codes is None else codes.fields()
        weight, comp = zeros((rows, depth * bits // 8), np.uint8), zeros(rows, np.int32)
        order_bytes = load_library().q8_order_bytes(variant, out, columns) if codes is None else 0
        order = zeros(order_bytes, np.uint8) if order_bytes else None
        places = None if order is None else address(order)
        source = np.ascontiguousarray(tensors.weight)
        zero_point = _SIGNED if tensors.zero_point is None else tensors.zero_point
        largest = load_library().q8_pack(
            variant, address(source), out, columns, zero_point, bits, levels, points,
            address(weight), places, address(comp),
        )  # fmt: skip
        if largest < 0:
            raise EngineError(without_code(columns))
        inverse = None
        if tensors.input_scale is not None:
            inverse = padded(reciprocal(tensors.input_steps), depth + LANES, columns)
        factors, biases = _outputs(tensors, tensors.weight_scale)
        r, bias = padded(factors, rows, out), padded(biases, rows)
        grid = None if inverse is None else address(inverse)
        view = structs.Linear(
            address(weight),
            places,
            *(address(each) for each in (comp, r, bias)),
            structs.Grid(grid, *integer_limits(tensors.zero_point, tensors.input_bits), _ROUND + zero_point),
            out,
            rows,
            depth // DEPTH,
            bits,
            largest,
            levels,
            points,
        )
        return cls(weight, order, comp, r, bias, inverse, codes, view)


def _outputs(tensors: LinearTensors[Array], scale: Array) -> tuple[Array, Array]:
    """Return what sums are multiplied by, before a dynamic layer's scales of tokens, and the biases, in float32."""
    if tensors.input_scale is None:
        return scale, tensors.bias
    return rescale_factor(tensors.input_scale, scale), dequantize_bias(tensors.bias, tensors.input_scale, scale)


def reciprocal(scale: Array) -> NDArray[np.float32]:
    """Return the float32 reciprocals of scales."""
    with np.errstate(over="ignore"):  # infinite for a subnormal scale, which training never gives
        return np.reciprocal(scale)


def padded(values: Array, size: int, used: int | None = None) -> NDArray[np.float32]:
    """Return values (used,), or one value repeated `used` times, padded with zeros to (size,)."""
    found = zeros(size, np.float32)
    found[: len(values) if used is None else used] = values
    return found


def without_code(columns: int) -> str:
    """Return why a weight of so many inputs cannot be packed as codes, one of which was not found."""
    if columns % DEPTH:
        return (
            f"the native kernel pads inputs to a multiple of {DEPTH} with weights of 0, for which there is no code; "
            f"found {columns} inputs"
        )
    return "a weight is none of the levels of its codes"


def rounded_up(size: int, to: int) -> int:
    """Return the least multiple of `to` that is not below `size`."""
    return -(-size // to) * to
