"""Plain parts, built into the engines: torch's layers, and the native library's structures."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.arrays import address
from q8core.engines import TokenBatch
from q8core.engines.choice.linearwise import proven_linear_kernel
from q8core.engines.layers.attention import FloatProducts, Products, QuantizedProducts
from q8core.engines.layers.encoder import (
    Embeddings,
    EncoderLayer,
    FloatFeedForward,
    FloatTable,
    Grid,
    Int8Table,
    Projection,
    ProjectionPart,
    StaticFeedForward,
)
from q8core.engines.layers.encoder import Norm as EngineNorm
from q8core.engines.layers.linear import DynamicLinear, FloatLinear, StaticLinear
from q8core.engines.layers.model import Model
from q8core.engines.loaders.native_linear import NativeLinear
from q8core.engines.tensors.site_tensors import LinearTensors
from q8core.native import load_library, structs, variants
from q8core.quant.ops.arithmetic import dequantize_bias, rescale_factor
from q8core.quant.ops.products import score_factor
from tests.arrays import batch_of
from tests.engines.random_parts import LINEARS, Linear, Norm, Parts, Table


class TorchBuilder:
    """Builds what `int8.py` and `fp32.py` load."""

    def __init__(self, parts: Parts, kernel: str) -> None:
        self.parts, self.spec = parts, parts.spec
        columns = {self.spec.hidden, self.spec.attention, self.spec.inner, self.spec.table_columns}
        self.kernel: Any = proven_linear_kernel(kernel, columns) if kernel != "float" else None

    def model(self) -> Model:
        parts, head = self.parts, self.parts.head
        return Model(
            spec=self.spec,
            embeddings=Embeddings(
                words=self.table(parts.words),
                positions=self.table(parts.positions),
                types=self.table(parts.types) if parts.types else None,
                norm=self.norm(parts.embedding_norm),
                projection=self.linear(parts.projection) if parts.projection else None,
            ),
            layers=tuple(self.layer(layer, norms) for layer, norms in zip(parts.layers, parts.norms, strict=True)),
            dense=self.linear(parts.dense) if parts.dense else None,
            head=self.linear(parts.output),
            reads=head.reads,
            activation=None if head.dense == "none" else head.dense,
        )

    def table(self, table: Table) -> Any:
        return FloatTable(table.rows) if table.scale is None else Int8Table(table.rows, table.scale)

    def norm(self, norm: Norm) -> EngineNorm:
        return EngineNorm(norm.weight, norm.bias, self.spec.norm_epsilon)

    def linear(self, layer: Linear) -> Any:
        if layer.weight_scale is None:
            return FloatLinear.pack(layer.weight, layer.bias)
        if layer.input_scale is None:
            return DynamicLinear(self.kernel, self.kernel.pack(layer.weight, layer.weight_scale, None), layer.bias)
        r = rescale_factor(layer.input_scale, layer.weight_scale)
        bias = dequantize_bias(layer.bias, layer.input_scale, layer.weight_scale)
        packed = self.kernel.pack(layer.weight, r, bias, layer.zero_point)
        return StaticLinear(self.kernel, packed, layer.input_scale, layer.zero_point)

    def layer(self, layer: dict[str, Linear], norms: tuple[Norm, Norm]) -> EncoderLayer:
        inner, outer = self.linear(layer["inner"]), self.linear(layer["outer"])
        static = isinstance(inner, StaticLinear) and isinstance(outer, StaticLinear)
        return EncoderLayer(
            heads=self.spec.heads,
            projection=Projection(tuple(self.projection(name, layer[name]) for name in ("query", "key", "value"))),
            products=self.products(layer),
            output=self.linear(layer["output"]),
            output_norm=self.norm(norms[0]),
            feed_forward=(StaticFeedForward if static else FloatFeedForward)(inner, outer),
            final_norm=self.norm(norms[1]),
        )

    def projection(self, name: str, layer: Linear) -> ProjectionPart:
        scale = layer.output_scale
        grid = None if scale is None else Grid(scale.reciprocal().expand(self.spec.attention))
        return ProjectionPart(self.linear(layer), (name,), grid)

    def products(self, layer: dict[str, Linear]) -> Products:
        scale_q, scale_k, scale_v = (layer[name].output_scale for name in ("query", "key", "value"))
        bias = self.parts.relative_bias
        if scale_q is None or scale_k is None:
            return FloatProducts(1 / math.sqrt(self.spec.head_size), bias)
        factor = score_factor(self.spec.head_size, scale_q, scale_k)
        return FloatProducts(factor, bias) if scale_v is None else QuantizedProducts(factor, scale_v, bias)


class NativeBuilder:
    """Builds the library's structures, int8 or float32, and keeps what they point to."""

    def __init__(self, parts: Parts, variant: int) -> None:
        self.parts, self.spec, self.kept, self.variant = parts, parts.spec, list[Any](), variant
        self.integers = parts.output.weight_scale is not None

    def keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor.contiguous())
        return self.kept[-1].data_ptr()

    def model(self) -> structs.Model | structs.FloatModel:
        parts, spec, head = self.parts, self.spec, self.parts.head
        view = (structs.Model if self.integers else structs.FloatModel)()
        view.hidden, view.heads, view.inner, view.layers = spec.hidden, spec.heads, spec.inner, spec.layers
        view.attention, view.epsilon = spec.attention, spec.norm_epsilon
        view.words, view.positions = self.table(parts.words), self.table(parts.positions)
        if parts.types:
            view.types = self.table(parts.types)
        view.embedding_norm = self.norm(parts.embedding_norm)
        if parts.projection:
            view.projection, view.embedding = self.linear(parts.projection), spec.table_columns
        if parts.relative_bias is not None:
            view.relative_bias = structs.RelativeBias(self.keep(parts.relative_bias), spec.positions)
        made = [self.layer(layer, norms) for layer, norms in zip(parts.layers, parts.norms, strict=True)]
        view.layer = (type(made[0]) * len(made))(*made)
        self.kept.append(view.layer)
        if not self.integers:
            view.score_scale = 1 / math.sqrt(spec.head_size)
        view.head_reads_first = head.reads == "first"
        if parts.dense is not None:
            view.head_dense = self.linear(parts.dense)
            view.head_activation = structs.ACTIVATIONS[None if head.dense == "none" else head.dense]
        view.head = self.linear(parts.output)
        return view

    def table(self, table: Table) -> structs.Table:
        rows = self.keep(table.rows)
        return (
            structs.Table(None, rows, None, 0)
            if table.scale is None
            else structs.Table(rows, None, self.keep(table.scale), 1)
        )

    def norm(self, norm: Norm) -> structs.Norm:
        padding = (0, -len(norm.weight) % 16)
        return structs.Norm(self.keep(F.pad(norm.weight, padding)), self.keep(F.pad(norm.bias, padding)))

    def linear(self, layer: Linear) -> Any:
        if self.integers:
            assert layer.weight_scale is not None
            tensors = (layer.weight, layer.bias, layer.weight_scale, layer.input_scale)
            values = (None if each is None else each.numpy() for each in tensors)
            packed = NativeLinear.pack(LinearTensors[Any](*values, zero_point=layer.zero_point), self.variant)
            self.kept.append(packed)
            return packed.view
        out, columns = layer.weight.shape
        rows = torch.empty(-(-out // 16) * 16 * columns)
        load_library().q8_pack_float(layer.weight.data_ptr(), out, columns, rows.data_ptr())
        return structs.FloatLinear(self.keep(rows), self.keep(F.pad(layer.bias, (0, -out % 16))), out, columns)

    def layer(self, layer: dict[str, Linear], norms: tuple[Norm, Norm]) -> Any:
        view = (structs.Layer if self.integers else structs.FloatLayer)()
        for name in LINEARS:
            setattr(view, name, self.linear(layer[name]))
        view.output_norm, view.final_norm = self.norm(norms[0]), self.norm(norms[1])
        scales = {name: layer[name].output_scale for name in ("query", "key", "value")}
        for name, scale in scales.items():
            if scale is not None:
                setattr(view, f"{name}_inverse", float(scale.reciprocal()))
        if self.integers:
            one = torch.ones(1)
            view.score_scale = score_factor(
                self.spec.head_size, *(one if s is None else s for s in (scales["query"], scales["key"]))
            )
        if scales["value"] is not None:
            view.value_scale = float(scales["value"])
        return view


def native_logits(parts: Parts, batch: TokenBatch, variant: str, threads: int = 2) -> Tensor:
    """Return (B, outputs) or (T, outputs), as the library computes them."""
    library, builder = load_library(), NativeBuilder(parts, variants()[variant])
    view = builder.model()
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)
    types = address(batch.token_type_ids) if parts.types else None
    what = structs.Batch(batch.tokens, len(batch.lengths), address(batch.input_ids), types, lengths.data_ptr())
    names = (
        ("q8_workspace_bytes", "q8_forward") if builder.integers else ("q8_float_workspace_bytes", "q8_forward_float")
    )
    size_of, forward = (getattr(library, name) for name in names)
    memory = torch.full((size_of(ctypes.byref(view), ctypes.byref(what), threads),), 255, dtype=torch.uint8)  # NaNs
    rows = len(batch.lengths) if parts.head.reads == "first" else batch.tokens
    logits = torch.full((rows, parts.head.outputs), float("nan"))
    forward(variants()[variant], view, what, memory.data_ptr(), logits.data_ptr(), threads)
    return logits


def torch_logits(parts: Parts, batch: TokenBatch, kernel: str) -> Tensor:
    """Return (B, outputs) or (T, outputs), as torch's layers compute them; `kernel`: float, onednn or fbgemm."""
    with torch.inference_mode():
        return torch.from_numpy(TorchBuilder(parts, kernel).model().logits(batch))


def random_batch(lengths: Sequence[int], vocabulary: int, types: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (sum(lengths),), generator=generator)
    return batch_of(ids, torch.randint(max(types, 1), ids.shape, generator=generator), tuple(lengths))
