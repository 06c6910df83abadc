"""Exports a static int8 checkpoint as a QDQ ONNX model: int8 weights, our scales, int32 biases, any batch and length.

Every quantized linear layer is ``MatMul(dequantize(quantize(x)), dequantize(w_i8)) + dequantize(b_i32)``, which
runtimes compute in integers. Everything in between (LayerNorm, GELU, softmax) is float32, as in our engine.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from q8core.checkpoint import Checkpoint
from q8core.engines.tensors.site_tensors import LinearTensors, take_linear, take_norm, take_relative_bias, take_table
from q8core.engines.tensors.source import TensorSource
from q8core.errors import InputError, SchemeError
from q8core.export.graph import Array, GraphBuilder
from q8core.model import Activation
from q8core.model.sites import EMBEDDING_PROJECTION, HEAD_DENSE, HEAD_OUTPUT, PRODUCTS, RELATIVE_BIAS, layer_path
from q8core.quant import Plan
from q8core.quant.ops.stored import rescale_factor

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_ANY = ("batch", "sequence")
_ACTIVATIONS: dict[Activation, str] = {"tanh": "Tanh", "relu": "Relu", "gelu": "Gelu"}


def export_onnx(checkpoint: Checkpoint, file: Path) -> int:
    """Write the checkpoint's int8 model to an ONNX file; return the file's size in bytes.

    Inputs are ``input_ids``, ``attention_mask`` and, if the model has token types, ``token_type_ids`` (batch,
    sequence), int64; outputs ``logits`` (batch, labels), or ``start_logits`` and ``end_logits`` (batch, sequence),
    float32.

    Raises:
        InputError: onnx is not installed, or the file cannot be written.
        SchemeError: the scheme does something that ONNX's quantization operators cannot express.
        CheckpointError: the checkpoint has no int8 model.
    """
    if find_spec("onnx") is None:
        raise InputError("--onnx needs the onnx package: pip install 'q8bert[export]'")
    if not file.parent.is_dir():
        raise InputError(f"--onnx {file}: the folder {file.parent} does not exist")
    source = TensorSource(checkpoint.quantized_tensors())
    content: bytes = _model(checkpoint, source).SerializeToString()
    source.finish()
    try:
        file.write_bytes(content)
    except OSError as error:
        raise InputError(f"--onnx {file} cannot be written: {error.strerror}") from error
    return len(content)


def _model(checkpoint: Checkpoint, source: TensorSource) -> Any:
    model = _Model(GraphBuilder(), source, checkpoint.plan)
    hidden = model.encoder()
    outputs = model.classifier(hidden) if checkpoint.plan.head.reads == "first" else model.spans(hidden)
    inputs = _INPUTS if checkpoint.plan.spec.token_types else _INPUTS[:2]
    return model.graph.model(checkpoint.name, dict.fromkeys(inputs, _ANY), outputs, _metadata(checkpoint))


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a program needs besides the tensors to use the model."""
    return {
        "task": checkpoint.task,
        "labels": json.dumps(list(checkpoint.labels)),
        "max_length": str(checkpoint.max_length),
        "scheme": checkpoint.scheme.name if checkpoint.scheme else "",
        "int8_sha256": checkpoint.quantized_sha256 or "",
    }


class _Model:
    """Adds the parts of a model to a graph, in the order of computation."""

    def __init__(self, graph: GraphBuilder, source: TensorSource, plan: Plan) -> None:
        self.graph = graph
        self._source = source
        self._plan = plan
        self._spec = plan.spec

    def encoder(self) -> str:
        """Add embeddings and all layers; return the hidden state (batch, sequence, hidden)."""
        mask, hidden = self._mask(), self._embeddings()
        if self._plan.spec.relative_buckets:
            mask = self.graph.node("Add", "mask.and_bias", mask, self._relative_bias())
        for number in range(self._spec.layers):
            hidden = self._layer(number, hidden, mask)
        return hidden

    def classifier(self, hidden: str) -> dict[str, tuple[str | int, ...]]:
        """Add the head on the first token; return the output's shape."""
        g = self.graph
        first = g.node("Gather", "first_token", hidden, g.constant("zero", np.array(0, np.int64)), axis=1)
        g.node("Identity", "logits", self._head(first))
        return {"logits": ("batch", self._plan.head.outputs)}

    def spans(self, hidden: str) -> dict[str, tuple[str | int, ...]]:
        """Add the head on every token; return the outputs' shapes."""
        g, logits = self.graph, self._head(hidden)
        for place, name in enumerate(("start_logits", "end_logits")):
            g.node("Gather", name, logits, g.constant(f"{name}.place", np.array(place, np.int64)), axis=2)
        return {"start_logits": _ANY, "end_logits": _ANY}

    def _head(self, hidden: str) -> str:
        activation = self._plan.head.dense
        if activation is not None:
            dense = self._linear(HEAD_DENSE, hidden)
            hidden = self.graph.node(_ACTIVATIONS[activation], f"{HEAD_DENSE}.activation", dense)
        return self._linear(HEAD_OUTPUT, hidden)

    def _mask(self) -> str:
        """Add the mask that is added to the scores: 0, or the lowest float where attention_mask is 0."""
        g = self.graph
        wide = g.node("Unsqueeze", "mask.wide", "attention_mask", g.integers("mask.axes", 1, 2))
        seen = g.node("Cast", "mask.seen", wide, to=9)  # BOOL
        lowest = g.constant("mask.lowest", np.array(np.finfo(np.float32).min, np.float32))
        return g.node("Where", "mask", seen, g.constant("mask.nothing", np.array(0, np.float32)), lowest)

    def _embeddings(self) -> str:
        g, first = self.graph, self._spec.first_position
        total = self._rows("word_embeddings", "input_ids")
        if self._spec.token_types:
            types = self._rows("token_type_embeddings", "token_type_ids")
            total = g.node("Add", "embeddings.words_types", total, types)  # in Hugging Face's order, as our engine does
        start = g.constant("positions.start", np.array(first, np.int64))
        end = g.node("Add", "positions.end", start, self._length())
        positions = g.node("Range", "position_ids", start, end, g.constant("range.step", np.array(1, np.int64)))
        total = g.node("Add", "embeddings.sum", total, self._rows("position_embeddings", positions))
        hidden = self._norm("embedding_norm", total)
        return self._linear(EMBEDDING_PROJECTION, hidden) if self._spec.embedding else hidden

    def _length(self) -> str:
        """Add the sequence length, a scalar."""
        g = self.graph
        length = g.node("Gather", "length", g.node("Shape", "ids.shape", "input_ids"), g.integers("one", 1))
        return g.node("Squeeze", "length.scalar", length)

    def _relative_bias(self) -> str:
        """Add the bias that all layers add to their scores, (1, heads, sequence, sequence)."""
        g, positions = self.graph, self._spec.positions
        bias = take_relative_bias(self._source, self._plan)
        assert bias is not None
        by_distance = g.constant(RELATIVE_BIAS, bias)
        zero, one = (g.constant(f"distance.{n}", np.array(n, np.int64)) for n in (0, 1))
        places = g.node("Range", "distance.places", zero, "length.scalar", one)
        keys = g.node("Unsqueeze", "distance.keys", places, g.integers("distance.rows", 0))
        queries = g.node("Unsqueeze", "distance.queries", places, g.integers("distance.columns", 1))
        distance = g.node("Sub", "distance", keys, queries)  # (queries, keys): the key's position minus the query's
        index = g.node(
            "Add", "distance.index", distance, g.constant("distance.last", np.array(positions - 1, np.int64))
        )
        rows = g.node("Gather", f"{RELATIVE_BIAS}.rows", by_distance, index, axis=1)
        return g.node("Unsqueeze", f"{RELATIVE_BIAS}.all", rows, g.integers("distance.batch", 0))

    def _rows(self, path: str, ids: str) -> str:
        """Add the lookup in a table; stored integers are gathered first and dequantized afterwards."""
        g, tensors = self.graph, take_table(self._source, self._plan.sites[path])
        found = g.node("Gather", f"{path}.rows", g.constant(f"{path}.weight", tensors.rows), ids)
        if tensors.scale is None:
            return found
        scale = tensors.scale
        if scale.size == 1:
            return g.dequantize(path, found, scale)
        # which rows' scales are needed is known only at run time, and DequantizeLinear takes one per index of an axis
        steps = g.node("Gather", f"{path}.steps", g.constant(f"{path}.weight_scale", scale[:, None]), ids)
        return g.node("Mul", path, g.node("Cast", f"{path}.float", found, to=1), steps)  # FLOAT

    def _layer(self, layer: int, hidden: str, mask: str) -> str:
        g = self.graph
        output = self._linear(layer_path(layer, "attention_output"), self._attention(layer, hidden, mask))
        residual = g.node("Add", layer_path(layer, "attention_residual"), output, hidden)
        attended = self._norm(layer_path(layer, "attention_norm"), residual)
        inner = g.node("Gelu", layer_path(layer, "gelu"), self._linear(layer_path(layer, "ffn_in"), attended))
        outer = self._linear(layer_path(layer, "ffn_out"), inner)
        return self._norm(
            layer_path(layer, "ffn_norm"), g.node("Add", layer_path(layer, "ffn_residual"), outer, attended)
        )

    def _attention(self, layer: int, hidden: str, mask: str) -> str:
        g, spec, path = self.graph, self._spec, layer_path(layer, PRODUCTS)
        _check_products(path, self._plan)
        order = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        split = g.integers(f"{path}.split", 0, 0, spec.heads, spec.head_size)
        heads: dict[str, str] = {}
        for slot, permutation in order.items():
            by_head = g.node("Reshape", f"{path}.{slot}.split", self._linear(layer_path(layer, slot), hidden), split)
            heads[slot] = g.node("Transpose", f"{path}.{slot}.heads", by_head, perm=permutation)
        scale = g.constant(f"{path}.scale", np.array(1 / math.sqrt(spec.head_size), np.float32))
        products = g.node("MatMul", f"{path}.products", heads["query"], heads["key"])
        scores = g.node("Add", f"{path}.scores", g.node("Mul", f"{path}.scaled", products, scale), mask)
        shares = g.node("Softmax", f"{path}.shares", scores, axis=-1)
        context = g.node("MatMul", f"{path}.context", shares, heads["value"])
        together = g.node("Transpose", f"{path}.tokens", context, perm=[0, 2, 1, 3])
        return g.node("Reshape", path, together, g.integers(f"{path}.merge", 0, 0, spec.attention))

    def _norm(self, path: str, x: str) -> str:
        g, tensors = self.graph, take_norm(self._source, self._plan.sites[path])
        leaves = zip(("weight", "bias"), tensors, strict=True)
        parts = [g.constant(f"{path}.{leaf}", tensor) for leaf, tensor in leaves]
        return g.node("LayerNormalization", path, x, *parts, axis=-1, epsilon=self._spec.norm_epsilon)

    def _linear(self, path: str, x: str) -> str:
        """Add a linear layer (in) -> (out) on x (..., in); its result is quantized if the plan says so.

        Raises:
            SchemeError: the layer is dynamic.
        """
        g, tensors = self.graph, take_linear(self._source, self._plan.sites[path])
        _check_expressible(path, tensors)
        weight = g.constant(f"{path}.weight", tensors.weight.T)  # (in, out), as MatMul takes it
        bias = g.constant(f"{path}.bias", tensors.bias)
        if tensors.input_scale is not None and tensors.weight_scale is not None:
            r = rescale_factor(tensors.input_scale, tensors.weight_scale)
            if tensors.input_smoothing is not None:  # QuantizeLinear has one scale for all columns
                factors = g.constant(f"{path}.input_smoothing", tensors.input_smoothing)
                x = g.node("Div", f"{path}.smoothed", x, factors)
            x = g.quantize(f"{path}.input", x, tensors.input_scale.item(), tensors.zero_point, tensors.input_bits)
            weight = g.dequantize(f"{path}.weight_f", weight, tensors.weight_scale, axis=1)
            bias = g.dequantize(f"{path}.bias_f", bias, r)
        y = g.node("Add", path, g.node("MatMul", f"{path}.product", x, weight), bias)
        return y if tensors.output_scale is None else g.quantize(f"{path}.output", y, tensors.output_scale.item())


def _check_expressible(path: str, tensors: LinearTensors[Array]) -> None:
    if tensors.kind == "dynamic":
        raise SchemeError(
            f"{path} has no fixed input scale (a dynamic scheme): ONNX scales a whole batch at once where we scale "
            "each token, so that answers would depend on their neighbours; export a static checkpoint "
            "(q8bert quantize --scheme static, or q8bert train)"
        )


def _check_products(path: str, plan: Plan) -> None:
    if plan.sites[path].arithmetic != "float":
        raise SchemeError(
            f"{path} are in integers, whose probabilities are rounded relative to their row's largest: ONNX's "
            "quantization operators have no such grid; export a checkpoint whose attention products are in float"
        )
