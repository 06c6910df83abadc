"""The plan of a model: the quantizers, the arithmetic and the stored tensors of each site.

(encoder, head, scheme) -> ``Plan.of`` -> the code that trains, stores, loads, exports or runs the model walks the plan,
and refuses whatever differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from q8core.errors import SchemeError
from q8core.model.head import HeadSpec
from q8core.model.sites import PRODUCTS, PROJECTIONS, Site, layer_path, sites
from q8core.model.spec import EncoderSpec
from q8core.quant.codes import is_packed, stored_shape
from q8core.quant.quantizer import Quantizer
from q8core.quant.schemes.scheme import (
    SLOTS,
    Arithmetic,
    Scheme,
    SiteScheme,
    changed,
    check_products,
    check_site,
    parts_of,
)

Kind = Literal["float", "static", "dynamic"]
DType = Literal["F32", "I8", "U8", "I32"]

_FLOAT = SiteScheme()
_NOTHING = (None, "none", "float")


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of a quantized checkpoint: its dtype, as safetensors names it, and its shape."""

    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SitePlan:
    """A site and how it is quantized.

    Attributes:
        site: the part of the model.
        scheme: its quantizers and arithmetic; without quantizers if the site stays in float.
    """

    site: Site
    scheme: SiteScheme

    @property
    def path(self) -> str:
        """The site's name."""
        return self.site.path

    @property
    def weight(self) -> Quantizer | None:
        """The weight's quantizer."""
        return self.scheme.weight

    @property
    def input(self) -> Quantizer | None:
        """The input's quantizer."""
        return self.scheme.input

    @property
    def output(self) -> Quantizer | None:
        """The output's quantizer."""
        return self.scheme.output

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of attention products."""
        return self.scheme.arithmetic

    @property
    def kind(self) -> Kind:
        """Whether a linear is in float, has a fixed input range (static), or one range per token (dynamic)."""
        if self.input is None:
            return "float"
        return "dynamic" if self.input.granularity == "token" else "static"

    @property
    def smooths(self) -> bool:
        """Whether each column of the input has its own step."""
        return self.input is not None and self.input.smoothing > 0

    @property
    def tensors(self) -> Mapping[str, TensorPlan]:
        """The site's tensors in a quantized checkpoint, by name."""
        if self.weight is None:
            return {name: TensorPlan("F32", shape) for name, shape in self.site.float_tensors.items()}
        path, shape, bits = self.path, self.site.shape, self.weight.bits
        scales = (self.weight.scales(shape[0]),)
        found = {
            f"{path}.weight": TensorPlan("U8" if is_packed(bits) else "I8", stored_shape(shape, bits)),
            f"{path}.weight_scale": TensorPlan("F32", scales),
        }
        if is_packed(bits):
            found[f"{path}.weight_levels"] = TensorPlan("I8", (2**bits,))
        if self.weight.grid == "asymmetric":
            found[f"{path}.weight_zero_point"] = TensorPlan("I8", scales)
        if self.input is not None:
            found[f"{path}.bias"] = TensorPlan("I32" if self.kind == "static" else "F32", shape[:1])
        if self.kind == "static":
            found[f"{path}.input_scale"] = TensorPlan("F32", (1,))
        if self.smooths:
            found[f"{path}.input_smoothing"] = TensorPlan("F32", shape[1:])
        if self.input is not None and self.input.grid == "asymmetric":
            found[f"{path}.input_zero_point"] = TensorPlan("I32", (1,))
        if self.output is not None:
            found[f"{path}.output_scale"] = TensorPlan("F32", (1,))
        return found


@dataclass(frozen=True)
class Plan:
    """What a model is and how each of its sites is quantized; use :meth:`of`.

    Attributes:
        spec: the encoder.
        head: the head.
        scheme: the whole scheme; None for a model in float.
        sites: path -> the site's own plan, in the order of computation.
    """

    spec: EncoderSpec
    head: HeadSpec
    scheme: Scheme | None
    sites: Mapping[str, SitePlan]

    @classmethod
    def of(cls, spec: EncoderSpec, head: HeadSpec, scheme: Scheme | None = None) -> Plan:
        """Join a model and a scheme.

        Raises:
            SchemeError: if an override matches no site, or the settings of a site or a layer do not fit together.
        """
        places = sites(spec, head)
        if scheme is None:
            return cls(spec, head, None, {site.path: SitePlan(site, _FLOAT) for site in places})
        quantizable, applied = [site for site in places if site.slot in SLOTS], scheme.of_layers(spec.layers)
        for glob, changes in applied.overrides.items():
            matching = [site for site in quantizable if fnmatchcase(site.path, glob)]
            if not matching:
                raise SchemeError(
                    f"override {glob!r} matches no site; sites are {_shown([site.path for site in quantizable])}"
                )
            parts = {part for site in matching for part in parts_of(site.slot)}
            if isinstance(changes, Mapping) and not all(
                key in parts or value in _NOTHING for key, value in changes.items()
            ):
                first = matching[0]  # no site has the changed fields: the first one's error says so
                check_site(first.slot, changed(applied.slots[first.slot], changes, f"override {glob!r}"), first.path)
        found = {
            site.path: SitePlan(site, applied.at(site.slot, site.path) if site.slot in SLOTS else _FLOAT)
            for site in places
        }
        for site in found.values():
            _check_groups(site)
        for layer in range(spec.layers):
            of = {slot: found[layer_path(layer, slot)].scheme for slot in (*PROJECTIONS, PRODUCTS)}
            check_products(of, f"layers.{layer}")
        return cls(spec, head, scheme, found)

    @cached_property
    def tensors(self) -> Mapping[str, TensorPlan]:
        """Every tensor of the quantized checkpoint by name."""
        return {name: tensor for plan in self.sites.values() for name, tensor in plan.tensors.items()}

    @property
    def smooths(self) -> bool:
        """Whether any input has a step for each column, which calibration sets."""
        return any(site.smooths for site in self.sites.values())

    @property
    def starts_calibrated(self) -> bool:
        """Whether training starts from calibration: of columns' steps, or of ranges that it only moves."""
        inputs = [site.input for site in self.sites.values() if site.input is not None]
        return self.smooths or any(read.rule == "mse" or read.learns for read in inputs)

    def of_layer(self, layer: int, slot: str) -> SitePlan:
        """Return the plan of a layer's site."""
        return self.sites[layer_path(layer, slot)]


def _check_groups(site: SitePlan) -> None:
    weight = site.weight
    if weight is not None and weight.groups and site.site.shape[0] % weight.groups:
        raise SchemeError(
            f"{site.path}: weight.groups is {weight.groups}, which does not divide its {site.site.shape[0]} rows"
        )


def _shown(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + f", ..., {paths[-1]}"
