"""An independent BERT in numpy: int64 accumulators, float64 elsewhere, from a plan and the tensors it names.

Written from the formulas alone; it reads the plan's words and shares no code with q8core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from q8core.quant import Plan, Quantizer

Array = np.ndarray[Any, np.dtype[Any]]
_erf = np.vectorize(math.erf)


class IntegerBert:
    def __init__(self, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        assert set(tensors) == set(plan.tensors)
        self.plan, self.spec = plan, plan.spec
        self.t = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.largest_accumulator = 0

    def logits(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Array:
        ids, types, mask = input_ids.numpy(), token_type_ids.numpy(), attention_mask.numpy()
        x = self.embedding("word_embeddings", ids) + self.embedding("token_type_embeddings", types)
        x = x + self.embedding("position_embeddings", np.arange(ids.shape[1]))
        x = self._norm("embedding_norm", x)
        for layer in range(self.spec.layers):
            x = self._layer(f"layers.{layer}", x, mask)
        head = self.plan.head
        x = x[:, 0] if head.reads == "first" else x
        if head.dense is not None:
            assert head.dense == "tanh"
            x = np.tanh(self.linear("head.dense", x))
        return self.linear("head.output", x)

    def linear(self, path: str, x: Array) -> Array:
        site = self.plan.sites[path].scheme
        if site.weight is None:
            return x @ self.t[f"{path}.weight"].T.astype(np.float64) + self.t[f"{path}.bias"]
        w = self.integers(path)
        scale_w = self._of_rows(f"{path}.weight_scale", len(w)).astype(np.float64)
        assert site.input is not None
        if site.input.granularity == "token":
            scale_x = np.abs(x).max(axis=-1, keepdims=True) / 127
            acc = self._quantize(x, scale_x) @ w.T
            y = acc * scale_x * scale_w + self.t[f"{path}.bias"]
        else:
            scale_x = self.t[f"{path}.input_scale"].astype(np.float64)
            if site.input.smoothing:
                x = x / self.t[f"{path}.input_smoothing"]
            zero_point = self.t[f"{path}.input_zero_point"] if site.input.grid == "asymmetric" else None
            x_q = self._quantize(x, scale_x, zero_point, site.input.bits)
            acc = x_q @ w.T + self.t[f"{path}.bias"].astype(np.int64)
            y = acc * (scale_x * scale_w)
        self.largest_accumulator = max(self.largest_accumulator, int(np.abs(acc).max()))
        if site.output is not None:
            scale_y = self.t[f"{path}.output_scale"].astype(np.float64)
            y = self._quantize(y, scale_y) * scale_y
        return y

    def integers(self, path: str) -> Array:
        """The weight (rows, columns) int64; codes of few bits lie side by side, from the lowest bit on."""
        site = self.plan.sites[path]
        assert site.weight is not None
        stored, (_, columns) = self.t[f"{path}.weight"], site.site.shape
        w = stored.astype(np.int64)
        if site.weight.bits <= 4:
            assert stored.dtype == np.uint8
            bits = site.weight.bits
            row_bits = np.unpackbits(stored, axis=1, bitorder="little")[:, : columns * bits].reshape(
                len(w), columns, bits
            )
            w = self.t[f"{path}.weight_levels"].astype(np.int64)[row_bits @ (1 << np.arange(bits))]
        assert w.shape == site.site.shape
        if site.weight.grid == "asymmetric":
            return w - self._of_rows(f"{path}.weight_zero_point", len(w)).astype(np.int64)[:, None]
        assert np.abs(w).max() <= self._largest(site.weight)
        return w

    def _of_rows(self, name: str, rows: int) -> Array:
        """A value for each row, or for each group of rows."""
        found = self.t[name]
        return np.repeat(found, rows // len(found))

    @staticmethod
    def _largest(quantizer: Quantizer) -> int:
        return 16 if quantizer.grid == "split" else max(1, 2 ** (quantizer.bits - 1) - 1)

    @staticmethod
    def _quantize(x: Array, scale: Array, zero_point: Array | None = None, bits: int = 8) -> Array:
        if zero_point is not None:
            z = int(zero_point[0])
            return np.clip(np.rint(x / scale) + z, 0, 2**bits - 1).astype(np.int64) - z
        largest = 2 ** (bits - 1) - 1
        return np.clip(np.rint(x / scale), -largest, largest).astype(np.int64)

    def embedding(self, path: str, ids: Array) -> Array:
        if self.plan.sites[path].weight is None:
            return self.t[f"{path}.weight"].astype(np.float64)[ids]
        w = self.integers(path)
        scale = self._of_rows(f"{path}.weight_scale", len(w)).astype(np.float64)
        return (w * scale[:, None])[ids]

    def _norm(self, path: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        deviation = np.sqrt(variance + self.spec.norm_epsilon)
        return centred / deviation * self.t[f"{path}.weight"] + self.t[f"{path}.bias"]

    def _layer(self, path: str, x: Array, mask: Array) -> Array:
        batch, length, _ = x.shape
        split = (batch, length, self.spec.heads, self.spec.head_size)
        q, k, v = (
            self.linear(f"{path}.{name}", x).reshape(split).transpose(0, 2, 1, 3) for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(self.spec.head_size)
        scores = np.where(mask[:, None, None, :] == 0, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        if self.plan.sites[f"{path}.attention_products"].arithmetic == "relative_u8":
            p = np.rint(255 * weights).astype(np.int64)
            scale_v = self.t[f"{path}.value.output_scale"].astype(np.float64)
            acc = p @ np.rint(v / scale_v).astype(np.int64)
            self.largest_accumulator = max(self.largest_accumulator, int(np.abs(acc).max()))
            context = acc * scale_v / p.sum(-1, keepdims=True)
        else:
            context = weights / weights.sum(-1, keepdims=True) @ v
        context = context.transpose(0, 2, 1, 3).reshape(batch, length, -1)
        x = self._norm(f"{path}.attention_norm", x + self.linear(f"{path}.attention_output", context))
        inner = self.linear(f"{path}.ffn_in", x)
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        return self._norm(f"{path}.ffn_norm", x + self.linear(f"{path}.ffn_out", inner))
