"""The forward pass of BERT over packed tokens; both backends run this, with different linears.

hidden -> projection -> attention -> output + residual -> norm -> feed-forward + residual -> norm -> next layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.engines.layers.attention import Products, packed_attention
from q8core.engines.layers.linear import ActivatingLinear, Linear, StaticLinear
from q8core.engines.packing import Run, TokenBatch


@dataclass(frozen=True)
class Norm:
    """Layer normalization over the last dimension, in float32."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (T, H), normalized."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Table(Protocol):
    """An embedding table."""

    def __call__(self, ids: Tensor) -> Tensor:
        """Return a new float32 tensor (T, H) with the rows of ids (T,)."""
        ...


@dataclass(frozen=True)
class FloatTable:
    """Float32 rows."""

    rows: Tensor

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the rows of ids (T,)."""
        return self.rows.index_select(0, ids)


@dataclass(frozen=True)
class Int8Table:
    """int8 rows with one scale (1,), or one per row (rows,)."""

    rows: Tensor
    scale: Tensor

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the dequantized rows of ids (T,)."""
        scale = self.scale if self.scale.numel() == 1 else self.scale.index_select(0, ids).unsqueeze(1)
        return self.rows.index_select(0, ids).float().mul_(scale)


@dataclass(frozen=True)
class Embeddings:
    """Word, position and token-type rows, summed and normalized.

    Some families have no token types. If the tables' width E differs from the hidden size H, a projection (E) -> (H)
    follows.
    """

    words: Table
    positions: Table
    types: Table | None
    norm: Norm
    projection: Linear | None = None

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the hidden state (T, H) of a batch, summed in Hugging Face's order."""
        rows = self.words(torch.from_numpy(batch.input_ids))
        if self.types is not None:
            rows.add_(self.types(torch.from_numpy(batch.token_type_ids)))
        hidden = self.norm(rows.add_(self.positions(torch.from_numpy(batch.positions()))))
        return hidden if self.projection is None else self.projection(hidden)


@dataclass(frozen=True)
class Grid:
    """An 8-bit grid for the outputs of one linear: 1 / scale per column, (columns,)."""

    reciprocal: Tensor

    def round_(self, y: Tensor) -> None:
        """Replace y (T, columns) by its integers in [-127, 127]; the attention products apply their scale."""
        y.mul_(self.reciprocal).round_().clamp_(-127, 127)


@dataclass(frozen=True)
class ProjectionPart:
    """One linear that yields some of q, k and v, side by side; `grid` requantizes its leading columns."""

    linear: Linear
    outputs: tuple[str, ...]
    grid: Grid | None = None

    def __call__(self, hidden: Tensor) -> dict[str, Tensor]:
        """Return each output's (T, H) view."""
        y = self.linear(hidden)
        if self.grid is not None:
            self.grid.round_(y[:, : len(self.grid.reciprocal)])
        return dict(zip(self.outputs, y.chunk(len(self.outputs), dim=1), strict=True))


@dataclass(frozen=True)
class Projection:
    """Queries, keys and values of a layer."""

    parts: tuple[ProjectionPart, ...]

    def __call__(self, hidden: Tensor, query_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v (T, H); with `query_rows` (B,) and a separate part for the query, q is (B, H)."""
        found: dict[str, Tensor] = {}
        for part in self.parts:
            few = query_rows is not None and part.outputs == ("query",)
            found.update(part(hidden[query_rows] if few else hidden))
        return found["query"], found["key"], found["value"]


class FeedForward(Protocol):
    """The two linears around GELU, with the residual."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + outer(gelu(inner(x))), (T, H); x may be overwritten."""
        ...


@dataclass(frozen=True)
class FloatFeedForward:
    """Float32 between the two linears (which themselves may be dynamic int8)."""

    inner: ActivatingLinear
    outer: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + outer(gelu(inner(x)))."""
        return self.outer.add(self.inner.with_gelu(x), x)


@dataclass(frozen=True)
class StaticFeedForward:
    """Static int8 layers: the inner state is passed on in 8 bits, and fused kernels never store it in float."""

    inner: StaticLinear
    outer: StaticLinear

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + outer(gelu(inner(x)))."""
        outer = self.outer
        state_q = self.inner.packed.linear_gelu_quantize(
            self.inner.quantize(x), outer.input_steps, outer.zero_point, outer.bits
        )
        return outer.packed.linear_add(state_q, x)


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of the encoder."""

    heads: int
    projection: Projection
    products: Products
    output: Linear
    output_norm: Norm
    feed_forward: FeedForward
    final_norm: Norm

    def __call__(self, hidden: Tensor, runs: Sequence[Run], query_rows: Tensor | None = None) -> Tensor:
        """Return the next hidden state (T, H); with `query_rows` (B,), that of these rows only, (B, H)."""
        q, k, v = self.projection(hidden, query_rows)
        first_only = query_rows is not None
        context = packed_attention(q, k, v, runs, self.heads, self.products, first_only=first_only)
        residual = hidden if query_rows is None else hidden[query_rows]
        attended = self.output_norm(self.output.add(context, residual))
        return self.final_norm(self.feed_forward(attended))
