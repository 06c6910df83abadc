"""The float32 kernel `onednn`: oneDNN's prepacked linears, QKV in one, GELU and residuals fused."""

from __future__ import annotations

import torch

from q8core.checkpoint.layout import head_path
from q8core.engines.attention import FloatProducts
from q8core.engines.bert import Model, score_scale
from q8core.engines.encoder import (
    Embeddings,
    EncoderLayer,
    FloatFeedForward,
    FloatTable,
    Norm,
    Projection,
    ProjectionPart,
)
from q8core.engines.linear import FloatLinear
from q8core.engines.linear_tensors import own
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.tasks.task import TaskKind


def load_fp32(shape: ModelShape, task: TaskKind, source: TensorSource, labels: int) -> Model:
    """Pack the float tensors of a model, one after the other.

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
    layers = tuple(_layer(source, shape, n, own_query=n == last) for n in range(shape.layers))
    pooler = load_float_linear(source, "bert.pooler.dense", h, h) if task == "classify" else None
    head = load_float_linear(source, head_path(task), labels, h)
    return Model(shape, embeddings, layers, pooler, head)


def load_norm(source: TensorSource, path: str, shape: ModelShape) -> Norm:
    """Load a layer norm."""
    size = (shape.hidden,)
    weight, bias = (own(source.take_float(f"{path}.{leaf}", size)) for leaf in ("weight", "bias"))
    return Norm(weight, bias, shape.norm_epsilon)


def load_float_linear(source: TensorSource, path: str, out: int, columns: int) -> FloatLinear:
    """Load and pack one float linear (out, columns)."""
    return _pack_side_by_side(source, (path,), out, columns)


def _pack_side_by_side(source: TensorSource, paths: tuple[str, ...], out: int, columns: int) -> FloatLinear:
    weights = [source.take_float(f"{path}.weight", (out, columns)) for path in paths]
    biases = [source.take_float(f"{path}.bias", (out,)) for path in paths]
    return FloatLinear.pack(torch.cat(weights), torch.cat(biases))


def _table(source: TensorSource, name: str, rows: int, columns: int) -> FloatTable:
    return FloatTable(own(source.take_float(f"bert.embeddings.{name}.weight", (rows, columns))))


def _layer(source: TensorSource, shape: ModelShape, number: int, *, own_query: bool) -> EncoderLayer:
    path, h, f = f"bert.encoder.layer.{number}", shape.hidden, shape.inner
    groups = (("query",), ("key", "value")) if own_query else (("query", "key", "value"),)
    parts = tuple(
        ProjectionPart(_pack_side_by_side(source, tuple(f"{path}.attention.self.{o}" for o in group), h, h), group)
        for group in groups
    )
    return EncoderLayer(
        heads=shape.heads,
        projection=Projection(parts),
        products=FloatProducts(score_scale(shape)),
        output=load_float_linear(source, f"{path}.attention.output.dense", h, h),
        output_norm=load_norm(source, f"{path}.attention.output.LayerNorm", shape),
        feed_forward=FloatFeedForward(
            load_float_linear(source, f"{path}.intermediate.dense", f, h),
            load_float_linear(source, f"{path}.output.dense", h, f),
        ),
        final_norm=load_norm(source, f"{path}.output.LayerNorm", shape),
    )
