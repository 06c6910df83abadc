"""The int8 backend: packs quantized weights from the checkpoint into the kernel's layout, never as floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from q8core.engines.engine import score_scale
from q8core.engines.kernels.linear_kernel import LinearKernel
from q8core.engines.layers.attention import FloatProducts, Products, QuantizedProducts
from q8core.engines.layers.encoder import (
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
from q8core.engines.layers.linear import DynamicLinear, FloatLinear, StaticLinear
from q8core.engines.layers.model import Model
from q8core.engines.loaders.fp32 import has_own_query, load_norm
from q8core.engines.tensors.as_torch import LinearTensors, take_linear, take_relative_bias, take_table
from q8core.engines.tensors.source import TensorSource
from q8core.errors import CheckpointError
from q8core.model.sites import EMBEDDING_PROJECTION, HEAD_DENSE, HEAD_OUTPUT, PRODUCTS, PROJECTIONS, layer_path
from q8core.quant.ops.arithmetic import dequantize_bias, rescale_factor
from q8core.quant.ops.products import score_factor
from q8core.quant.plan import Plan


def load_int8(plan: Plan, source: TensorSource, kernel: LinearKernel) -> Model:
    """Pack the tensors of a quantized checkpoint, one after the other.

    Raises:
        CheckpointError: if a tensor is missing, or is not what the plan says.
    """
    spec, head = plan.spec, plan.head
    embeddings = Embeddings(
        words=_table(source, plan, "word_embeddings"),
        positions=_table(source, plan, "position_embeddings", spec.first_position),
        types=_table(source, plan, "token_type_embeddings") if spec.token_types else None,
        norm=load_norm(source, plan, "embedding_norm"),
        projection=_linear(source, kernel, plan, EMBEDDING_PROJECTION) if spec.embedding else None,
    )
    bias = take_relative_bias(source, plan)
    layers = tuple(_layer(source, plan, kernel, number, bias) for number in range(spec.layers))
    dense = _linear(source, kernel, plan, HEAD_DENSE) if head.dense else None
    output = _linear(source, kernel, plan, HEAD_OUTPUT)
    return Model(spec, embeddings, layers, dense, output, kernel.carrier_bytes, head.reads, head.dense)


def _table(source: TensorSource, plan: Plan, path: str, first: int = 0) -> Table:
    tensors = take_table(source, plan.sites[path], first)
    return FloatTable(tensors.rows) if tensors.scale is None else Int8Table(tensors.rows, tensors.scale)


def _layer(source: TensorSource, plan: Plan, kernel: LinearKernel, number: int, bias: Tensor | None) -> EncoderLayer:
    tensors = {slot: take_linear(source, plan.of_layer(number, slot)) for slot in PROJECTIONS}
    return EncoderLayer(
        heads=plan.spec.heads,
        projection=_projection(tensors, plan.spec.attention, kernel, own_query=has_own_query(plan, number)),
        products=_products(tensors, plan, number, bias),
        output=_linear(source, kernel, plan, layer_path(number, "attention_output")),
        output_norm=load_norm(source, plan, layer_path(number, "attention_norm")),
        feed_forward=_feed_forward(
            _linear(source, kernel, plan, layer_path(number, "ffn_in")),
            _linear(source, kernel, plan, layer_path(number, "ffn_out")),
        ),
        final_norm=load_norm(source, plan, layer_path(number, "ffn_norm")),
    )


def _feed_forward(
    inner: StaticLinear | DynamicLinear | FloatLinear, outer: StaticLinear | DynamicLinear | FloatLinear
) -> FeedForward:
    if isinstance(inner, StaticLinear) and isinstance(outer, StaticLinear):
        return StaticFeedForward(inner, outer)
    return FloatFeedForward(inner, outer)


def _projection(
    tensors: Mapping[str, LinearTensors], hidden: int, kernel: LinearKernel, *, own_query: bool
) -> Projection:
    groups = (("query",), ("key", "value")) if own_query else (PROJECTIONS,)
    if not all(_fit_together([tensors[slot] for slot in group]) for group in groups):
        groups = tuple((slot,) for slot in PROJECTIONS)
    parts = tuple(
        ProjectionPart(
            _pack(kernel, [tensors[slot] for slot in group]),
            group,
            _grid([tensors[slot].output_scale for slot in group], hidden),
        )
        for group in groups
    )
    return Projection(parts)


def _products(tensors: Mapping[str, LinearTensors], plan: Plan, layer: int, bias: Tensor | None) -> Products:
    """Return the products of a layer's attention."""
    # Quantized queries and keys stay integers; their scales are part of the scores' factor.
    scale_q, scale_k, scale_v = (tensors[slot].output_scale for slot in PROJECTIONS)
    if plan.of_layer(layer, PRODUCTS).arithmetic == "float":
        scales = math.prod(float(scale) for scale in (scale_q, scale_k) if scale is not None)
        return FloatProducts(score_scale(plan.spec) * scales, bias)
    assert scale_q is not None  # the plan is checked
    assert scale_k is not None
    assert scale_v is not None
    return QuantizedProducts(score_factor(plan.spec.head_size, scale_q, scale_k), scale_v, bias)


def _fit_together(layers: Sequence[LinearTensors]) -> bool:
    """Return whether layers can be packed as one: same kind, same input grid, requantized outputs first."""
    requantized = [layer.output_scale is not None for layer in layers[:2]]
    return (
        len({layer.kind for layer in layers}) == 1
        and len({tuple(layer.input_steps.tolist()) for layer in layers if layer.kind == "static"}) <= 1
        and len({(layer.zero_point, layer.input_bits) for layer in layers}) == 1
        and (len(layers) < 3 or len(set(requantized)) == 1)
    )


def _grid(output_scales: Sequence[Tensor | None], columns: int) -> Grid | None:
    """Return the grid of the requantized outputs' columns, which come first."""
    present = [scale for scale in output_scales if scale is not None]
    if not present:
        return None
    return Grid(torch.cat([scale.reciprocal().expand(columns) for scale in present]))


def _linear(
    source: TensorSource, kernel: LinearKernel, plan: Plan, path: str
) -> StaticLinear | DynamicLinear | FloatLinear:
    return _pack(kernel, [take_linear(source, plan.sites[path])])


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
    packed = kernel.pack(weight, factors, torch.cat(bias), zero_point)
    return StaticLinear(kernel, packed, layers[0].input_steps, zero_point, layers[0].input_bits)


def _side_by_side(factors: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return the factors of all columns; a single per-tensor factor keeps the shape (1,)."""
    if len(factors) == 1:
        return factors[0][0]
    return torch.cat([factor.expand(columns) for factor, columns in factors])


def _required(scale: Tensor | None) -> Tensor:
    if scale is None:
        raise CheckpointError("layers that are computed together must all be quantized")
    return scale
