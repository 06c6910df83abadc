"""An independent encoder with its head in numpy: int64 sums where layers are integers, float64 elsewhere.

Written from the formulas alone, one sequence at a time; shares no code with q8core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from q8core.engines import TokenBatch
from tests.engines.random_parts import Linear, Norm, Parts, Table

Array = np.ndarray[Any, np.dtype[Any]]
_erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "gelu": gelu, "none": lambda x: x}


def quantize(x: Array, scale: float, zero_point: int | None) -> Array:
    low, high = (-127, 127) if zero_point is None else (-zero_point, 255 - zero_point)
    return np.clip(np.rint(x / scale), low, high).astype(np.int64)


def linear(layer: Linear, x: Array) -> Array:
    """y, or its integers where the output is requantized."""
    if layer.weight_scale is None:
        return x @ layer.weight.double().numpy().T + layer.bias.double().numpy()
    if layer.input_scale is None:  # each row has its own
        largest = np.abs(x).max(-1, keepdims=True)
        scales = np.where(largest > 0, largest, 127.0) / 127
        sums = np.clip(np.rint(x / scales), -127, 127).astype(np.int64) @ layer.weight.numpy().astype(np.int64).T
        return sums * layer.weight_scale.double().numpy() * scales + layer.bias.double().numpy()
    x_q = quantize(x, float(layer.input_scale), layer.zero_point)
    sums = x_q @ layer.weight.numpy().astype(np.int64).T + layer.bias.numpy().astype(np.int64)
    y = sums * (float(layer.input_scale) * layer.weight_scale.double().numpy())
    return y if layer.output_scale is None else quantize(y, float(layer.output_scale), None)


def norm(part: Norm, x: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * part.weight.double().numpy() + part.bias.double().numpy()


def rows(table: Table, ids: Sequence[int]) -> Array:
    found = table.rows.double().numpy()[list(ids)]
    return found if table.scale is None else found * table.scale.double().numpy()[list(ids)][:, None]


def attention(parts: Parts, layer: dict[str, Linear], x: Array) -> Array:
    spec, size = parts.spec, parts.spec.head_size
    q, k, v = (linear(layer[name], x) for name in ("query", "key", "value"))
    scale_q, scale_k, scale_v = (layer[name].output_scale for name in ("query", "key", "value"))
    factor = 1 / math.sqrt(size)
    for scale in (scale_q, scale_k):
        factor *= 1.0 if scale is None else float(scale)
    context = np.zeros(q.shape)
    for head in range(spec.heads):
        own = np.s_[:, head * size : (head + 1) * size]
        scores = (q[own] @ k[own].T) * factor
        if parts.relative_bias is not None:
            table = parts.relative_bias.double().numpy()[head]
            for i in range(len(x)):
                for j in range(len(x)):
                    scores[i, j] += table[spec.positions - 1 + j - i]
        weights = np.exp(scores - scores.max(1, keepdims=True))
        if scale_v is None:
            context[own] = weights @ v[own] / weights.sum(1, keepdims=True)
        else:
            p = np.rint(255 * weights).astype(np.int64)
            context[own] = (p @ v[own]) * float(scale_v) / p.sum(1, keepdims=True)
    return context


def hidden_state(parts: Parts, ids: Sequence[int], types: Sequence[int]) -> Array:
    """The last hidden state (length, hidden) of one sequence."""
    epsilon = parts.spec.norm_epsilon
    x = rows(parts.words, ids) + rows(parts.positions, range(len(ids)))
    if parts.types is not None:
        x = x + rows(parts.types, types)
    x = norm(parts.embedding_norm, x, epsilon)
    if parts.projection is not None:
        x = linear(parts.projection, x)
    for layer, (after_attention, after_ffn) in zip(parts.layers, parts.norms, strict=True):
        x = norm(after_attention, x + linear(layer["output"], attention(parts, layer, x)), epsilon)
        x = norm(after_ffn, x + linear(layer["outer"], gelu(linear(layer["inner"], x))), epsilon)
    return x


def logits(parts: Parts, ids: Sequence[int], types: Sequence[int]) -> Array:
    """(1, outputs) where the head reads the first token, else (length, outputs)."""
    x = hidden_state(parts, ids, types)
    x = x[:1] if parts.head.reads == "first" else x
    if parts.dense is not None:
        assert parts.head.dense is not None
        x = ACTIVATIONS[parts.head.dense](linear(parts.dense, x))
    return linear(parts.output, x)


def batch_logits(parts: Parts, batch: TokenBatch) -> list[Tensor]:
    """The float64 logits of each sequence of a batch, (1, outputs) or (length, outputs)."""
    each = zip(batch.split(batch.input_ids, "every"), batch.split(batch.token_type_ids, "every"), strict=True)
    return [torch.from_numpy(logits(parts, ids.tolist(), types.tolist())) for ids, types in each]
