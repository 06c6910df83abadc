"""The bits of a plan as papers write them: of weights, embeddings and activations, such as 2-8-8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8core.model.sites import SiteKind
from q8core.quant.codes import is_packed
from q8core.quant.plan import Plan

FLOAT_BITS = 32


@dataclass(frozen=True)
class Bits:
    """The bits of three parts of a model, each the mean over what the part holds.

    Attributes:
        weights: of the layers' linears, over their weights.
        embeddings: of the word embeddings.
        activations: of these linears' inputs, over the multiplications with them.
        mixed: whether the linears differ.
    """

    weights: float
    embeddings: float
    activations: float
    mixed: bool

    def __str__(self) -> str:
        """Return the bits with dashes; a mean that is one of several has a decimal."""
        parts = (self.weights, self.embeddings, self.activations)
        text = "-".join(f"{part:.1f}" if self.mixed and part != round(part) else f"{part:.0f}" for part in parts)
        return f"{text}, mixed" if self.mixed else text


def bits_of(plan: Plan) -> Bits:
    """Return the bits of a plan; what stays in float has 32."""
    linears = [site for path, site in plan.sites.items() if site.site.kind == "linear" and path.startswith("layers.")]
    sizes = [site.site.shape[0] * site.site.shape[1] for site in linears]
    weights = [FLOAT_BITS if site.weight is None else site.weight.bits for site in linears]
    inputs = [FLOAT_BITS if site.input is None else site.input.bits for site in linears]
    words = plan.sites["word_embeddings"].weight
    return Bits(
        _mean(weights, sizes),
        FLOAT_BITS if words is None else words.bits,
        _mean(inputs, sizes),
        len(set(weights)) > 1 or len(set(inputs)) > 1,
    )


def packed_bits(plan: Plan, *kinds: SiteKind) -> list[int]:
    """Return the different bits of the weights of these kinds of site that are stored as packed codes."""
    weights = [site.weight for site in plan.sites.values() if site.site.kind in kinds]
    return sorted({weight.bits for weight in weights if weight is not None and is_packed(weight.bits)})


def _mean(values: Sequence[int], sizes: Sequence[int]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
