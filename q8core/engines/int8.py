"""The int8 backend: quantized weights go from the checkpoint into their kernel's layout, never through floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from q8core.checkpoint.layout import head_path
from q8core.engines.attention import FloatProducts, Products, QuantizedProducts
from q8core.engines.bert import Model, score_scale
from q8core.engines.encoder import (
    Embeddings,
    EncoderLayer,
    FeedForward,
    FloatFeedForward,
    FloatTable,
    Grid,
    Int8Table,
    Projection,
    ProjectionPart,
    StaticFeedForward,
    Table,
)
from q8core.engines.fp32 import load_norm
from q8core.engines.kernel import LinearKernel
from q8core.engines.linear import DynamicLinear, FloatLinear, StaticLinear
from q8core.engines.linear_tensors import LinearTensors, own, take_linear
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.errors import CheckpointError
from q8core.quant.arithmetic import dequantize_bias, rescale_factor
from q8core.quant.products import score_factor
from q8core.tasks.task import TaskKind

_QKV = ("query", "key", "value")


def load_int8(shape: ModelShape, task: TaskKind, source: TensorSource, labels: int, kernel: LinearKernel) -> Model:
    """Pack the tensors of an int8 checkpoint, one after the other.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
    """
    h = shape.hidden
    embeddings = Embeddings(
        words=_table(source, "word_embeddings", shape.vocabulary, h),
        positions=_table(source, "position_embeddings", shape.positions, h),
        types=_table(source, "token_type_embeddings", shape.token_types, h),
        norm=load_norm(source, "bert.embeddings.LayerNorm", shape),
    )
    last = shape.layers - 1 if task == "classify" else shape.layers
    layers = tuple(_layer(source, shape, kernel, n, own_query=n == last) for n in range(shape.layers))
    pooler = _linear(source, kernel, "bert.pooler.dense", h, h) if task == "classify" else None
    head = _linear(source, kernel, head_path(task), labels, h)
    return Model(shape, embeddings, layers, pooler, head, kernel.carrier_bytes)


def _table(source: TensorSource, name: str, rows: int, columns: int) -> Table:
    path = f"bert.embeddings.{name}"
    weight = own(source.take(f"{path}.weight", (rows, columns), dtypes=(torch.int8, torch.float32)))
    if weight.dtype == torch.float32:
        return FloatTable(weight)
    return Int8Table(weight, own(source.scale(f"{path}.weight_scale", (1,), (rows,))))


def _layer(
    source: TensorSource, shape: ModelShape, kernel: LinearKernel, number: int, *, own_query: bool
) -> EncoderLayer:
    path, h, f = f"bert.encoder.layer.{number}", shape.hidden, shape.inner
    tensors = {name: take_linear(source, f"{path}.attention.self.{name}", h, h, requantized=True) for name in _QKV}
    return EncoderLayer(
        heads=shape.heads,
        projection=_projection(tensors, shape, kernel, own_query=own_query),
        products=_products(tensors, shape, f"{path}.attention.self"),
        output=_linear(source, kernel, f"{path}.attention.output.dense", h, h),
        output_norm=load_norm(source, f"{path}.attention.output.LayerNorm", shape),
        feed_forward=_feed_forward(
            _linear(source, kernel, f"{path}.intermediate.dense", f, h),
            _linear(source, kernel, f"{path}.output.dense", h, f),
        ),
        final_norm=load_norm(source, f"{path}.output.LayerNorm", shape),
    )


def _feed_forward(
    inner: StaticLinear | DynamicLinear | FloatLinear, outer: StaticLinear | DynamicLinear | FloatLinear
) -> FeedForward:
    if isinstance(inner, StaticLinear) and isinstance(outer, StaticLinear):
        return StaticFeedForward(inner, outer)
    return FloatFeedForward(inner, outer)


def _projection(
    tensors: Mapping[str, LinearTensors], shape: ModelShape, kernel: LinearKernel, *, own_query: bool
) -> Projection:
    groups = (("query",), ("key", "value")) if own_query else (("query", "key", "value"),)
    if not all(_fit_together([tensors[name] for name in group]) for group in groups):
        groups = tuple((name,) for name in _QKV)
    parts = tuple(
        ProjectionPart(
            _pack(kernel, [tensors[name] for name in group]),
            group,
            _grid([tensors[name].output_scale for name in group], shape.hidden),
        )
        for group in groups
    )
    return Projection(parts)


def _products(tensors: Mapping[str, LinearTensors], shape: ModelShape, path: str) -> Products:
    """Return how the attention at `path` multiplies: a requantized value means integers.

    Raises:
        CheckpointError: if the value is requantized, but query or key is not.
    """
    # Requantized queries and keys stay integers; their scales go into the one factor of the scores.
    scale_q, scale_k, scale_v = (tensors[name].output_scale for name in _QKV)
    if scale_v is None:
        return FloatProducts(score_scale(shape) * math.prod(float(s) for s in (scale_q, scale_k) if s is not None))
    if scale_q is None or scale_k is None:
        plain = "query" if scale_q is None else "key"
        raise CheckpointError(f"{path}.value has an output_scale, so {path}.{plain} needs one too; it has none")
    return QuantizedProducts(score_factor(shape.head_size, scale_q, scale_k), scale_v)


def _fit_together(layers: Sequence[LinearTensors]) -> bool:
    """Whether the layers can be one: the same kind, the same input grid, requantized outputs in front."""
    requantized = [layer.output_scale is not None for layer in layers[:2]]
    return (
        len({layer.kind for layer in layers}) == 1
        and len({float(layer.input_scale) for layer in layers if layer.input_scale is not None}) <= 1
        and len({layer.zero_point for layer in layers}) == 1
        and (len(layers) < 3 or len(set(requantized)) == 1)
    )


def _grid(output_scales: Sequence[Tensor | None], columns: int) -> Grid | None:
    """Return the grid over the columns of the requantized outputs, which lead."""
    present = [scale for scale in output_scales if scale is not None]
    if not present:
        return None
    return Grid(torch.cat([scale.reciprocal().expand(columns) for scale in present]))


def _linear(
    source: TensorSource, kernel: LinearKernel, path: str, out: int, columns: int
) -> StaticLinear | DynamicLinear | FloatLinear:
    return _pack(kernel, [take_linear(source, path, out, columns)])


def _pack(kernel: LinearKernel, layers: Sequence[LinearTensors]) -> StaticLinear | DynamicLinear | FloatLinear:
    """Pack layers that share their input as one, outputs side by side."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    if layers[0].weight_scale is None:
        return FloatLinear.pack(weight, torch.cat([layer.bias for layer in layers]))
    input_scale = layers[0].input_scale
    if input_scale is None:
        factors = _side_by_side([(_required(layer.weight_scale), len(layer.weight)) for layer in layers])
        return DynamicLinear(kernel, kernel.pack(weight, factors, None), torch.cat([layer.bias for layer in layers]))
    scales_w = [_required(layer.weight_scale) for layer in layers]
    r = [rescale_factor(input_scale, scale_w) for scale_w in scales_w]
    bias = [dequantize_bias(layer.bias, input_scale, s) for layer, s in zip(layers, scales_w, strict=True)]
    factors = _side_by_side([(each, len(layer.weight)) for each, layer in zip(r, layers, strict=True)])
    zero_point = layers[0].zero_point
    return StaticLinear(kernel, kernel.pack(weight, factors, torch.cat(bias), zero_point), input_scale, zero_point)


def _side_by_side(factors: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return the factors of all columns; a single per-tensor factor stays (1,)."""
    if len(factors) == 1:
        return factors[0][0]
    return torch.cat([factor.expand(columns) for factor, columns in factors])


def _required(scale: Tensor | None) -> Tensor:
    if scale is None:
        raise CheckpointError("layers that are computed together must all be quantized")
    return scale
