"""The float32 kernel `onednn`: oneDNN's prepacked linears, with Q, K and V packed as one, GELU and residuals fused."""

from __future__ import annotations

import torch

from q8core.engines.engine import score_scale
from q8core.engines.layers.attention import FloatProducts
from q8core.engines.layers.encoder import (
    Embeddings,
    EncoderLayer,
    FloatFeedForward,
    FloatTable,
    Norm,
    Projection,
    ProjectionPart,
)
from q8core.engines.layers.linear import FloatLinear
from q8core.engines.layers.model import Model
from q8core.engines.tensors.as_torch import take_linear, take_norm, take_relative_bias, take_table
from q8core.engines.tensors.source import TensorSource
from q8core.model.sites import EMBEDDING_PROJECTION, HEAD_DENSE, HEAD_OUTPUT, PROJECTIONS, layer_path
from q8core.quant.plan import Plan


def load_fp32(plan: Plan, source: TensorSource) -> Model:
    """Pack the float tensors of a model, one after the other.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
    """
    spec, head = plan.spec, plan.head
    embeddings = Embeddings(
        words=_table(source, plan, "word_embeddings"),
        positions=_table(source, plan, "position_embeddings", spec.first_position),
        types=_table(source, plan, "token_type_embeddings") if spec.token_types else None,
        norm=load_norm(source, plan, "embedding_norm"),
        projection=load_float_linear(source, plan, EMBEDDING_PROJECTION) if spec.embedding else None,
    )
    products = FloatProducts(score_scale(spec), take_relative_bias(source, plan))
    layers = tuple(_layer(source, plan, number, products) for number in range(spec.layers))
    dense = load_float_linear(source, plan, HEAD_DENSE) if head.dense else None
    output = load_float_linear(source, plan, HEAD_OUTPUT)
    return Model(spec, embeddings, layers, dense, output, reads=head.reads, activation=head.dense)


def load_norm(source: TensorSource, plan: Plan, path: str) -> Norm:
    """Load a layer norm."""
    return Norm(*take_norm(source, plan.sites[path]), plan.spec.norm_epsilon)


def load_float_linear(source: TensorSource, plan: Plan, *paths: str) -> FloatLinear:
    """Load float linears that read the same input and pack them as one, outputs side by side."""
    tensors = [take_linear(source, plan.sites[path]) for path in paths]
    return FloatLinear.pack(torch.cat([each.weight for each in tensors]), torch.cat([each.bias for each in tensors]))


def has_own_query(plan: Plan, layer: int) -> bool:
    """Return whether a layer computes queries only for first tokens, separately from its keys and values."""
    return plan.head.reads == "first" and layer == plan.spec.layers - 1


def _table(source: TensorSource, plan: Plan, path: str, first: int = 0) -> FloatTable:
    return FloatTable(take_table(source, plan.sites[path], first).rows)


def _layer(source: TensorSource, plan: Plan, number: int, products: FloatProducts) -> EncoderLayer:
    groups = (("query",), ("key", "value")) if has_own_query(plan, number) else (PROJECTIONS,)
    parts = tuple(
        ProjectionPart(load_float_linear(source, plan, *(layer_path(number, slot) for slot in group)), group)
        for group in groups
    )
    return EncoderLayer(
        heads=plan.spec.heads,
        projection=Projection(parts),
        products=products,
        output=load_float_linear(source, plan, layer_path(number, "attention_output")),
        output_norm=load_norm(source, plan, layer_path(number, "attention_norm")),
        feed_forward=FloatFeedForward(
            load_float_linear(source, plan, layer_path(number, "ffn_in")),
            load_float_linear(source, plan, layer_path(number, "ffn_out")),
        ),
        final_norm=load_norm(source, plan, layer_path(number, "ffn_norm")),
    )
