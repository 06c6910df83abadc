"""A static int8 checkpoint as a QDQ ONNX model: stored int8 weights, our scales, int32 biases, any batch and length.

Every quantized linear layer is ``MatMul(dequantize(quantize(x)), dequantize(w_i8)) + dequantize(b_i32)``, which
runtimes compute in integers. What lies between (LayerNorm, GELU, softmax) is float32, as in our engine.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from q8core.checkpoint import Checkpoint
from q8core.engines.linear_tensors import LinearTensors, take_linear
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.errors import InputError, SchemeError
from q8core.export.graph import Array, GraphBuilder
from q8core.quant.arithmetic import rescale_factor
from q8core.tasks.task import TaskKind

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_ANY = ("batch", "sequence")


def export_onnx(checkpoint: Checkpoint, file: Path) -> int:
    """Write the checkpoint's int8 model; returns the file's bytes.

    Inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids`` (batch, sequence), int64; outputs ``logits``
    (batch, labels), or ``start_logits`` and ``end_logits`` (batch, sequence), float32.

    Raises:
        InputError: onnx is not installed, or the file cannot be written.
        SchemeError: the scheme does something that ONNX's quantization operators cannot say.
        CheckpointError: the checkpoint has no int8 model.
    """
    if find_spec("onnx") is None:
        raise InputError("--onnx needs the onnx package: pip install 'q8bert[export]'")
    if not file.parent.is_dir():
        raise InputError(f"--onnx {file}: the folder {file.parent} does not exist")
    source = TensorSource(checkpoint.int8_tensors())
    content: bytes = _model(checkpoint, source).SerializeToString()
    source.finish()
    try:
        file.write_bytes(content)
    except OSError as error:
        raise InputError(f"--onnx {file} cannot be written: {error.strerror}") from error
    return len(content)


def _model(checkpoint: Checkpoint, source: TensorSource) -> Any:
    shape = ModelShape.of(checkpoint.config)
    bert = _Bert(GraphBuilder(), source, shape)
    hidden = bert.encoder()
    outputs = bert.classifier(hidden, len(checkpoint.labels)) if checkpoint.task == "classify" else bert.spans(hidden)
    return bert.graph.model(
        checkpoint.name, dict.fromkeys(_INPUTS, _ANY), outputs, _metadata(checkpoint, checkpoint.task)
    )


def _metadata(checkpoint: Checkpoint, task: TaskKind) -> dict[str, str]:
    """What a program needs to use the model beside its tensors."""
    return {
        "task": task,
        "labels": json.dumps(list(checkpoint.labels)),
        "max_length": str(checkpoint.max_length),
        "scheme": checkpoint.scheme.name if checkpoint.scheme else "",
        "int8_sha256": checkpoint.int8_sha256 or "",
    }


class _Bert:
    """The parts of a BERT, added to a graph in the order of computation."""

    def __init__(self, graph: GraphBuilder, source: TensorSource, shape: ModelShape) -> None:
        self.graph = graph
        self._source = source
        self._shape = shape

    def encoder(self) -> str:
        """Add embeddings and all layers; returns the hidden state (batch, sequence, hidden)."""
        mask, hidden = self._mask(), self._embeddings()
        for number in range(self._shape.layers):
            hidden = self._layer(f"bert.encoder.layer.{number}", hidden, mask)
        return hidden

    def classifier(self, hidden: str, labels: int) -> dict[str, tuple[str | int, ...]]:
        """Add pooler and head on the first token; returns the output's shape."""
        g, h = self.graph, self._shape.hidden
        first = g.node("Gather", "first_token", hidden, g.constant("zero", np.array(0, np.int64)), axis=1)
        pooled = g.node("Tanh", "pooled", self._linear("bert.pooler.dense", first, h, h))
        g.node("Identity", "logits", self._linear("classifier", pooled, labels, h))
        return {"logits": ("batch", labels)}

    def spans(self, hidden: str) -> dict[str, tuple[str | int, ...]]:
        """Add the head on every token; returns the outputs' shapes."""
        g = self.graph
        logits = self._linear("qa_outputs", hidden, 2, self._shape.hidden)
        for place, name in enumerate(("start_logits", "end_logits")):
            g.node("Gather", name, logits, g.constant(f"{name}.place", np.array(place, np.int64)), axis=2)
        return {"start_logits": _ANY, "end_logits": _ANY}

    def _mask(self) -> str:
        """Add what goes onto the scores: 0, or the lowest float where attention_mask is 0."""
        g = self.graph
        wide = g.node("Unsqueeze", "mask.wide", "attention_mask", g.integers("mask.axes", 1, 2))
        seen = g.node("Cast", "mask.seen", wide, to=9)  # BOOL
        lowest = g.constant("mask.lowest", np.array(np.finfo(np.float32).min, np.float32))
        return g.node("Where", "mask", seen, g.constant("mask.nothing", np.array(0, np.float32)), lowest)

    def _embeddings(self) -> str:
        g, shape = self.graph, self._shape
        length = g.node("Gather", "length", g.node("Shape", "ids.shape", "input_ids"), g.integers("one", 1))
        scalar = g.node("Squeeze", "length.scalar", length)
        places = (
            g.constant("range.start", np.array(0, np.int64)),
            scalar,
            g.constant("range.step", np.array(1, np.int64)),
        )
        positions = g.node("Range", "position_ids", *places)
        words = self._rows("word_embeddings", "input_ids", shape.vocabulary)
        types = self._rows("token_type_embeddings", "token_type_ids", shape.token_types)
        # added up in Hugging Face's order, as our engine does
        both = g.node("Add", "embeddings.words_types", words, types)
        total = g.node("Add", "embeddings.sum", both, self._rows("position_embeddings", positions, shape.positions))
        return self._norm("bert.embeddings.LayerNorm", total)

    def _rows(self, name: str, ids: str, rows: int) -> str:
        """Add the rows of a table; int8 ones are gathered as they are stored, and dequantized afterwards."""
        g, path = self.graph, f"bert.embeddings.{name}"
        shape = (rows, self._shape.hidden)
        weight = self._source.take(f"{path}.weight", shape, dtypes=(torch.int8, torch.float32))
        found = g.node("Gather", f"{path}.rows", g.constant(f"{path}.weight", _array(weight)), ids)
        if weight.dtype == torch.float32:
            return found
        scale = _array(self._source.scale(f"{path}.weight_scale", (1,), (rows,)))
        if scale.size == 1:
            return g.dequantize(path, found, scale)
        # the scale of each row is known at run time only, and DequantizeLinear takes one per place of one axis
        steps = g.node("Gather", f"{path}.steps", g.constant(f"{path}.weight_scale", scale[:, None]), ids)
        return g.node("Mul", path, g.node("Cast", f"{path}.float", found, to=1), steps)  # FLOAT

    def _layer(self, path: str, hidden: str, mask: str) -> str:
        g, h, f = self.graph, self._shape.hidden, self._shape.inner
        context = self._attention(f"{path}.attention.self", hidden, mask)
        output = self._linear(f"{path}.attention.output.dense", context, h, h)
        attended = self._norm(
            f"{path}.attention.output.LayerNorm", g.node("Add", f"{path}.attention.residual", output, hidden)
        )
        inner = g.node("Gelu", f"{path}.gelu", self._linear(f"{path}.intermediate.dense", attended, f, h))
        outer = self._linear(f"{path}.output.dense", inner, h, f)
        return self._norm(f"{path}.output.LayerNorm", g.node("Add", f"{path}.residual", outer, attended))

    def _attention(self, path: str, hidden: str, mask: str) -> str:
        g, shape = self.graph, self._shape
        order = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        split = g.integers(f"{path}.split", 0, 0, shape.heads, shape.head_size)
        heads: dict[str, str] = {}
        for name, permutation in order.items():
            y = self._linear(f"{path}.{name}", hidden, shape.hidden, shape.hidden, requantized=True)
            by_head = g.node("Reshape", f"{path}.{name}.split", y, split)
            heads[name] = g.node("Transpose", f"{path}.{name}.heads", by_head, perm=permutation)
        scale = g.constant(f"{path}.scale", np.array(1 / math.sqrt(shape.head_size), np.float32))
        products = g.node("MatMul", f"{path}.products", heads["query"], heads["key"])
        scores = g.node("Add", f"{path}.scores", g.node("Mul", f"{path}.scaled", products, scale), mask)
        shares = g.node("Softmax", f"{path}.shares", scores, axis=-1)
        context = g.node("MatMul", f"{path}.context", shares, heads["value"])
        together = g.node("Transpose", f"{path}.tokens", context, perm=[0, 2, 1, 3])
        return g.node("Reshape", path, together, g.integers(f"{path}.merge", 0, 0, shape.hidden))

    def _norm(self, path: str, x: str) -> str:
        g, shape = self.graph, (self._shape.hidden,)
        parts = [
            g.constant(f"{path}.{part}", _array(self._source.take(f"{path}.{part}", shape)))
            for part in ("weight", "bias")
        ]
        return g.node("LayerNormalization", path, x, *parts, axis=-1, epsilon=self._shape.norm_epsilon)

    def _linear(self, path: str, x: str, out: int, columns: int, *, requantized: bool = False) -> str:
        """Add a linear layer (in) -> (out) on x (..., in); its result is on a grid where the checkpoint says so.

        Raises:
            SchemeError: it is dynamic, or its value is requantized.
        """
        g, tensors = self.graph, take_linear(self._source, path, out, columns, requantized=requantized)
        _check_expressible(path, tensors)
        weight = g.constant(f"{path}.weight", _array(tensors.weight).T)  # (in, out), as MatMul takes it
        bias = g.constant(f"{path}.bias", _array(tensors.bias))
        if tensors.input_scale is not None and tensors.weight_scale is not None:
            r = rescale_factor(tensors.input_scale, tensors.weight_scale)
            x = g.quantize(f"{path}.input", x, float(tensors.input_scale), tensors.zero_point)
            weight = g.dequantize(f"{path}.weight_f", weight, _array(tensors.weight_scale), axis=1)
            bias = g.dequantize(f"{path}.bias_f", bias, _array(r))
        y = g.node("Add", path, g.node("MatMul", f"{path}.product", x, weight), bias)
        return y if tensors.output_scale is None else g.quantize(f"{path}.output", y, float(tensors.output_scale))


def _check_expressible(path: str, tensors: LinearTensors) -> None:
    if tensors.kind == "dynamic":
        raise SchemeError(
            f"{path} has no fixed input scale (a dynamic scheme): ONNX scales a whole batch at once where we scale "
            "each token, so that answers would depend on their neighbours; export a static checkpoint "
            "(q8bert quantize --scheme static, or q8bert train)"
        )
    if path.endswith(".value") and tensors.output_scale is not None:
        raise SchemeError(
            f"{path} is requantized for integer attention products, whose probabilities are rounded relative to their "
            "row's largest: ONNX's quantization operators have no such grid; export a checkpoint without "
            "attention_products"
        )


def _array(tensor: Tensor) -> Array:
    return tensor.numpy()
