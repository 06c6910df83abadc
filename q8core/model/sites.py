"""The sites of a model: its parts, under names that are the same in every family.

Schemes, checkpoints, training and engines refer to parts and tensors by these names.

A path names one site, a slot the same site in all layers: ``layers.3.query`` has the slot ``query``, ``head.output``
the slot ``head_output``, and for ``word_embeddings`` both are the same. The float tensors of a site are ``path.weight``
and, except for tables, ``path.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from q8core.model.head import HeadSpec
from q8core.model.spec import EncoderSpec

SiteKind = Literal["table", "norm", "linear", "products"]

EMBEDDING_PROJECTION = "embedding_projection"
TABLES = ("word_embeddings", "token_type_embeddings", "position_embeddings")
PROJECTIONS = ("query", "key", "value")
"""The three linears that read a layer's input."""
LAYER_LINEARS = (*PROJECTIONS, "attention_output", "ffn_in", "ffn_out")
PRODUCTS = "attention_products"
"""Q K^T and P V of a layer."""
RELATIVE_BIAS = "relative_attention_bias"
HEAD_DENSE, HEAD_OUTPUT = "head.dense", "head.output"
HEAD = (HEAD_DENSE, HEAD_OUTPUT)


@dataclass(frozen=True)
class Site:
    """A part of a model that computes something.

    Attributes:
        path: its name in the model.
        slot: its name without the layer.
        kind: what it computes.
        shape: shape of its weight: (rows, columns) of a table, (out, in) of a linear, (columns,) of a norm; () for
            products, which have none.
    """

    path: str
    slot: str
    kind: SiteKind
    shape: tuple[int, ...]

    @property
    def float_tensors(self) -> Mapping[str, tuple[int, ...]]:
        """The names and shapes of its float tensors."""
        if self.kind == "products":
            return {}
        weight = {f"{self.path}.weight": self.shape}
        return weight if self.kind == "table" else {**weight, f"{self.path}.bias": self.shape[:1]}


def layer_path(layer: int, slot: str) -> str:
    """Return the path of a layer's site."""
    return f"layers.{layer}.{slot}"


def sites(spec: EncoderSpec, head: HeadSpec | None) -> tuple[Site, ...]:
    """Return the sites of an encoder and, if given, of a head, in the order of computation."""
    found = [*_embedding_sites(spec)]
    for layer in range(spec.layers):
        found += _layer_sites(spec, layer)
    return (*found, *(_head_sites(spec, head) if head else ()))


def float_shapes(spec: EncoderSpec, head: HeadSpec | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every float tensor by its name."""
    return {name: shape for site in sites(spec, head) for name, shape in site.float_tensors.items()}


def _embedding_sites(spec: EncoderSpec) -> list[Site]:
    width = spec.table_columns
    rows = {
        "word_embeddings": spec.vocabulary,
        "token_type_embeddings": spec.token_types,
        "position_embeddings": spec.first_position + spec.positions,
    }
    found = [Site(slot, slot, "table", (rows[slot], width)) for slot in TABLES if rows[slot]]
    found.append(Site("embedding_norm", "embedding_norm", "norm", (width,)))
    if spec.embedding:
        found.append(Site(EMBEDDING_PROJECTION, EMBEDDING_PROJECTION, "linear", (spec.hidden, width)))
    if spec.relative_buckets:
        found.append(Site(RELATIVE_BIAS, RELATIVE_BIAS, "table", (spec.relative_buckets, spec.heads)))
    return found


def _layer_sites(spec: EncoderSpec, layer: int) -> list[Site]:
    h, a, f = spec.hidden, spec.attention, spec.inner
    shapes = dict.fromkeys(PROJECTIONS, (a, h)) | {"attention_output": (h, a), "ffn_in": (f, h), "ffn_out": (h, f)}
    order: tuple[tuple[str, SiteKind], ...] = (
        *((slot, "linear") for slot in PROJECTIONS),
        (PRODUCTS, "products"),
        ("attention_output", "linear"),
        ("attention_norm", "norm"),
        ("ffn_in", "linear"),
        ("ffn_out", "linear"),
        ("ffn_norm", "norm"),
    )
    others: dict[SiteKind, tuple[int, ...]] = {"norm": (h,), "products": ()}
    return [Site(layer_path(layer, slot), slot, kind, shapes.get(slot, others.get(kind, ()))) for slot, kind in order]


def _head_sites(spec: EncoderSpec, head: HeadSpec) -> tuple[Site, ...]:
    output = Site(HEAD_OUTPUT, "head_output", "linear", (head.outputs, spec.hidden))
    if head.dense is None:
        return (output,)
    return Site(HEAD_DENSE, "head_dense", "linear", (spec.hidden, spec.hidden)), output
