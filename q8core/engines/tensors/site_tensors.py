"""The tensors of a site, read from a checkpoint: those that its plan lists, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from q8core.arrays import Array, copied
from q8core.engines.tensors.source import TensorSource
from q8core.errors import CheckpointError
from q8core.model.sites import RELATIVE_BIAS
from q8core.quant.codes import Codebook
from q8core.quant.plan import Kind, Plan, SitePlan
from q8core.quant.weights import codebook, each_row, integers

Values = TypeVar("Values")
"""The type of the values: NumPy arrays, or torch tensors."""


@dataclass(frozen=True)
class LinearTensors(Generic[Values]):
    """The tensors of a linear layer (in) -> (out).

    Attributes:
        weight: (out, in), int8, or float32 if the scheme does not quantize the layer.
        bias: (out,), int32 in a static layer, else float32.
        weight_scale: (1,) or (out,), if the weight is int8.
        codebook: what the codes mean that the checkpoint stores for the weight, if it stores codes.
        input_scale: (1,), in a static layer.
        input_smoothing: (in,), the factors that divide the input before it is quantized, if the plan has smoothing.
        output_scale: (1,), if the output is quantized.
        zero_point: that of a static layer's input, if it is asymmetric.
        input_bits: bits of the input's integers.
    """

    weight: Values
    bias: Values
    weight_scale: Values | None = None
    input_scale: Values | None = None
    output_scale: Values | None = None
    zero_point: int | None = None
    input_smoothing: Values | None = None
    codebook: Codebook | None = None
    input_bits: int = 8

    @property
    def input_steps(self) -> Values:
        """The step of a static layer's input grid: (1,), or (in,) with smoothing.

        Raises:
            CheckpointError: if the layer is not static.
        """
        if self.input_scale is None:
            raise CheckpointError(f"a {self.kind} layer has no fixed steps of its input")
        scale: Any = self.input_scale
        return scale if self.input_smoothing is None else scale * self.input_smoothing

    @property
    def kind(self) -> Kind:
        """How the layer computes: in float, dynamic or static."""
        if self.weight_scale is None:
            return "float"
        return "dynamic" if self.input_scale is None else "static"


@dataclass(frozen=True)
class TableTensors:
    """An embedding table.

    Attributes:
        stored: float32 or int8 (rows, columns), or codes (rows, row bytes).
        columns: the table's width.
        scale: (1,) or (rows,), unless the table is in float32.
        codebook: what the codes mean; None if there are none.
    """

    stored: Array
    columns: int
    scale: Array | None = None
    codebook: Codebook | None = None

    @property
    def rows(self) -> Array:
        """The rows in float32 or int8, decoded if they are codes."""
        return self.stored if self.codebook is None else self.codebook.decode(self.stored, self.columns)

    def behind(self, first: int) -> TableTensors:
        """Return the table from row `first` on; rows before the first position are never read."""
        if first == 0:
            return self
        scale, book = self.scale, self.codebook
        if scale is not None and len(scale) > 1:
            scale = scale[first:]
        if book is not None and book.zero_points is not None:
            book = Codebook(book.levels, book.zero_points[first:])
        return TableTensors(self.stored[first:], self.columns, scale, book)


def take_linear(source: TensorSource, plan: SitePlan) -> LinearTensors[Array]:
    """Take the tensors of a linear layer.

    Raises:
        CheckpointError: if one is missing, or is not what the plan says.
    """
    take = partial(source.take, plan)
    if plan.kind == "float":
        return LinearTensors(take("weight"), own(take("bias")))
    weight, bias, book = integers(plan, take), take("bias"), codebook(plan, take)
    weight_scale = own(each_row(source.scale(plan, "weight_scale"), len(weight)))
    if plan.kind == "dynamic":
        return LinearTensors(weight, own(bias), weight_scale, codebook=book)
    output_scale = None if plan.output is None else own(source.scale(plan, "output_scale"))
    input_scale = own(source.scale(plan, "input_scale"))
    smoothing = own(source.scale(plan, "input_smoothing")) if plan.smooths else None
    zero_point = _zero_point(source, plan)
    bits = 8 if plan.input is None else plan.input.bits
    return LinearTensors(weight, bias, weight_scale, input_scale, output_scale, zero_point, smoothing, book, bits)


def take_table(source: TensorSource, plan: SitePlan) -> TableTensors:
    """Take the tensors of an embedding table, which may be views of the source's arrays.

    Raises:
        CheckpointError: if one is missing, or is not what the plan says.
    """
    stored, columns = source.take(plan, "weight"), plan.site.shape[-1]
    if plan.weight is None:
        return TableTensors(stored, columns)
    scale = each_row(source.scale(plan, "weight_scale"), len(stored))
    return TableTensors(stored, columns, scale, codebook(plan, partial(source.take, plan)))


def take_norm(source: TensorSource, plan: SitePlan) -> tuple[Array, Array]:
    """Take the weight and the bias of a layer norm.

    Raises:
        CheckpointError: if one is missing, or is not what the plan says.
    """
    return own(source.take(plan, "weight")), own(source.take(plan, "bias"))


def take_relative_bias(source: TensorSource, plan: Plan) -> Array | None:
    """Take the attention biases by the key's distance from the query, (heads, 2 * positions - 1), or None.

    Raises:
        CheckpointError: if the table is missing, or is not what the plan says.
    """
    if not plan.spec.relative_buckets:
        return None
    rows = source.take(plan.sites[RELATIVE_BIAS], "weight")
    return own(rows[list(plan.spec.relative_buckets_by_distance)].T)


def own(array: Array) -> Array:
    """Return a copy that owns its memory, aligned to a cache line: a view would keep its whole base array alive."""
    return copied(array)


def _zero_point(source: TensorSource, plan: SitePlan) -> int | None:
    if plan.input is None or plan.input.grid == "symmetric":
        return None
    zero_point = int(source.take(plan, "input_zero_point").item())
    most = 2**plan.input.bits - 2
    if not 0 <= zero_point <= most or zero_point % 2:
        raise CheckpointError(
            f"{plan.path}.input_zero_point is {zero_point}; a zero point is an even number from 0 to {most}"
        )
    return zero_point
