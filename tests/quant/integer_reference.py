"""An independent BERT in numpy: int64 accumulators, float64 elsewhere, from the tensors of an int8 checkpoint.

Written from the formulas alone; shares no code with q8core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
_erf = np.vectorize(math.erf)


class IntegerBert:
    def __init__(self, tensors: Mapping[str, Tensor], heads: int, eps: float) -> None:
        self.t = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.heads, self.eps = heads, eps
        self.largest_accumulator = 0

    def logits(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Array:
        ids, types, mask = input_ids.numpy(), token_type_ids.numpy(), attention_mask.numpy()
        x = self._embedding("word", ids) + self._embedding("token_type", types)
        x = x + self._embedding("position", np.arange(ids.shape[1]))
        x = self._norm("bert.embeddings.LayerNorm", x)
        layer = 0
        while f"bert.encoder.layer.{layer}.output.dense.weight" in self.t:
            x = self._layer(f"bert.encoder.layer.{layer}", x, mask)
            layer += 1
        if "qa_outputs.weight" in self.t:
            return self.linear("qa_outputs", x)
        return self.linear("classifier", np.tanh(self.linear("bert.pooler.dense", x[:, 0])))

    def linear(self, path: str, x: Array) -> Array:
        weight = self.t[f"{path}.weight"]
        if weight.dtype != np.int8:
            return x @ weight.T.astype(np.float64) + self.t[f"{path}.bias"]
        w = weight.astype(np.int64)
        scale_w = self.t[f"{path}.weight_scale"].astype(np.float64)
        if f"{path}.input_scale" in self.t:
            scale_x = self.t[f"{path}.input_scale"].astype(np.float64)
            x_q = self._quantize(x, scale_x, self.t.get(f"{path}.input_zero_point"))
            acc = x_q @ w.T + self.t[f"{path}.bias"].astype(np.int64)
            y = acc * (scale_x * scale_w)
        else:
            scale_x = np.abs(x).max(axis=-1, keepdims=True) / 127
            acc = self._quantize(x, scale_x) @ w.T
            y = acc * scale_x * scale_w + self.t[f"{path}.bias"]
        self.largest_accumulator = max(self.largest_accumulator, int(np.abs(acc).max()))
        if f"{path}.output_scale" in self.t:
            scale_y = self.t[f"{path}.output_scale"].astype(np.float64)
            y = self._quantize(y, scale_y) * scale_y
        return y

    @staticmethod
    def _quantize(x: Array, scale: Array, zero_point: Array | None = None) -> Array:
        if zero_point is not None:
            z = int(zero_point[0])
            return np.clip(np.rint(x / scale) + z, 0, 255).astype(np.int64) - z
        return np.clip(np.rint(x / scale), -127, 127).astype(np.int64)

    def _embedding(self, name: str, ids: Array) -> Array:
        path = f"bert.embeddings.{name}_embeddings"
        table = self.t[f"{path}.weight"].astype(np.float64)
        if f"{path}.weight_scale" in self.t:
            table = table * self.t[f"{path}.weight_scale"].astype(np.float64).reshape(-1, 1)
        return table[ids]

    def _norm(self, path: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + self.eps) * self.t[f"{path}.weight"] + self.t[f"{path}.bias"]

    def _layer(self, path: str, x: Array, mask: Array) -> Array:
        batch, length, hidden = x.shape
        split = (batch, length, self.heads, hidden // self.heads)
        q, k, v = (
            self.linear(f"{path}.attention.self.{name}", x).reshape(split).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(hidden // self.heads)
        scores = np.where(mask[:, None, None, :] == 0, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        if f"{path}.attention.self.value.output_scale" in self.t:
            p = np.rint(255 * weights).astype(np.int64)
            scale_v = self.t[f"{path}.attention.self.value.output_scale"].astype(np.float64)
            acc = p @ np.rint(v / scale_v).astype(np.int64)
            self.largest_accumulator = max(self.largest_accumulator, int(np.abs(acc).max()))
            context = acc * scale_v / p.sum(-1, keepdims=True)
        else:
            context = weights / weights.sum(-1, keepdims=True) @ v
        context = context.transpose(0, 2, 1, 3).reshape(batch, length, hidden)
        x = self._norm(f"{path}.attention.output.LayerNorm", x + self.linear(f"{path}.attention.output.dense", context))
        inner = self.linear(f"{path}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        return self._norm(f"{path}.output.LayerNorm", x + self.linear(f"{path}.output.dense", inner))
