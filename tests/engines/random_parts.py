"""Random models of any family as plain parts: what a loader would take out of a checkpoint, with no names of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from q8core.model import EncoderSpec
from q8core.model.head import Reads

LINEARS = ("query", "key", "value", "output", "inner", "outer")
WEIGHT_STD = 0.08
Dense = Literal["tanh", "relu", "gelu", "none"] | None
"""The activation behind a dense layer; None where there is no such layer."""


@dataclass(frozen=True)
class Head:
    reads: Reads = "first"
    dense: Dense = "tanh"
    outputs: int = 3


@dataclass(frozen=True)
class Linear:
    """A static int8 layer; a dynamic one, without a scale of its input; or a float32 one, without any scale."""

    weight: Tensor
    bias: Tensor
    weight_scale: Tensor | None = None
    input_scale: Tensor | None = None
    zero_point: int | None = None
    output_scale: Tensor | None = None


@dataclass(frozen=True)
class Table:
    rows: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Parts:
    spec: EncoderSpec
    head: Head
    words: Table
    positions: Table
    types: Table | None
    embedding_norm: Norm
    projection: Linear | None
    relative_bias: Tensor | None
    layers: tuple[dict[str, Linear], ...]
    norms: tuple[tuple[Norm, Norm], ...]
    dense: Linear | None
    output: Linear


@dataclass
class Making:
    """Makes parts.

    `integers`: int8 layers, else float32; `products`: the attention's values are integers too; `dynamic`: the layers
    (`LINEARS`, projection, dense, head) whose inputs have a scale for each token.
    """

    integers: bool
    products: bool
    dynamic: frozenset[str] = frozenset()
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def normal(self, *shape: int, std: float = WEIGHT_STD) -> Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def linear(self, name: str, out: int, columns: int, *, requantized: bool = False) -> Linear:
        if not self.integers:
            return Linear(self.normal(out, columns), self.normal(out, std=0.2))
        if name in self.dynamic:
            weight = torch.randint(-127, 128, (out, columns), dtype=torch.int8, generator=self.generator)
            scale = self.uniform(0.8, 1.2, out) * (WEIGHT_STD * 3**0.5 / 127)
            return Linear(weight, self.normal(out, std=0.2), scale)
        return Linear(
            torch.randint(-127, 128, (out, columns), dtype=torch.int8, generator=self.generator),
            torch.randint(-2000, 2000, (out,), dtype=torch.int32, generator=self.generator),
            self.uniform(0.8, 1.2, out) * (WEIGHT_STD * 3**0.5 / 127),
            self.uniform(8 / 255, 9 / 255, 1),
            None if name == "output" else 2 * int(torch.randint(55, 75, (1,), generator=self.generator)),
            self.uniform(3 / 127, 4 / 127, 1) if requantized else None,
        )

    def table(self, rows: int, columns: int, *, narrow: bool) -> Table:
        if not (narrow and self.integers):
            return Table(self.normal(rows, columns, std=0.5))
        weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=self.generator)
        return Table(weight, self.uniform(0.8, 1.2, rows) / 127)

    def norm(self, columns: int) -> Norm:
        return Norm(self.uniform(0.5, 1.5, columns), self.normal(columns, std=0.2))

    def layer(self, spec: EncoderSpec) -> dict[str, Linear]:
        h, a, f = spec.hidden, spec.attention, spec.inner
        sizes = dict.fromkeys(LINEARS, (a, h)) | {"output": (h, a), "inner": (f, h), "outer": (h, f)}
        requantized = ("query", "key", "value") if self.products else ("query", "key")
        return {name: self.linear(name, *sizes[name], requantized=name in requantized) for name in LINEARS}

    def parts(self, spec: EncoderSpec, head: Head) -> Parts:
        h, columns = spec.hidden, spec.table_columns
        return Parts(
            spec=spec,
            head=head,
            words=self.table(spec.vocabulary, columns, narrow=True),
            positions=self.table(spec.positions, columns, narrow=True),
            types=self.table(spec.token_types, columns, narrow=False) if spec.token_types else None,
            embedding_norm=self.norm(columns),
            projection=self.linear("projection", h, columns) if spec.embedding else None,
            relative_bias=self.normal(spec.heads, 2 * spec.positions - 1, std=1.0) if spec.relative_buckets else None,
            layers=tuple(self.layer(spec) for _ in range(spec.layers)),
            norms=tuple((self.norm(h), self.norm(h)) for _ in range(spec.layers)),
            dense=self.linear("dense", h, h) if head.dense else None,
            output=self.linear("head", head.outputs, h),
        )


DYNAMIC_LAYERS = {
    "int8 dynamic": frozenset({*LINEARS, "projection", "dense", "head"}),
    # Queries and keys as integers; each pass with another kind of layer on either side.
    "int8 mixed": frozenset({"value", "output", "outer", "dense"}),
    # Queries and keys as floats, from static layers next to dynamic ones.
    "int8 mixed, float scores": frozenset({"query", "key", "inner", "projection", "head"}),
}
KINDS = ("float", "int8", "int8 attention", *DYNAMIC_LAYERS)


def random_parts(spec: EncoderSpec, head: Head, kind: str) -> Parts:
    """Parts of one of `KINDS`."""
    return Making(kind != "float", kind == "int8 attention", DYNAMIC_LAYERS.get(kind, frozenset())).parts(spec, head)
