"""What is quantized and how: a `Scheme` is plain data, one `SiteScheme` for each slot of a model.

`overrides` change single sites by a glob of their path (``layers.0.*``, ``*.ffn_out``, ``head.output``). Anything
unknown raises a `SchemeError`: a typo must never silently leave a layer in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from q8core.documents import shown, validated
from q8core.errors import SchemeError
from q8core.model.sites import EMBEDDING_PROJECTION, LAYER_LINEARS, PRODUCTS, PROJECTIONS, TABLES
from q8core.quant.quantizer import PER_CHANNEL, STATIC, Quantizer
from q8core.quant.schemes.migrate import migrated
from q8core.quant.schemes.tables import SCHEME_VERSION, check_keys, table

Arithmetic = Literal["float", "relative_u8"]

LINEAR_SLOTS = (EMBEDDING_PROJECTION, *LAYER_LINEARS, "head_dense", "head_output")
SLOTS = (*TABLES, *LINEAR_SLOTS, PRODUCTS)
"""All slots of a scheme: embedding tables, linears, and the two attention products."""
_WEIGHT_BITS = {"max": (2, 8), "mse": (2, 8), "learned": (2, 8), "learned_mse": (2, 8), "twn": (2, 2), "mean": (1, 1)}
"""Rule of a weight -> the least and the most bits it is for."""
_ASYMMETRIC_BITS = 4
"""Weights of more bits have no zero points."""
CHOSEN_BITS = (2, 3, 4, 8)
"""The bits that a matrix may get where they are chosen on the model."""
FLOAT = "float"
"""The value of a slot or an override in a file that quantizes nothing."""


@dataclass(frozen=True)
class SiteScheme:
    """How the sites of one slot are quantized; by default they are not.

    Attributes:
        weight: quantizer of a table or of a linear's weight.
        input: quantizer of a linear's input, set if and only if the weight is quantized.
        output: quantizer of the output of query, key or value, which puts it on a grid for the attention products.
        arithmetic: that of attention products: "float", or "relative_u8": both products in integers
            (`q8core.quant.ops.products`).
        start_step: training steps that only observe ranges and compute in float32.
    """

    weight: Quantizer | None = None
    input: Quantizer | None = None
    output: Quantizer | None = None
    arithmetic: Arithmetic = "float"
    start_step: int = 0

    def __post_init__(self) -> None:
        if self.start_step < 0:
            raise SchemeError(f"start_step is {self.start_step}; allowed: a whole number of at least 0")

    @property
    def quantizes(self) -> bool:
        """Whether anything is quantized."""
        return self.weight is not None or self.arithmetic != "float"


_DEFAULTS = {"weight": PER_CHANNEL, "input": STATIC, "output": STATIC}
"""The quantizers that a table in a file changes if the slot had none before."""


@dataclass(frozen=True)
class Scheme:
    """A complete description of a quantized model.

    Attributes:
        name: the preset's name, or the user's own.
        slots: one `SiteScheme` for each of `SLOTS`.
        ema_decay: weight of the old range when a batch is observed.
        ema_debias: use min(ema_decay, (1 + n) / (10 + n)) at observation n, so that the first batch is forgotten.
        ignore_padding: leave positions with attention_mask 0 out of the ranges.
        share_qkv_input: query, key and value of a layer use one input range (they read the same tensor).
        overrides: glob of a site's path -> what changes there, or "float"; later entries win. `layers.lower.` and
            `layers.upper.` at the start of a glob stand for half of the layers.
        average_bits: most bits of a weight of the layers on average. Training begins with choosing each matrix's bits
            on the model, which become overrides; until then all have those of their slots. None if there is no choice.

    Raises:
        SchemeError: if a slot is missing or unknown, or a value is not allowed.
    """

    name: str
    slots: Mapping[str, SiteScheme]
    ema_decay: float = 0.9999
    ema_debias: bool = True
    ignore_padding: bool = True
    share_qkv_input: bool = True
    overrides: Mapping[str, Mapping[str, object] | Literal["float"]] = field(
        default_factory=dict[str, Mapping[str, object]]
    )
    average_bits: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise SchemeError("a scheme's name must be a text that is not empty")
        if not 0 <= self.ema_decay < 1:
            raise SchemeError(f"ema_decay must be at least 0 and less than 1, not {shown(self.ema_decay)}")
        if self.average_bits is not None and not CHOSEN_BITS[0] <= self.average_bits <= CHOSEN_BITS[-1]:
            raise SchemeError(f"average_bits is {self.average_bits:g}; allowed: {CHOSEN_BITS[0]} to {CHOSEN_BITS[-1]}")
        check_keys("slot", self.slots, SLOTS, complete=True)
        for slot, scheme in self.slots.items():
            check_site(slot, scheme, f"slot {slot}")
        check_products({slot: self.slots[slot] for slot in (*PROJECTIONS, PRODUCTS)}, "slots")
        for glob, changes in self.overrides.items():
            changed(SiteScheme(), changes, f"override {shown(glob)}")
        object.__setattr__(self, "slots", {slot: self.slots[slot] for slot in SLOTS})
        object.__setattr__(self, "overrides", dict(self.overrides))

    def at(self, slot: str, path: str) -> SiteScheme:
        """Return the scheme of the site at `path` in `slot`: the slot's scheme with matching overrides applied."""
        found = self.slots[slot]
        for glob, changes in self.overrides.items():
            if not fnmatchcase(path, glob):
                continue
            if isinstance(changes, Mapping) and glob != path:  # may match several sites: change the fields this one has
                changes = {key: value for key, value in changes.items() if key in parts_of(slot)}
            found = changed(found, changes, f"override {shown(glob)}")
        check_site(slot, found, path)
        return found

    def of_layers(self, count: int) -> Scheme:
        """Return the scheme of a model with so many layers: globs of halves become those of their layers.

        `layers.lower.` and `layers.upper.` are the first and the second half; of an odd number, the upper has one more.
        """
        overrides: dict[str, Mapping[str, object] | Literal["float"]] = {}
        for glob, changes in self.overrides.items():
            numbers = {"lower": range(count // 2), "upper": range(count // 2, count)}
            _, half, rest = (*glob.split(".", 2), "", "")[:3]
            if not glob.startswith("layers.") or not numbers.get(half):
                overrides[glob] = changes
                continue
            for number in numbers[half]:
                overrides[f"layers.{number}.{rest}"] = changes
        return self if overrides == self.overrides else replace(self, overrides=overrides)

    @property
    def needs_ranges(self) -> bool:
        """Whether any range may come from training or calibration."""
        linears = [self.slots[slot] for slot in LINEAR_SLOTS]
        possible = [*linears]
        for changes in self.overrides.values():
            if isinstance(changes, Mapping) and "input" in changes:
                possible += [changed(linear, changes, "override") for linear in linears]
        return any(site.input is not None and site.input.granularity == "tensor" for site in possible)

    def smoothed(self, strength: float) -> Scheme:
        """Return the scheme with this smoothing of all quantized inputs; 0 for one step for all columns."""
        slots = {
            slot: site if site.input is None else replace(site, input=replace(site.input, smoothing=strength))
            for slot, site in self.slots.items()
        }
        return replace(self, slots=slots)

    def to_dict(self) -> dict[str, object]:
        """Return the scheme as plain JSON values."""
        return {"version": SCHEME_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object], layers: int | None = None, *, head_dense: bool = True) -> Scheme:
        """Return the scheme with the values of `to_dict`; a scheme of an earlier version is migrated.

        Args:
            data: plain values.
            layers: number of layers of the scheme's model; needed for a scheme of version 1 with overrides.
            head_dense: whether the model's head has a dense layer; needed in the same case.

        Raises:
            SchemeError: if a key is unknown or missing or a value is not allowed.
        """
        values = {**migrated(data, layers, head_dense=head_dense)}
        if values.pop("version") != SCHEME_VERSION:
            raise SchemeError(
                f"version is {shown(data['version'])}; this release reads {SCHEME_VERSION}, and schemes without one"
            )
        return validated(Scheme, values, "scheme", SchemeError)


def parts_of(slot: str) -> tuple[str, ...]:
    """Return the fields of `SiteScheme` that a slot's sites can have."""
    if slot == PRODUCTS:
        return "arithmetic", "start_step"
    if slot not in LINEAR_SLOTS:
        return "weight", "start_step"
    return ("weight", "input", "output", "start_step") if slot in PROJECTIONS else ("weight", "input", "start_step")


def changed(base: SiteScheme, changes: object, what: str) -> SiteScheme:
    """Return a site's scheme after changes: "float" quantizes nothing, a table sets some fields or parts of them.

    Raises:
        SchemeError: if a key or value is not allowed.
    """
    if changes == FLOAT:
        return SiteScheme()
    values: dict[str, Any] = asdict(base)
    for key, value in table(what, changes).items():
        if key in _DEFAULTS and value in (None, "none"):
            values[key] = None
        elif key in _DEFAULTS:
            values[key] = {**(values[key] or asdict(_DEFAULTS[key])), **table(f"{what}, {key}", value)}
        else:
            values[key] = value
    return validated(SiteScheme, values, what, SchemeError)


def check_site(slot: str, scheme: SiteScheme, what: str) -> None:
    """Check that a slot can have this scheme.

    Raises:
        SchemeError: if it cannot; says what is allowed.
    """
    if scheme.arithmetic != "float" and slot != PRODUCTS:
        raise SchemeError(f"{what}: arithmetic {scheme.arithmetic!r} is for {PRODUCTS}")
    if slot not in LINEAR_SLOTS and (scheme.input or scheme.output):
        raise SchemeError(f"{what}: only linears have an input and an output that can be quantized")
    if slot == PRODUCTS and scheme.weight:
        raise SchemeError(f"{what}: {PRODUCTS} have no weight; quantize them with arithmetic 'relative_u8'")
    if slot not in LINEAR_SLOTS and scheme.weight and scheme.weight.grid == "split":
        raise SchemeError(
            f"{what}: weight.grid of a table is 'split'; allowed: symmetric, asymmetric. Its rows have scales of their "
            "own, and ternary ones (rule 'twn') say the same in as many bits"
        )
    if slot in LINEAR_SLOTS and (scheme.weight is None) != (scheme.input is None):
        missing = "weight" if scheme.weight is None else "input"
        raise SchemeError(f"{what}: a linear's weight and input are quantized together; its {missing} is not")
    _check_weight(scheme.weight, what)
    if slot not in LINEAR_SLOTS and scheme.weight and scheme.weight.rule == "learned_mse":
        raise SchemeError(f"{what}: weight.rule of a table is 'learned_mse', which is for linears; allowed: learned")
    _check_input(scheme.input, what)
    _check_output(slot, scheme, what)
    _check_smoothing(scheme, what)


def _check_weight(weight: Quantizer | None, what: str) -> None:
    if weight is None:
        return
    what, allowed = f"{what}: weight", _WEIGHT_BITS
    _check_one_of(f"{what}.granularity", weight.granularity, ("tensor", "channel", "group"))
    _check_one_of(f"{what}.rule", weight.rule, tuple(allowed))
    if weight.grid == "split":
        _check_one_of(f"{what}.rule of a split grid", weight.rule, ("mean",))
    least, most = (2, 2) if weight.grid == "split" else allowed[weight.rule]
    if not least <= weight.bits <= most:
        many = f"{least} to {most}" if least < most else least
        raise SchemeError(f"{what}.bits with rule {weight.rule!r} is {weight.bits}; allowed: {many}")
    if weight.grid == "asymmetric":
        _check_one_of(f"{what}.rule of an asymmetric grid", weight.rule, ("max",))
        if weight.bits > _ASYMMETRIC_BITS:
            raise SchemeError(
                f"{what}.grid with {weight.bits} bits is 'asymmetric'; allowed: symmetric, because zero points are "
                f"stored only beside codes, which integers of at most {_ASYMMETRIC_BITS} bits have"
            )
    if weight.rule in ("twn", "mean"):  # no value is outside of a range
        _check_one_of(f"{what}.gradient with rule {weight.rule!r}", weight.gradient, ("straight_through",))
    _check_one_of(f"{what}.smoothing", weight.smoothing, (0,))


def _check_smoothing(scheme: SiteScheme, what: str) -> None:
    weight, smoothing = scheme.weight, scheme.input.smoothing if scheme.input else 0
    if weight is None or not smoothing:
        return
    for kind, name, refused in (("rule", weight.rule, weight.learns), ("grid", weight.grid, weight.grid == "split")):
        if refused:
            raise SchemeError(
                f"{what}: input.smoothing is {smoothing} with a weight of {kind} {name!r}; allowed: 0, because "
                "smoothing changes the weight after its steps have started"
            )


def _check_input(quantizer: Quantizer | None, what: str) -> None:
    if quantizer is None:
        return
    _check_one_of(f"{what}: input.granularity", quantizer.granularity, ("tensor", "token"))
    rules = ("max",) if quantizer.granularity == "token" else ("ema", "mse", "learned", "learned_mse")
    _check_one_of(f"{what}: input.rule of one scale a {quantizer.granularity}", quantizer.rule, rules)
    if quantizer.granularity == "token":
        _check_one_of(f"{what}: input.smoothing of one scale a token", quantizer.smoothing, (0,))
        _check_one_of(f"{what}: input.grid of one scale a token", quantizer.grid, ("symmetric",))
        _check_one_of(f"{what}: input.gradient of one scale a token", quantizer.gradient, ("straight_through",))
    elif quantizer.rule != "ema":
        _check_one_of(f"{what}: input.smoothing with rule {quantizer.rule!r}", quantizer.smoothing, (0,))
    bits = (8,) if quantizer.granularity == "token" else (4, 8)
    _check_one_of(f"{what}: input.bits of one scale a {quantizer.granularity}", quantizer.bits, bits)


def _check_output(slot: str, scheme: SiteScheme, what: str) -> None:
    output = scheme.output
    if output is None:
        return
    if slot not in PROJECTIONS:
        raise SchemeError(f"{what}: an output is quantized for an attention's products: of query, key and value")
    if scheme.input is None or scheme.input.granularity != "tensor":
        raise SchemeError(f"{what}: a quantized output needs an input of granularity 'tensor'")
    for name, value, allowed in (
        ("granularity", output.granularity, "tensor"),
        ("rule", output.rule, "ema"),
        ("grid", output.grid, "symmetric"),
        ("bits", output.bits, 8),
        ("smoothing", output.smoothing, 0),
        ("gradient", output.gradient, "straight_through"),
    ):
        _check_one_of(f"{what}: output.{name}", value, (allowed,))


def check_products(of: Mapping[str, SiteScheme], what: str) -> None:
    """Refuse integer products without integer operands, and a quantized value output without integer products.

    Args:
        of: the schemes of query, key, value and the products of a layer.
        what: the layer's name in error messages.

    Raises:
        SchemeError: in either case; says which.
    """
    integers = {slot: of[slot].output is not None for slot in PROJECTIONS}
    products = of[PRODUCTS].arithmetic != "float"
    if products and not all(integers.values()):
        plain = next(slot for slot, found in integers.items() if not found)
        raise SchemeError(
            f"{what}: {PRODUCTS} in integers need quantized outputs of query, key and value, but {plain} has none"
        )
    if integers["value"] and not products:
        raise SchemeError(
            f"{what}: the output of value is quantized for {PRODUCTS} in integers, which are float: set their "
            "arithmetic to 'relative_u8', or value's output to 'none'"
        )


def _check_one_of(what: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SchemeError(f"{what} is {shown(value)}; allowed: {', '.join(map(str, allowed))}")
